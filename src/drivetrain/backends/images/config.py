"""An image's config and manifest, as OCI's image specification and Cog's labels have them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from drivetrain.backends.images import CONFIG, MANIFEST, Blob, Image, Layer
from drivetrain.backends.images.layers import WHEN
from drivetrain.backends.images.store import Store

PORT = 5000
SOURCE = "/src"
_CREATED = datetime.fromtimestamp(WHEN, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
_SECOND = 1_000_000_000
_HEALTH = (
    "import os, urllib.request as r; "
    f"r.urlopen('http://127.0.0.1:' + os.environ.get('PORT', '{PORT}') + '/v2/health/ready', timeout=5)"
)


@dataclass(frozen=True, slots=True)
class Start:
    """How a container of the image starts: `entrypoint` with `arguments` as the user `uid`, with `environment` over the base's own.
    Without an entrypoint the arguments are the command, for whoever starts it to replace. `serves` says whether it listens on `PORT`,
    and answers `/v2/health/ready` there."""

    entrypoint: Sequence[str]
    arguments: Sequence[str]
    environment: Mapping[str, str]
    path: str
    uid: int
    serves: bool = True


def image(
    store: Store,
    platform: str,
    base: Mapping[str, Any],
    layers: Sequence[Layer],
    start: Start,
    labels: Mapping[str, str],
    annotations: Mapping[str, str],
) -> Image:
    """The image of those layers; `base` is the config of what it stands on, `labels` go into its config, `annotations` into its
    manifest."""
    system, _, architecture = platform.partition("/")
    document = {
        "architecture": architecture, "os": system, "created": _CREATED, "config": _run(base.get("config", {}), start, labels),
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
        "history": [{"created": _CREATED, "created_by": layer.made} for layer in layers],
    }  # fmt: skip
    config = store.put(CONFIG, _json(document | _kept(base, ("variant", "os.version"))))
    return assembled(config, [layer.blob for layer in layers], annotations, store)


def weights(store: Store, platform: str, layer: Layer, annotations: Mapping[str, str]) -> Image:
    """The layer of weights as an image of its own, without anything to start: for volumes of Kubernetes that are images."""
    system, _, architecture = platform.partition("/")
    document = {
        "architecture": architecture, "os": system, "created": _CREATED, "config": {},
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id]}, "history": [{"created": _CREATED, "created_by": layer.made}],
    }  # fmt: skip
    return assembled(store.put(CONFIG, _json(document)), [layer.blob], annotations, store)


def assembled(config: Blob, layers: Sequence[Blob], annotations: Mapping[str, str], store: Store) -> Image:
    """The image with its manifest."""
    document = {
        "schemaVersion": 2, "mediaType": MANIFEST, "config": config.descriptor(), "layers": [blob.descriptor() for blob in layers],
        "annotations": dict(annotations),
    }  # fmt: skip
    manifest = _json(document)
    return Image(manifest, store.put(MANIFEST, manifest).digest, config, layers, annotations)


def _run(base: Mapping[str, Any], start: Start, labels: Mapping[str, str]) -> dict[str, Any]:
    """The part of a config that says what a container starts; of the base's own, its environment and labels are kept."""
    before = dict(entry.partition("=")[::2] for entry in base.get("Env") or [])
    usual = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    variables = before | dict(start.environment) | {"PATH": f"{start.path}:{before.get('PATH', usual)}"}
    found: dict[str, Any] = {
        "User": str(start.uid),
        "Env": [f"{name}={value}" for name, value in sorted(variables.items())],
        "Cmd": list(start.arguments),
        "WorkingDir": SOURCE,
        "StopSignal": "SIGTERM",
        "Labels": {**(base.get("Labels") or {}), **labels},
    }
    if start.entrypoint:
        found["Entrypoint"] = list(start.entrypoint)
    if start.serves:
        found["ExposedPorts"] = {f"{PORT}/tcp": {}}
        # Docker reads it. OCI's specification has no such key: podman passes it over, and Kubernetes asks by itself.
        found["Healthcheck"] = {
            "Test": ["CMD", start.entrypoint[0], "-c", _HEALTH],
            "Interval": 10 * _SECOND, "Timeout": 6 * _SECOND, "StartPeriod": 60 * _SECOND, "Retries": 3,
        }  # fmt: skip
    return found


def _kept(base: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: base[name] for name in names if name in base}


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
