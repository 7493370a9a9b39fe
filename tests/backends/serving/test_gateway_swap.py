"""Revisions that come and go while clients keep asking: not one request may fail."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from drivetrain.backends.serving.gateway.metrics import OfRevision
from drivetrain.backends.serving.gateway.pool import Pool, Room
from drivetrain.backends.serving.gateway.revision import Revision
from drivetrain.backends.serving.gateway.settings import Scaling, Settings
from drivetrain.backends.serving.gateway.sockets import Sockets
from drivetrain.backends.serving.gateway.state import Source
from drivetrain.backends.serving.gateway.upstreams import Upstream
from tests.backends.serving.gateways import (
    RUNNER,
    Clients,
    Gateway,
    at_once,
    configure,
    gone,
    labels,
    running,
    start,
    wait_until,
)

Bundle = Callable[[str], Path]

SLOW = """
import time
from cog import BaseRunner

class Runner(BaseRunner):
    def run(self, x: float, y: float = 0.0) -> float:
        time.sleep(0.01)
        return 3 * x + y
"""
SLOW_START = """
import pathlib, time
from cog import BaseRunner

class Runner(BaseRunner):
    def setup(self) -> None:
        place = pathlib.Path(__file__).parent
        (place / "starting").touch()
        while not (place / "go").exists():
            time.sleep(0.01)

    def run(self, x: float) -> float:
        return x
"""


def inputs(number: int) -> dict[str, Any]:
    return {"x": number, "y": 1}


def expected(number: int) -> float:
    return 3.0 * number + 1


def asking(gateway: Gateway, count: int = 4) -> Clients:
    return Clients(gateway.settings.port, inputs, expected, count)


def unharmed(clients: Clients) -> None:
    """Not one request has failed or got another's answer."""
    assert clients.errors == []
    assert clients.wrong == []


def test_swapping_back_and_forth_under_load_fails_no_request(tmp_path: Path, bundle: Bundle) -> None:
    place = bundle("echo")
    with running(tmp_path / "home") as gateway:
        gateway.serve("r0", place, {"x": 1})
        with asking(gateway) as clients:
            for number in range(1, 4):
                clients.wait_for(50)
                gateway.serve(f"r{number}", place, {"x": 1})
                before = clients.revisions[f"r{number}"]
                wait_until(lambda: clients.revisions[f"r{number}"] > before + 20)  # noqa: B023
            assert gateway.route(r2=100).status == 200
            clients.wait_for(100)
        unharmed(clients)
        assert set(clients.revisions) == {"r0", "r1", "r2", "r3"}
        assert gateway.predict(x=1).headers["x-drivetrain-revision"] == "r2"
        wait_until(lambda: len(gateway.replicas()) == 1)
        print(f"4 swaps, {clients.total} requests, the slowest took {clients.slowest * 1000:.0f} ms")


def test_a_canary_grows_under_load_and_fails_no_request(tmp_path: Path, bundle: Bundle) -> None:
    place = bundle("echo")
    with running(tmp_path / "home") as gateway:
        gateway.serve("old", place)
        assert gateway.deploy("new", place).status == 200
        with asking(gateway) as clients:
            for percent in (5, 25, 60, 100):
                assert gateway.route(old=100 - percent, new=percent).status == 200
                clients.wait_for(100)
        unharmed(clients)
        assert gateway.status()["former"] == "old"
        assert [entry["revision"] for entry in gateway.status()["revisions"] if entry["ready"]] == ["new"]


def test_a_rollback_starts_the_former_revision_again_before_it_gets_traffic(tmp_path: Path, bundle: Bundle) -> None:
    place = bundle("echo")
    with running(tmp_path / "home") as gateway:
        gateway.serve("old", place)
        gateway.serve("new", place)
        wait_until(lambda: gateway.revision("old")["state"] == "stopped")
        with asking(gateway) as clients:
            clients.wait_for(50)
            assert gateway.route(old=100).status == 200
            clients.wait_for(50)
        unharmed(clients)
        status = gateway.status()
        assert (status["revision"], status["former"]) == ("old", "new")


def test_of_the_revisions_out_of_traffic_only_the_former_primary_is_remembered(tmp_path: Path, bundle: Bundle) -> None:
    place = bundle("echo")
    with running(tmp_path / "home") as gateway:
        for name in ("a", "b", "c"):
            gateway.serve(name, place)
        assert [entry["revision"] for entry in gateway.status()["revisions"]] == ["b", "c"]
        assert gateway.route(a=100).status == 404
        assert gateway.admin("DELETE", "revisions/c").status == 409
        assert gateway.admin("DELETE", "revisions/b").status == 200
        assert gateway.admin("DELETE", "revisions/b").status == 404
        assert gateway.status()["former"] is None


