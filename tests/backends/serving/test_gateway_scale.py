"""Replicas that come and go with the load, and requests that meet none or too few of them."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from drivetrain.backends.serving.gateway.settings import Scaling
from tests.backends.serving.gateways import Clients, Gateway, at_once, labels, running, wait_until
from tests.backends.serving.servers import Reply

Bundle = Callable[[str], Path]

SLOW = """
import time
from cog import BaseRunner

class Runner(BaseRunner):
    def run(self, x: float, y: float = 0.0) -> float:
        time.sleep(0.01)
        return 3 * x + y
"""


def inputs(number: int) -> dict[str, Any]:
    return {"x": number, "y": 1}


def expected(number: int) -> float:
    return 3.0 * number + 1


def asking(gateway: Gateway, count: int) -> Clients:
    return Clients(gateway.settings.port, inputs, expected, count)


def unharmed(clients: Clients) -> None:
    """Not one request has failed or got another's answer."""
    assert clients.errors == []
    assert clients.wrong == []


def test_the_number_of_replicas_follows_the_load_and_no_request_fails(tmp_path: Path, bundle: Bundle) -> None:
    scaling = Scaling(min=1, max=2, target=2.0, window=6.0)
    with running(tmp_path / "home", scaling=scaling) as gateway:
        gateway.serve("one", bundle(SLOW))
        with asking(gateway, 8) as clients:
            up = wait_until(lambda: gateway.revision("one")["ready"] == 2)
            clients.wait_for(100)
            answered = [name for name in gateway.metrics() if name.startswith("drivetrain_gateway_breaker_state")]
            assert len({labels(name)["replica"] for name in answered}) == 2
            swap = bundle(SLOW)
            gateway.serve("two", swap)
            # As many as the old one had, before it gets its traffic.
            assert gateway.revision("two")["ready"] == 2
            clients.wait_for(100)
        unharmed(clients)
        down = wait_until(lambda: gateway.revision("two")["wanted"] == 1)
        wait_until(lambda: len(gateway.replicas()) == 1)
        print(f"2 replicas after {up:.1f} s of load, 1 again {down:.1f} s after its end, {clients.total} requests")


def test_a_service_that_sleeps_wakes_with_the_first_request(tmp_path: Path, bundle: Bundle) -> None:
    scaling = Scaling(min=0, max=1, window=6.0, grace=0.0)
    with running(tmp_path / "home", scaling=scaling) as gateway:
        gateway.serve("one", bundle("echo"))
        asleep = wait_until(lambda: gateway.revision("one")["state"] == "asleep")
        wait_until(lambda: gateway.replicas() == [])
        assert gateway.request("GET", "/health-check").json() == {"status": "READY", "revision": "one"}
        assert gateway.request("GET", "/v2/health/ready").status == 200
        with asking(gateway, 4) as clients:
            clients.wait_for(40)
        unharmed(clients)
        print(f"asleep after {asleep:.1f} s, the slowest of the requests that woke it took {clients.slowest:.2f} s")


def test_the_bounds_are_changed_while_it_serves_and_no_request_fails(tmp_path: Path, bundle: Bundle) -> None:
    with running(tmp_path / "home", scaling=Scaling(min=1, max=1, window=6.0)) as gateway:
        gateway.serve("one", bundle("echo"))
        with asking(gateway, 2) as clients:
            assert gateway.admin("PUT", "scale", {"min": 2, "max": 3}).json()["scale"] == {"min": 2, "max": 3}
            wait_until(lambda: gateway.revision("one")["ready"] == 2)
            clients.wait_for(50)
            assert gateway.admin("PUT", "scale", {"min": 1, "max": 1}).status == 200
            wait_until(lambda: len(gateway.replicas()) == 1)
            clients.wait_for(50)
        unharmed(clients)
        for wrong in ({"min": 2, "max": 1}, {"min": 0, "max": 0}, {"min": "1", "max": 2}, {}):
            assert gateway.admin("PUT", "scale", wrong).status == 422
        assert gateway.status()["scale"] == {"min": 1, "max": 1}


def test_a_burst_beyond_what_a_replica_takes_waits_in_the_gateway_and_is_answered(
    tmp_path: Path, bundle: Bundle
) -> None:
    with running(tmp_path / "home", queue=64) as gateway:
        gateway.serve("one", bundle(SLOW))
        found = Counter(at_once(lambda n: gateway.predict(**inputs(n)).json()["output"] == expected(n), 60))
        assert found == {True: 60}


def test_beyond_every_bound_requests_are_refused_with_the_time_to_come_back(tmp_path: Path, bundle: Bundle) -> None:
    with running(tmp_path / "home", queue=2) as gateway:
        place = bundle("held")
        gateway.serve("one", place)
        turned_away = itertools.count(1)

        def ask(number: int) -> Reply:
            reply = gateway.predict(x=number)
            # Those that were taken wait until all others have been refused, however slowly they come.
            if reply.status == 503 and next(turned_away) == 10:
                (place / "go").touch()
            return reply

        found = at_once(ask, 16)
        refused = [reply for reply in found if reply.status == 503]
        # One runs, two wait in the replica, two in the gateway.
        assert 1 <= sum(reply.status == 200 for reply in found) <= 6
        assert len(refused) == 16 - sum(reply.status == 200 for reply in found)
        assert {reply.headers["retry-after"] for reply in refused} == {"1"}
        assert {reply.headers["x-drivetrain-not-run"] for reply in refused} == {"1"}
