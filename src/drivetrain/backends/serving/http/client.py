"""An HTTP/1.1 client of one server: pooled connections, answers to a callback, errors that say whether a retry is safe.

client = Client(parse("http://127.0.0.1:5000"))
client.send("POST", "/predictions", headers, body, done, timeout=30)     # done(ClientResponse | ClientError)
response = await client.request("GET", "/health-check")
async with client.stream("POST", "/predictions", headers, body) as answer:
    async for piece in answer: ...
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from drivetrain.backends.serving.http.link import Call, Link, Sink
from drivetrain.backends.serving.http.messages import Headers
from drivetrain.backends.serving.http.outcomes import (
    ClientError,
    ClientResponse,
    ConnectFailed,
    ConnectionLost,
    TimedOut,
)
from drivetrain.backends.serving.http.streamed import StreamedAnswer
from drivetrain.backends.serving.http.tls import client_context
from drivetrain.backends.serving.http.wire import lines
from drivetrain.errors import ServingError

log = logging.getLogger(__name__)

TICK = 0.02
"""Seconds between looks at the deadlines of requests under way: a time limit is met to within this."""
REST = 1.0
"""Seconds between looks at idle connections."""
APART = 65536
WITH_BODY = frozenset(("POST", "PUT", "PATCH"))


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens: host and port, or the path of a Unix socket."""

    host: str = "localhost"
    port: int = 0
    path: str | None = None
    secure: bool = False

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.secure else 'http'}://{host}:{self.port}"


def parse(url: str) -> Address:
    """The address that a URL names: `http://HOST[:PORT]`, `https://HOST[:PORT]` or `unix:PATH`. Raises `ServingError`."""
    if url.startswith("unix:"):
        return Address(path=url.removeprefix("unix://").removeprefix("unix:"))
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ServingError(f"{url} is not an address: {error}", hint="write http://HOST:PORT") from error
    rest = parts.path.strip("/") or parts.query or parts.username
    if parts.scheme not in ("http", "https") or not parts.hostname or not url.isascii() or rest:
        raise ServingError(f"{url} is not an address", hint="write http://HOST:PORT, https://HOST:PORT or unix:PATH")
    secure = parts.scheme == "https"
    return Address(parts.hostname, port or (443 if secure else 80), secure=secure)


