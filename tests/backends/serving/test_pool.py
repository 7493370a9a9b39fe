"""One worker and the calls for it: every test has a real process, and the faults really kill it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from drivetrain.backends.serving.replica.calls import Call, Wire
from drivetrain.backends.serving.replica.coding import NOT_RUN
from drivetrain.backends.serving.replica.pool import Full, NotReady, Pool
from drivetrain.backends.serving.replica.restarts import Restarts
from tests.backends.serving.pools import ask, carried_out, started, until

Bundle = Callable[[str], Path]

FRAGILE_SETUP = """
import os, pathlib
from cog import BaseRunner

class Runner(BaseRunner):
    def setup(self) -> None:
        count = pathlib.Path("setups")
        count.write_text(str(int(count.read_text()) + 1 if count.exists() else 1))
        WHAT

    def run(self, how: str = "") -> int:
        if how == "exit":
            os._exit(3)
        return int(pathlib.Path("setups").read_text())
"""


def alive(pid: int | None) -> bool:
    if pid is None:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"


def test_many_calls_at_once_each_get_their_own_answer(bundle: Bundle) -> None:
    async def scenario() -> None:
        async with started(bundle("echo"), queue=1000) as pool:
            asked = [ask(pool, {"x": x, "y": 0.5}) for x in range(1000)]
            assert [await one.output() for one in asked] == [3 * x + 0.5 for x in range(1000)]
            assert pool.state == "READY"
            assert len(pool.recent) == 1000
            assert (pool.in_flight, pool.queued) == (0, 0)

    carried_out(scenario())


def test_a_body_of_tens_of_megabytes_goes_through_and_comes_back(bundle: Bundle) -> None:
    runner = """
from cog import BaseRunner

class Runner(BaseRunner):
    def run(self, text: str) -> str:
        return text[::-1]
"""

    async def scenario() -> None:
        async with started(bundle(runner)) as pool:
            texts = [letter * (12 * 1024 * 1024) for letter in "abc"] + ["small"] * 20
            asked = [ask(pool, {"text": text}) for text in texts]
            for text, one in zip(texts, asked, strict=True):
                assert await one.output() == text[::-1]

    carried_out(scenario())


def test_the_setup_tells_when_it_began_how_long_it_took_and_what_it_printed(bundle: Bundle) -> None:
    runner = """
from cog import BaseRunner

class Runner(BaseRunner):
    def setup(self) -> None:
        print("loading weights")

    def run(self, x: float) -> float:
        return x
