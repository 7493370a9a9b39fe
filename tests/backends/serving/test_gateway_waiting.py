"""Deadlines, retries, the queue and the breaker: what becomes of requests that no replica can take now."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drivetrain.backends.serving.gateway.upstreams import Upstream
from drivetrain.backends.serving.http.messages import Exchange, Response
from tests.backends.serving import servers
from tests.backends.serving.gateways import (
    Fake,
    at_once,
    fakes,
    labels,
    never,
    ready,
    running,
    succeed,
    wait_until,
)

AT_CAPACITY = Response(409, b'{"detail":"At capacity - all prediction slots busy"}')
NOT_RUN = Response(503, b'{"detail":"starting"}', [(b"x-drivetrain-not-run", b"1"), (b"retry-after", b"1")])


def test_what_is_left_of_a_deadline_goes_on_to_the_replica(tmp_path: Path) -> None:
    with fakes(succeed) as (fake,), running(tmp_path, upstreams={"one": fake.url}, timeout=7.0) as gateway:
        ready(gateway, "one")
        gateway.predict({"x-request-timeout-ms": "3000"}, x=1)
        assert 1000 < int(fake.requests[-1].header(b"x-request-timeout-ms") or 0) <= 3000
        gateway.predict({"x-request-timeout-ms": "90000"}, x=1)
        assert 5000 < int(fake.requests[-1].header(b"x-request-timeout-ms") or 0) <= 7000
        assert gateway.predict({"x-request-timeout-ms": "soon"}, x=1).status == 400


def test_a_deadline_that_passes_is_answered_504_and_the_replica_is_told(tmp_path: Path) -> None:
    with fakes(never) as (fake,), running(tmp_path, upstreams={"one": fake.url}) as gateway:
        ready(gateway, "one")
        began = time.monotonic()
        # Long enough for the request to get there, and far below the gateway's own limit of a minute.
        assert gateway.predict({"x-request-timeout-ms": "2000"}, x=1).status == 504
        assert time.monotonic() - began < 30
        assert fake.gone.get(timeout=30) == "/predictions"
        assert gateway.predict({"x-request-timeout-ms": "0"}, x=1).status == 504
        assert len(fake.requests) == 1


def test_a_client_that_goes_takes_its_request_with_it(tmp_path: Path) -> None:
    with fakes(never) as (fake,), running(tmp_path, upstreams={"one": fake.url}) as gateway:
        ready(gateway, "one")
        raw = servers.message("POST", "/predictions", {"content-type": "application/json"}, b'{"input":{}}')
        with socket.create_connection((servers.HOST, gateway.settings.port)) as client:
            client.sendall(raw)
            wait_until(lambda: fake.requests)
        assert fake.gone.get(timeout=30) == "/predictions"
        wait_until(lambda: gateway.metrics()['drivetrain_gateway_in_flight{revision="one"}'] == 0)
        sample = 'drivetrain_gateway_requests_total{revision="one",outcome="abandoned"}'
        assert gateway.metrics()[sample] == 1


def test_a_request_that_was_not_run_is_sent_again(tmp_path: Path) -> None:
    refusals = [NOT_RUN, AT_CAPACITY, NOT_RUN]

    def answer(exchange: Exchange) -> None:
        exchange.reply(refusals.pop()) if refusals else succeed(exchange)

    with fakes(answer) as (fake,), running(tmp_path, upstreams={"one": fake.url}) as gateway:
        ready(gateway, "one")
        found = gateway.predict({"x-request-id": "same"}, x=1)
        assert (found.status, len(fake.requests)) == (200, 4)
        assert {request.header(b"x-request-id") for request in fake.requests} == {b"same"}
        assert gateway.metrics()['drivetrain_gateway_retries_total{revision="one",reason="busy"}'] == 3


@pytest.mark.parametrize("status", [409, 500, 503])
def test_an_answer_that_does_not_say_that_nothing_was_run_is_passed_on(tmp_path: Path, status: int) -> None:
    def answer(exchange: Exchange) -> None:
        exchange.reply(Response(status, b'{"detail":"the model\'s own"}'))

    with fakes(answer) as (fake,), running(tmp_path, upstreams={"one": fake.url}) as gateway:
        ready(gateway, "one")
        assert gateway.predict(x=1).status == status
        assert len(fake.requests) == 1


def test_a_replica_that_breaks_off_costs_one_clear_error_and_no_second_run(tmp_path: Path) -> None:
    cut: list[Fake] = []

    def answer(exchange: Exchange) -> None:
        # What the server does when its process dies: the connection ends without an answer.
        exchange._connection.abort()  # type: ignore[attr-defined]

    with fakes(answer) as (fake,), running(tmp_path, upstreams={"one": fake.url}) as gateway:
        cut.append(fake)
        ready(gateway, "one")
        found = gateway.predict(x=1)
        assert found.status == 502
        assert "broke off" in found.json()["detail"]
        assert found.json()["detail"] == found.json()["error"]
        assert len(fake.requests) == 1
        # A request that changes nothing may be sent again.
        assert gateway.request("GET", "/openapi.json").status == 502
        assert len(fake.requests) == 4


def test_requests_beyond_a_learned_capacity_wait_and_all_are_answered(tmp_path: Path) -> None:
    running_now = [0]
    most = [0]

    def answer(exchange: Exchange) -> None:
        if running_now[0] >= 2:
            exchange.reply(AT_CAPACITY)
            return
        running_now[0] += 1
        most[0] = max(most[0], running_now[0])

        def finish() -> None:
            running_now[0] -= 1
            succeed(exchange)

        fake.loop.call_later(0.01, finish)

    with fakes(answer) as (fake,), running(tmp_path, upstreams={"one": fake.url}) as gateway:
        ready(gateway, "one")
        found = at_once(lambda n: gateway.predict(x=n).status, 40)
        assert found == [200] * 40
        assert most == [2]
        assert gateway.metrics()['drivetrain_gateway_retries_total{revision="one",reason="busy"}'] < 120


def test_the_queue_is_bounded_and_what_waits_too_long_gets_504(tmp_path: Path) -> None:
    with fakes(never) as (fake,), running(tmp_path, upstreams={"one": fake.url}, queue=3) as gateway:
        ready(gateway, "one")
        fake.health = "STARTING"
        wait_until(lambda: not gateway.revision("one")["ready"])
        found = Counter(at_once(lambda n: gateway.predict({"x-request-timeout-ms": "5000"}, x=n).status, 8))
        assert found == {504: 3, 503: 5}
        assert fake.requests == []
        fake.health = "READY"


def test_requests_wait_for_a_replica_that_comes_back(tmp_path: Path) -> None:
    with fakes(succeed) as (fake,), running(tmp_path, upstreams={"one": fake.url}) as gateway:
        ready(gateway, "one")
        fake.stop()
        wait_until(lambda: not gateway.revision("one")["ready"])
        found: list[int] = []
        client = threading.Thread(target=lambda: found.append(gateway.predict(x=1).status))
        client.start()
        wait_until(lambda: gateway.metrics()['drivetrain_gateway_waiting{revision="one"}'] == 1)
        fake.listen()
        client.join(60)
        assert found == [200]


def test_503_says_when_to_come_back(tmp_path: Path) -> None:
    with running(tmp_path) as gateway:
        found = gateway.predict(x=1)
        assert (found.status, found.headers["retry-after"]) == (503, "5")
        assert gateway.request("GET", "/health-check").json() == {"status": "STARTING", "revision": None}
        assert gateway.request("GET", "/v2/health/ready").status == 503
        assert gateway.request("GET", "/v2/health/live").json() == {"live": True}


def test_a_breaker_opens_when_nobody_listens_and_closes_when_somebody_does(tmp_path: Path) -> None:
    with fakes(succeed) as (fake,), running(tmp_path, upstreams={"one": fake.url}) as gateway:
        ready(gateway, "one")
        assert gateway.predict(x=1).status == 200
        fake.stop()
        at_once(lambda n: gateway.predict({"x-request-timeout-ms": "300"}, x=n).status, 20)
        fake.listen()
        took = wait_until(lambda: gateway.predict(x=1).status == 200)
        print(f"answers again {took:.2f} s after the replica came back")


def test_a_replica_that_refuses_with_nothing_in_hand_gets_one_request_after_its_rest() -> None:
    nothing: Any = None
    upstream = Upstream("one", nothing, nothing)
    upstream.ready = True
    upstream.sent()
    upstream.busy(0.0, learn=True)
    assert not upstream.takes(0.0)
    assert upstream.takes(1.0)
    upstream.sent()
    assert not upstream.takes(1.0)
    upstream.succeeded()
    assert upstream.takes(1.0)


def test_cogs_own_server_is_a_usable_upstream(tmp_path: Path, bundle: Callable[[str], Path]) -> None:
    place = bundle("echo")
    with servers.running("cog", place) as cog:
        url = f"http://{servers.HOST}:{cog.port}"
        with running(tmp_path / "home", upstreams={"cog": url}) as gateway:
            ready(gateway, "cog")
            replies = at_once(lambda n: [gateway.predict(x=n, y=k) for k in range(10)], 8)
            assert [reply for of_one in replies for reply in of_one if reply.status != 200] == []
            found = [[reply.json()["output"] for reply in of_one] for of_one in replies]
            assert found == [[3.0 * n + k for k in range(10)] for n in range(8)]
            retries = [value for name, value in gateway.metrics().items() if labels(name).get("reason") == "busy"]
            print(f"80 predictions by 8 clients through one slot: {retries[0]:.0f} were busy and sent again")