def test_a_revision_whose_setup_raises_leaves_the_old_one_serving_and_nothing_of_itself(
    tmp_path: Path, bundle: Bundle
) -> None:
    with running(tmp_path / "home") as gateway:
        gateway.serve("old", bundle("echo"))
        with asking(gateway, 2) as clients:
            found = gateway.deploy("bad", bundle("broken"))
            clients.wait_for(20)
        unharmed(clients)
        assert found.status == 500
        assert "model file is missing" in found.json()["error"]
        assert "looking for the model" in found.json()["log"]
        assert "the whole log: " in found.json()["hint"]
        assert [entry["revision"] for entry in gateway.status()["revisions"]] == ["old"]
        assert len(gateway.replicas()) == 1
        assert gateway.route(bad=100).status == 404


def test_a_revision_that_fails_its_example_leaves_the_old_one_serving_and_nothing_of_itself(
    tmp_path: Path, bundle: Bundle
) -> None:
    with running(tmp_path / "home") as gateway:
        gateway.serve("old", bundle("echo"))
        for name, example, says in (("failing", {"x": 1}, "no such carrier"), ("echo", {"z": 1}, "x")):
            found = gateway.deploy("bad", bundle(name), example)
            assert found.status == 422
            assert says in found.json()["error"]
        assert [entry["revision"] for entry in gateway.status()["revisions"]] == ["old"]
        assert len(gateway.replicas()) == 1
        assert gateway.predict(x=2).json()["output"] == 6


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("traffic", {"weights": {"old": 90}}, 422),
        ("traffic", {"weights": {}}, 422),
        ("traffic", {"weights": {"old": "100"}}, 422),
        ("traffic", {"weights": {"old": 100}, "shadow": "old"}, 422),
        ("traffic", {"weights": {"nobody": 100}}, 404),
        ("traffic", [], 422),
        ("traffic", b"{", 400),
        ("revisions/x", {"bundle": "/nowhere", "runner": "run.py:Runner"}, 422),
        ("revisions/x", {"runner": "run.py:Runner"}, 422),
        ("revisions/..%2Fx", {"bundle": "/", "runner": "run.py:Runner"}, 400),
        ("revisions/old", {"bundle": "/", "runner": "run.py:Runner"}, 409),
        ("nothing", {}, 404),
    ],
)
def test_a_change_that_cannot_be_made_is_refused_and_changes_nothing(
    gateway: Gateway, path: str, body: Any, status: int
) -> None:
    before = gateway.status()
    found = gateway.admin("PUT", path, body)
    assert found.status == status
    assert found.json()["error"]
    assert gateway.status() == before


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Any:
    place = tmp_path_factory.mktemp("bundle")
    (place / "run.py").write_text(SLOW)
    with running(tmp_path_factory.mktemp("home")) as found:
        found.serve("old", place)
        yield found


def test_two_changes_at_a_time_are_made_one_after_the_other(tmp_path: Path, bundle: Bundle) -> None:
    place = bundle("echo")
    with running(tmp_path / "home") as gateway:
        gateway.serve("old", place)
        found: list[int] = []
        changes = [
            threading.Thread(target=lambda n=n: found.append(gateway.deploy(f"n{n}", place).status)) for n in range(3)
        ]
        for change in changes:
            change.start()
        for change in changes:
            change.join(120)
        assert found == [200] * 3
        assert [entry["revision"] for entry in gateway.status()["revisions"]] == ["n0", "n1", "n2", "old"]


def test_traffic_can_be_moved_while_a_revision_takes_its_time_to_come_up(tmp_path: Path, bundle: Bundle) -> None:
    place, slow = bundle("echo"), tmp_path / "slow"
    slow.mkdir()
    (slow / "run.py").write_text(SLOW_START)
    with running(tmp_path / "home") as gateway:
        for name in ("bad", "good"):
            assert gateway.deploy(name, place).status == 200
        gateway.route(bad=100)
        found: list[int] = []
        deployment = threading.Thread(target=lambda: found.append(gateway.deploy("slow", slow).status))
        deployment.start()
        wait_until(lambda: (slow / "starting").exists())
        assert gateway.route(good=100).status == 200
        assert gateway.admin("PUT", "scale", {"min": 2, "max": 2}).status == 200
        assert (gateway.status()["revision"], found) == ("good", [])
        (slow / "go").touch()
        deployment.join(60)
        assert found == [200]
        assert gateway.route(slow=100).status == 200
        wait_until(lambda: gateway.revision("slow")["ready"] == 2)  # the bounds that were moved meanwhile hold for it
        assert gateway.predict(x=1).headers["x-drivetrain-revision"] == "slow"
        assert gateway.metrics()['drivetrain_gateway_requests_total{revision="slow",outcome="succeeded"}'] == 1


def test_a_revision_that_comes_up_while_traffic_is_moved_is_kept(tmp_path: Path, bundle: Bundle) -> None:
    quick, slow = bundle("echo"), tmp_path / "slow"
    slow.mkdir()
    (slow / "run.py").write_text(SLOW_START)
    (slow / "go").touch()
    with running(tmp_path / "home") as gateway:
        gateway.serve("slow", slow)
        gateway.serve("quick", quick)
        wait_until(lambda: gateway.revision("slow")["state"] == "stopped")
        for name in ("go", "starting"):
            (slow / name).unlink()
        found: list[int] = []
        moving = threading.Thread(target=lambda: found.append(gateway.route(slow=100).status))
        moving.start()
        wait_until(lambda: (slow / "starting").exists())
        assert gateway.deploy("third", quick).status == 200
        (slow / "go").touch()
        moving.join(60)
        assert found == [200]
        assert gateway.route(third=100).status == 200
        assert gateway.predict(x=1).headers["x-drivetrain-revision"] == "third"


