"""Where the HTTP server listens, with and without TLS, and how it ends."""

from __future__ import annotations

import asyncio
import http.client
import os
import socket
import ssl
import stat
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from drivetrain.backends.serving.http import server as http_server
from drivetrain.backends.serving.http.messages import Response
from drivetrain.backends.serving.http.tls import server_context
from drivetrain.errors import ServingError, SystemFault
from tests.backends.serving.certificates import certificate
from tests.backends.serving.http_harness import WITHIN, Client, holding, serving, streaming, three

# listening


def test_a_unix_socket_is_for_this_user_alone_and_a_stale_one_is_replaced(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(path)
    stale.close()
    with serving() as running:
        running.do(running.server.listen_unix(path))
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(WITHIN)
        sock.connect(path)
        with Client(sock) as client, running.connect() as other:  # several addresses at once
            client.get("/u")
            other.get("/t")
            assert client.answer()[2] == b"GET /u  "
            assert other.answer()[2] == b"GET /t  "
        with serving() as second, pytest.raises(ServingError, match="another process listens"):
            second.do(second.server.listen_unix(path))
        running.do(running.server.stop(5))
        assert not os.path.exists(path)


def test_a_file_in_the_way_of_a_socket_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("precious")
    with serving() as running:
        with pytest.raises(ServingError, match="no socket"):
            running.do(running.server.listen_unix(str(path)))
        with pytest.raises(ServingError, match="at most"):
            running.do(running.server.listen_unix(str(tmp_path / ("x" * 200))))
        with pytest.raises(ServingError, match="cannot listen"):
            running.do(running.server.listen_unix(str(tmp_path / "none" / "s")))
    assert path.read_text() == "precious"


def test_a_server_that_stops_leaves_the_socket_of_its_successor(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with serving() as running, serving() as successor:
        running.do(running.server.listen_unix(path))
        os.unlink(path)
        successor.do(successor.server.listen_unix(path))
        running.do(running.server.stop(1))
        assert os.path.exists(path)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
def test_an_inherited_socket_is_listened_on(family: int, tmp_path: Path) -> None:
    sock = socket.socket(family)
    sock.bind(("127.0.0.1", 0) if family == socket.AF_INET else str(tmp_path / "s"))
    where = sock.getsockname()
    with serving() as running:
        running.do(running.server.listen_socket(sock))
        plain = socket.socket(family)
        plain.settimeout(WITHIN)
        plain.connect(where)
        with Client(plain) as client:
            client.get("/inherited")
            assert client.answer()[2] == b"GET /inherited  "


def test_a_port_that_is_taken_is_said_so() -> None:
    with serving() as running, serving() as second:
        with pytest.raises(ServingError, match=rf"cannot listen on 127.0.0.1:{running.port}") as caught:
            second.do(second.server.listen("127.0.0.1", running.port))
        assert caught.value.hint


def test_tls_serves_by_certificate_and_key_files(tmp_path: Path) -> None:
    public, private = certificate(tmp_path)
    body = os.urandom(3_000_000)
    with serving(
        lambda exchange: exchange.reply(Response(200, exchange.request.body)), tls=server_context(public, private)
    ) as running:
        context = ssl.create_default_context(cafile=public)
        connection = http.client.HTTPSConnection("localhost", running.port, timeout=WITHIN, context=context)
        for headers in ({}, {"Connection": "close"}):
            connection.request("POST", "/", body, headers)
            assert connection.getresponse().read() == body
        connection.close()
        with running.connect() as plain:
            plain.get()
            assert plain.ended()


def test_bad_certificates_are_said_so(tmp_path: Path) -> None:
    public, private = certificate(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    _, wrong = certificate(other)
    locked = tmp_path / "locked.pem"
    key = serialization.load_pem_private_key(Path(private).read_bytes(), None)
    locked.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    (tmp_path / "empty.pem").write_text("")
    for pair in (
        (public, wrong),
        (str(tmp_path / "none.pem"), private),
        (str(tmp_path / "empty.pem"), private),
        (public, str(locked)),
    ):
        with pytest.raises(SystemFault, match="cannot use the certificate") as caught:
            server_context(*pair)
        assert "PEM" in caught.value.hint


# the end


def test_stopping_answers_what_is_under_way_and_closes_what_is_idle() -> None:
    with holding() as running, running.connect() as busy, running.connect() as idle:
        idle.get()
        running.wait(lambda: len(running.held) == 1)
        running.call(lambda: running.held[0].reply(Response(200)))
        assert idle.answer()[0] == 200
        busy.get()
        running.wait(lambda: len(running.held) == 2)
        stopping = asyncio.run_coroutine_threadsafe(running.server.stop(WITHIN), running.loop)
        assert idle.ended()
        with pytest.raises(OSError):  # noqa: PT011 - refused or reset
            running.connect().answer()
        assert not stopping.done()
        running.call(lambda: running.held[1].reply(Response(200, b"done")))
        status, headers, body = busy.answer()
        assert (status, headers["Connection"], body) == (200, "close", b"done")
        assert busy.ended()
        busy.close()
        assert stopping.result(WITHIN) == 0


def test_stopping_ends_with_the_grace_and_says_who_was_cut_off() -> None:
    with holding() as running, running.connect() as busy:
        busy.get()
        running.wait(lambda: len(running.held) == 1)
        assert running.do(running.server.stop(0.1)) == 1
        assert busy.ended()
        assert running.call(lambda: running.held[0].gone)


def test_who_has_just_connected_is_served_before_the_end() -> None:
    with serving() as running, running.connect() as client:
        stopping = asyncio.run_coroutine_threadsafe(running.server.stop(WITHIN), running.loop)
        running.wait(lambda: running.server._site is not None and running.server._site.draining)
        client.get()
        status, headers, _ = client.answer()
        assert (status, headers["Connection"]) == (200, "close")
        client.close()
        assert stopping.result(WITHIN) == 0


def test_who_connects_and_says_nothing_does_not_hold_up_the_end() -> None:
    with serving(), serving() as running, running.connect():
        assert running.do(running.server.stop(WITHIN)) == 0


def test_requests_read_before_the_end_are_all_answered() -> None:
    with holding() as running, running.connect() as client:
        client.send(b"GET /1 HTTP/1.1\r\n\r\nGET /2 HTTP/1.1\r\n\r\n")
        running.wait(lambda: len(running.held) == 1)
        stopping = asyncio.run_coroutine_threadsafe(running.server.stop(WITHIN), running.loop)
        for number in range(2):
            running.wait(lambda number=number: len(running.held) == number + 1)
            time.sleep(0.02)
            running.call(lambda number=number: running.held[number].reply(Response(200)))
        assert "Connection" not in client.answer()[1]
        assert client.answer()[1]["Connection"] == "close"
        client.close()
        assert stopping.result(WITHIN) == 0


def test_it_serves_on_the_standard_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "uvloop", None)
    with serving(streaming(three)) as running, running.connect() as client:
        client.get()
        assert client.answer()[2] == b"onetwothree"
        client.get("/", "Connection: close")
        assert client.answer()[2] == b"onetwothree"
        assert client.ended()