"""

    async def scenario() -> None:
        async with started(bundle(runner), ready=False) as pool:
            assert pool.state == "STARTING"
            with pytest.raises(NotReady, match="STARTING"):
                ask(pool, {"x": 1})
            assert await pool.wait_ready()
            assert (pool.setup.status, pool.setup.logs) == ("succeeded", "loading weights\n")
            assert pool.setup.completed is not None
            assert 0 < (pool.load_seconds or 0) <= pool.setup.completed - pool.setup.started
            assert pool.signature is not None
            assert pool.signature.name == "model"
            assert list(pool.signature.schema["components"]["schemas"]["Input"]["properties"]) == ["x"]

    carried_out(scenario())


def test_a_setup_that_raises_is_told_and_not_tried_again(bundle: Bundle) -> None:
    async def scenario() -> None:
        async with started(bundle("broken"), ready=False) as pool:
            assert not await pool.wait_ready()
            assert pool.state == "SETUP_FAILED"
            assert pool.setup.status == "failed"
            assert pool.setup.logs.startswith("looking for the model\n")
            assert "RuntimeError: model file is missing" in pool.setup.logs
            with pytest.raises(NotReady, match="SETUP_FAILED"):
                ask(pool, {"x": 1})
            assert pool.pid is None

    carried_out(scenario())


def test_a_setup_that_takes_too_long_is_ended(bundle: Bundle) -> None:
    async def scenario() -> None:
        async with started(bundle("slow setup"), ready=False, setup_within=0.5) as pool:
            assert not await pool.wait_ready()
            assert pool.state == "SETUP_FAILED"
            assert "longer than 0.5 s" in pool.setup.logs

    carried_out(scenario())


def test_a_worker_that_dies_again_and_again_in_setup_is_given_up(bundle: Bundle) -> None:
    async def scenario() -> None:
        place = bundle(FRAGILE_SETUP.replace("WHAT", "os._exit(7)"))
        async with started(place, Restarts(first=0.01, chances=3), ready=False) as pool:
            assert not await pool.wait_ready()
            assert pool.state == "DEFUNCT"
            assert "code 7" in pool.setup.logs
            assert (place / "setups").read_text() == "3"

    carried_out(scenario())


def test_a_worker_whose_first_setup_was_killed_comes_up_the_second_time(bundle: Bundle) -> None:
    async def scenario() -> None:
        place = bundle(FRAGILE_SETUP.replace("WHAT", "count.read_text() == '1' and os._exit(7)"))
        async with started(place, Restarts(first=0.01)) as pool:
            assert await ask(pool, {}).output() == 2

    carried_out(scenario())


@pytest.mark.parametrize(
    ("how", "words"),
    [("kill", "SIGKILL"), ("exit", "exited with code 3"), ("segfault", "SIGSEGV")],
)
def test_a_worker_that_dies_gives_one_clear_error_and_the_rest_runs_on_a_new_one(
    bundle: Bundle, how: str, words: str
) -> None:
    async def scenario() -> None:
        async with started(bundle("crashing"), Restarts(first=0.01)) as pool:
            first = await ask(pool, {"x": 1}).output()
            before = ask(pool, {"x": 2})
            fatal = ask(pool, {"how": how})
            after = [ask(pool, {"x": x}) for x in range(100)]
            answer = await fatal.answer()
            assert answer.status == 500
            assert words in json.loads(answer.body)["error"]
            assert "while this prediction was being run" in json.loads(answer.body)["error"]
            assert pool.state == "UNHEALTHY"
            with pytest.raises(NotReady):
                ask(pool, {"x": 1})
            outputs = [await one.output() for one in after]
            assert [output["x"] for output in outputs] == list(range(100))
            assert {output["pid"] for output in outputs} == {pool.pid} != {first["pid"]}
            assert (await before.body())["status"] in ("succeeded", "failed")
            assert pool.state == "READY"
            assert pool.deaths == 1

    carried_out(scenario())


def test_a_worker_killed_from_outside_while_idle_is_replaced(bundle: Bundle) -> None:
    async def scenario() -> None:
        async with started(bundle("crashing"), Restarts(first=0.01)) as pool:
            former = pool.pid
            assert former is not None
            os.kill(former, signal.SIGKILL)
            await until(lambda: pool.pid not in (former, None) and pool.state == "READY")
            assert (await ask(pool, {}).output())["pid"] != former

    carried_out(scenario())


def test_calls_that_kill_every_worker_are_all_answered_and_the_pauses_grow(bundle: Bundle) -> None:
    async def scenario() -> None:
        restarts = Restarts(first=0.01)
        async with started(bundle("crashing"), restarts) as pool:
            fatal = [ask(pool, {"how": "exit"}) for _ in range(4)]
            good = ask(pool, {"x": 5})
            assert [(await one.answer()).status for one in fatal] == [500] * 4
            assert (await good.output())["x"] == 5
            assert pool.deaths == 4

    carried_out(scenario())


def test_a_new_worker_that_cannot_set_up_leaves_no_call_without_an_answer(bundle: Bundle) -> None:
    async def scenario() -> None:
        place = bundle(FRAGILE_SETUP.replace("WHAT", "assert count.read_text() == '1', 'the disk is full'"))
        async with started(place, Restarts(first=0.01, chances=3)) as pool:
            fatal = ask(pool, {"how": "exit"})
            waiting = [ask(pool, {}) for _ in range(5)]
            assert (await fatal.answer()).status == 500
            answers = [await one.answer() for one in waiting]
            assert {answer.status for answer in answers} == {503}
            assert all(NOT_RUN[1:-1] in answer.meta for answer in answers)
            assert pool.state == "DEFUNCT"
            assert "the disk is full" in pool.setup.logs

    carried_out(scenario())


def test_a_prediction_that_takes_too_long_is_ended_with_its_worker_and_the_rest_goes_on(bundle: Bundle) -> None:
    async def scenario() -> None:
        async with started(bundle("crashing"), Restarts(first=0.01), timeout=2.0) as pool:
            hanging = ask(pool, {"how": "hang"})
            waiting = ask(pool, {"x": 1})
            answer = await hanging.answer()
            assert answer.status == 504
            assert "longer than 2 s" in json.loads(answer.body)["error"]
            assert (await waiting.output())["x"] == 1

    carried_out(scenario())


def test_a_worker_that_stands_still_is_noticed_and_its_calls_move(bundle: Bundle) -> None:
    async def scenario() -> None:
        async with started(bundle("crashing"), Restarts(first=0.01), timeout=2.0) as pool:
            former = pool.pid
            assert former is not None
            os.kill(former, signal.SIGSTOP)
            waiting = ask(pool, {"x": 1})
            assert (await waiting.output())["pid"] != former
            assert not alive(former)

    carried_out(scenario())


def test_a_call_beyond_the_queue_is_refused_and_the_others_are_served(bundle: Bundle) -> None:
    async def scenario() -> None:
        place = bundle("held")
        async with started(place, queue=3) as pool:
            asked = [ask(pool, {"x": x}) for x in range(4)]
            assert pool.state == "BUSY"
            with pytest.raises(Full):
                ask(pool, {"held": False})
            await until(lambda: pool.in_flight == 1)
            assert pool.queued == 3
            (place / "go").touch()
            assert [await one.output() for one in asked] == [0, 1, 2, 3]
            assert await ask(pool, {"x": 9}).output() == 9

    carried_out(scenario())


def test_a_deadline_that_passes_in_the_queue_gives_504_and_the_call_is_never_run(
    bundle: Bundle, tmp_path: Path
) -> None:
    runner = """
