"""The HTTP server over real sockets: what is asked byte by byte, and what is answered."""

from __future__ import annotations

import asyncio
import http.client
import os
import re
import threading
import time

import pytest

from drivetrain.backends.serving.http.messages import Exchange, Limits, Request, Response, Stream
from drivetrain.backends.serving.http.reading import split_target
from drivetrain.backends.serving.http.server import from_coroutine
from drivetrain.backends.serving.http.wire import end_to_end, lines
from tests.backends.serving.http_harness import WITHIN, echo, holding, serving, streaming, three

# requests and answers


def test_a_connection_is_kept_for_the_next_request() -> None:
    with serving() as running, running.connect() as client:
        for number in range(3):
            client.send(b"POST /a%%20b?x=%%20%d HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc" % number)
            status, headers, body = client.answer()
            assert (status, body) == (200, b"POST /a b x=%%20%d abc" % number)
            assert headers["Content-Type"] == "application/json"
            assert headers["Content-Length"] == str(len(body))
            assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", headers["Date"])
            assert "Connection" not in headers


def test_what_the_client_asks_to_be_closed_is_closed() -> None:
    with serving() as running, running.connect() as client:
        client.get("/", "Connection: close")
        _, headers, _ = client.answer()
        assert headers["Connection"] == "close"
        assert client.ended()


def test_http_1_0_is_closed_unless_it_asks_to_be_kept() -> None:
    with serving() as running:
        with running.connect() as client:
            client.send(b"GET / HTTP/1.0\r\n\r\n")
            assert client.answer()[1]["Connection"] == "close"
            assert client.ended()
        with running.connect() as client:
            for _ in range(2):
                client.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
                assert client.answer()[1]["Connection"] == "keep-alive"


def test_pipelined_requests_are_answered_in_order_though_later_ones_are_ready_first() -> None:
    with holding() as running, running.connect() as client:
        client.send(b"".join(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % number for number in range(40)))
        for number in range(40):
            running.wait(lambda number=number: len(running.held) == number + 1)
            exchange = running.held[number]
            assert exchange.request.path == f"/{number}"
            running.call(lambda exchange=exchange: exchange.reply(Response(200, exchange.request.path.encode())))
        assert [client.answer()[2] for _ in range(40)] == [b"/%d" % number for number in range(40)]


def test_thousands_of_requests_in_one_packet_are_answered() -> None:
    def first_later(exchange: Exchange) -> None:
        if exchange.request.path == "/first":
            asyncio.get_running_loop().call_later(0.05, exchange.reply, Response(200))
        else:
            exchange.reply(Response(200))

    with serving(first_later) as running, running.connect() as client:
        client.send(b"GET /first HTTP/1.1\r\n\r\n" + b"GET / HTTP/1.1\r\n\r\n" * 5000)
        assert all(client.answer()[0] == 200 for _ in range(5001))


def test_a_chunked_body_is_read_whole_and_its_trailers_are_dropped() -> None:
    seen: list[Request] = []

    def note(exchange: Exchange) -> None:
        seen.append(exchange.request)
        echo(exchange)

    with serving(note) as running, running.connect() as client:
        client.send(
            b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"3;ext=1\r\nabc\r\n2\r\nde\r\n0\r\nX-Evil: 1\r\n\r\n"
        )
        assert client.answer()[2].endswith(b"abcde")
        assert seen[0].header(b"x-evil") is None


def test_a_client_that_expects_to_be_invited_is_after_the_answers_before_it() -> None:
    head = b"POST /b HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
    with holding() as running, running.connect() as client:
        client.send(head)
        assert client.head() == (100, {})
        client.send(b"ok")
        running.wait(lambda: len(running.held) == 1)
        client.send(head)
        running.call(lambda: running.held[0].reply(Response(200, b"one")))
        assert client.answer()[2] == b"one"
        assert client.head() == (100, {})
        client.send(b"ok")
        running.wait(lambda: len(running.held) == 2)
        running.call(lambda: running.held[1].reply(Response(200, b"two")))
        assert client.answer()[2] == b"two"


def test_an_expectation_that_is_not_known_is_refused() -> None:
    with serving() as running, running.connect() as client:
        client.get("/", "Expect: a-miracle")
        assert client.answer()[0] == 417
        assert client.ended()


