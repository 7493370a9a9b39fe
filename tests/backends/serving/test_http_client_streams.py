"""Answers that the HTTP client reads as they come."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from drivetrain.backends.serving.http.messages import Exchange, Handler, Request, Response
from drivetrain.backends.serving.http.outcomes import (
    ClientError,
    ConnectFailed,
    ConnectionLost,
    TimedOut,
)
from drivetrain.backends.serving.http.server import Server, from_coroutine
from tests.backends.serving.client_harness import (
    HOST,
    WITHIN,
    on_loop,
    serving,
    until,
)

# streamed answers


def pieces(*parts: bytes, pause: float = 0.0, end: str = "end") -> Handler:
    tasks = set()

    async def write(exchange: Exchange) -> None:
        stream = exchange.stream(200, [(b"x-a", b"b")], b"text/event-stream")
        try:
            for part in parts:
                await stream.write(part)
                await asyncio.sleep(pause)
        except ConnectionError:
            return
        stream.end() if end == "end" else stream.abort()

    def handle(exchange: Exchange) -> None:
        task = asyncio.ensure_future(write(exchange))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    return handle


@on_loop
async def test_pieces_come_as_they_are_sent_and_the_connection_is_used_again() -> None:
    async with serving(pieces(b"one", b"two", b"three", pause=0.01)) as (server, client):
        for _ in range(2):
            async with client.stream("GET", "/", timeout=WITHIN) as answer:
                assert (answer.status, dict(answer.headers)[b"x-a"]) == (200, b"b")
                assert [piece async for piece in answer] == [b"one", b"two", b"three"]
        assert (server.connections, client.in_flight) == (1, 0)


@on_loop
async def test_the_head_of_a_stream_comes_before_its_first_piece() -> None:
    streams: list[Any] = []

    def begin(exchange: Exchange) -> None:
        streams.append(exchange.stream(200, (), b"text/event-stream"))

    async with serving(begin) as (_, client), client.stream("GET", "/") as answer:
        assert answer.status == 200
        await streams[0].write(b"first")
        assert await anext(answer) == b"first"
        streams[0].end()
        assert [piece async for piece in answer] == []


@on_loop
async def test_a_reader_that_is_slow_holds_the_server_back() -> None:
    written: list[int] = []

    async def much(exchange: Exchange) -> None:
        stream = exchange.stream(200, (), b"text/plain")
        for _ in range(400):
            await stream.write(b"x" * 65536)
            written.append(1)
        stream.end()

    tasks: list[asyncio.Task[None]] = []
    async with serving(lambda exchange: tasks.append(asyncio.ensure_future(much(exchange)))) as (_, client):
        async with client.stream("GET", "/") as answer:
            seen = -1
            while seen != len(written):
                seen = len(written)
                await asyncio.sleep(0.2)
            assert seen < 400
            assert sum([len(piece) async for piece in answer]) == 400 * 65536
        await tasks[0]


@on_loop
async def test_leaving_a_stream_early_closes_its_connection() -> None:
    gone = asyncio.Event()

    def begin(exchange: Exchange) -> None:
        exchange.on_disconnect(gone.set)
        pieces(*[b"x"] * 10_000, pause=0.01)(exchange)

    async with serving(begin) as (_, client):
        async with client.stream("GET", "/") as answer:
            assert await anext(answer) == b"x"
        await gone.wait()
        assert client.connections == 0


@on_loop
async def test_a_stream_that_is_cut_raises_after_the_pieces_that_came() -> None:
    async with serving(pieces(b"half", pause=0.02, end="abort")) as (_, client), client.stream("GET", "/") as answer:
        assert await anext(answer) == b"half"
        with pytest.raises(ConnectionLost) as caught:
            await anext(answer)
        assert caught.value.answered


@on_loop
async def test_a_stream_without_a_head_raises_at_once() -> None:
    async with serving(lambda exchange: None) as (server, client):
        with pytest.raises(TimedOut):
            async with client.stream("GET", "/", timeout=0.05):
                pass
        await until(lambda: server.connections == 0)
        task = asyncio.ensure_future(client.stream("GET", "/").__aenter__())
        await until(lambda: server.in_flight == 1)
        task.cancel()
        await until(lambda: server.connections == 0)


@on_loop
async def test_a_stream_may_pause_for_longer_than_its_head_may_take() -> None:
    async with (
        serving(pieces(b"one", b"two", pause=0.2)) as (_, client),
        client.stream("GET", "/", timeout=0.1) as answer,
    ):
        assert [piece async for piece in answer] == [b"one", b"two"]


@on_loop
async def test_a_swap_of_servers_under_load_loses_no_request_that_was_not_reused() -> None:
    async def slowly(request: Request) -> Response:
        await asyncio.sleep(0.002)
        return Response(200, request.path.encode())

    async with serving(from_coroutine(slowly), connections=8) as (server, client):
        port = int(client.where.rpartition(":")[2])
        successor: Server | None = None
        wrong: list[ClientError] = []
        answered = 0

        async def load(name: int) -> None:
            nonlocal answered
            for number in range(60):
                try:
                    response = await client.request("GET", f"/{name}/{number}", timeout=WITHIN)
                except ConnectFailed:
                    await asyncio.sleep(0.005)
                    continue
                except ClientError as error:
                    wrong.append(error)
                    continue
                assert response.body == f"/{name}/{number}".encode()
                answered += 1

        loads = [asyncio.ensure_future(load(name)) for name in range(16)]
        await until(lambda: answered > 100)
        assert await server.stop(WITHIN) == 0
        successor = Server(from_coroutine(slowly))
        await successor.listen(HOST, port)
        await asyncio.gather(*loads)
        assert all(isinstance(e, ConnectionLost) and e.reused and not e.answered for e in wrong)
        assert answered > 200
        await client.close()
        await successor.stop(0)
