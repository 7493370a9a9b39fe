"""The HTTP client against servers that keep to the protocol."""

from __future__ import annotations

import asyncio
import http.server
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivetrain.backends.serving.http.client import Address, Client, parse
from drivetrain.backends.serving.http.messages import Exchange, Response
from drivetrain.backends.serving.http.outcomes import (
    ClientError,
    ClientResponse,
    ConnectFailed,
)
from drivetrain.backends.serving.http.server import Server
from drivetrain.backends.serving.http.tls import client_context, server_context
from drivetrain.errors import ServingError, SystemFault
from tests.backends.serving.certificates import certificate
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

# answers


@on_loop
async def test_one_connection_serves_one_request_after_the_other() -> None:
    async with serving() as (server, client):
        for number in range(5):
            response = await client.request("POST", f"/p?n={number}", [(b"x-a", b"b")], b"body")
            assert (response.status, response.body) == (200, b"POST /p n=%d body" % number)
            assert response.header(b"content-type") == b"application/json"
            assert response.header(b"x-none") is None
        assert (client.connections, client.in_flight, client.waiting, server.connections) == (1, 0, 0, 1)


@on_loop
async def test_the_callback_is_called_once_and_never_before_send_has_returned() -> None:
    outcomes: list[ClientResponse | ClientError] = []
    async with serving() as (_, client):
        for number in range(20):
            client.send("GET", f"/{number}", (), b"", outcomes.append)
            assert len(outcomes) < 20
        await until(lambda: len(outcomes) == 20)
        assert sorted(o.body for o in outcomes if isinstance(o, ClientResponse)) == sorted(
            b"GET /%d  " % number for number in range(20)
        )


@on_loop
async def test_a_callback_that_raises_costs_nothing_but_a_line_in_the_log() -> None:
    async with serving() as (server, client):
        called: list[object] = []

        def fail(outcome: ClientResponse | ClientError) -> None:
            called.append(outcome)
            raise RuntimeError("the caller's mistake")

        client.send("GET", "/", (), b"", fail)
        await until(lambda: bool(called))
        assert (await client.request("GET", "/")).status == 200
        assert server.connections == 1


@on_loop
async def test_requests_beyond_the_cap_wait_in_order() -> None:
    held: list[Exchange] = []
    done: list[bytes] = []

    def note(outcome: ClientResponse | ClientError) -> None:
        assert isinstance(outcome, ClientResponse)
        done.append(outcome.body)

    async with serving(held.append, connections=2) as (server, client):
        for number in range(6):
            client.send("GET", f"/{number}", (), b"", note)
        await until(lambda: len(held) == 2)
        assert (server.connections, client.in_flight, client.waiting) == (2, 2, 4)
        for number in range(6):
            await until(lambda number=number: len(held) > number)
            held[number].reply(Response(200, held[number].request.path.encode()))
        await until(lambda: len(done) == 6)
        assert sorted(done[2:4]) == [b"/2", b"/3"]
        assert server.connections == 2


@on_loop
async def test_a_unix_socket_serves_as_well(tmp_path: Path) -> None:
    server = Server(echo)
    await server.listen_unix(str(tmp_path / "s"))
    client = Client(parse(f"unix:{tmp_path}/s"))
    body = os.urandom(3_000_000)
    assert (await client.request("POST", "/", (), body)).body == b"POST /  " + body
    assert (await client.request("GET", "/")).status == 200
    await client.close()
    await server.stop(0)


@on_loop
async def test_head_has_no_body_and_the_next_request_is_answered() -> None:
    async with serving() as (_, client):
        response = await client.request("HEAD", "/")
        assert (response.status, response.body) == (200, b"")
        assert int(response.header(b"content-length") or 0) > 0
        assert (await client.request("GET", "/")).body == b"GET /  "


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", b"abc"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1;x\r\nc\r\n0\r\nX-T: 1\r\n\r\n", b"abc"),
        (b"HTTP/1.1 200 OK\r\n\r\nabc", b"abc"),
        (b"HTTP/1.0 200 OK\r\nConnection: close\r\n\r\nabc", b"abc"),
        (
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            b"",
        ),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 10\r\n\r\n", b""),
        (b"HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc", b"abc"),
    ],
)
def test_bodies_are_read_however_they_are_framed(answer: bytes, body: bytes) -> None:
    @on_loop
    async def check() -> None:
        until_close = b"Content-Length" not in answer and answer.endswith(b"abc")
        async with scripted(answering(*[answer] * (1 if until_close else 2))) as client:
            for _ in range(2):
                assert (await client.request("GET", "/", timeout=WITHIN)).body == body

    check()