def test_head_has_the_length_and_no_body() -> None:
    with serving(lambda exchange: exchange.reply(Response(200, b"x" * 10))) as running, running.connect() as client:
        client.send(b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.head()[1]["Content-Length"] == "10"
        assert client.answer()[2] == b"x" * 10


def test_204_has_neither_body_nor_length() -> None:
    with serving(lambda exchange: exchange.reply(Response(204))) as running, running.connect() as client:
        client.get()
        status, headers = client.head()
        assert status == 204
        assert "Content-Length" not in headers
        client.get()
        assert client.head()[0] == 204


def test_a_large_body_goes_both_ways() -> None:
    body = os.urandom(5_000_000)
    with serving(lambda exchange: exchange.reply(Response(200, exchange.request.body))) as running:
        connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=WITHIN)
        connection.request("POST", "/", body)
        assert connection.getresponse().read() == body
        connection.close()


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_offer_of_http_2_is_declined_and_the_body_is_kept(method: str) -> None:
    with serving() as running, running.connect() as client:
        for _ in range(2):
            body = b"abc" if method == "POST" else b""
            client.send(
                method.encode() + b" / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
                b"HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\nContent-Length: %d\r\n\r\n" % len(body) + body
            )
            assert client.answer()[::2] == (200, method.encode() + b" /  " + body)


def test_headers_of_an_answer_cannot_smuggle_in_another_answer() -> None:
    def careless(exchange: Exchange) -> None:
        exchange.reply(Response(200, headers=[(b"x-id", b"a\r\nContent-Length: 0\r\n\r\nHTTP/1.1 200 OK")]))

    with serving(careless) as running, running.connect() as client:
        client.get()
        assert client.answer()[0] == 500


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (b"/a/b?c=d%20?e", ("/a/b", "c=d%20?e")),
        (b"/%C3%A4%2F?", ("/ä/", "")),
        (b"/%ff", ("/\ufffd", "")),
        (b"*", ("*", "")),
        (b"http://host:1/p?q", ("/p", "q")),
        (b"HTTP://host", ("/", "")),
        (b"http://host?q=/", ("/", "q=/")),
        (b"host:443", None),
        (b"ftp://host/", None),
    ],
)
def test_targets_are_taken_apart(target: bytes, expected: tuple[str, str] | None) -> None:
    assert split_target(target) == expected


def test_a_proxy_passes_on_what_is_not_of_the_connection() -> None:
    headers = [
        (b"host", b"x"),
        (b"connection", b"keep-alive, X-Mine"),
        (b"x-mine", b"1"),
        (b"accept", b"*/*"),
        (b"te", b""),
    ]
    assert end_to_end(headers) == [(b"accept", b"*/*")]
    with pytest.raises(ValueError, match="line breaks"):
        lines([(b"a", b"b\nc")])


# handlers


def test_a_handler_that_raises_is_a_500_and_a_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    def fail(exchange: Exchange) -> None:
        raise RuntimeError("what went wrong")

    async def fail_later(request: Request) -> Response:
        raise RuntimeError("what went wrong")

    for handler in (fail, from_coroutine(fail_later)):
        caplog.clear()
        with serving(handler) as running, running.connect() as client:
            client.get("/here")
            status, _, body = client.answer()
            assert (status, body) == (500, b'{"error": "internal error"}')
            client.get("/here")
            assert client.answer()[0] == 500
        assert "GET /here failed" in caplog.text
        assert "what went wrong" in caplog.text


def test_a_coroutine_answers() -> None:
    async def slowly(request: Request) -> Response:
        await asyncio.sleep(0)
        return Response(201, request.body, [(b"x-a", b"b")], b"text/plain")

    with serving(from_coroutine(slowly)) as running, running.connect() as client:
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi")
        status, headers, body = client.answer()
        assert (status, headers["x-a"], headers["Content-Type"], body) == (201, "b", "text/plain", b"hi")


def test_a_second_answer_is_an_error() -> None:
    with holding() as running, running.connect() as client:
        client.get()
        running.wait(lambda: len(running.held) == 1)
        running.call(lambda: running.held[0].reply(Response(200)))
        with pytest.raises(RuntimeError, match="has its answer"):
            running.call(lambda: running.held[0].reply(Response(200)))
        with pytest.raises(RuntimeError, match="has its answer"):
            running.call(lambda: running.held[0].stream(200, (), b"text/plain"))
        assert client.answer()[0] == 200


