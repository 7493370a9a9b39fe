"""What the gateway reads of a request: its kind, its ids, its deadline, and the headers that go on."""

from __future__ import annotations

import math
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import quote

import msgspec

from drivetrain.backends.serving.gateway.forward import TIMEOUT
from drivetrain.backends.serving.gateway.streaming import EVENTS
from drivetrain.backends.serving.http.messages import Request
from drivetrain.backends.serving.http.wire import HOP_BY_HOP, end_to_end

_ID = b"x-request-id"
_TIME = b"x-drivetrain-time"
_LATEST = 253402300800.0
"""The year 10000: no calendar goes further."""
_READ = HOP_BY_HOP | {
    b"content-length",
    b"date",
    b"expect",
    b"host",
    b"accept",
    b"prefer",
    b"authorization",
    b"content-type",
    _ID,
    _TIME,
    TIMEOUT,
}
_PLAIN = re.compile(r"[A-Za-z0-9/_.:~!$&'()*+,;=@-]*")
_GIVEN_ID = re.compile(rb"[\x21-\x7e]{1,200}")


class BadRequest(ValueError):
    """A header that cannot be followed; the message says which."""


def new_ids() -> Iterator[bytes]:
    """Ids that nobody can guess: of 104 bits, many of them asked of the system at a time."""
    while True:
        drawn = secrets.token_hex(13 * 64).encode()
        yield from (drawn[start : start + 26] for start in range(0, len(drawn), 26))


@dataclass(slots=True)
class Read:
    """The headers of a request, taken apart. `timeout` in seconds, None if the caller has set none."""

    kept: list[tuple[bytes, bytes]]
    request_id: bytes
    content_type: bytes = b""
    timeout: float | None = None
    authorization: tuple[bytes, bytes] | None = None
    """Not among `kept`: whose it is has to be decided."""
    at: float | None = None
    """When the caller says that it was asked, in seconds since the epoch; believed of who has the token."""
    streams: bool = False
    asynchronous: bool = False


def read(request: Request, ids: Iterator[bytes]) -> Read:
    """The headers of a request, taken apart; one that brings no id gets the next one. Raises `BadRequest`."""
    found = Read([], b"")
    for header in request.headers:
        name, value = header
        if name not in _READ:
            found.kept.append(header)
        elif name == b"content-type":
            found.content_type = value
            found.kept.append(header)
        elif name == b"accept":
            found.streams = EVENTS in value
            found.kept.append(header)
        elif name == b"prefer":
            found.asynchronous = b"respond-async" in value
            found.kept.append(header)
        elif name == _ID:
            found.request_id = value.strip()
        elif name == b"authorization":
            found.authorization = header
        elif name == TIMEOUT:
            found.timeout = _timeout(value)
        elif name == _TIME:
            found.at = _seconds(value)
        elif name == b"connection" and value.lower() not in (b"keep-alive", b"close"):
            return _without_named(request, ids)
    if not _GIVEN_ID.fullmatch(found.request_id):
        found.request_id = next(ids)
    return found


def predicts(method: str, path: str) -> bool:
    """Whether a request asks for a prediction, in any of the protocols."""
    if method != "POST" and method != "PUT":
        return False
    if path.startswith("/predictions"):
        return path == "/predictions" or (path[12] == "/" and not path.endswith("/cancel"))
    return (path.startswith("/v2/models/") and path.endswith("/infer")) or (
        path.startswith("/v1/models/") and path.endswith(":predict")
    )


def id_in_path(method: str, path: str) -> str | None:
    """The id of a prediction that is PUT."""
    return path[13:] if method == "PUT" and path.startswith("/predictions/") else None


def trains(method: str, path: str) -> bool:
    """Whether a request is for Cog's second door to the model, which the replica answers as it does `/predictions`."""
    return path.startswith("/trainings") and method in ("POST", "PUT") and (len(path) == 10 or path[10] == "/")


def canceled(method: str, path: str) -> str | None:
    """The id of a prediction that is to be canceled, through either of Cog's doors."""
    if method == "POST" and path.endswith("/cancel"):
        for before in ("/predictions/", "/trainings/"):
            if path.startswith(before):
                return path[len(before) : -7] or None
    return None


def target(request: Request) -> str:
    """Path and query as they stand on the wire."""
    path = request.path if _PLAIN.fullmatch(request.path) else quote(request.path, safe="/:~!$&'()*+,;=@-_.")
    return f"{path}?{request.query}" if request.query else path


class _Identified(msgspec.Struct):
    id: str | None = None


_identified = msgspec.json.Decoder(_Identified)


def id_in_body(body: bytes) -> str | None:
    """The `id` that a caller of Cog's protocol or of V2 has given its prediction."""
    if b'"id"' not in body or body.lstrip()[:1] != b"{":
        return None
    try:
        return _identified.decode(body).id or None
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def is_instant(value: object) -> bool:
    """Whether a value is a time in seconds since the epoch that has a date."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < _LATEST


def _seconds(value: bytes) -> float:
    """A header's number; NaN if it is none, which the caller is told only if he is believed."""
    try:
        return float(value)
    except ValueError:
        return math.nan


def _timeout(value: bytes) -> float:
    try:
        return max(0, int(value)) / 1000
    except (ValueError, OverflowError):
        raise BadRequest("X-Request-Timeout-Ms is not a number of milliseconds") from None


def _without_named(request: Request, ids: Iterator[bytes]) -> Read:
    """The headers without those that `Connection` names."""
    content_type = [header for header in request.headers if header[0] == b"content-type"]
    plain = Request(
        request.method, request.path, request.query, [*end_to_end(request.headers), *content_type], b"", request.arrived
    )
    return read(plain, ids)
