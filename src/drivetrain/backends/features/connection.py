"""How the online store is reached: a connection string as Feast wants it, and the same string as an address."""

from __future__ import annotations

import json
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from drivetrain.errors import DefinitionError, Problem

_DEFAULTS = {"socket_connect_timeout": "5", "socket_timeout": "30", "retry": "null"}
"""Seconds; without them a host that swallows packets holds a run for minutes. Trying again is the runner's part."""
_KEY = "features.online.connection"


def online_options(online: Mapping[str, Any]) -> dict[str, Any]:
    """The settings' `online` as Feast's own options. Raises `DefinitionError` if a Redis connection names no `host:port`."""
    if online["type"] != "redis":
        return dict(online)
    parts = [_quoted_text(part) for part in _parts(str(online["connection_string"]))]
    given = {part.partition("=")[0] for part in parts}
    parts += [f"{option}={value}" for option, value in _DEFAULTS.items() if option not in given]
    # Feast's guard against older values refuses a correction of the newest one as well; `Feast.materialize` has its own.
    return {**online, "connection_string": ",".join(parts), "skip_dedup": True}


def _parts(connection: str) -> list[str]:
    if not re.match(r"[^:,=\s]+:\d+(,|$)", connection):
        hint = "such as 127.0.0.1:6379,password=${REDIS_PASSWORD}"
        raise _mistake("a Redis connection begins with host:port", hint)
    return connection.split(",")


def _mistake(message: str, hint: str) -> DefinitionError:
    return DefinitionError([Problem("drivetrain.yaml", 0, _KEY, message, hint)])


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


@dataclass(frozen=True, slots=True)
class Address:
    """A Redis server; `connect_within` and `answer_within` in seconds."""

    host: str
    port: int
    database: int
    username: str | None
    password: str | None
    tls: ssl.SSLContext | None
    connect_within: float
    answer_within: float

    def __repr__(self) -> str:
        return f"{self.host}:{self.port}"


def address(connection: str, environment: Mapping[str, str]) -> Address:
    """The server that a connection string names, `${NAME}` in it replaced by the environment's value.

    Raises `DefinitionError` if a variable is not set or the string is none.
    """
    unset = sorted({name for name in re.findall(r"\$\{(\w+)\}", connection) if not environment.get(name)})
    if unset:
        raise _mistake(f"the environment variable {', '.join(unset)} is not set", f"export {unset[0]}=...")
    parts = _parts(re.sub(r"\$\{(\w+)\}", lambda found: environment[found[1]], connection))
    host, _, port = parts[0].rpartition(":")
    given = {**_DEFAULTS, **{name: value.strip('"') for name, _, value in (part.partition("=") for part in parts[1:])}}
    try:
        return Address(
            host,
            int(port),
            int(given.get("db", "0")),
            given.get("username"),
            given.get("password"),
            _tls(given) if given.get("ssl", "").lower() == "true" else None,
            float(given["socket_connect_timeout"]),
            float(given["socket_timeout"]),
        )
    except ValueError as error:
        raise _mistake("db is a whole number, timeouts are seconds", "such as 127.0.0.1:6379,db=1") from error
    except OSError as error:
        raise _mistake(
            f"a certificate cannot be read: {error}", "see ssl_ca_certs, ssl_certfile, ssl_keyfile"
        ) from error


def _tls(given: Mapping[str, str]) -> ssl.SSLContext:
    """As redis-py reads the same options."""
    context = ssl.create_default_context(cafile=given.get("ssl_ca_certs"))
    if given.get("ssl_cert_reqs") == "none" or given.get("ssl_check_hostname", "").lower() == "false":
        context.check_hostname = False
    if given.get("ssl_cert_reqs") == "none":
        context.verify_mode = ssl.CERT_NONE
    if "ssl_certfile" in given:
        context.load_cert_chain(given["ssl_certfile"], given.get("ssl_keyfile"))
    return context
