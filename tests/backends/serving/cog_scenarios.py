"""What is asked of Cog's server and of the replica in several requests: asynchronous predictions, repeated ids, cancellation, faults."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tests.backends.serving.cog_cases import ASYNC, CASES, EVENTS, JSON, Case
from tests.backends.serving.servers import Reply, Server, exchange, in_background, message, parse, receive

many = CASES.many
WITHIN = 40.0
LONG = 600
"""Seconds of a prediction that is not to end by itself."""


def until_free(server: Server) -> None:
    """Cog frees the slot a little after it has replied."""
    server.wait_for("READY", within=WITHIN)


@contextmanager
def held(server: Server) -> Iterator[None]:
    """Meanwhile a stream goes no further than its first part."""
    hold = server.log.parent / "hold"
    hold.touch()
    try:
        yield
    finally:
        hold.unlink()


def begun(server: Server, method: str, path: str, body: Any) -> tuple[socket.socket, bytes]:
    """Asks for an event stream; the connection, and what has come, when the first part has."""
    connection = socket.create_connection(("127.0.0.1", server.port), WITHIN)
    connection.sendall(message(method, path, {"content-type": JSON} | EVENTS, json.dumps(body).encode()))
    received = b""
    while b"part0" not in received:
        piece = connection.recv(65536)
        assert piece, received
        received += piece
    return connection, received


@many("acting", "asynchronous prediction")
def _(server: Server) -> list[Reply]:
    body = {"input": {"action": "later"}, "id": "later"}
    return [server.request("POST", "/predictions", body, ASYNC)]


@many("acting", "asynchronous prediction without an id")
def _(server: Server) -> list[Reply]:
    return [server.request("POST", "/predictions", {"input": {"action": "later"}}, ASYNC)]


@many("acting", "asynchronous prediction of wrong input")
def _(server: Server) -> list[Reply]:
    return [server.request("POST", "/predictions", {"input": {"seconds": 1}}, ASYNC)]


@many("acting", "other preferences are no preference")
def _(server: Server) -> list[Reply]:
    return [server.request("POST", "/predictions", {"input": {"action": "a"}}, {"prefer": "respond-async, wait=5"})]


@many("acting", "same id while it runs, then cancel")
def _(server: Server) -> list[Reply]:
    body = {"input": {"action": "wait", "seconds": LONG}, "unknown": 1}
    first = server.request("PUT", "/predictions/twice", body, ASYNC)
    settle(server, "/predictions/twice", body)
    again = server.request("PUT", "/predictions/twice", body)
    synchronous = server.request("PUT", "/predictions/twice", body, {"prefer": "wait"})
    busy = server.get("/health-check")
    canceled = server.request("POST", "/predictions/twice/cancel")
    until_free(server)
    gone = server.request("POST", "/predictions/twice/cancel")
    return [first, again, synchronous, busy, canceled, gone]


def settle(server: Server, path: str, body: Any) -> None:
    """Waits until the prediction has begun, and printed so: Cog's server loses a cancellation that comes earlier."""
    deadline = time.monotonic() + WITHIN
    while server.request("PUT", path, body, ASYNC).json().get("logs") != "waiting\n":
        assert time.monotonic() < deadline
        time.sleep(0.01)


@many("acting", "cancel of a prediction that is waited for")
def _(server: Server) -> list[Reply]:
    body = {"input": {"action": "wait", "seconds": LONG}}
    waiting = in_background(server, "PUT", "/predictions/cancel-me", body)
    server.wait_for("BUSY")
    settle(server, "/predictions/cancel-me", body)
    canceled = server.request("POST", "/predictions/cancel-me/cancel")
    return [canceled, waiting()]


@many("acting", "cancel through the trainings' route")
def _(server: Server) -> list[Reply]:
    body = {"input": {"action": "wait", "seconds": LONG}}
    waiting = in_background(server, "PUT", "/trainings/cancel-me", body)
    server.wait_for("BUSY")
    settle(server, "/trainings/cancel-me", body)
    canceled = server.request("POST", "/trainings/cancel-me/cancel")
    return [canceled, waiting()]


@many("acting", "second prediction while one runs")
def _(server: Server) -> list[Reply]:
    waiting = in_background(server, "POST", "/predictions", {"input": {"action": "held"}, "id": "a"})
    server.wait_for("BUSY")
    second = in_background(server, "POST", "/predictions", {"input": {"action": "second"}, "id": "b"})
    deadline = time.monotonic() + WITHIN
    while not second.answered and not queues(server):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    (server.log.parent / "go").touch()
    return [second(), waiting()]


def queues(server: Server) -> bool:
    """Whether a call waits in the replica's queue; Cog's server has neither a queue nor metrics."""
    return re.search(rb"^drivetrain_replica_queue_length\S* 1(\.0)?$", server.get("/metrics").body, re.M) is not None


