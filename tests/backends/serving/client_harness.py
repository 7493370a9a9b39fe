"""An HTTP client beside the server it talks to, on one event loop."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from drivetrain.backends.serving.http.client import Address, Client
from drivetrain.backends.serving.http.messages import Exchange, Handler, Response
from drivetrain.backends.serving.http.server import Server, run

WITHIN = 40.0
HOST = "127.0.0.1"


def on_loop(work: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """The test, carried out on an event loop."""

    @functools.wraps(work)
    def test(**given: Any) -> None:
        async def limited() -> None:
            async with asyncio.timeout(WITHIN):
                await work(**given)

        run(limited())

    return test


def echo(exchange: Exchange) -> None:
    request = exchange.request
    exchange.reply(Response(200, f"{request.method} {request.path} {request.query} ".encode() + request.body))


@asynccontextmanager
async def serving(handler: Handler = echo, **options: Any) -> AsyncIterator[tuple[Server, Client]]:
    server = Server(handler)
    port = await server.listen(HOST, 0)
    client = Client(Address(HOST, port), **options)
    try:
        yield server, client
    finally:
        await client.close()
        await server.stop(0)


Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def scripted(script: Script, **options: Any) -> AsyncIterator[Client]:
    """A client of a server that does with each connection what `script` says, and then closes it."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await script(reader, writer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, HOST, 0)
    client = Client(Address(HOST, server.sockets[0].getsockname()[1]), **options)
    try:
        yield client
    finally:
        await client.close()
        server.close()


async def asked(reader: asyncio.StreamReader) -> bytes:
    """One request without a body."""
    return await reader.readuntil(b"\r\n\r\n")


def answering(*answers: bytes) -> Script:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            await asked(reader)
            writer.write(answer)
        await writer.drain()

    return script


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)
