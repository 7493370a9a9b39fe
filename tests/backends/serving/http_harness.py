"""An HTTP server in a thread of its own, and a raw socket that talks to it."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from drivetrain.backends.serving.http import server as http_server
from drivetrain.backends.serving.http.messages import Exchange, Handler, Limits, Response, Stream
from drivetrain.backends.serving.http.server import Server

WITHIN = 40.0


@dataclass
class Running:
    """A server on a loop in a thread of its own."""

    server: Server
    loop: asyncio.AbstractEventLoop
    port: int = 0
    held: list[Exchange] = field(default_factory=list)

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(WITHIN)

    def call(self, work: Callable[[], Any]) -> Any:
        async def there() -> Any:
            return work()

        return self.do(there())

    def connect(self) -> Client:
        return Client(socket.create_connection(("127.0.0.1", self.port), timeout=WITHIN))

    def wait(self, condition: Callable[[], bool]) -> None:
        until = time.monotonic() + WITHIN
        while not self.call(condition):
            assert time.monotonic() < until, "what was waited for did not come"
            time.sleep(0.005)


class Client:
    """A raw socket that reads answers."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.file = sock.makefile("rb")

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def get(self, path: str = "/", *headers: str) -> None:
        self.send("\r\n".join([f"GET {path} HTTP/1.1", "Host: x", *headers, "", ""]).encode())

    def head(self) -> tuple[int, dict[str, str]]:
        line = self.file.readline().decode()
        assert line.startswith("HTTP/1.1 "), repr(line)
        found: dict[str, str] = {}
        while (header := self.file.readline().decode().rstrip("\r\n")) != "":
            name, _, value = header.partition(": ")
            assert name not in found, f"{name} twice"
            found[name] = value
        return int(line.split()[1]), found

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        status, headers = self.head()
        if headers.get("Transfer-Encoding") == "chunked":
            return status, headers, b"".join(self.chunks())
        return status, headers, self.file.read(int(headers.get("Content-Length", 0)))

    def chunks(self) -> Iterator[bytes]:
        while size := int(self.file.readline(), 16):
            yield self.file.read(size)
            assert self.file.readline() == b"\r\n"
        assert self.file.readline() == b"\r\n"

    def ended(self) -> bool:
        with suppress(ConnectionResetError):
            return self.file.read() == b""
        return True

    def close(self) -> None:
        self.file.close()
        self.sock.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def echo(exchange: Exchange) -> None:
    request = exchange.request
    exchange.reply(Response(200, f"{request.method} {request.path} {request.query} ".encode() + request.body))


@contextmanager
def serving(
    handler: Handler = echo, limits: Limits | None = None, tls: ssl.SSLContext | None = None
) -> Iterator[Running]:
    started: list[Running] = []
    ready = threading.Event()

    async def main() -> None:
        running = Running(Server(handler, limits), asyncio.get_running_loop())
        running.port = await running.server.listen("127.0.0.1", 0, tls)
        started.append(running)
        ready.set()
        await running.loop.run_in_executor(None, done.wait, 120)
        await running.server.stop(0)

    done = threading.Event()
    thread = threading.Thread(target=http_server.run, args=(main(),))
    thread.start()
    try:
        assert ready.wait(WITHIN)
        yield started[0]
    finally:
        done.set()
        thread.join(WITHIN)
        assert not thread.is_alive()


@contextmanager
def holding(limits: Limits | None = None) -> Iterator[Running]:
    """A server whose handler answers nothing; the test does."""
    held: list[Exchange] = []
    with serving(held.append, limits) as running:
        running.held = held
        yield running


def streaming(write: Callable[[Exchange, Stream], Awaitable[None]]) -> Handler:
    tasks = set()

    def handle(exchange: Exchange) -> None:
        stream = exchange.stream(200, [(b"x-a", b"b")], b"text/event-stream")
        task = asyncio.ensure_future(write(exchange, stream))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    return handle


async def three(exchange: Exchange, stream: Stream) -> None:
    for piece in (b"one", b"", b"two", b"three"):
        await stream.write(piece)
        await asyncio.sleep(0.01)
    stream.end()
    stream.end()
