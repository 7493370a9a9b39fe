"""A client's connection to the server: its requests go to the handler one by one, the answers back in their order."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from dataclasses import dataclass, field
from typing import cast

from drivetrain.backends.serving.http.exchange import Turn
from drivetrain.backends.serving.http.messages import Handler, Headers, Limits, Request, Response
from drivetrain.backends.serving.http.reading import BODY, HEAD, IDLE, Reader
from drivetrain.backends.serving.http.wire import WITHOUT_BODY, date_line, lines, opening, refusal

log = logging.getLogger(__name__)

AHEAD = 16
"""Requests of one connection that may wait for the answer to the one before; reading stops there, or at a body of some size."""
LINGER = 1.0
"""Seconds that a client is given to read its last answer: closed at once, with bytes unread, TCP would take the answer back."""
APART = 65536
"""From this size on a body is not copied behind its head."""


@dataclass(slots=True)
class Site:
    """What the connections of one server share."""

    handler: Handler
    limits: Limits
    loop: asyncio.AbstractEventLoop
    connections: set[Connection] = field(default_factory=set)
    in_flight: int = 0
    draining: bool = False
    emptied: asyncio.Event = field(default_factory=asyncio.Event)
    date: bytes = field(default_factory=date_line)
    now: float = 0.0
    """The loop's time at the last look at the limits: exact enough for when a connection became idle."""


