"""Heads of HTTP/1.1 messages as bytes, and what of a head may be passed on."""

from __future__ import annotations

import time
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus

from drivetrain.backends.serving.http.messages import Headers, Response

WITHOUT_BODY = frozenset((204, 304))
HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)
WRITTEN_HERE = frozenset((b"content-length", b"content-type", b"date", b"expect", b"host"))
"""Headers that whoever sends a message writes itself."""


@lru_cache(maxsize=256)
def opening(status: int, content_type: bytes) -> bytes:
    """Status line and `Content-Type`, if there is one."""
    if b"\r" in content_type or b"\n" in content_type:
        raise ValueError(f"a content type has no line breaks: {content_type!r}")
    try:
        phrase = HTTPStatus(status).phrase.encode()
    except ValueError:
        phrase = b""
    line = b"HTTP/1.1 %d %b\r\n" % (status, phrase)
    return line + b"Content-Type: %b\r\n" % content_type if content_type else line


def lines(headers: Headers) -> bytes:
    """Headers as they stand on the wire.

    Raises `ValueError` for a line break in a name or a value: whoever could put one there could write an answer of their own.
    """
    joined = b"".join([b"%b: %b\r\n" % header for header in headers])
    if joined.count(b"\n") != len(headers) or joined.count(b"\r") != len(headers):
        raise ValueError("a header has no line breaks")
    return joined


def refusal(status: int, reason: str) -> Response:
    """The server's own answer to a request that no handler is to see."""
    return Response(status, b'{"error": "%b"}' % reason.encode())


def date_line() -> bytes:
    """The `Date` header of this second."""
    return b"Date: %b\r\n" % formatdate(time.time(), usegmt=True).encode()


def end_to_end(headers: Headers) -> list[tuple[bytes, bytes]]:
    """The headers that a proxy passes on: without those of the connection, those that `Connection` names, and those that each sender
    writes itself (`Host`, `Content-Length`, `Content-Type`, `Date`, `Expect`)."""
    kept = [header for header in headers if header[0] not in HOP_BY_HOP and header[0] not in WRITTEN_HERE]
    if len(kept) == len(headers):
        return kept
    named = {
        name.strip().lower() for key, value in headers if key == b"connection" for name in value.split(b",")
    } - HOP_BY_HOP
    return [header for header in kept if header[0] not in named] if named else kept