import time, pathlib
from cog import BaseRunner

class Runner(BaseRunner):
    def run(self, held: bool = False, name: str = "") -> str:
        if name:
            pathlib.Path(name).touch()
        while held and not pathlib.Path("go").exists():
            time.sleep(0.005)
        return name
"""

    async def scenario() -> None:
        place = bundle(runner)
        async with started(place) as pool:
            running = ask(pool, {"held": True}, deadline=2.0)
            passed = time.monotonic() + 2.0
            await until(lambda: pool.in_flight == 1)  # it has begun: the deadline is past it
            late = [ask(pool, {"name": str(tmp_path / str(number))}, deadline=0.1) for number in range(100)]
            for one in late:
                answer = await one.answer()
                assert answer.status == 504
                assert NOT_RUN[1:-1] in answer.meta
            await until(lambda: time.monotonic() > passed + 0.1)
            assert not running.answers
            (place / "go").touch()
            assert await running.output() == ""
            assert (await ask(pool, {"name": str(tmp_path / "after")}).body())["status"] == "succeeded"
            assert not any((tmp_path / str(number)).exists() for number in range(100))

    carried_out(scenario())


def test_a_running_prediction_is_interrupted_in_its_sleep_and_nothing_else_is(bundle: Bundle) -> None:
    async def scenario() -> None:
        async with started(bundle("sleeping")) as pool:
            running = ask(pool, {"seconds": 3600})
            others = [ask(pool, {"seconds": 0, "x": x}) for x in range(5)]
            await until(lambda: pool.in_flight == 1)
            assert pool.cancel(running.ticket)
            assert (await running.body())["status"] == "canceled"
            assert [await one.output() for one in others] == [0, 1, 2, 3, 4]
            assert not pool.cancel(running.ticket)
            assert pool.deaths == 0

    carried_out(scenario())


def test_a_call_canceled_before_it_began_is_answered_at_once_and_never_twice(bundle: Bundle) -> None:
    async def scenario() -> None:
        place = bundle("held")
        async with started(place) as pool:
            running = ask(pool, {"x": 1})
            await until(lambda: pool.in_flight == 1)
            waiting = [ask(pool, {"held": False}) for _ in range(100)]  # some are with the worker, some still here
            for one in waiting:
                assert pool.cancel(one.ticket)
            assert {(await one.body())["status"] for one in waiting} == {"canceled"}
            assert not running.answers
            (place / "go").touch()
            assert await running.output() == 1
            assert await ask(pool, {"x": 2}).output() == 2
            assert all(len(one.answers) == 1 for one in waiting)

    carried_out(scenario())


def test_cancellations_that_come_as_predictions_end_hit_nobody_else(bundle: Bundle) -> None:
    async def scenario() -> None:
        async with started(bundle("echo"), queue=5000) as pool:
            for round_ in range(20):
                asked = [ask(pool, {"x": x}) for x in range(100)]
                for one in asked[round_ % 3 :: 3]:
                    pool.cancel(one.ticket)
                    await asyncio.sleep(0)
                for x, one in enumerate(asked):
                    body = await one.body()
                    if body["status"] == "canceled":
                        assert x % 3 == round_ % 3
                    else:
                        assert body["output"] == 3 * x
            assert pool.deaths == 0

    carried_out(scenario())


def test_stopping_lets_what_was_taken_finish(bundle: Bundle) -> None:
    async def scenario() -> None:
        async with started(bundle("sleeping")) as pool:
            asked = [ask(pool, {"seconds": 0.05, "x": x}) for x in range(5)]
            stopping = asyncio.ensure_future(pool.stop(grace=10))
            await asyncio.sleep(0)
            with pytest.raises(NotReady, match="STOPPING"):
                ask(pool, {"seconds": 0})
            await stopping
            assert [await one.output() for one in asked] == [0, 1, 2, 3, 4]
            assert pool.pid is None

    carried_out(scenario())


def test_what_is_not_finished_in_the_grace_is_answered_by_how_far_it_came(bundle: Bundle) -> None:
    async def scenario() -> None:
        async with started(bundle("sleeping")) as pool:
            running, waiting = ask(pool, {"seconds": 3600}), ask(pool, {"seconds": 0})
            await until(lambda: pool.in_flight == 1)
            await pool.stop(grace=0.1)
            assert (await running.answer()).status == 500
            assert "being stopped" in json.loads((await running.answer()).body)["error"]
            assert (await waiting.answer()).status == 503
            assert NOT_RUN[1:-1] in (await waiting.answer()).meta

    carried_out(scenario())


def test_what_the_worker_started_ends_with_it(bundle: Bundle, tmp_path: Path) -> None:
    runner = """
