"""What the HTTP server does not put up with, and that no split into packets changes what it reads."""

from __future__ import annotations

import socket
import struct
import threading
import time
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drivetrain.backends.serving.http.messages import Limits, Request, Response
from drivetrain.backends.serving.http.reading import Reader
from tests.backends.serving.http_harness import WITHIN, holding, serving

# what is not put up with


@pytest.mark.parametrize(
    "rubbish",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/1.1\r\nNo colon\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /a b HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/1.1\r\nX: a\x00b\r\n\r\n",
        b"CONNECT host:443 HTTP/1.1\r\nHost: host\r\n\r\n",
        b"POST / HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: h2c\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"POST / HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: h2c\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n",
    ],
)
def test_what_is_no_request_is_a_400_and_the_end(rubbish: bytes) -> None:
    with serving() as running, running.connect() as client:
        client.send(rubbish)
        status, headers, _ = client.answer()
        assert (status, headers["Connection"]) == (400, "close")
        assert client.ended()
        client.close()
        running.wait(lambda: running.server.connections == 0)


def test_rubbish_behind_a_request_is_refused_after_its_answer() -> None:
    with holding() as running, running.connect() as client:
        client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\nrubbish rubbish rubbish\r\n\r\n")
        running.wait(lambda: len(running.held) == 1)
        running.call(lambda: running.held[0].reply(Response(200, b"first")))
        assert client.answer()[::2] == (200, b"first")
        assert client.answer()[0] == 400
        assert client.ended()


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_beyond_the_limit_is_a_413_though_the_client_is_still_sending(chunked: bool) -> None:
    with serving(limits=Limits(body=100_000)) as running, running.connect() as client:
        framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: 3000000"
        client.send(b"POST / HTTP/1.1\r\n%b\r\n\r\n" % framing)
        if chunked:
            client.send(b"2dc6c0\r\n")
        with suppress(ConnectionError):
            for _ in range(30):
                client.send(b"x" * 100_000)
        assert client.answer()[0] == 413


def test_a_body_of_exactly_the_limit_is_taken() -> None:
    with serving(limits=Limits(body=10)) as running, running.connect() as client:
        client.send(b"POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\n0123456789")
        assert client.answer()[0] == 200


def test_a_client_that_asks_first_is_refused_without_sending_a_large_body() -> None:
    with serving(limits=Limits(body=10)) as running, running.connect() as client:
        client.send(b"POST / HTTP/1.1\r\nContent-Length: 11\r\nExpect: 100-continue\r\n\r\n")
        assert client.answer()[0] == 413


@pytest.mark.parametrize("piece", [b"X-Many: %s\r\n" % (b"y" * 100), b"z" * 100])
def test_too_many_headers_and_too_long_ones_are_a_431(piece: bytes) -> None:
    with serving(limits=Limits(headers=8192)) as running, running.connect() as client:
        with suppress(ConnectionError):
            client.send(b"GET / HTTP/1.1\r\nX-Long: ")
            for _ in range(200):
                client.send(piece)
        assert client.answer()[0] == 431
    with serving(limits=Limits(headers=8192)) as running, running.connect() as client:
        client.get("/", *["X-Many: " + "y" * 100] * 100)
        assert client.answer()[0] == 431


def test_a_packet_full_of_requests_is_not_taken_for_a_large_head() -> None:
    with serving(limits=Limits(headers=200)) as running, running.connect() as client:
        client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 100 + b"GET /last HT")
        for _ in range(100):
            assert client.answer()[0] == 200
        client.send(b"TP/1.1\r\n\r\n")
        assert client.answer()[0] == 200


@pytest.mark.parametrize("packet", [1000, 100_000])
def test_a_body_that_is_mostly_overhead_is_refused(packet: int) -> None:
    head = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-Trailer: "
    sent = head + b"x" * 100_000
    with serving(limits=Limits(headers=4096)) as running, running.connect() as client:
        with suppress(ConnectionError):
            for start in range(0, len(sent), packet):
                client.send(sent[start : start + packet])
        assert client.answer()[0] == 413


def test_a_head_just_within_the_limit_may_come_with_the_start_of_its_body() -> None:
    with serving(limits=Limits(headers=4096)) as running, running.connect() as client:
        client.send(b"POST / HTTP/1.1\r\nX-Long: %b\r\nContent-Length: 600\r\n\r\n" % (b"y" * 4000) + b"z" * 10)
        client.send(b"z" * 590)
        assert client.answer()[0] == 200