def test_whoever_waits_is_told_once_that_the_client_has_gone() -> None:
    told: list[str] = []
    with holding() as running:
        with running.connect() as client:
            client.get("/gone")
            running.wait(lambda: len(running.held) == 1)
            exchange = running.held[0]
            running.call(lambda: exchange.on_disconnect(lambda: told.append("first")))
            running.call(lambda: exchange.on_disconnect(lambda: 1 // 0))
            running.call(lambda: exchange.on_disconnect(lambda: told.append("second")))
            assert not running.call(lambda: exchange.gone)
            assert running.call(lambda: running.server.in_flight) == 1
        running.wait(lambda: exchange.gone)
        assert told == ["first", "second"]
        assert running.call(lambda: (running.server.in_flight, running.server.connections)) == (0, 0)
        running.call(lambda: exchange.reply(Response(200)))
        running.call(lambda: exchange.on_disconnect(lambda: told.append("late")))
        running.wait(lambda: told == ["first", "second", "late"])


def test_nobody_is_told_of_a_client_that_has_its_answer() -> None:
    told: list[str] = []
    with holding() as running:
        with running.connect() as client:
            client.get()
            running.wait(lambda: len(running.held) == 1)
            running.call(lambda: running.held[0].on_disconnect(lambda: told.append("gone")))
            running.call(lambda: running.held[0].reply(Response(200)))
            assert client.answer()[0] == 200
        running.wait(lambda: running.server.connections == 0)
        running.call(lambda: running.held[0].on_disconnect(lambda: told.append("gone")))
    assert told == []


# answers in pieces


def test_an_answer_in_pieces_is_chunked_and_the_connection_is_kept() -> None:
    with serving(streaming(three)) as running, running.connect() as client:
        for _ in range(2):
            client.get()
            status, headers = client.head()
            assert (status, headers["x-a"], headers["Content-Type"]) == (200, "b", "text/event-stream")
            assert list(client.chunks()) == [b"one", b"two", b"three"]


def test_an_answer_in_pieces_ends_with_the_connection_in_http_1_0() -> None:
    with serving(streaming(three)) as running, running.connect() as client:
        client.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        _, headers = client.head()
        assert "Transfer-Encoding" not in headers
        assert headers["Connection"] == "close"
        assert client.file.read() == b"onetwothree"


def test_head_of_an_answer_in_pieces_has_none() -> None:
    with serving(streaming(three)) as running, running.connect() as client:
        client.send(b"HEAD / HTTP/1.1\r\n\r\nHEAD / HTTP/1.1\r\nConnection: close\r\n\r\n")
        assert client.head()[0] == 200
        assert client.head()[0] == 200
        assert client.ended()


def test_a_stream_waits_for_a_client_that_reads_slowly() -> None:
    written: list[int] = []
    ended = threading.Event()

    async def much(exchange: Exchange, stream: Stream) -> None:
        for _ in range(400):
            await stream.write(b"x" * 65536)
            written.append(65536)
        stream.end()
        ended.set()

    with serving(streaming(much)) as running, running.connect() as client:
        client.get()
        client.head()
        amount, since = -1, time.monotonic()
        while time.monotonic() - since < 0.3:  # until nothing more is written
            if len(written) != amount:
                amount, since = len(written), time.monotonic()
            time.sleep(0.01)
        assert amount < 400
        assert sum(map(len, client.chunks())) == 400 * 65536
        assert ended.wait(WITHIN)


def test_a_stream_says_that_the_client_has_gone() -> None:
    caught: list[Exception] = []
    told = threading.Event()

    async def forever(exchange: Exchange, stream: Stream) -> None:
        exchange.on_disconnect(told.set)
        try:
            while True:
                await stream.write(b"x" * 65536)
        except ConnectionError as error:
            caught.append(error)
        stream.end()

    with serving(streaming(forever)) as running:
        with running.connect() as client:
            client.get()
            client.file.read(100_000)
        assert told.wait(WITHIN)
        running.wait(lambda: len(caught) == 1 and running.server.in_flight == 0)


def test_a_stream_that_is_cut_is_no_whole_answer() -> None:
    async def half(exchange: Exchange, stream: Stream) -> None:
        await stream.write(b"half")
        await asyncio.sleep(0.02)
        stream.abort()

    with serving(streaming(half)) as running:
        connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=WITHIN)
        connection.request("GET", "/")
        with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
            connection.getresponse().read()
        connection.close()


def test_a_handler_that_raises_within_a_stream_cuts_it() -> None:
    def fail(exchange: Exchange) -> None:
        exchange.stream(200, (), b"text/plain")
        raise RuntimeError("what went wrong")

    with serving(fail) as running, running.connect() as client:
        client.get()
        assert b"0\r\n\r\n" not in client.file.read()
        running.wait(lambda: running.server.in_flight == 0)


def test_a_client_that_asks_and_never_reads_is_not_listened_to() -> None:
    answered: list[int] = []

    def large(exchange: Exchange) -> None:
        answered.append(1)
        exchange.reply(Response(200, b"x" * 200_000))

    with serving(large, Limits(idle_time=0.5)) as running, running.connect() as client:
        client.send(b"GET / HTTP/1.1\r\n\r\n" * 2000)
        running.wait(lambda: running.server.connections == 0)  # cut off in the end
        assert len(answered) < 100


def test_a_connection_that_is_cut_takes_neither_an_end_nor_the_next_request() -> None:
    with holding() as running, running.connect() as client:
        client.send(b"GET /1 HTTP/1.1\r\n\r\nGET /2 HTTP/1.1\r\nConnection: close\r\n\r\n")
        running.wait(lambda: len(running.held) == 1)

        def cut_and_end() -> None:
            stream = running.held[0].stream(200, (), b"text/plain")
            stream.abort()
            stream.end()

        running.call(cut_and_end)
        running.wait(lambda: (running.server.connections, running.server.in_flight) == (0, 0))
        assert len(running.held) == 1
