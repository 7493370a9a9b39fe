"""One of a client's connections: a request out, its answer in, then the next."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, cast

import httptools

from drivetrain.backends.serving.http.messages import Headers
from drivetrain.backends.serving.http.outcomes import BadAnswer, ClientError, ClientResponse, ConnectionLost
from drivetrain.backends.serving.http.wire import WITHOUT_BODY

if TYPE_CHECKING:
    from drivetrain.backends.serving.http.client import Client

UNSENT = 65536
"""A request of this size or more may still be under way when its answer is there; such a connection is not used again."""


class Sink(Protocol):
    """Takes an answer as it comes."""

    def head(self, status: int, headers: Headers) -> None:
        """Status and headers are there."""
        ...

    def piece(self, data: bytes) -> None:
        """A piece of the body."""
        ...

    def end(self, error: ClientError | None) -> None:
        """The body is complete, or will not be."""
        ...


class Call:
    """A request that has been handed to a client, until its answer is there."""

    __slots__ = ("_client", "deadline", "done", "head_only", "link", "message", "sink")

    def __init__(
        self,
        client: Client,
        message: list[bytes],
        head_only: bool,
        done: Callable[[ClientResponse | ClientError], None] | None,
        sink: Sink | None,
        deadline: float,
    ) -> None:
        self._client = client
        self.message = message
        self.head_only = head_only
        self.done = done
        self.sink = sink
        self.deadline = deadline
        self.link: Link | None = None

    def cancel(self) -> None:
        """Gives the request up: its connection is closed, `done` is not called any more."""
        self.done = self.sink = None
        self._client.give_up(self)


class Link(asyncio.Protocol):
    """A connection, and the call that it is busy with."""

    __slots__ = (
        "_answered",
        "_body",
        "_client",
        "_complete",
        "_excess",
        "_headers",
        "_length",
        "_parser",
        "_reading",
        "_status",
        "_until_close",
        "_used",
        "call",
        "since",
        "transport",
    )

    def __init__(self, client: Client) -> None:
        self._client = client
        self._parser = httptools.HttpResponseParser(self)
        self.transport: asyncio.Transport = cast(asyncio.Transport, None)
        self.call: Call | None = None
        self.since = 0.0
        """When it became idle."""
        self._used = self._answered = self._complete = self._excess = self._until_close = False
        self._reading = True
        self._status = self._length = 0
        self._headers: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []

    @property
    def usable(self) -> bool:
        """Whether a request can be sent on it."""
        return not self.transport.is_closing()

    def take(self, call: Call) -> None:
        """Sends a request."""
        self.call = call
        call.link = self
        self._answered = self._complete = False
        message = call.message
        if len(message) == 1:
            self.transport.write(message[0])
        else:
            self.transport.writelines(message)

    def fail(self, error: ClientError) -> None:
        """Ends the call, and the connection, with an error."""
        call, self.call = self.call, None
        self.transport.abort()
        self._client.gone(self)
        if call is not None:
            self._client.tell(call, error)

    def hold(self) -> None:
        """Stops reading: whoever takes the answer is slower than the server."""
        if self._reading and not self.transport.is_closing():
            self._reading = False
            self.transport.pause_reading()

    def go_on(self) -> None:
        """Reads on."""
        if not self._reading and not self.transport.is_closing():
            self._reading = True
            self.transport.resume_reading()

    # the transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection stands."""
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """A packet has come."""
        if self.call is None:  # an answer to nothing
            self.transport.abort()
            self._client.gone(self)
            return
        self._answered = True
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not self._complete:
                self.fail(BadAnswer(f"not an HTTP/1.1 answer: {error}", where=self._client.where))
                return
            self._excess = True
        if self._length <= self._client.body_limit:
            if self._complete:
                self._finish(reusable=not self._excess)
        else:
            self.fail(BadAnswer(f"the answer is larger than {self._client.body_limit} bytes", where=self._client.where))

    def eof_received(self) -> None:
        """The server has closed its side."""

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has ended."""
        self._client.gone(self)
        call = self.call
        if call is None:
            return
        if exc is None and self._until_close:
            self._finish(reusable=False)
            return
        self.call = None
        reason = str(exc) if exc else "the server closed the connection"
        self._client.tell(
            call,
            ConnectionLost(reason, sent=True, reused=self._used, answered=self._answered, where=self._client.where),
        )

    # the parser's side

    def on_message_begin(self) -> None:
        """The first byte of an answer."""
        if self._complete:
            self._excess = True
            return
        self._headers = []
        self._body = []
        self._length = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header."""
        if not self._complete:
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """The head is complete."""
        call = self.call
        if self._complete or call is None:
            return
        status = self._status = self._parser.get_status_code()
        if status < 200:  # 100 Continue and its like; the answer is still to come
            return
        if call.sink is not None:
            call.deadline = float("inf")
            call.sink.head(status, self._headers)
        if call.head_only:
            self._complete = True
            self._excess = True  # the parser waits for a body that does not come, and is of no more use
        elif not self._parser.should_keep_alive():
            self._until_close = status not in WITHOUT_BODY and not _has_length(self._headers)

    def on_body(self, piece: bytes) -> None:
        """A piece of the body."""
        if self._complete:
            return
        call = self.call
        if call is not None and call.sink is not None:
            call.sink.piece(piece)
            return
        self._length += len(piece)
        if self._length <= self._client.body_limit:
            self._body.append(piece)

    def on_message_complete(self) -> None:
        """The answer is complete."""
        if self._status >= 200 and not self._complete:
            self._complete = True
            self._excess = not self._parser.should_keep_alive()

    def _finish(self, reusable: bool) -> None:
        call, self.call = self.call, None
        assert call is not None
        self._used = True
        body = self._body
        response = ClientResponse(self._status, self._headers, body[0] if len(body) == 1 else b"".join(body))
        self._headers, self._body = [], []
        self.go_on()
        if (
            reusable
            and self.usable
            and not (len(call.message[-1]) >= UNSENT and self.transport.get_write_buffer_size())
        ):
            self._client.release(self)
        else:
            self.transport.close()
            self._client.gone(self)
        self._client.tell(call, response)


def _has_length(headers: Headers) -> bool:
    for name, value in headers:
        if name == b"content-length":
            return True
        if name == b"transfer-encoding" and b"chunked" in value.lower():
            return True
    return False
