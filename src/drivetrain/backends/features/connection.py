"""How the online store is reached: a connection string as Feast wants it, and no password in any message."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Mapping
from typing import Any

from redis.exceptions import AuthenticationError, AuthorizationError, RedisError, ResponseError

from drivetrain.errors import DefinitionError, DrivetrainError, Problem, SystemFault, Unavailable

_DEFAULTS = {"socket_connect_timeout": "5", "socket_timeout": "30", "retry": "null"}
"""Seconds; without them a host that swallows packets holds a run for minutes. Trying again is the runner's part."""


def online_options(online: Mapping[str, Any]) -> dict[str, Any]:
    """The settings' `online` as Feast's own options. Raises `DefinitionError` if a Redis connection names no `host:port`."""
    if online["type"] != "redis":
        return dict(online)
    connection = str(online["connection_string"])
    if not re.match(r"[^:,=\s]+:\d+(,|$)", connection):
        message, hint = "a Redis connection begins with host:port", "such as 127.0.0.1:6379,password=${REDIS_PASSWORD}"
        raise DefinitionError([Problem("drivetrain.yaml", 0, "features.online.connection", message, hint)])
    parts = [_quoted_text(part) for part in connection.split(",")]
    given = {part.partition("=")[0] for part in parts}
    parts += [f"{option}={value}" for option, value in _DEFAULTS.items() if option not in given]
    # Feast's guard against older values refuses a correction of the newest one as well; `Feast.materialize` has its own.
    return {**online, "connection_string": ",".join(parts), "skip_dedup": True}


def _quoted_text(part: str) -> str:
    """Feast reads values as JSON where it can: a password of digits would become a number."""
    name, _, value = part.partition("=")
    quoted = value.startswith('"') and value.endswith('"')
    return f"{name}={json.dumps(value)}" if name in ("password", "username") and not quoted else part


def secrets(online: Mapping[str, Any]) -> list[str]:
    """The passwords in the settings, in each form in which a message might repeat them, longest first."""
    found = re.findall(r"password=([^,]+)", str(online.get("connection_string", "")))
    forms = {form for value in found for form in (value, value.strip('"'))}
    return sorted(filter(None, forms), key=len, reverse=True)


def connection_fault(error: Exception, text: str) -> DrivetrainError | None:
    """What an online store's error means to a run, `text` being its message without secrets; None if it is no such error."""
    if isinstance(error, AuthenticationError | AuthorizationError | ResponseError):
        return SystemFault(f"Redis refused: {text}", hint="check the password in features.online.connection")
    if isinstance(error, RedisError):
        return Unavailable(f"Redis does not answer: {text}", hint="is it running? see features.online.connection")
    if isinstance(error, sqlite3.OperationalError):
        return Unavailable(f"the online store cannot be used: {text}", hint="another process may hold it")
    return None
