"""Rollouts behind a real gateway, with callers that never stop asking."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from drivetrain.backends.serving import alive
from drivetrain.engines.canary import Plan
from drivetrain.errors import ServingError
from tests.backends.serving.gateways import Clients
from tests.backends.serving.services import end_everything
from tests.watch.rolling_out import NAME, Place

GOOD, FAILING, SLOW = "time.sleep(0.002)", "1 / (x % 4)", "time.sleep(0.1)"
SOURCE = """
import time
from cog import BaseRunner

class Runner(BaseRunner):
    def run(self, x: int) -> int:
        ACT
        return x
"""
PLAN = Plan(
    shadow=0.3,
    steps=(10, 50, 100),
    step_time=0.3,
    step_requests=30,
    limit=60.0,
    alpha=0.05,
    failures=0.05,
    slower=2.5,
    quality=1.0,
)


def add(place: Place, revision: str, act: str) -> str:
    place.bundle(revision).mkdir(parents=True)
    (place.bundle(revision) / "run.py").write_text(SOURCE.replace("ACT", act))
    return revision


def stand_by(place: Place, revision: str, act: str) -> str:
    place.deploy(add(place, revision, act), promote=False)
    return revision


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    made = Place(tmp_path_factory.mktemp("rollout"))
    made.promote(add(made, "first", GOOD))
    yield made
    end_everything(made.state)


def callers(place: Place) -> Clients:
    endpoint = place.serving.find(NAME)
    assert endpoint is not None
    return Clients(int(endpoint.url.rpartition(":")[2]), lambda number: {"x": number}, lambda number: number, count=3)


@pytest.mark.slow
def test_one_that_fails_is_taken_back_as_a_shadow_and_no_caller_sees_it_and_a_good_one_is_promoted(
    place: Place,
) -> None:
    failing, good = stand_by(place, "failing", FAILING), stand_by(place, "good", GOOD)
    with callers(place) as asked:
        back = place.carry_out(failing, PLAN)
        assert set(asked.revisions) == {"first"}
        forward = place.carry_out(good, PLAN)
        asked.wait_for(30)
    assert (back.state, back.step, forward.state) == ("rolled_back", -1, "promoted")
    assert "of its answers failed" in back.reason
    assert (asked.errors, asked.wrong) == ([], [])
    assert asked.revisions["good"] > 0
    status = place.serving.status(NAME)
    assert (status.endpoint.revision, status.former, place.champion) == ("good", "first", "good")
    assert failing not in {found.revision for found in status.revisions}


@pytest.mark.slow
def test_one_that_is_slow_or_fails_in_a_step_is_taken_back_and_is_not_what_a_rollback_goes_to(place: Place) -> None:
    before = place.champion
    plan = replace(PLAN, shadow=0.0, steps=(60, 100))
    slow, failing = stand_by(place, "slow", SLOW), stand_by(place, "failing-2", FAILING)
    for candidate, reason in ((slow, "slower"), (failing, "of its answers failed")):
        with callers(place) as asked:
            state = place.carry_out(candidate, plan)
            asked.wait_for(30)
        assert (state.state, reason in state.reason) == ("rolled_back", True), state
        assert asked.errors == []
        assert all(int(entry.partition(":")[0]) % 4 == 0 for entry in asked.wrong)
        status = place.serving.status(NAME)
        assert {found.revision: found.weight for found in status.revisions if found.weight} == {before: 100}
        assert (status.former != candidate, place.champion) == (True, before)


@pytest.mark.slow
def test_killed_thirty_times_at_random_points_rollouts_go_on_and_no_request_fails(place: Place) -> None:
    draw, kills, rollouts = random.Random(20261128), 0, 0
    while kills < 30:
        good, rollouts, before = rollouts % 2 == 0, rollouts + 1, place.champion
        candidate = stand_by(place, f"killed-{rollouts}", GOOD if good else FAILING)
        with callers(place) as asked:
            kills += killed_until_it_ends(place, candidate, draw)
            asked.wait_for(30)
        assert asked.errors == []
        assert place.champion == (candidate if good else before), place.rollout(candidate, PLAN).state()
        assert place.serving.status(NAME).endpoint.revision == place.champion


def killed_until_it_ends(place: Place, candidate: str, draw: random.Random) -> int:
    """Has the rollout be carried out by processes that live for up to half a second each, and longer if that does not do on a busy
    machine; how many were killed."""
    plan = replace(PLAN, shadow=0.5, step_time=0.8)
    script = str(Path(__file__).with_name("rolling_out.py"))
    command = [sys.executable, script, str(place.state), candidate, json.dumps(asdict(plan))]
    before = place.champion
    for kills in range(60):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as rolling:
            assert rolling.stdout is not None
            rolling.stdout.readline()
            with suppress(subprocess.TimeoutExpired):
                rolling.wait(draw.uniform(0.0, 0.5 + max(0, kills - 30) / 10))
            ended = rolling.poll()
            if ended is not None:
                assert ended == 0
                return kills
            rolling.kill()
        weights = {found.revision: found.weight for found in place.serving.status(NAME).revisions if found.weight}
        assert sum(weights.values()) == 100
        assert weights.keys() <= {before, candidate}
        text = place.journal.rollout(candidate)
        assert before in weights or (
            text is not None and json.loads(text)["kept"]["phase"] in ("promoting", "promoted")
        )
    raise AssertionError(f"{candidate} is undecided: {place.journal.rollout(candidate)}")


@pytest.mark.slow
def test_a_gateway_that_is_killed_in_a_rollout_comes_back_with_the_traffic_that_it_had(place: Place) -> None:
    before = place.champion
    candidate = stand_by(place, "survives", GOOD)
    plan = replace(PLAN, shadow=0.0, steps=(20, 100), step_time=30.0)
    place.rollout(candidate, plan).advance(time.time())
    server = alive.read(alive.record_path(place.state, NAME))
    assert server is not None
    subprocess.run(["kill", "-9", str(server.pid)], check=True)
    while alive.is_alive(server):
        time.sleep(0.01)
    with suppress(ServingError):
        place.rollout(candidate, plan).advance(time.time())
    place.rollout(candidate, plan).advance(time.time())
    weights = {found.revision: found.weight for found in place.serving.status(NAME).revisions if found.weight}
    assert weights == {candidate: 20, before: 80}
    with callers(place) as asked:
        asked.wait_for(100)
    assert set(asked.revisions) == {candidate, before}
    assert asked.errors == []
