"""Sends captured events to an HTTP address as KServe's logger does: one binary-mode CloudEvent a POST."""

from __future__ import annotations

import asyncio
import logging
import ssl
import threading
import time
from collections import deque
from collections.abc import Sequence
from urllib.parse import urlsplit

import httptools

from drivetrain.backends.serving.gateway.events import Event, binary_headers, encoded
from drivetrain.errors import ServingError

_log = logging.getLogger(__name__)

CONNECTIONS = 4
ATTEMPTS = 5
_FIRST_WAIT = 0.1
_TIMEOUT = 5.0
_COMPLAIN_EVERY = 60.0


class Sink:
    """A queue of at most `limit` events with `most` bytes of bodies, and a thread with a few connections that empties it. `sent` counts
    what was taken with 2xx, `lost` what found the queue full, was refused, or was not taken in `ATTEMPTS` tries."""

    def __init__(self, address: str, limit: int, most: int) -> None:
        self._target = _Target(address)
        self._limit, self._most = limit, most
        # Of events that wait or are being sent; in is changed by the thread that offers alone, out by the sink's.
        self._bytes_in = self._bytes_out = 0
        self._waiting: deque[Event] = deque()
        self._taken = 0
        self._closing = False
        self.sent = self._failed = self._refused = 0
        self._complained_at = float("-inf")
        self._loop = asyncio.new_event_loop()
        self._wake = asyncio.Event()
        self._connections: set[_Connection] = set()
        self._main = self._loop.create_task(self._work())
        self._thread = threading.Thread(target=self._run, name="capture-sink", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> int:
        """Events that will not be sent any more."""
        return self._failed + self._refused

    def offer(self, events: Sequence[Event]) -> None:
        """Takes events for sending; never waits. From one thread only."""
        taken = False
        for event in events:
            size = len(event.body)
            full = len(self._waiting) >= self._limit or self._bytes_in - self._bytes_out + size > self._most
            if self._closing or full:
                self._refused += 1
                continue
            self._bytes_in += size
            self._waiting.append(event)
            taken = True
        if taken:
            self._loop.call_soon_threadsafe(self._wake.set)

    def close(self, timeout: float) -> None:
        """Sends what waits for so long at most, counts the rest as lost, and ends the connections."""
        self._closing = True
        self._loop.call_soon_threadsafe(self._wake.set)
        self._thread.join(timeout)
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._main.cancel)
            self._thread.join(1.0)

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._main)
        except asyncio.CancelledError:
            self._failed += len(self._waiting) + self._taken
        for connection in self._connections:
            connection.close()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    async def _work(self) -> None:
        await asyncio.gather(*(self._send_all() for _ in range(CONNECTIONS)))

    async def _send_all(self) -> None:
        connection: _Connection | None = None
        while True:
            while not self._waiting:
                if self._closing:
                    return
                self._wake.clear()
                await self._wake.wait()
            event = self._waiting.popleft()
            self._taken += 1
            connection = await self._send(event, connection)
            self._taken -= 1
            self._bytes_out += len(event.body)

    async def _send(self, event: Event, connection: _Connection | None) -> _Connection | None:
        """Tries until it is taken, refused for good, or tried often enough; gives the connection for the next one."""
        problem = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                await asyncio.sleep(_FIRST_WAIT * 2 ** (attempt - 1))
            try:
                async with asyncio.timeout(_TIMEOUT):
                    if connection is None or connection.closed:
                        connection = await self._connect(connection)
                    status = await connection.post(self._target.request(event, time.time()))
            except (OSError, TimeoutError, ValueError) as error:  # ValueError: a host name that cannot be one
                problem = str(error) or "no answer in time"
                if connection is not None:
                    connection.close()
                continue
            if 200 <= status < 300:
                self.sent += 1
                return connection
            problem = f"status {status}"
            if status < 500 and status not in (408, 429):
                break
        self._failed += 1
        self._complain(problem)
        return connection

    async def _connect(self, former: _Connection | None) -> _Connection:
        if former is not None:
            self._connections.discard(former)
        connection = await self._target.connect()
        self._connections.add(connection)
        return connection

    def _complain(self, problem: str) -> None:
        now = time.monotonic()
        if now - self._complained_at >= _COMPLAIN_EVERY:
            self._complained_at = now
            _log.warning("captured events are not taken by %s: %s", self._target, problem)


class _Target:
    """Where to send to."""

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ServingError(f"capture sink {address!r} is no HTTP address", hint="http://host:port/path")
        secure = parts.scheme == "https"
        self._host, self._port = parts.hostname, parts.port or (443 if secure else 80)
        self._tls = ssl.create_default_context() if secure else None
        path = encoded(parts.path or "/", keep="%") + (f"?{encoded(parts.query, keep='%')}" if parts.query else "")
        host = f"[{self._host}]" if ":" in self._host else self._host
        self._start = f"POST {path} HTTP/1.1\r\nHost: {host}:{self._port}\r\n"

    def __str__(self) -> str:
        return f"{self._host}:{self._port}"

    def request(self, event: Event, now: float) -> bytes:
        """The whole request."""
        lines = "".join(f"{name}: {value}\r\n" for name, value in binary_headers(event, now))
        return f"{self._start}Content-Length: {len(event.body)}\r\n{lines}\r\n".encode("ascii") + event.body

    async def connect(self) -> _Connection:
        """A new connection."""
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(_Connection, self._host, self._port, ssl=self._tls)
        return connection


class _Connection(asyncio.Protocol):
    """One request at a time, answered by the status of what comes back."""

    def __init__(self) -> None:
        self.closed = False
        self._status = 0
        self._answer: asyncio.Future[int] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    async def post(self, request: bytes) -> int:
        """The status of the answer. Raises `OSError` if the connection ends before there is one."""
        self._answer = asyncio.get_running_loop().create_future()
        self._parser = httptools.HttpResponseParser(self)
        self._status = 0
        self._transport.write(request)
        return await self._answer

    def close(self) -> None:
        self.closed = True
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(ConnectionError(f"no HTTP answer: {error}"))
            self.close()

    def on_headers_complete(self) -> None:
        self._status = self._parser.get_status_code()

    def on_message_complete(self) -> None:
        if self._status >= 200:
            self.closed = self.closed or not self._parser.should_keep_alive()
            self._done()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if self._status >= 200 and exc is None:
            # An answer without a length ends with its connection.
            self._done()
        self._fail(ConnectionError(str(exc) if exc else "the connection was closed"))

    def _done(self) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(self._status)

    def _fail(self, error: ConnectionError) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)