@contextmanager
def python_server() -> Iterator[int]:
    class Answering(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("X-Host", self.headers["Host"])
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(b"until the end")

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    server = http.server.ThreadingHTTPServer((HOST, 0), Answering)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join(WITHIN)
        server.server_close()


@on_loop
async def test_it_is_at_home_with_pythons_own_server() -> None:
    with python_server() as port:
        client = Client(parse(f"http://{HOST}:{port}/"))
        for body in (b"", b"abc", os.urandom(1_000_000)):
            response = await client.request("POST", "/x", (), body)
            assert response.body == body
            assert response.header(b"x-host") == f"{HOST}:{port}".encode()
        assert (await client.request("GET", "/")).body == b"until the end"
        assert (await client.request("POST", "/", (), b"again")).body == b"again"
        await client.close()


@on_loop
async def test_https_is_checked_against_an_authority(tmp_path: Path) -> None:
    public, private = certificate(tmp_path)
    server = Server(echo)
    port = await server.listen(HOST, 0, server_context(public, private))
    address = parse(f"https://localhost:{port}")
    client = Client(Address(HOST, port, secure=True), tls=client_context(public))
    body = os.urandom(2_000_000)
    for _ in range(2):
        assert (await client.request("POST", "/", (), body)).body == b"POST /  " + body
    assert server.connections == 1
    stranger = Client(address, tls=ssl.create_default_context())
    with pytest.raises(ConnectFailed, match=r"(?i)certificate"):
        await stranger.request("GET", "/")
    await client.close()
    await stranger.close()
    await server.stop(1)


def test_a_file_without_authorities_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_text("")
    for name in ("empty.pem", "none.pem"):
        with pytest.raises(SystemFault, match="certificate authorities"):
            client_context(str(tmp_path / name))


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://host:81", Address("host", 81)),
        ("http://host/", Address("host", 80)),
        ("https://[::1]", Address("::1", 443, secure=True)),
        ("unix:/a/b", Address(path="/a/b")),
        ("unix:///a/b", Address(path="/a/b")),
        ("host:80", None),
        ("http://", None),
        ("http://host:port", None),
        ("http://host/path", None),
        ("http://user@host/", None),
        ("http://hä/", None),
    ],
)
def test_addresses_are_read_from_urls(url: str, address: Address | None) -> None:
    if address is not None:
        assert parse(url) == address
        assert parse(str(address)) == address
        return
    with pytest.raises(ServingError, match="is not an address"):
        parse(url)


@on_loop
async def test_what_cannot_be_on_the_wire_is_not_sent() -> None:
    async with serving() as (server, client):
        for target in ("", "/a b", "/a\r\nX: y", "/ä", "/a\x00"):
            with pytest.raises(ValueError, match="percent-encoded"):
                client.send("GET", target, (), b"", print)
        with pytest.raises(ValueError, match="line breaks"):
            client.send("GET", "/", [(b"a", b"b\r\nc: d")], b"", print)
        assert (server.connections, client.waiting) == (0, 0)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.booleans(), st.binary(max_size=30)), min_size=1, max_size=4), st.data())
def test_any_split_into_packets_gives_the_same_answers(bodies: list[tuple[bool, bytes]], data: st.DataObject) -> None:
    answers = [
        b"HTTP/1.1 200 OK\r\nX-Empty:\r\nTransfer-Encoding: chunked\r\n\r\n"
        + (b"%x\r\n%b\r\n" % (len(body), body) if body else b"")
        + b"0\r\n\r\n"
        if chunked
        else b"HTTP/1.1 200 OK\r\nX-Empty: \r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        for chunked, body in bodies
    ]
    split: list[list[bytes]] = []
    for answer in answers:
        cuts = sorted(data.draw(st.sets(st.integers(1, len(answer) - 1), max_size=6)))
        split.append([answer[a:b] for a, b in zip([0, *cuts], [*cuts, len(answer)], strict=True)])

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for packets in split:
            await asked(reader)
            for packet in packets:
                writer.write(packet)
                await asyncio.sleep(0)
                await asyncio.sleep(0)

    @on_loop
    async def check() -> None:
        async with scripted(script, connections=1) as client:
            for _, body in bodies:
                response = await client.request("GET", "/")
                assert (response.body, response.header(b"x-empty")) == (body, b"")

    check()
