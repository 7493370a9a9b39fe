"""Batches: when they begin, what they hold, and that everybody gets their own answer whatever comes together."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drivetrain.backends.serving.replica import tensors
from drivetrain.backends.serving.replica.batching import Company
from drivetrain.backends.serving.replica.calls import Call, ReplicaSettings, Wire
from drivetrain.backends.serving.replica.pool import Pool
from tests.backends.serving.conftest import RUNNERS
from tests.backends.serving.pools import Asked, ask, carried_out, started, until

Bundle = Callable[[str], Path]

HELD = """
import pathlib, time
from cog import BaseRunner

class Runner(BaseRunner):
    def run(self, x: float) -> dict:
        return self.batch([{"x": x}])[0]

    def batch(self, inputs: list) -> list:
        while any(one["x"] < 0 for one in inputs) and not pathlib.Path("go").exists():
            time.sleep(0.005)
        print(f"{len(inputs)} together")
        return [{"x": one["x"], "together": len(inputs)} for one in inputs]
"""
"""A batch with a number below zero is not done before there is a file `go`."""


async def release(bundle: Path) -> None:
    """Lets the model go on, when what was asked before has been sent to the worker."""
    await asyncio.sleep(0)
    (bundle / "go").touch()


# -- the policy, by itself


def cycle(policy: Company, clients: int, cost: float, back: float, rounds: int) -> tuple[float, float]:
    """So many clients, each of whom asks again `back` seconds after its answer, of a model that takes `cost` for any batch. Gives
    the mean size of a batch, and the mean time that a batch which could have begun was held."""
    now, held, sizes = 0.0, 0.0, []
    arrivals = [client * 1e-5 for client in range(clients)]
    for _ in range(rounds):
        arrivals.sort()
        now = max(now, arrivals[0])
        since = now
        while True:
            waiting = [at for at in arrivals if at <= now]
            hold = policy.hold(now, len(waiting))
            if hold <= 0:
                break
            now = min([now + hold, *(at for at in arrivals if at > now)])
        held += now - since
        policy.began(len(waiting))
        group = waiting[: policy.most]
        sizes.append(len(group))
        arrivals = [at for at in arrivals if at not in group]
        now += cost
        arrivals += [now + back + index * 1e-6 for index in range(len(group))]
        policy.ended(now, cost, len(group), sum(at <= now for at in arrivals))
    return sum(sizes) / len(sizes), held / rounds


def test_a_single_client_is_never_held() -> None:
    assert cycle(Company(32, 0.002), clients=1, cost=0.005, back=0.0002, rounds=200) == (1.0, 0.0)


def test_clients_who_ask_again_at_once_are_computed_together() -> None:
    size, held = cycle(Company(32, 0.002), clients=8, cost=0.001, back=0.0002, rounds=200)
    assert size > 7.5
    assert held < 0.0005


def test_holding_that_brings_nobody_is_given_up() -> None:
    policy = Company(32, 0.002)
    size, held = cycle(policy, clients=8, cost=0.001, back=0.0019, rounds=400)  # they come back after the longest hold
    assert policy.luck < 0.5
    assert held < 0.0005 / 4
    assert size >= 1


def test_a_model_of_microseconds_is_hardly_waited_for() -> None:
    _, held = cycle(Company(32, 0.002), clients=8, cost=0.00001, back=0.0001, rounds=200)
    assert held < 0.000005


@given(
    st.integers(1, 64),
    st.floats(0, 0.01),
    st.lists(st.tuples(st.floats(0, 0.01), st.integers(1, 100), st.floats(0, 0.05)), max_size=50),
)
def test_nothing_is_held_longer_than_it_may_nor_when_it_is_full(
    most: int, wait: float, history: list[tuple[float, int, float]]
) -> None:
    policy, now = Company(most, wait), 0.0
    for pause, waiting, cost in history:
        now += pause
        held = policy.hold(now, waiting)
        assert 0 <= held <= wait + 1e-9
        if waiting >= most:
            assert held == 0
        if held:
            assert policy.hold(now + held + 1e-9, waiting) == 0  # time alone ends it
        policy.began(waiting)
        now += held + cost
        policy.ended(now, cost, min(waiting, most), max(0, waiting - most))


# -- a real worker


@pytest.fixture(scope="module")
def batching(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[asyncio.AbstractEventLoop, Pool]]:
    """A worker with the runner `batch`, at most 4 at once, for all examples."""
    place = tmp_path_factory.mktemp("batching")
    (place / "run.py").write_text(RUNNERS["batch"])
    loop = asyncio.new_event_loop()

    async def begin() -> Pool:
        pool = Pool(ReplicaSettings("model", str(place), "run.py:Runner", queue=1000, batch_max=4))
        pool.start()
        assert await pool.wait_ready()
        return pool

    pool = loop.run_until_complete(begin())
    yield loop, pool
    loop.run_until_complete(pool.stop(1))
    loop.close()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.sampled_from([0.0, 0.0, 0.0005, 0.003]),
            st.lists(st.sampled_from([1, 2, 3, 50, -1, -2, "bad"]), max_size=12),
        ),
        max_size=8,
    )
)
def test_whatever_comes_together_each_call_gets_one_answer_its_own_and_in_turn(
    batching: tuple[asyncio.AbstractEventLoop, Pool], arrivals: list[tuple[float, list[float | str]]]
) -> None:
    loop, pool = batching
    order: list[int] = []

    async def scenario() -> None:
        asked: list[tuple[float | str, Asked]] = []
        for pause, values in arrivals:
            for x in values:
                one = ask(pool, {"x": x, "y": len(asked)})
                asked.append((x, one))
            await asyncio.sleep(pause)
        for number, (x, one) in enumerate(asked):
            answer = await one.answer()
            body = json.loads(answer.body)
            if x == "bad":
                assert answer.status == 422
                continue
            order.append(one.ticket)
            if x == -1:
                assert "a bad item is in it" in body["error"]
            elif x == -2:
                assert "no such row" in body["error"]
            else:
                assert body["output"]["value"] == 3 * x + number
                assert 1 <= body["output"]["together"] <= 4
        assert (pool.in_flight, pool.queued, pool.deaths) == (0, 0, 0)

    loop.run_until_complete(asyncio.wait_for(scenario(), 30))
    assert order == sorted(order)


def test_what_arrives_while_the_model_is_busy_is_computed_together(bundle: Bundle) -> None:
    async def scenario() -> None:
        place = bundle(HELD)
        async with started(place, batch_max=8) as pool:
            first = ask(pool, {"x": -1})
            await until(lambda: pool.in_flight == 1)
            asked = [ask(pool, {"x": x}) for x in range(12)]
            await release(place)
            assert (await first.output())["together"] == 1
            outputs = [await one.output() for one in asked]
            assert [output["x"] for output in outputs] == list(range(12))
            assert [output["together"] for output in outputs] == [8] * 8 + [4] * 4
            assert pool.recent[-1][5] == 4

    carried_out(scenario())


def test_what_several_share_is_printed_for_none_of_them(bundle: Bundle) -> None:
    async def scenario() -> None:
        place = bundle(HELD)
        async with started(place) as pool:
            alone = ask(pool, {"x": -1})
            await until(lambda: pool.in_flight == 1)
            together = [ask(pool, {"x": x}) for x in range(2)]
            await release(place)
            assert (await alone.body())["logs"] == "1 together\n"
            assert [(await one.body())["logs"] for one in together] == ["", ""]

    carried_out(scenario())


def test_an_expired_and_a_canceled_call_leave_the_batch_and_the_others_stay(bundle: Bundle) -> None:
    async def scenario() -> None:
        place = bundle(HELD)
        async with started(place) as pool:
            first = ask(pool, {"x": -1})
            await until(lambda: pool.in_flight == 1)
            late, canceled, good = ask(pool, {"x": 1}, deadline=0.05), ask(pool, {"x": 2}), ask(pool, {"x": 3})
            pool.cancel(canceled.ticket)
            assert (await late.answer()).status == 504
            assert (await canceled.body())["status"] == "canceled"
            await release(place)
            assert (await first.output())["x"] == -1
            assert await good.output() == {"x": 3, "together": 1}

    carried_out(scenario())


def test_a_batch_of_one_can_be_interrupted(bundle: Bundle) -> None:
    async def scenario() -> None:
        async with started(bundle(HELD)) as pool:
            slow = ask(pool, {"x": -1})
            await until(lambda: pool.in_flight == 1)
            pool.cancel(slow.ticket)
            assert (await slow.body())["status"] == "canceled"
            assert (await ask(pool, {"x": 1}).output())["x"] == 1

    carried_out(scenario())


def test_a_batch_method_that_gives_too_few_outputs_fails_its_calls_with_the_numbers(bundle: Bundle) -> None:
    async def scenario() -> None:
        async with started(bundle(HELD.replace("for one in inputs]\n", "for one in inputs[1:]]\n"))) as pool:
            body = await ask(pool, {"x": 1}).body()
            assert body["status"] == "failed"
            assert "batch() gave 0 outputs for 1 inputs" in body["error"]

    carried_out(scenario())


def test_a_batch_method_on_a_coroutine_is_refused_in_setup(bundle: Bundle) -> None:
    async def scenario() -> None:
        async with started(bundle(RUNNERS["batch"].replace("def run", "async def run")), ready=False) as pool:
            assert not await pool.wait_ready()
            assert "batch() goes with a run() that is no coroutine" in pool.setup.logs

    carried_out(scenario())


# -- tensors


def test_tensors_of_several_requests_go_through_the_model_at_once_and_each_gets_its_rows(bundle: Bundle) -> None:
    runner = """
