"""An HTTP/1.1 server that hands each request to a handler: keep-alive, pipelining, limits, drain.

server = Server(handler, Limits())
port = await server.listen("127.0.0.1", 0)
...
await server.stop(grace=30)
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import ssl
import stat
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from drivetrain.backends.serving.http.connection import Connection, Site
from drivetrain.backends.serving.http.messages import Exchange, Handler, Limits, Request, Response
from drivetrain.backends.serving.http.wire import date_line, refusal
from drivetrain.errors import ServingError

try:
    import uvloop
except ImportError:  # where there is none, asyncio's own loop serves
    uvloop = None  # type: ignore[assignment]

log = logging.getLogger(__name__)
T = TypeVar("T")

BACKLOG = 4096
SHUTDOWN = 2.0
"""Seconds that a client is given to end TLS properly."""
LONGEST_PATH = 103
"""Bytes in the path of a Unix socket that every system takes."""


class Server:
    """Answers requests on any number of addresses. All of its methods are for the event loop that it listens on."""

    def __init__(self, handler: Handler, limits: Limits | None = None) -> None:
        self._handler = handler
        self._limits = limits or Limits()
        self._site: Site | None = None
        self._listeners: list[asyncio.AbstractServer] = []
        self._sockets: list[tuple[str, int]] = []  # paths that were bound here, with their inodes
        self._sweep: asyncio.TimerHandle | None = None

    @property
    def connections(self) -> int:
        """Clients that are connected."""
        return len(self._site.connections) if self._site else 0

    @property
    def in_flight(self) -> int:
        """Requests that are with the handler and have no answer yet."""
        return self._site.in_flight if self._site else 0

    async def listen(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> int:
        """Listens on a TCP address, and says on which port (0 asks for any). Raises `ServingError` if it cannot be had."""
        loop = asyncio.get_running_loop()
        try:
            self._open()
            listener = await loop.create_server(
                self._connect,
                host,
                port,
                backlog=BACKLOG,
                ssl=tls,
                ssl_handshake_timeout=self._limits.header_time if tls else None,
                ssl_shutdown_timeout=SHUTDOWN if tls else None,
            )
        except (OSError, OverflowError) as error:
            raise _not_had(f"{host}:{port}", error) from error
        self._listeners.append(listener)
        found: int = listener.sockets[0].getsockname()[1]
        return found

    async def listen_unix(self, path: str) -> None:
        """Listens on a Unix socket that only this user can open. A socket file that nobody listens on any more is replaced."""
        sock = _unix_socket(path)
        await self.listen_socket(sock)
        self._sockets.append((path, os.stat(path).st_ino))

    async def listen_socket(self, sock: socket.socket, tls: ssl.SSLContext | None = None) -> None:
        """Listens on a socket that is bound already: one inherited, say."""
        loop = asyncio.get_running_loop()
        self._open()
        sock.setblocking(False)
        # A Unix socket and a TCP one are one kind of thing here, but not to every event loop.
        create = loop.create_unix_server if sock.family == getattr(socket, "AF_UNIX", None) else loop.create_server
        try:
            listener = await create(
                self._connect,
                sock=sock,
                backlog=BACKLOG,
                ssl=tls,
                ssl_handshake_timeout=self._limits.header_time if tls else None,
                ssl_shutdown_timeout=SHUTDOWN if tls else None,
            )
        except (OSError, ValueError) as error:
            sock.close()
            raise _not_had(f"socket {sock!r}", error) from error
        self._listeners.append(listener)

    async def stop(self, grace: float) -> int:
        """Takes no new clients, answers the requests that it has, for at most `grace` seconds. Says how many clients were cut off."""
        site = self._site
        if site is None:
            return 0
        # Two turns of the loop: who has connected, or sent, before this is served.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        site.draining = True
        self._close_listeners()
        for connection in list(site.connections):
            connection.drain()
        if site.connections:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(site.emptied.wait(), max(0.0, grace))
        left = list(site.connections)
        for connection in left:
            connection.abort()
        if left:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(site.emptied.wait(), 1.0)
        if self._sweep is not None:
            self._sweep.cancel()
        self._site = self._sweep = None
        return len(left)

    def _connect(self) -> Connection:
        return Connection(self._open())

    def _open(self) -> Site:
        if self._site is None:
            self._site = Site(self._handler, self._limits, asyncio.get_running_loop())
            self._tick()
        return self._site

    def _tick(self) -> None:
        # One timer for all connections, not one for each request: the limits are met to within a quarter of the shortest.
        site = self._site
        assert site is not None
        site.date = date_line()
        now = site.now = site.loop.time()
        for connection in list(site.connections):
            connection.tick(now)
        shortest = min(self._limits.header_time, self._limits.body_time, self._limits.idle_time)
        self._sweep = site.loop.call_later(min(1.0, max(0.02, shortest / 4)), self._tick)

    def _close_listeners(self) -> None:
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        for path, inode in self._sockets:
            with suppress(FileNotFoundError):
                if os.stat(path).st_ino == inode:  # another may listen there by now
                    os.unlink(path)
        self._sockets.clear()


def _unix_socket(path: str) -> socket.socket:
    if len(os.fsencode(path)) > LONGEST_PATH:
        raise ServingError(
            f"the path of a socket is at most {LONGEST_PATH} bytes: {path}", hint="choose a shorter directory"
        )
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        sock.bind(path)
        # Nobody can connect before `listen`, so there is no moment at which others could.
        os.chmod(path, 0o600)
    except OSError as error:
        sock.close()
        raise _not_had(path, error) from error
    return sock


def _remove_stale(path: str) -> None:
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise FileExistsError(errno.EEXIST, "a file that is no socket is there")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink(missing_ok=True)
            return
    raise OSError(errno.EADDRINUSE, "another process listens there")


def _not_had(where: str, error: Exception) -> ServingError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return ServingError(f"cannot listen on {where}: {reason}", hint="choose another address, or end what listens there")


def from_coroutine(function: Callable[[Request], Awaitable[Response]]) -> Handler:
    """A handler of a coroutine function. The coroutine runs to its end even if the client has gone."""
    running: set[asyncio.Task[None]] = set()

    async def answer(exchange: Exchange) -> None:
        try:
            exchange.reply(await function(exchange.request))
        except Exception:  # whatever it raises, the client gets an answer
            log.exception("%s %s failed", exchange.request.method, exchange.request.path)
            exchange.reply(refusal(500, "internal error"))

    def handle(exchange: Exchange) -> None:
        task = asyncio.get_running_loop().create_task(answer(exchange))
        running.add(task)
        task.add_done_callback(running.discard)

    return handle


def run(main: Coroutine[Any, Any, T]) -> T:
    """Runs a program on uvloop where there is one, else on asyncio's own loop."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop if uvloop else None) as runner:
        return runner.run(main)
