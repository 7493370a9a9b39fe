"""What a handler of the HTTP server is given, and what it answers with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

Headers = Sequence[tuple[bytes, bytes]]
"""Names in lower case."""


@dataclass(slots=True)
class Request:
    """One request, read whole. `arrived` is the event loop's time at its first byte; `path` is percent-decoded, `query` is raw."""

    method: str
    path: str
    query: str
    headers: Headers
    body: bytes
    arrived: float

    def header(self, name: bytes) -> bytes | None:
        """The first value of the header of that name (lower case), without surrounding spaces."""
        for key, value in self.headers:
            if key == name:
                return value.strip()
        return None


@dataclass(slots=True)
class Response:
    """One answer. `Content-Length`, `Connection` and `Date` are the server's to add."""

    status: int
    body: bytes = b""
    headers: Headers = ()
    content_type: bytes = b"application/json"


class Stream(Protocol):
    """The body of an answer that is written piece by piece (chunked)."""

    async def write(self, chunk: bytes) -> None:
        """Sends a piece; waits while the client reads slower than this writes. Raises `ConnectionError` if it has gone."""
        ...

    def end(self) -> None:
        """The answer is complete."""
        ...

    def abort(self) -> None:
        """Cuts the connection, so that the client does not take half of an answer for the whole."""
        ...


class Exchange(Protocol):
    """One request and the one answer to it, given now or at any later time on the same event loop."""

    request: Request

    @property
    def gone(self) -> bool:
        """Whether the client has disconnected; what is replied then is dropped."""
        ...

    def reply(self, response: Response) -> None:
        """Answers. A second call is an error (`RuntimeError`)."""
        ...

    def stream(self, status: int, headers: Headers, content_type: bytes) -> Stream:
        """Starts an answer that is written piece by piece."""
        ...

    def on_disconnect(self, callback: Callable[[], object]) -> None:
        """Has `callback` called if the client goes before it has its answer."""
        ...


Handler = Callable[[Exchange], None]
"""Called on the event loop for each request; must not block. What it raises becomes a 500 and a line in the log."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a client may ask of the server: sizes in bytes, times in seconds.

    A client that sends its headers slower than `header_time`, or its body slower than `body_time` in all, is cut off with 408; an
    idle connection is closed after `idle_time`; a larger body gets 413, more headers 431.
    """

    body: int = 16 * 1024 * 1024
    headers: int = 64 * 1024
    header_time: float = 10.0
    body_time: float = 30.0
    idle_time: float = 75.0
    connections: int = 4096