import pathlib, time
from cog import BaseRunner

class Runner(BaseRunner):
    def run(self, rows: list[float]) -> list[float]:
        return rows

    def infer(self, tensors: dict) -> dict:
        array = tensors["rows"]
        while (array < 0).any() and not pathlib.Path("go").exists():
            time.sleep(0.005)
        if (array == 13).any():
            raise ValueError("13 is in it")
        return {"doubled": 2 * array, "together": array * 0 + len(array)}
"""

    def infer(pool: Pool, datatype: str, *values: float) -> Asked:
        asked = Asked(pool)
        tensor = {"name": "rows", "shape": [len(values)], "datatype": datatype, "data": list(values)}
        asked.ticket = pool.submit(Call(Wire.V2, json.dumps({"inputs": [tensor]}).encode()), asked.done)
        return asked

    async def scenario() -> None:
        place = bundle(runner)
        async with started(place) as pool:
            first = infer(pool, "FP64", -1.0)
            await until(lambda: pool.in_flight == 1)
            groups = [("FP64", (1.0, 2.0)), ("FP64", (3.0,)), ("FP32", (4.0,)), ("FP32", (5.0,)), ("FP64", (6.0,))]
            asked = [infer(pool, datatype, *values) for datatype, values in groups]
            await release(place)
            outputs = [(await one.body())["outputs"] for one in (first, *asked)]
            found = [{output["name"]: output["data"] for output in each} for each in outputs]
            assert [each["doubled"] for each in found] == [[-2], [2, 4], [6], [8], [10], [12]]
            assert [each["together"] for each in found] == [[1], [3, 3], [3], [2], [2], [1]]

            (place / "go").unlink()
            first = infer(pool, "FP64", -1.0)
            await until(lambda: pool.in_flight == 1)
            good, bad, other = infer(pool, "FP64", 1.0), infer(pool, "FP64", 13.0), infer(pool, "FP64", 2.0)
            await release(place)
            assert (await bad.answer()).status == 400
            assert (await bad.body()) == {"error": "13 is in it"}
            assert (await good.body())["outputs"][0]["data"] == [2]
            assert (await other.body())["outputs"][0]["data"] == [4]

    carried_out(scenario())


@pytest.mark.parametrize(
    ("wrong", "status", "words"),
    [
        ("raise ValueError('3 columns are needed')", 400, "3 columns are needed"),
        ("raise KeyError('rows')", 500, "KeyError: 'rows'"),
        ("int('three')", 500, "ValueError: invalid literal for int()"),
        ("next(iter(tensors.values())) @ [[1], [2]]", 500, "ValueError: matmul"),
        ("import json; json.loads('{')", 500, "JSONDecodeError: "),
        ("from statistics import NormalDist; NormalDist(0, -1)", 500, "StatisticsError: "),
        ("return 3", 500, "TypeError: "),
        ("return {'a': object()}", 500, "cannot be written as tensors"),
    ],
)
def test_tensors_that_infer_does_not_take_are_400_and_anything_else_that_it_raises_is_500(
    bundle: Bundle, wrong: str, status: int, words: str
) -> None:
    body = json.dumps({"inputs": [{"name": "rows", "shape": [1], "datatype": "FP64", "data": [1]}]}).encode()

    async def scenario() -> None:
        async with started(bundle(RUNNERS["infer"].replace("return {name", f"{wrong}\n        return {{name"))) as pool:
            asked = Asked(pool)
            pool.submit(Call(Wire.V2, body), asked.done)
            assert (await asked.answer()).status == status
            assert words in (await asked.body())["error"]

    carried_out(scenario())


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=6),
    st.lists(st.integers(1, 3), max_size=2),
    st.sampled_from(["<f4", "<i8", "|b1"]),
)
def test_tensors_put_together_and_taken_apart_are_what_they_were(
    sizes: list[int], shape: list[int], dtype: str
) -> None:
    parts = [
        {"a": np.full((size, *shape), number).astype(dtype), "b": np.arange(size)} for number, size in enumerate(sizes)
    ]
    assert len({tensors.kind(part) for part in parts}) == 1
    assert [tensors.rows(part) for part in parts] == sizes
    for part, found in zip(parts, tensors.split(tensors.join(parts), sizes), strict=True):
        for name in part:
            np.testing.assert_array_equal(found[name], part[name])
            assert found[name].dtype == part[name].dtype


def test_tensors_that_differ_in_name_type_or_trailing_shape_are_not_put_together() -> None:
    one = {"a": np.zeros((2, 3), "f4")}
    others = [
        {"b": np.zeros((2, 3), "f4")},
        {"a": np.zeros((2, 3), "f8")},
        {"a": np.zeros((2, 4), "f4")},
        {"a": np.zeros((2, 3), "f4"), "b": np.zeros(2)},
    ]
    assert all(tensors.kind(one) != tensors.kind(other) for other in others)
    assert tensors.kind({"a": np.zeros((5, 3), "f4")}) == tensors.kind(one)
    assert tensors.kind({"a": np.float32(1)}) is None
    assert tensors.kind({"a": np.zeros(2), "b": np.zeros(3)}) is None
    assert tensors.kind({}) is None


def test_outputs_without_a_row_for_each_row_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'a' with shape \(2,\) for 3 rows"):
        tensors.split({"a": [1, 2]}, [1, 2])