class Client:
    """Sends requests to one server. All of its methods are for the event loop that it is first used on.

    `connections` is how many there may be at once; further requests wait for one. `body_limit` in bytes, times in seconds.
    """

    def __init__(
        self,
        address: Address,
        *,
        connections: int = 128,
        body_limit: int = 64 * 1024**2,
        connect_time: float = 5.0,
        idle_time: float = 30.0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.where = str(address)
        self.body_limit = body_limit
        self._address = address
        self._most = connections
        self._connect_time = connect_time
        self._idle_time = idle_time
        self._tls = (tls or client_context()) if address.secure else None
        host = "localhost" if address.path is not None else self.where.partition("://")[2]
        self._host = b"Host: %b\r\n" % host.encode()
        self._idle: list[Link] = []  # the one used last is used first, so that the others can go
        self._links: set[Link] = set()
        self._waiting: deque[Call] = deque()
        self._connecting = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._fast = False
        self._closed = False

    @property
    def connections(self) -> int:
        """Connections that stand."""
        return len(self._links)

    @property
    def waiting(self) -> int:
        """Requests that wait for a connection."""
        return len(self._waiting)

    @property
    def in_flight(self) -> int:
        """Requests that have been sent and have no whole answer yet."""
        return len(self._links) - len(self._idle)

    def send(
        self,
        method: str,
        target: str,
        headers: Headers,
        body: bytes,
        done: Callable[[ClientResponse | ClientError], None],
        timeout: float | None = None,
    ) -> Call:
        """Sends a request; `done` is called once, later, with the answer or the error, unless the call is cancelled before.

        `target` is path and query, percent-encoded. `headers` are to have no `Host`, `Content-Length` or `Connection`. Raises
        `ValueError` for a target or a header that cannot be on the wire.
        """
        return self._begin(method, target, headers, body, done, None, timeout)

    async def request(
        self, method: str, target: str, headers: Headers = (), body: bytes = b"", timeout: float | None = None
    ) -> ClientResponse:
        """The answer. Raises `ClientError`."""
        future: asyncio.Future[ClientResponse] = asyncio.get_running_loop().create_future()

        def done(outcome: ClientResponse | ClientError) -> None:
            if future.done():
                return
            if isinstance(outcome, ClientError):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

        call = self.send(method, target, headers, body, done, timeout)
        try:
            return await future
        except asyncio.CancelledError:
            call.cancel()
            raise

    def stream(
        self, method: str, target: str, headers: Headers = (), body: bytes = b"", timeout: float | None = None
    ) -> StreamedAnswer:
        """An answer to be read as it comes: use it with `async with`. `timeout` is for its head alone."""
        return StreamedAnswer(lambda answer: self._begin(method, target, headers, body, None, answer, timeout))

    async def close(self) -> None:
        """Closes all connections. Requests under way end with `ConnectionLost`."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        while self._waiting:
            self.tell(self._waiting.popleft(), ConnectFailed("the client was closed", where=self.where))
        for link in list(self._links):
            link.fail(
                ConnectionLost("the client was closed", sent=True, reused=False, answered=False, where=self.where)
            )

    # the links' side

    def release(self, link: Link) -> None:
        """A connection is free for the next request."""
        if self._waiting:
            link.take(self._waiting.popleft())
        else:
            link.since = asyncio.get_running_loop().time()
            self._idle.append(link)

    def gone(self, link: Link) -> None:
        """A connection is not to be used again."""
        if link in self._links:
            self._links.discard(link)
            if link in self._idle:
                self._idle.remove(link)
            self._grow()

    def give_up(self, call: Call) -> None:
        """A call has been cancelled."""
        link = call.link
        if link is None:
            if call in self._waiting:
                self._waiting.remove(call)
        elif link.call is call:
            link.call = None
            link.transport.abort()
            self.gone(link)

    def tell(self, call: Call, outcome: ClientResponse | ClientError) -> None:
        """Hands a call its outcome."""
        try:
            if call.sink is not None:
                call.sink.end(outcome if isinstance(outcome, ClientError) else None)
            elif call.done is not None:
                call.done(outcome)
        except Exception:  # the caller's own mistake is not to cost the connection
            log.exception("%s: the callback failed", self.where)

    def _begin(
        self,
        method: str,
        target: str,
        headers: Headers,
        body: bytes,
        done: Callable[[ClientResponse | ClientError], None] | None,
        sink: Sink | None,
        timeout: float | None,
    ) -> Call:
        loop = asyncio.get_running_loop()
        message = self._message(method, target, headers, body)
        deadline = loop.time() + timeout if timeout is not None else float("inf")
        call = Call(self, message, method == "HEAD", done, sink, deadline)
        if self._closed:
            loop.call_soon(self.tell, call, ConnectFailed("the client was closed", where=self.where))
            return call
        if not self._fast:
            self._watch(TICK)
        while self._idle:
            link = self._idle.pop()
            if link.usable:
                link.take(call)
                return call
            self.gone(link)
        self._waiting.append(call)
        self._grow()
        return call

    def _message(self, method: str, target: str, headers: Headers, body: bytes) -> list[bytes]:
        if not (target.isascii() and target.isprintable()) or " " in target or not target:
            raise ValueError(f"a target is percent-encoded: {target!r}")
        length = b"Content-Length: %d\r\n" % len(body) if body or method in WITH_BODY else b""
        head = b"%b %b HTTP/1.1\r\n%b%b%b\r\n" % (
            method.encode(),
            target.encode(),
            self._host,
            length,
            lines(headers),
        )
        return [head, body] if len(body) >= APART else [head + body]

    def _grow(self) -> None:
        while (
            self._connecting < len(self._waiting)
            and len(self._links) + self._connecting < self._most
            and not self._closed
        ):
            task = asyncio.get_running_loop().create_task(self._connect())
            self._connecting += 1
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _connect(self) -> None:
        try:
            async with asyncio.timeout(self._connect_time):
                link = await self._open()
        except (
            OSError,
            ssl.SSLError,
            UnicodeError,
        ) as error:  # TimeoutError is an OSError; a name that is none is no Unicode
            self._connecting -= 1
            self._not_connected(str(error) or f"no connection within {self._connect_time:g} s")
            return
        self._connecting -= 1
        if self._closed or not link.usable:
            link.transport.abort()
            self._not_connected("the server closed the connection at once")
        else:
            self._links.add(link)
            self.release(link)

    async def _open(self) -> Link:
        loop = asyncio.get_running_loop()
        address = self._address
        if address.path is not None:
            return (await loop.create_unix_connection(lambda: Link(self), address.path))[1]
        name = address.host if self._tls else None
        opened = await loop.create_connection(
            lambda: Link(self), address.host, address.port, ssl=self._tls, server_hostname=name
        )
        return opened[1]

    def _not_connected(self, reason: str) -> None:
        # Each request waiting has asked for one connection. The last attempt to fail, with none that stands, speaks for all.
        alone = not self._links and not self._connecting
        failed = list(self._waiting) if alone else list(self._waiting)[:1]
        for _ in failed:
            self._waiting.popleft()
        for call in failed:
            self.tell(call, ConnectFailed(reason, where=self.where))

    def _watch(self, interval: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._fast = interval == TICK
        self._timer = asyncio.get_running_loop().call_later(interval, self._tick)

    def _tick(self) -> None:
        # One timer for all requests, not one for each.
        now = asyncio.get_running_loop().time()
        late = [link for link in self._links if link.call is not None and link.call.deadline <= now]
        for link in late:
            link.fail(TimedOut("no answer in time", sent=True, where=self.where))
        for call in [call for call in self._waiting if call.deadline <= now]:
            self._waiting.remove(call)
            self.tell(call, TimedOut("no connection became free in time", sent=False, where=self.where))
        while self._idle and now - self._idle[0].since > self._idle_time:
            link = self._idle[0]
            link.transport.close()
            self.gone(link)
        self._timer = None
        self._fast = False
        if self._waiting or self.in_flight:
            self._watch(TICK)
        elif self._links:
            self._watch(REST)