@many("acting", "client that waits has gone")
def _(server: Server) -> list[Reply]:
    body = {"input": {"action": "wait", "seconds": LONG}}
    with socket.create_connection(("127.0.0.1", server.port), WITHIN) as connection:
        connection.sendall(message("PUT", "/predictions/gone", {"content-type": JSON}, json.dumps(body).encode()))
        server.wait_for("BUSY")
        settle(server, "/predictions/gone", body)
    until_free(server)  # well before its end: it was canceled
    return [server.predict({"action": "next"}, id="next")]


@many("concurrent", "four at once")
def _(server: Server) -> list[Reply]:
    waiting = [in_background(server, "POST", "/predictions", {"input": {"action": "together"}}) for _ in range(4)]
    return sorted((wait() for wait in waiting), key=lambda reply: reply.json()["output"])[-1:]


@many("concurrent", "cancel of an async prediction")
def _(server: Server) -> list[Reply]:
    body = {"input": {"seconds": LONG}}
    waiting = in_background(server, "PUT", "/predictions/async-1", body)
    until_begun(server)
    settle(server, "/predictions/async-1", body)
    canceled = server.request("POST", "/predictions/async-1/cancel")
    return [canceled, waiting()]


def until_begun(server: Server) -> None:
    """Waits until a prediction of that id is there, so that asking for it does not begin one."""
    deadline = time.monotonic() + WITHIN
    while server.request("PUT", "/predictions/async-1", {"input": {"seconds": "none"}}).status == 422:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@many("streaming", "second reader of one event stream")
def _(server: Server) -> list[Reply]:
    body = {"input": {"count": 10, "seconds": 0.05}}
    with held(server):
        first = in_background(server, "PUT", "/predictions/shared", body, EVENTS)
        server.wait_for("BUSY")
        connection, received = begun(server, "PUT", "/predictions/shared", body)
    with connection:
        second = parse(received + b"".join(iter(lambda: receive(connection), b"")))
    return [first(), second]


@many("streaming", "reader of an event stream has gone")
def _(server: Server) -> list[Reply]:
    with held(server):
        connection, _ = begun(server, "POST", "/predictions", {"input": {"count": 100}, "id": "gone"})
        connection.close()
        until_free(server)  # though it is held: it was canceled
    return [server.predict({"count": 1}, id="next")]


@many("streaming", "parts so far")
def _(server: Server) -> list[Reply]:
    body = {"input": {"count": 20, "seconds": 0.1}}
    with held(server):
        server.request("PUT", "/predictions/parts", body, ASYNC)
        deadline = time.monotonic() + WITHIN
        while not (reply := server.request("PUT", "/predictions/parts", body)).json().get("output"):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        server.request("POST", "/predictions/parts/cancel")
        until_free(server)
    return [reply]


@many("typed", "malformed request line")
def _(server: Server) -> list[Reply]:
    return [exchange(server.port, b"NOT A REQUEST\r\n\r\n")]


@many("typed", "chunked body")
def _(server: Server) -> list[Reply]:
    body = b'{"input": {"x": 1}}'
    chunks = b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n"
    headers = {"content-type": JSON, "transfer-encoding": "chunked"}
    return [exchange(server.port, message("POST", "/predictions", headers, chunks))]


@many("typed", "Expect: 100-continue")
def _(server: Server) -> list[Reply]:
    body = b'{"input": {"x": 1}}'
    headers = {"content-type": JSON, "expect": "100-continue"}
    reply = exchange(server.port, message("POST", "/predictions", headers, body))
    if reply.status == 100:
        head, _, rest = reply.body.partition(b"\r\n\r\n")
        reply = parse(head + b"\r\n\r\n" + rest)
    return [reply]


@many("broken", "setup has failed")
def _(server: Server) -> list[Reply]:
    return [server.get("/health-check"), server.predict({"x": 1}), server.get("/openapi.json"), server.get("/")]


@many("slow", "setup has not ended")
def _(server: Server) -> list[Reply]:
    wrong = server.predict({})
    return [server.get("/health-check"), server.predict({"x": 1}), wrong, server.get("/openapi.json")]


@many("dying", "worker dies", alone=True)
def _(server: Server) -> list[Reply]:
    return [server.predict({"x": -1}), server.predict({"x": 1})]


@many("typed", "shutdown", alone=True)
def _(server: Server) -> list[Reply]:
    reply = server.request("POST", "/shutdown")
    assert server.process.wait(20) == 0
    return [reply]


def of(runner: str) -> Sequence[Case]:
    """The cases of one runner; those that end the server come last."""
    return sorted((case for case in CASES.found if case.runner == runner), key=lambda case: case.alone)
