"""The autoscaler holds every number of Knative's own tests, and what must hold for any load."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivetrain.engines.autoscaler import Autoscaler
from drivetrain.engines.decider import Config, Decider, panic_window, targets
from drivetrain.engines.scale_to_zero import Activator, Bounds, Phase, Status, advance, apply
from drivetrain.engines.windows import Buckets, Peak, rounded, smoothing

VECTORS: dict[str, Any] = json.loads((Path(__file__).parent / "autoscaler_vectors.json").read_text())
START = 1_699_999_995.0
"""A multiple of 1, 3 and 5 seconds."""


def cases(table: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", [pytest.param(row, id=row.get("id")) for row in VECTORS[table]])


@cases("decisions")
def test_knative_decision(case: dict[str, Any]) -> None:
    decider = Decider(Config(**case["config"]), case["start"], 0.0)
    if "most" in case:
        decider.panic_since, decider.most = case["panic_since"], case["most"]
    for step in case["steps"]:
        if "config" in step:
            decider.config = Config(**step["config"])
        found = decider.decide(
            step["at"], step["ready"], step["stable"], step["panic"], reachable=step.get("reachable", True)
        )
        assert found.want == step["want"]
        assert abs(found.excess - step["excess"]) <= 1, "Knative allows one, for rounding"
        if "panic_since" in step:
            assert decider.panic_since == step["panic_since"]
        if "panicking" in step:
            assert found.panicking is step["panicking"]


@cases("births")
def test_knative_birth(case: dict[str, Any]) -> None:
    decider = Decider(Config(panic_threshold=220), case["ready"], 7.0)
    assert (decider.panic_since is not None, decider.most) == (case["panicking"], case["most"])


@cases("buckets")
def test_knative_buckets(case: dict[str, Any]) -> None:
    buckets = Buckets(case["window"], case["granularity"])
    for verb, at, value in case["operations"]:
        now = START + at
        if verb == "record":
            buckets.record(now, value)
        elif verb == "resize":
            buckets.resize(value, now)
        else:
            found = {
                "mean": lambda now=now: buckets.mean(now),
                "weighted": lambda now=now: buckets.weighted_mean(now),
                "weighted3": lambda now=now: rounded(buckets.weighted_mean(now), 3),
                "sum": lambda now=now: sum(buckets.values(now)),
                "nonzero": lambda now=now: [entry for entry in buckets.values(now) if entry],
                "empty": lambda now=now: buckets.empty(now),
                "size": lambda now=now: len(buckets.values(now)),
                "smoothing": lambda: buckets.coefficient,
            }[verb]()
            if verb == "mean":
                value = rounded(value)
            assert found == pytest.approx(value, abs=1e-12), (verb, at)


@cases("smoothing")
def test_knative_smoothing_coefficient(case: dict[str, Any]) -> None:
    assert smoothing(case["buckets"]) == pytest.approx(case["want"], abs=5e-6)


@pytest.mark.parametrize(("digits", "value", "want"), VECTORS["rounding"])
def test_knative_rounding(digits: int, value: float, want: float) -> None:
    assert rounded(value, digits) == want


@cases("peaks")
def test_knative_peak(case: dict[str, Any]) -> None:
    peak = Peak(case["slots"])
    assert [peak.record(slot, value) for slot, value in case["records"]] == case["want"]


@cases("scaler")
def test_knative_scaler(case: dict[str, Any]) -> None:
    bounds = Bounds(**{**VECTORS["scaler_defaults"], **case.get("bounds", {})})
    status = Status(Phase(case["phase"]), 1000.0 - case["for"], case.get("initialized", False))
    step = apply(
        case["want"], status, bounds, 1000.0, Activator(**case.get("activator", {})), reachable=case.get("reachable", True)
    )  # fmt: skip
    assert step.scale == case["scale"]
    assert (step.act and step.scale != case["replicas"]) is case["scaling"]
    assert (step.again is not None) is bool(case["again"])
    assert step.probe is bool(case["probe"])


@cases("status")
def test_knative_active_condition(case: dict[str, Any]) -> None:
    status = Status(Phase(case["phase"]), 0.0)
    found = advance(status, case["want"], case["ready"], Bounds(initial_scale=case["least"]), 5.0)
    assert found.phase is Phase(case["new"])
    assert found.initialized is (case["ready"] >= case["least"])
    assert found.since == (0.0 if case["new"] == case["phase"] else 5.0)


@cases("targets")
def test_knative_target(case: dict[str, Any]) -> None:
    assert targets(**case["given"]) == (pytest.approx(case["target"]), case["total"])


@cases("panic_windows")
def test_knative_panic_window(case: dict[str, Any]) -> None:
    assert panic_window(case["window"], case["percentage"]) == case["want"]


EVENTS = st.lists(st.tuples(st.integers(-3, 25), st.integers(0, 1000), st.integers(0, 3)), max_size=60)
"""Steps of time (backwards too), values in quarters, so that sums are exact; and how much later than that one looks."""


class Naive:
    """The same average, from all events, computed anew each time."""

    def __init__(self, window: int) -> None:
        self.window, self.sums, self.first, self.last = window, defaultdict(float), 0, 0

    def record(self, second: int, value: float) -> None:
        if not self.sums or second - self.last >= self.window:
            self.sums.clear()
            self.first = self.last = second
        elif self.last - second >= self.window:
            return
        self.first, self.last = min(self.first, second), max(self.last, second)
        self.sums[second] += value

    def mean(self, now: int) -> float:
        if not self.sums or now - self.last >= self.window:
            return 0.0
        end = max(now, self.last)
        inside = sum(value for second, value in self.sums.items() if end - self.window < second)
        seen = min(self.last - self.first + 1, self.window - (end - self.last))
        return inside / seen

    def weighted(self, now: int) -> float:
        m = smoothing(self.window)
        if not self.sums:
            return 0.0
        end = max(now, self.last)
        return sum(
            value * m * (1 - m) ** (end - second) for second, value in self.sums.items() if end - self.window < second
        )


@settings(deadline=None)
@given(EVENTS, st.integers(1, 12))
def test_window_averages_equal_a_naive_recomputation_for_any_events(
    events: list[tuple[int, int, int]], window: int
) -> None:
    buckets, naive, second = Buckets(float(window)), Naive(window), 1000
    for move, quarters, ahead in events:
        second = max(0, second + move)
        buckets.record(second + 0.5, quarters / 4)
        naive.record(second, quarters / 4)
        for now in (second, second + ahead, second + window):
            assert buckets.mean(now + 0.25) == pytest.approx(naive.mean(now), abs=1e-6)
            assert buckets.weighted_mean(now + 0.25) == pytest.approx(naive.weighted(now), abs=1e-9)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 50)), min_size=1, max_size=60), st.integers(1, 8))
def test_peak_is_the_largest_value_of_its_slots(moves: list[tuple[int, int]], slots: int) -> None:
    peak, seen, slot = Peak(slots), [], 0
    for move, value in moves:
        slot += move
        seen.append((slot, value))
        assert peak.record(slot, value) == max(value for at, value in seen if slot - at < slots)


LOADS = st.lists(
    st.tuples(st.floats(0, 1e4), st.floats(0, 1e4), st.integers(0, 300), st.booleans()), min_size=1, max_size=50
)


@settings(deadline=None)
@given(LOADS, st.integers(0, 20), st.floats(1.1, 1000), st.floats(1.1, 10), st.integers(0, 5))
def test_never_down_in_panic_and_never_beyond_the_rates(
    loads: list[tuple[float, float, int, bool]], start: int, up: float, down: float, activation: int
) -> None:
    config = Config(7.0, 10.0, max_scale_up_rate=up, max_scale_down_rate=down, activation_scale=activation)
    decider, now, before = Decider(config, start, 0.0), 0.0, None
    for stable, panic, ready, reachable in loads:
        now += 2.0
        found = decider.decide(now, ready, stable, panic, reachable=reachable)
        if before is not None and before.panicking and found.panicking:
            assert found.want >= before.want
        if not found.panicking:
            assert found.want <= max(math.ceil(up * max(1, ready)), activation if activation > 1 else 0)
            assert found.want >= (math.floor(max(1, ready) / down) if reachable else 0)
            assert found.want == found.stable_pods
        before = found


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 500), st.integers(0, 8)), max_size=40),
    st.integers(0, 3),
    st.integers(0, 6),
    st.integers(1, 4),
)
def test_what_is_to_be_done_stays_within_the_bounds(
    loads: list[tuple[float, int]], least: int, room: int, initial: int
) -> None:
    most = least + room
    bounds = Bounds(min_scale=least, max_scale=most, initial_scale=initial, grace=4.0)
    scaler = Autoscaler(Config(stable_window=6.0, panic_window=1.0), bounds, ready=0, now=0.0)
    now = 0.0
    for value, ready in loads:
        now += 2.0
        scaler.record(now, value)
        step = scaler.tick(now, ready).step
        if step.act and step.scale is not None:
            # Knative scales an active revision with nothing to do to one, and a new one to its initial scale.
            assert step.scale >= least
            assert not most or step.scale <= max(most, least, initial, 1)
            assert step.scale > 0 or scaler.status.phase is Phase.INACTIVE


def test_a_step_of_load_is_followed_in_panic_and_left_after_the_stable_window() -> None:
    scaler = Autoscaler(Config(target_burst_capacity=0.0), Bounds(), ready=1, now=0.0)
    ready, seen = 1, []
    for second in range(1, 200):
        scaler.record(second, 5.0 if second <= 60 or second > 80 else 1400.0)
        if second % 2 == 0:
            outcome = scaler.tick(second, ready)
            if outcome.step.act and outcome.step.scale:
                ready = outcome.step.scale
            seen.append((second, ready, outcome.decision is not None and outcome.decision.panicking))
    wanted = {second: count for second, count, _ in seen}
    assert wanted[60] == 1
    assert wanted[70] == 20
    # Over the threshold until the six seconds of the panic window are over the top, then one stable window.
    assert max(second for second, _, panicking in seen if panicking) <= 84 + 60
    assert wanted[160] == 1


def test_idle_for_window_and_grace_is_zero_and_a_request_wakes_it_at_once() -> None:
    scaler = Autoscaler(Config(target_burst_capacity=0.0), Bounds(), ready=1, now=0.0)
    ready, gone = 1, 0.0
    for second in range(1, 200):
        if ready:
            scaler.record(second, 3.0 if second <= 100 else 0.0)
        if second % 2 == 0:
            step = scaler.tick(second, ready).step
            if step.act and step.scale == 0 and ready:
                ready, gone = 0, second
    assert 100 + 60 + 30 <= gone <= 100 + 60 + 30 + 4
    scaler.record(500.0, 1.0)
    outcome = scaler.tick(500.0, 0)
    assert outcome.step.act
    assert outcome.step.scale == 1
    assert outcome.phase is Phase.ACTIVATING


def test_an_activator_that_never_leaves_lets_the_last_replica_go_after_the_window_alone() -> None:
    scaler = Autoscaler(Config(), Bounds(), ready=1, now=0.0)
    gone = 0
    for second in range(1, 200):
        scaler.record(second, 3.0 if second <= 100 else 0.0)
        step = scaler.tick(second, 1).step
        if step.act and step.scale == 0 and not gone:
            gone = second
    assert 160 <= gone <= 163


def test_no_sample_for_a_window_gives_no_decision_and_the_last_one_stands() -> None:
    scaler = Autoscaler(Config(), Bounds(), ready=1, now=0.0)
    assert scaler.tick(2.0, 1).decision is None
    scaler.record(3.0, 500.0)
    first = scaler.tick(4.0, 1)
    assert first.step.scale == 8
    later = scaler.tick(100.0, 8)
    assert later.decision is None
    assert later.step.scale == 8


def test_a_reason_names_mode_load_and_what_held_the_number() -> None:
    scaler = Autoscaler(Config(max_scale_up_rate=2.0), Bounds(max_scale=1), ready=1, now=0.0)
    scaler.record(1.0, 700.0)
    assert (
        scaler.tick(2.0, 1).reason
        == "panic mode, load 700 (stable) and 700 (panic) on 1 ready; held by up-rate, max scale"
    )
