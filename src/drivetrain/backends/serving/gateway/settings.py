"""What a gateway is started with: `python -m drivetrain.backends.serving.gateway SETTINGS.json`."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

SERVICE_VARIABLE = "DRIVETRAIN_SERVICE"
"""Names the service in the environment of all that its gateway starts, so that what is left after a kill can be found."""


@dataclass(frozen=True, slots=True)
class Scaling:
    """Knative's settings of the same names; times in seconds. `target` is requests in flight (or a second, for the metric `rps`)
    that a replica can carry; `utilization` is the share of it, in percent, that is aimed at."""

    min: int = 1
    max: int = 1
    metric: str = "concurrency"
    target: float = 10.0
    utilization: float = 70.0
    window: float = 60.0
    grace: float = 30.0


@dataclass(frozen=True, slots=True)
class Capturing:
    """Where requests and answers are kept. `sync` is "never", "interval" (each second) or "always"; `keep` is in bytes, the
    oldest segments go first; `sink` is an HTTP address that gets each event as well."""

    directory: str | None = None
    sample: float = 1.0
    sync: str = "interval"
    keep: int = 1024**3
    segment: int = 64 * 1024**2
    queue: int = 10_000
    """Events that may wait to be written; beyond it they are dropped, and counted."""
    sink: str | None = None


@dataclass(frozen=True, slots=True)
class LookingUp:
    """Online features that the gateway adds to a request.

    `opener` is "module:function", called with `options`; see `lookup.OnlineFeatures`. `on_failure` is "error" (503) or "defaults";
    `defaults` are the values of features that are missing, null where none is named; `timeout` in seconds.
    """

    opener: str
    options: Mapping[str, Any]
    on_failure: str = "error"
    defaults: Mapping[str, Any] = field(default_factory=dict)
    timeout: float = 0.1


@dataclass(frozen=True, slots=True)
class Batching:
    """Micro-batches of runners that offer `batch` or `infer`; `wait` in seconds."""

    max: int = 32
    wait: float = 0.002


@dataclass(frozen=True, slots=True)
class Settings:
    """One service. `home` is the directory that holds its state: `NAME.routes.json`, `bundles/`, logs. `token_file` holds the bearer
    token that changes of state need; with `guard_predictions` predictions need it too. `body` in bytes, `timeout` in seconds."""

    name: str
    home: str
    host: str
    port: int
    token_file: str
    grpc_port: int | None = None
    guard_predictions: bool = False
    certificate: str | None = None
    key: str | None = None
    body: int = 16 * 1024**2
    timeout: float = 60.0
    queue: int = 256
    """Requests that may wait for a replica; one more is answered 503 with `Retry-After`."""
    ready_within: float = 300.0
    scaling: Scaling = field(default_factory=Scaling)
    capturing: Capturing = field(default_factory=Capturing)
    batching: Batching = field(default_factory=Batching)
    lookup: LookingUp | None = None
    upstreams: Mapping[str, str] = field(default_factory=dict)
    """Revision -> URL of replicas that something else runs (KServe's predictor, Cog's own server); none are started then."""


def write(settings: Settings, path: Path) -> None:
    """Keeps the settings as JSON."""
    path.write_text(json.dumps(asdict(settings), sort_keys=True, indent=1) + "\n")


def read(path: Path) -> Settings:
    """The settings back. Raises `ValueError` for a field that is not known."""
    found: Settings = _build(Settings, json.loads(path.read_bytes()))
    return found


def _build(kind: Any, values: Mapping[str, Any]) -> Any:
    unknown = set(values) - {entry.name for entry in fields(kind)}
    if unknown:
        raise ValueError(f"{kind.__name__} has no field {', '.join(sorted(unknown))}")
    hints = typing.get_type_hints(kind)
    return kind(**{name: _value(hints[name], value) for name, value in values.items()})


def _value(hint: Any, value: Any) -> Any:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        if value is None:
            return None
        hint = next(option for option in typing.get_args(hint) if option is not type(None))
    return _build(hint, value) if is_dataclass(hint) else value