class Connection(asyncio.Protocol):
    """One client."""

    __slots__ = (
        "_advancing",
        "_current",
        "_drain",
        "_final",
        "_leaving",
        "_paused",
        "_reader",
        "_served",
        "_since",
        "_site",
        "_stalled",
        "_transport",
        "_waiting",
        "loop",
        "lost",
    )

    def __init__(self, site: Site) -> None:
        self._site = site
        self.loop = site.loop
        self.lost = False
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self._reader = Reader(self, site.limits)
        self._current: Turn | None = None  # the one that is with the handler
        self._waiting: deque[Turn] = deque()
        self._advancing = False
        self._paused = False  # reading
        self._stalled: float | None = None  # since when the client does not read
        self._drain: list[asyncio.Future[None]] = []
        self._final: Response | None = None  # the refusal that follows the answers still due
        self._leaving = False  # the last answer is written
        self._since = 0.0  # the last answer, or the last sign of the client's reading
        self._served = False

    # the transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected."""
        self._transport = cast(asyncio.Transport, transport)
        self._since = self.loop.time()
        site = self._site
        if len(site.connections) >= site.limits.connections:
            self._reader.deaf = True
            self._write_refusal(refusal(503, "too many connections"), b"Retry-After: 1\r\nConnection: close\r\n")
            self._transport.close()
            return
        site.connections.add(self)

    def data_received(self, data: bytes) -> None:
        """A packet has come."""
        self._reader.feed(data, self.loop.time())

    def eof_received(self) -> None:
        """The client has closed its side: it counts as gone, since it cannot be told from one that has."""

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone."""
        self.lost = self._reader.deaf = True
        site = self._site
        site.connections.discard(self)
        self._waiting.clear()
        if (turn := self._current) is not None:
            self._current = None
            site.in_flight -= 1
            turn.abandoned()
        for waiter in self._drain:
            if not waiter.done():
                waiter.set_exception(ConnectionResetError("the client has gone"))
        self._drain.clear()
        if site.draining and not site.connections:
            site.emptied.set()

    def pause_writing(self) -> None:
        """The client reads slower than we write: it is not listened to either."""
        self._stalled = self.loop.time()
        self._hold()

    def resume_writing(self) -> None:
        """The client has caught up."""
        self._stalled = None
        self._since = self.loop.time()
        for waiter in self._drain:
            if not waiter.done():
                waiter.set_result(None)
        self._drain.clear()
        self._advance()

    # the reader's side

    def requested(self, request: Request, keep_alive: bool, old: bool) -> None:
        """A request is complete."""
        turn = Turn(self, request, keep_alive, old)
        if self._current is None and self._stalled is None and not self._waiting:
            self._call(turn)
            return
        self._waiting.append(turn)
        if self._full:
            self._hold()

    def refuse(self, status: int, reason: str) -> None:
        """Nothing more can be read from this client; it is told so after the answers that are still due."""
        self._reader.deaf = True
        self._final = refusal(status, reason)
        self._advance()

    def expected(self) -> None:
        """The client waits for `100 Continue`; the answers that are still due come first."""
        if self._current is None and not self._waiting:
            self._invite()

    # the handler's side

    def answer(self, turn: Turn, response: Response) -> None:
        """Writes a whole answer."""
        extra = lines(response.headers) if response.headers else b""
        start = opening(response.status, response.content_type)
        turn.answered = True
        if self._transport.is_closing():
            return
        site = self._site
        keep = turn.keep_alive and (not site.draining or bool(self._waiting))
        if not keep or turn.old:
            extra += _connection(keep)
        body = response.body
        if len(body) < APART and turn.request.method != "HEAD" and response.status not in WITHOUT_BODY:
            self._transport.write(b"%b%bContent-Length: %d\r\n%b\r\n%b" % (start, site.date, len(body), extra, body))
        else:
            self._write_apart(response, start, extra, turn.request.method == "HEAD")
        self._finish(turn, keep)

    def begin(self, turn: Turn, status: int, headers: Headers, content_type: bytes) -> tuple[bool, bool]:
        """Writes the head of an answer in pieces. Says whether the answer has no body, and whether its pieces are chunks."""
        extra = lines(headers) if headers else b""
        start = opening(status, content_type)
        silent = turn.request.method == "HEAD" or status in WITHOUT_BODY
        turn.answered = True
        if turn.old and not silent:
            turn.keep_alive = False  # where HTTP/1.0 has no length, the end is the end of the connection
        turn.keep_alive = turn.keep_alive and (not self._site.draining or bool(self._waiting))
        if not turn.keep_alive or turn.old:
            extra += _connection(turn.keep_alive)
        if not turn.old and status not in WITHOUT_BODY:
            extra += b"Transfer-Encoding: chunked\r\n"
        if not self.closing:
            self._transport.write(b"%b%b%b\r\n" % (start, self._site.date, extra))
        return silent, not turn.old

    @property
    def closing(self) -> bool:
        """Whether nothing more can be written: the client has gone, or is about to be known to have."""
        return self.lost or self._transport.is_closing()

    def put(self, data: bytes) -> None:
        """Writes a piece of an answer."""
        self._transport.write(data)

    def end(self, turn: Turn, last: bytes) -> None:
        """Ends an answer in pieces."""
        if last:
            self._transport.write(last)
        self._finish(turn, turn.keep_alive)

    async def drained(self) -> None:
        """Waits until the client has read enough."""
        if self._stalled is not None:
            waiter: asyncio.Future[None] = self.loop.create_future()
            self._drain.append(waiter)
            await waiter

    def abort(self) -> None:
        """Cuts the connection."""
        if not self.lost:
            self._transport.abort()

    # the server's side

    def tick(self, now: float) -> None:
        """Has what took too long ended."""
        limits = self._site.limits
        reader = self._reader
        if self._stalled is not None:
            if now - self._stalled > limits.idle_time:
                self._transport.abort()
        elif self._leaving:
            patience = limits.idle_time if self._transport.get_write_buffer_size() else LINGER
            if now - self._since > patience:
                self._transport.abort()
        elif self._current is not None or self._waiting:
            return
        elif reader.stage == HEAD:
            if now - max(reader.since, self._since) > limits.header_time:
                self.refuse(408, "the headers did not come in time")
        elif reader.stage == BODY:
            if now - max(reader.since, self._since) > limits.body_time:
                self.refuse(408, "the body did not come in time")
        elif now - self._since > (LINGER if self._site.draining else limits.idle_time):
            self._close_idle()

    def drain(self) -> None:
        """Closes the connection if it is between requests. One that has not asked for anything yet may be about to."""
        if self._reader.stage == IDLE and self._current is None and not self._waiting and not self._leaving:
            if self._served:
                self._close_idle()
            else:
                self._since = self.loop.time()

    def _call(self, turn: Turn) -> None:
        self._current = turn
        self._site.in_flight += 1
        try:
            self._site.handler(turn)
        except Exception:  # whatever a handler raises, the client gets an answer
            log.exception("%s %s failed", turn.request.method, turn.request.path)
            if not turn.answered:
                self.answer(turn, refusal(500, "internal error"))
            elif self._current is turn:
                self.abort()

    def _write_apart(self, response: Response, start: bytes, extra: bytes, head_only: bool) -> None:
        body = response.body
        if response.status in WITHOUT_BODY:
            self._transport.write(b"%b%b%b\r\n" % (start, self._site.date, extra))
            return
        head = b"%b%bContent-Length: %d\r\n%b\r\n" % (start, self._site.date, len(body), extra)
        self._transport.writelines([head] if head_only else [head, body])

    def _write_refusal(self, response: Response, extra: bytes) -> None:
        self._write_apart(response, opening(response.status, response.content_type), extra, False)

    def _finish(self, turn: Turn, keep: bool) -> None:
        turn.finished = True
        self._current = None
        self._site.in_flight -= 1
        self._served = True
        if not keep:
            self._leave()
            return
        self._since = self._site.now
        if self._waiting or self._paused or self._final is not None or self._reader.stage == BODY:
            self._advance()

    def _advance(self) -> None:
        # A loop and not a chain of calls: each of a thousand requests in one packet may be answered at once.
        if self._advancing:
            return
        self._advancing = True
        while self._waiting and self._current is None and self._stalled is None:
            self._call(self._waiting.popleft())
        self._advancing = False
        if self._stalled is not None or self.closing:
            return
        if self._current is None and not self._leaving:
            if self._final is not None:
                self._write_refusal(self._final, b"Connection: close\r\n")
                self._leave()
            else:
                self._invite()
        if not self._full:
            self._listen()

    @property
    def _full(self) -> bool:
        waiting = self._waiting
        return len(waiting) >= AHEAD or any(len(turn.request.body) > APART for turn in waiting)

    def _invite(self) -> None:
        if self._reader.expecting:
            self._reader.invited()
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _hold(self) -> None:
        if not self._paused and not self._transport.is_closing():
            self._paused = True
            self._transport.pause_reading()

    def _listen(self) -> None:
        if self._paused and not self._transport.is_closing():
            self._paused = False
            self._transport.resume_reading()

    def _leave(self) -> None:
        self._reader.deaf = self._leaving = True
        self._since = self.loop.time()
        self._waiting.clear()
        if self._stalled is None:
            self._listen()
        if self._transport.can_write_eof():
            self._transport.write_eof()
        else:
            self._transport.close()

    def _close_idle(self) -> None:
        self._reader.deaf = self._leaving = True
        self._since = self.loop.time()
        self._transport.close()


def _connection(keep: bool) -> bytes:
    return b"Connection: keep-alive\r\n" if keep else b"Connection: close\r\n"