def test_the_routes_on_disk_are_what_the_gateway_comes_back_with(tmp_path: Path, bundle: Bundle) -> None:
    place = bundle("echo")
    with running(tmp_path / "home") as gateway:
        gateway.serve("old", place)
        gateway.serve("new", place)
        assert gateway.deploy("staged", place).status == 200
        assert gateway.route(new=100, shadow="staged", sticky="x-user").status == 200
        before = gateway.status()
        pids = [replica.pid for replica in gateway.replicas()]
        assert gateway.end() == 0
        assert gone(pids)
        kept = json.loads((tmp_path / "home" / "echo.routes.json").read_text())
        assert kept["weights"] == {"new": 100}
        again = start(gateway.file)
        try:
            wait_until(lambda: again.status() == before)
            assert again.predict(x=2).json()["output"] == 6
            assert not Path(kept["sockets"]).exists()
        finally:
            again.kill()


def test_a_switch_starts_no_more_replicas_than_a_revision_may_have(tmp_path: Path, bundle: Bundle) -> None:
    place = bundle("echo")
    with running(tmp_path / "home", scaling=Scaling(min=2, max=2)) as gateway:
        gateway.serve("old", place)
        gateway.deploy("new", place)
        assert gateway.route(old=50, new=50).status == 200
        wait_until(lambda: gateway.revision("old")["ready"] == gateway.revision("new")["ready"] == 2)
        gateway.deploy("newest", place)
        assert gateway.route(newest=100).status == 200
        assert gateway.revision("newest")["wanted"] == 2


def test_a_switch_does_not_wait_for_replicas_that_the_autoscaler_takes_away_again(
    tmp_path: Path, bundle: Bundle
) -> None:
    async def scenario() -> str | None:
        settings = Settings("echo", str(tmp_path), "127.0.0.1", 0, "", ready_within=60.0)
        sockets, numbers = Sockets(), OfRevision()
        revision = Revision("one", Source(str(bundle("echo")), RUNNER), settings, sockets, Room(8), numbers)
        try:
            assert await revision.reach(1) is None
            waiting = asyncio.create_task(revision.reach(3))
            await revision.pool.until(lambda: revision.wanted == 3, 30.0)
            revision.scale(1)
            return await asyncio.wait_for(waiting, 25.0)
        finally:
            await revision.close(drain=False)
            sockets.remove()

    assert asyncio.run(scenario()) is None


def test_a_copy_for_a_shadow_that_is_taken_out_goes_to_nobody_else() -> None:
    class Copy:
        deadline, preferred, patient = 1e9, None, False
        answers: ClassVar[list[int]] = []

        def send(self, upstream: Upstream) -> None:
            raise AssertionError

        def refuse(self, status: int, reason: str, retry_after: float | None = None) -> None:
            self.answers.append(status)

        def move(self, pool: Pool) -> None:
            raise AssertionError

    async def scenario() -> None:
        pool = Pool("shadow", Room(8), OfRevision(), asyncio.get_running_loop())
        pool.hand_over(lambda waiter: waiter.move(pool))
        pool.submit(Copy())
        pool.resubmit(Copy())

    asyncio.run(scenario())
    assert Copy.answers == [503, 503]


def test_a_second_gateway_of_the_same_name_takes_nothing_from_the_first(tmp_path: Path, bundle: Bundle) -> None:
    with running(tmp_path / "home") as first:
        first.serve("old", bundle("echo"))
        (tmp_path / "other").mkdir()
        other = configure(tmp_path / "home").rename(tmp_path / "other" / "settings.json")
        second = start(other)
        try:
            wait_until(lambda: second.predict(x=1).status == 200)
            # More at a time than there are connections: each needs the replica's socket.
            assert {reply.status for reply in at_once(lambda n: first.predict(x=n), 12)} == {200}
            sockets = json.loads((tmp_path / "home/echo.routes.json").read_text())["sockets"]
            assert second.end() == 0
            assert {reply.status for reply in at_once(lambda n: first.predict(x=n), 24)} == {200}
        finally:
            second.kill()
            shutil.rmtree(sockets, ignore_errors=True)


def test_numbers_of_revisions_that_are_forgotten_are_forgotten_too(tmp_path: Path, bundle: Bundle) -> None:
    place = bundle("echo")
    with running(tmp_path / "home") as gateway:
        for name in ("one", "two", "three"):
            gateway.serve(name, place)
            assert gateway.predict(x=1).status == 200
        counted = {labels(sample).get("revision") for sample in gateway.metrics() if "requests_total" in sample}
        assert {"two", "three"} <= counted
        assert "one" not in counted