@pytest.mark.parametrize(
    "start", [b"G", b"GET / HTTP/1.1\r\nHost: x\r\nX-A: b", b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\n12"]
)
def test_a_client_that_sends_a_byte_now_and_then_is_cut_off_with_408(start: bytes) -> None:
    limits = Limits(header_time=0.3, body_time=0.3)
    with serving(limits=limits) as running, running.connect() as client:
        client.send(start)
        client.sock.settimeout(0.05)
        found = b""
        until = time.monotonic() + WITHIN
        while not found and time.monotonic() < until:
            with suppress(TimeoutError):
                found = client.sock.recv(4096)
            if not found and b"X-A" in start:
                client.send(b"c")
        assert found.startswith(b"HTTP/1.1 408 ")
        assert b"Connection: close" in found


def test_the_time_for_a_request_does_not_run_while_the_one_before_is_answered() -> None:
    with holding(Limits(header_time=1.0, body_time=1.0)) as running, running.connect() as client:
        client.send(b"GET / HTTP/1.1\r\n\r\nGET /half HTTP/1.1\r\n")
        running.wait(lambda: len(running.held) == 1)
        time.sleep(2.0)
        running.call(lambda: running.held[0].reply(Response(200)))
        assert client.answer()[0] == 200
        client.send(b"\r\n")
        running.wait(lambda: len(running.held) == 2)
        running.call(lambda: running.held[1].reply(Response(200)))
        assert client.answer()[0] == 200


def test_an_idle_connection_is_closed_and_one_that_waits_for_its_answer_is_not() -> None:
    with holding(Limits(idle_time=1.0)) as running, running.connect() as idle, running.connect() as client:
        client.get()
        assert idle.ended()
        running.wait(lambda: len(running.held) == 1)
        time.sleep(2.0)
        running.call(lambda: running.held[0].reply(Response(200)))
        assert client.answer()[0] == 200
        assert client.ended()


def test_of_large_requests_in_a_row_one_is_read_ahead() -> None:
    size = 1_000_000
    request = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size + bytes(size)
    with holding() as running, running.connect() as client:
        sending = threading.Thread(target=client.send, args=(request * 40,))
        sending.start()
        for number in range(40):
            running.wait(lambda number=number: len(running.held) == number + 1)
            assert sum(len(each._waiting) for each in running.server._site.connections) <= 1
            running.call(lambda number=number: running.held[number].reply(Response(200)))
        assert [client.answer()[0] for _ in range(40)] == [200] * 40
        sending.join(WITHIN)


def test_a_client_beyond_the_cap_is_told_so() -> None:
    with serving(limits=Limits(connections=2)) as running, running.connect() as first, running.connect() as second:
        first.get()
        second.get()
        assert first.answer()[0] == second.answer()[0] == 200
        with running.connect() as third:
            status, headers, _ = third.answer()
            assert (status, headers["Retry-After"], headers["Connection"]) == (503, "1", "close")
        first.close()
        running.wait(lambda: running.server.connections == 1)
        with running.connect() as fourth:
            fourth.get()
            assert fourth.answer()[0] == 200


def test_clients_that_reset_their_connections_leave_nothing_behind() -> None:
    with holding() as running:
        for start in (b"", b"GET", b"GET / HTTP/1.1\r\n\r\n", b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n1"):
            with running.connect() as client:
                client.send(start)
                client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        running.wait(lambda: (running.server.connections, running.server.in_flight) == (0, 0))


# any split of a byte stream

TOKENS = st.text("abcdefghijklmnopqrstuvwxyzABC-", min_size=1, max_size=8).map(str.encode)
VALUES = st.text("abc: ;,=/é", max_size=12).map(lambda text: text.strip().encode("latin-1"))
PATHS = st.text("abc/%20?=&", max_size=10).map(lambda text: b"/" + text.encode())
RESERVED = (b"connection", b"content-length", b"expect", b"transfer-encoding", b"upgrade", b"host")


@st.composite
def valid_requests(draw: st.DrawFn) -> bytes:
    method = draw(st.sampled_from([b"GET", b"POST", b"PUT", b"DELETE", b"PATCH"]))
    headers = draw(st.lists(st.tuples(TOKENS.filter(lambda name: name.lower() not in RESERVED), VALUES), max_size=4))
    body = draw(st.binary(max_size=40))
    chunked = draw(st.booleans())
    if draw(st.booleans()) and not draw(st.booleans()):
        headers += [(b"Connection", b"Upgrade"), (b"Upgrade", b"h2c")]
    if chunked:
        cut = draw(st.integers(0, len(body)))
        pieces = [piece for piece in (body[:cut], body[cut:]) if piece]
        framed = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
        headers.append((b"Transfer-Encoding", b"chunked"))
    else:
        framed = body
        headers.append((b"Content-Length", b"%d" % len(body)))
    head = b"%b %b HTTP/1.1\r\n" % (method, draw(PATHS))
    return (
        head
        + b"".join(b"%b:%b%b\r\n" % (n, draw(st.sampled_from([b"", b" "])), v) for n, v in headers)
        + b"\r\n"
        + framed
    )


class Collector:
    """What a reader hands on."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, str, list[tuple[bytes, bytes]], bytes, bool]] = []
        self.refused: list[int] = []

    def requested(self, request: Request, keep_alive: bool, old: bool) -> None:
        headers = [(name, value.strip()) for name, value in request.headers]
        self.requests.append((request.method, request.path, request.query, headers, request.body, keep_alive))

    def refuse(self, status: int, reason: str) -> None:
        self.refused.append(status)

    def expected(self) -> None: ...


def read(packets: list[bytes]) -> Collector:
    found = Collector()
    reader = Reader(found, Limits(headers=4096, body=4096))
    for packet in packets:
        reader.feed(packet, 0.0)
    return found


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(valid_requests(), min_size=1, max_size=4), st.data())
def test_any_split_into_packets_gives_the_same_requests(requests: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(requests)
    apart = [read([request]) for request in requests]
    assert all(len(one.requests) == 1 and not one.refused for one in apart)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    packets = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True) if a < b]
    expected = [one.requests[0] for one in apart]
    assert read(packets).requests == expected
    assert read([stream[at : at + 1] for at in range(len(stream))]).requests == expected


@settings(deadline=None, max_examples=300)
@given(st.lists(st.binary(max_size=60), max_size=5), valid_requests(), st.data())
def test_no_bytes_make_the_reader_raise(rubbish: list[bytes], request_: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(request_)))
    found = read([request_[:at], *rubbish, request_[at:]])
    assert len(found.refused) <= 1