import os, subprocess
from cog import BaseRunner

class Runner(BaseRunner):
    def setup(self) -> None:
        self.child = subprocess.Popen(["sleep", "600"])

    def run(self, x: float = 0.0) -> int:
        return self.child.pid
"""

    async def scenario() -> None:
        async with started(bundle(runner)) as pool:
            child, worker = await ask(pool, {}).output(), pool.pid
            assert alive(child)
            await pool.stop(grace=1)
            await until(lambda: not alive(child) and not alive(worker))

    carried_out(scenario())


def test_a_worker_ends_when_its_front_is_killed(bundle: Bundle) -> None:
    script = """
import asyncio, sys
from drivetrain.backends.serving.replica.calls import ReplicaSettings
from drivetrain.backends.serving.replica.pool import Pool

async def main():
    pool = Pool(ReplicaSettings("model", sys.argv[1], "run.py:Runner"))
    pool.start()
    assert await pool.wait_ready()
    print(pool.pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""
    with subprocess.Popen(
        [sys.executable, "-c", script, str(bundle("echo"))], stdout=subprocess.PIPE, text=True
    ) as front:
        assert front.stdout is not None
        worker = int(front.stdout.readline())
        assert alive(worker)
        front.kill()
        front.wait()
    carried_out(until(lambda: not alive(worker)))


def test_a_callback_that_raises_takes_no_other_answer_with_it(bundle: Bundle) -> None:
    async def scenario() -> None:
        told: list[dict[str, object]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        async with started(bundle("echo")) as pool:

            def bad(_: object) -> None:
                raise RuntimeError("a mistake in the front")

            pool.submit(Call(Wire.COG, b'{"input":{"x":1}}'), bad)
            others = [ask(pool, {"x": x}) for x in range(10)]
            assert [await one.output() for one in others] == [3 * x for x in range(10)]
            assert str(told[0]["exception"]) == "a mistake in the front"

    carried_out(scenario())


def test_the_runners_own_healthcheck_is_asked(bundle: Bundle) -> None:
    runner = """
import time
from cog import BaseRunner

class Runner(BaseRunner):
    def setup(self) -> None:
        self.ill = False

    def healthcheck(self) -> bool:
        return not self.ill

    def run(self, ill: bool) -> bool:
        self.ill = ill
        return ill
"""

    async def scenario() -> None:
        async with started(bundle(runner)) as pool:
            assert pool.checks
            assert await pool.healthcheck() == ""
            await ask(pool, {"ill": True}).output()
            assert "returned False" in await pool.healthcheck()

    carried_out(scenario())


def test_pauses_between_restarts_double_up_to_a_limit_and_start_afresh_after_a_good_while() -> None:
    restarts = Restarts(first=1, longest=5, forgives=30, chances=3)
    pauses = []
    now = 0.0
    for _ in range(5):
        restarts.ready(now)
        now += 1
        pauses.append(restarts.died(now))
    assert pauses == [1, 2, 4, 5, 5]
    restarts.ready(now)
    assert restarts.died(now + 30) == 1
    assert [restarts.died(now + 30) for _ in range(3)] == [2, 4, None]


def test_a_pool_that_is_stopped_before_it_was_ready_leaves_nothing_behind(bundle: Bundle) -> None:
    async def scenario() -> None:
        async with started(bundle("slow setup"), ready=False) as pool:
            worker = pool.pid
            assert isinstance(pool, Pool)
            await pool.stop(grace=5)
            assert not alive(worker)

    carried_out(scenario())


@pytest.mark.parametrize("runner", ["crashing", "async"])
def test_a_worker_killed_again_and_again_under_load_loses_no_call_and_mixes_none_up(
    bundle: Bundle, runner: str
) -> None:
    async def scenario() -> None:
        statuses: dict[str, int] = {}
        running = True

        async def client(pool: Pool, x: int) -> None:
            while running:
                try:
                    asked = ask(pool, {"x": x})
                except NotReady:
                    await asyncio.sleep(0.005)
                    continue
                body = await asked.body()
                statuses[body["status"]] = statuses.get(body["status"], 0) + 1
                if body["status"] == "succeeded":
                    assert body["output"]["x"] == x
                else:
                    assert "SIGKILL" in body["error"]

        async with started(bundle(runner), Restarts(first=0.01, longest=0.05)) as pool:
            clients = [asyncio.ensure_future(client(pool, x)) for x in range(64)]
            for kill in range(4):
                enough = statuses.get("succeeded", 0) + 500
                await until(lambda enough=enough: pool.pid and statuses.get("succeeded", 0) >= enough)
                os.kill(pool.pid or 0, signal.SIGKILL)
                await until(lambda kill=kill: pool.deaths == kill + 1)
            await until(lambda: pool.state in ("READY", "BUSY"))
            running = False
            await asyncio.wait_for(asyncio.gather(*clients), 40)
            assert pool.deaths == 4
            assert (pool.in_flight, pool.queued) == (0, 0)

    carried_out(scenario())
