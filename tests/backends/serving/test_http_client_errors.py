"""The HTTP client against servers that close, lie, hang or are not there."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from drivetrain.backends.serving.http.client import Address, Client
from drivetrain.backends.serving.http.messages import Exchange, Response
from drivetrain.backends.serving.http.outcomes import (
    BadAnswer,
    ClientError,
    ClientResponse,
    ConnectFailed,
    ConnectionLost,
    TimedOut,
)
from drivetrain.backends.serving.http.server import Server
from tests.backends.serving.client_harness import (
    HOST,
    WITHIN,
    answering,
    asked,
    echo,
    on_loop,
    scripted,
    serving,
    until,
)

# errors


@on_loop
async def test_nobody_at_the_address_means_nothing_was_sent(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))  # bound, and not listening
        for address in (Address(HOST, taken.getsockname()[1]), Address(path=str(tmp_path / "none"))):
            client = Client(address, connections=2)
            outcomes: list[ClientResponse | ClientError] = []
            for _ in range(7):
                client.send("GET", "/", (), b"", outcomes.append, timeout=WITHIN)
            await until(lambda outcomes=outcomes: len(outcomes) == 7)
            for outcome in outcomes:
                assert isinstance(outcome, ConnectFailed)
                assert not outcome.sent
                assert str(address) in str(outcome)
            await client.close()


@on_loop
async def test_who_does_not_take_the_connection_in_time_has_failed() -> None:
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        listener.listen(0)
        fillers = [socket.socket() for _ in range(8)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        client = Client(Address(HOST, listener.getsockname()[1]), connect_time=0.2)
        with pytest.raises(ConnectFailed, match=r"within 0\.2 s"):
            await client.request("GET", "/")
        await client.close()
        for filler in fillers:
            filler.close()


@on_loop
async def test_a_server_that_closes_without_an_answer_is_told_from_one_that_closed_an_idle_connection() -> None:
    async def nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asked(reader)

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asked(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await asked(reader)

    async with scripted(nothing) as client:
        with pytest.raises(ConnectionLost) as caught:
            await client.request("GET", "/")
        assert (caught.value.sent, caught.value.reused, caught.value.answered) == (True, False, False)
    async with scripted(one) as client:
        await client.request("GET", "/")
        with pytest.raises(ConnectionLost) as caught:
            await client.request("GET", "/")
        assert (caught.value.sent, caught.value.reused, caught.value.answered) == (True, True, False)
        assert (await client.request("GET", "/")).status == 200


@pytest.mark.parametrize(
    "half",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        b"HTTP/1.1 200 OK\r\nConte",
        b"HTTP/1.1 100 Continue\r\n\r\n",
    ],
)
def test_half_an_answer_is_none(half: bytes) -> None:
    @on_loop
    async def check() -> None:
        async with scripted(answering(half)) as client:
            with pytest.raises(ConnectionLost) as caught:
                await client.request("GET", "/")
            assert (caught.value.sent, caught.value.answered) == (True, True)

    check()


@pytest.mark.parametrize(
    "wrong",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n" + b"x" * 2000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n7d0\r\n" + b"x" * 2000 + b"\r\n0\r\n\r\n",
    ],
)
def test_what_is_no_answer_or_too_large_is_said_so(wrong: bytes) -> None:
    @on_loop
    async def check() -> None:
        async with scripted(answering(wrong), body_limit=1000) as client:
            with pytest.raises(BadAnswer) as caught:
                await client.request("GET", "/")
            assert caught.value.sent
            assert client.connections == 0

    check()


@on_loop
async def test_an_answer_nobody_asked_for_is_not_taken_for_the_next_one() -> None:
    ok = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b"

    async def twice(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asked(reader)
        writer.write(ok % (5, b"right") + ok % (5, b"wrong"))
        await asked(reader)
        writer.write(ok % (5, b"wrong"))

    async def later(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asked(reader)
        writer.write(ok % (5, b"right"))
        await writer.drain()
        await asyncio.sleep(0.02)
        writer.write(ok % (5, b"wrong"))
        await reader.read()

    for script in (twice, later):
        async with scripted(script) as client:
            assert (await client.request("GET", "/")).body == b"right"
            await until(lambda client=client: client.connections == 0)
            assert (await client.request("GET", "/")).body == b"right"


@on_loop
async def test_time_runs_out_for_an_answer_and_for_a_connection() -> None:
    held: list[Exchange] = []
    async with serving(held.append, connections=1) as (server, client):
        first = asyncio.ensure_future(client.request("GET", "/", timeout=WITHIN))
        await until(lambda: len(held) == 1)
        with pytest.raises(TimedOut, match="no connection became free") as caught:
            await client.request("GET", "/", timeout=0.05)
        assert not caught.value.sent
        held[0].reply(Response(200))
        assert (await first).status == 200
        with pytest.raises(TimedOut, match="no answer") as caught:
            await client.request("GET", "/", timeout=0.05)
        assert caught.value.sent
        await until(lambda: server.connections == 0)  # what is not waited for is not to be computed
        assert held[1].gone


@on_loop
async def test_a_time_limit_holds_though_the_client_was_at_rest() -> None:
    silent = False

    def first_alone(exchange: Exchange) -> None:
        if not silent:
            echo(exchange)

    async with serving(first_alone) as (_, client):
        await client.request("GET", "/")
        await until(lambda: not client._fast)  # it looks at idle connections alone, once a second
        silent = True
        task = asyncio.ensure_future(client.request("GET", "/", timeout=2.0))
        await until(lambda: client.in_flight == 1)
        assert client._fast
        with pytest.raises(TimedOut):
            await task


@on_loop
async def test_a_call_that_is_cancelled_closes_its_connection_and_is_not_called_back() -> None:
    held: list[Exchange] = []
    outcomes: list[object] = []
    async with serving(held.append, connections=1) as (_, client):
        running = client.send("GET", "/running", (), b"", outcomes.append)
        queued = client.send("GET", "/queued", (), b"", outcomes.append)
        task = asyncio.ensure_future(client.request("GET", "/task"))
        await until(lambda: len(held) == 1)
        queued.cancel()
        assert client.waiting == 1
        running.cancel()
        running.cancel()
        await until(lambda: len(held) == 2)
        assert [exchange.request.path for exchange in held] == ["/running", "/task"]
        await until(lambda: held[0].gone)
        task.cancel()
        await until(lambda: held[1].gone)
        assert (outcomes, client.in_flight, client.waiting) == ([], 0, 0)


@on_loop
async def test_idle_connections_are_closed_after_a_while() -> None:
    async with serving(idle_time=0.1) as (server, client):
        await asyncio.gather(*[client.request("GET", "/") for _ in range(5)])
        await until(lambda: server.connections == client.connections == 0)
        assert client._timer is None or not client._fast
        assert (await client.request("GET", "/")).status == 200


@on_loop
async def test_a_server_that_restarts_is_found_again_without_an_error() -> None:
    async with serving() as (server, client):
        await asyncio.gather(*[client.request("GET", "/") for _ in range(3)])
        port = int(client.where.rpartition(":")[2])
        await server.stop(1)
        await until(lambda: client.connections == 0)
        with pytest.raises(ConnectFailed):
            await client.request("GET", "/")
        again = Server(echo)
        await again.listen(HOST, port)
        assert (await client.request("GET", "/")).status == 200
        await again.stop(0)


@on_loop
async def test_closing_ends_what_is_under_way_and_what_waits() -> None:
    held: list[Exchange] = []
    outcomes: list[ClientResponse | ClientError] = []
    async with serving(held.append, connections=1) as (_, client):
        for _ in range(2):
            client.send("GET", "/", (), b"", outcomes.append)
        await until(lambda: len(held) == 1)
        await client.close()
        assert sorted((type(o).__name__, o.sent) for o in outcomes if isinstance(o, ClientError)) == [
            ("ConnectFailed", False),
            ("ConnectionLost", True),
        ]
        with pytest.raises(ConnectFailed, match="closed"):
            await client.request("GET", "/")


@on_loop
async def test_an_early_refusal_of_a_large_body_is_read() -> None:
    async with serving() as (_, client):
        response = await client.request("POST", "/", (), b"x" * 40_000_000)
        assert response.status == 413
        assert (await client.request("GET", "/")).status == 200
