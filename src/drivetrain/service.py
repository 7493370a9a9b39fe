"""What a service is started with, from the definition: the settings of its gateway, and its bearer token."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drivetrain.backends.features import LOOKUP_PLAN, SQLITE_FILE
from drivetrain.backends.serving.gateway.settings import Batching, Capturing, LookingUp, Scaling, Settings
from drivetrain.definition.definition import Definition
from drivetrain.definition.serving import Scale
from drivetrain.errors import UsageError

_OPENER = "drivetrain.backends.features.online:open_lookup"


def settings(definition: Definition, project: Path, state: Path) -> Settings:
    """The settings of the lifecycle's gateway.

    Raises `UsageError` if the environment variable that should hold the token is not set.
    """
    part, home = definition.serving, state.absolute() / "serving"
    return Settings(
        name=definition.name,
        home=str(home),
        host=part.host,
        port=part.port,
        grpc_port=part.grpc_port,
        token_file=str(_token_file(home, definition.name, part.auth.token_variable)),
        guard_predictions=part.auth.predictions,
        certificate=str(project / part.tls.certificate) if part.tls else None,
        key=str(project / part.tls.key) if part.tls else None,
        body=part.limits.body,
        timeout=part.limits.timeout.total_seconds(),
        queue=part.limits.queue,
        scaling=_scaling(part.scale),
        batching=Batching(part.batch.max, part.batch.wait.total_seconds()),
        capturing=_capturing(definition, home),
        lookup=_lookup(definition, state.absolute()),
    )


def capture_directory(state: Path, name: str) -> Path:
    """Where the requests and answers of the service of that name are kept."""
    return state.absolute() / "serving" / f"{name}.capture"


def _scaling(part: Scale) -> Scaling:
    return Scaling(
        min=part.min,
        max=part.max,
        metric=part.metric,
        target=part.target,
        utilization=part.utilization,
        window=part.window.total_seconds(),
        grace=part.grace.total_seconds(),
    )


def _capturing(definition: Definition, home: Path) -> Capturing:
    part = definition.monitoring
    return Capturing(
        directory=str(home / f"{definition.name}.capture") if part.capture.keep else None,
        sample=part.sample,
        sync=part.capture.sync,
        keep=part.capture.keep,
        sink=part.capture.sink,
    )


def _lookup(definition: Definition, state: Path) -> LookingUp | None:
    part = definition.serving.lookup
    if definition.features is None or not part.enabled:
        return None
    online = definition.features.online
    store: Mapping[str, Any] = (
        {"type": "sqlite", "path": str(state / SQLITE_FILE)}
        if online.store == "sqlite"
        else {"type": "redis", "connection_string": online.connection}
    )
    options = {"plan": str(state / LOOKUP_PLAN), "store": store}
    return LookingUp(_OPENER, options, part.on_failure, part.defaults, part.timeout.total_seconds())


def _token_file(home: Path, name: str, variable: str | None) -> Path:
    """The file with the bearer token, which only its owner can read."""
    path = home / f"{name}.token"
    if variable is None and path.is_file():
        return path
    token = secrets.token_urlsafe(32) if variable is None else os.environ.get(variable, "")
    if not token:
        raise UsageError(f"the environment variable {variable} is not set", hint="it holds the service's bearer token")
    if path.is_file() and path.read_text() == token:
        return path
    home.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    with open(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(token)
    scratch.replace(path)
    return path
