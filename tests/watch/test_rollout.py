"""Rollouts on made-up answers: which way they go, and that a look which is cut off anywhere is done again."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from drivetrain.backends.serving.gateway.events import FEEDBACK, RESPONSE, Event
from drivetrain.engines.canary import Comparison, Plan
from drivetrain.errors import ServingError
from drivetrain.journal import Journal
from drivetrain.records import Scalar
from drivetrain.watch import rollout
from drivetrain.watch.arms import Arms, Brier
from drivetrain.watch.rollout import Rollout, RolloutState
from drivetrain.watch.sources import Position
from tests.watch.monitored import NO_LABELS

PLAN = Plan(
    shadow=10.0, steps=(10, 50, 100), step_time=10.0, step_requests=40, limit=1000.0, alpha=0.05, failures=0.05, slower=2.0,
    quality=0.05,
)  # fmt: skip
CHAMPION, CANDIDATE = "wine-1-aaaa", "wine-2-bbbb"


class Killed(BaseException):
    """What no handler catches."""


@dataclass
class Fuse:
    """Counts what is done to the outside; burns before or after the effect of the one that it is set to."""

    at: int = -1
    after: bool = False
    count: int = 0

    def effect(self, happens: object) -> None:
        burns = self.count == self.at
        self.count += 1
        if burns and not self.after:
            raise Killed
        happens()  # type: ignore[operator]
        if burns:
            raise Killed


@dataclass
class World:
    """A service that answers as it is told: a `Traffic`, a `Source` and a `Keeper` in one."""

    journal: Journal
    failing: float = 0.0
    slower: float = 1.0
    refuses: bool = False
    name: str = "world"
    served: str = CHAMPION
    percent: int = 0
    shadowed: bool = False
    events: list[Event] = field(default_factory=list)
    fuse: Fuse = field(default_factory=Fuse)
    moves: list[tuple[str, int]] = field(default_factory=list)

    def champion(self) -> str:
        return self.served

    def revive(self) -> None:
        pass

    def shadow(self) -> None:
        self._set("shadow", 0, True)

    def share(self, percent: int) -> None:
        if self.refuses:
            raise ServingError("it did not come up")
        self._set("share", percent, False)

    def promote(self) -> None:
        def happens() -> None:
            self.served, self.percent, self.shadowed = CANDIDATE, 100, False

        self.fuse.effect(happens)

    def restore(self) -> None:
        self._set("restore", 0, False)

    def _set(self, verb: str, percent: int, shadowed: bool) -> None:
        def happens() -> None:
            if (self.percent, self.shadowed) != (percent, shadowed):
                self.moves.append((verb, percent))
            self.percent, self.shadowed = percent, shadowed

        self.fuse.effect(happens)

    def rollout(self, candidate: str) -> str | None:
        return self.journal.rollout(candidate)

    def keep_rollout(self, candidate: str, state: str, now: float) -> None:
        self.fuse.effect(lambda: self.journal.keep_rollout(candidate, state, now))

    def after(self, position: Position | None) -> Iterator[tuple[Position, Event]]:
        for place in range(int(position or 0), len(self.events)):
            yield str(place + 1), self.events[place]

    def newest(self) -> Position | None:
        return str(max(0, len(self.events) - 5))

    def answers(self, now: float, count: int = 200) -> None:
        """So many requests, answered as the traffic is at that time."""
        random = np.random.default_rng(len(self.events))
        for place in range(count):
            theirs = (place + 1) * self.percent // 100 > place * self.percent // 100
            arms = [CANDIDATE if theirs else CHAMPION] + ([CANDIDATE] if self.shadowed else [])
            for arm in arms:
                fails = arm == CANDIDATE and random.random() < self.failing
                body = b'{"status":"failed"}' if fails else b'{"status":"succeeded","output":0.2}'
                took = float(random.lognormal(-4.6, 0.2)) * (self.slower if arm == CANDIDATE else 1.0)
                self.events.append(
                    Event(RESPONSE, f"{now}-{place}", arm, "/predictions", "application/json", body, now, 200, took)
                )


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(Journal(tmp_path / "journal.db"))


def opened(world: World, plan: Plan = PLAN, losses: Brier | None = None) -> Rollout:
    return Rollout(plan, CANDIDATE, world, world, world, losses)


def carried_out(world: World, plan: Plan = PLAN, until: float = 300.0) -> RolloutState:
    """Looks every five seconds, each by a process of its own, until it has ended."""
    now = 1000.0
    while now < 1000.0 + until:
        state = opened(world, plan).advance(now)
        if state.ended:
            return state
        world.answers(now + 1.0)
        now += 5.0
    return state


def test_a_good_candidate_goes_from_shadow_over_each_share_to_the_whole(world: World) -> None:
    state = carried_out(world)
    assert (state.state, state.percent, world.served) == ("promoted", 100, CANDIDATE)
    assert world.moves == [("shadow", 0), ("share", 10), ("share", 50)]
    assert state.numbers["failures_p_worse"] <= 0.05
    assert state.numbers["latency_candidate"] == pytest.approx(0.01, rel=0.1)
    text = world.journal.rollout(CANDIDATE)
    assert text is not None
    curve = rollout.points(text)
    assert [point.percent for point in curve] == sorted(point.percent for point in curve)
    assert curve[-1].numbers["answers"] == state.numbers["answers"]
    assert opened(world).advance(5000.0) == state


def test_one_that_fails_is_taken_back_as_a_shadow_one_that_is_slow_once_callers_wait_for_it(tmp_path: Path) -> None:
    for place, (about, reason, moves) in enumerate(
        [
            ({"failing": 0.3}, "failed", [("shadow", 0), ("restore", 0)]),
            ({"slower": 4.0}, "slower", [("shadow", 0), ("share", 10), ("restore", 0)]),
        ]
    ):
        world = World(Journal(tmp_path / f"{place}.db"), **about)
        state = carried_out(world)
        assert (state.state, world.served, world.percent) == ("rolled_back", CHAMPION, 0)
        assert reason in state.reason
        assert world.moves == moves


def test_a_candidate_that_was_taken_back_is_ended_again_when_it_is_brought_up_again(world: World) -> None:
    world.failing = 0.3
    before = carried_out(world)
    world.percent, world.moves = 50, []
    assert opened(world).advance(9000.0) == before
    assert world.moves == [("restore", 0)]


def test_copies_that_the_shadow_was_too_busy_for_do_not_count(world: World) -> None:
    opened(world).advance(1000.0)
    busy = Event(RESPONSE, "x", CANDIDATE, "/predictions", "application/json", b"{}", 1001.0, 503, 0.0)
    world.events += [busy] * 500
    assert opened(world).advance(1005.0).numbers["answers"] == 0
    world.events += [msgspec.structs.replace(busy, revision=CHAMPION)] * 2
    assert opened(world).advance(1006.0).numbers["failures_champion"] == 1.0


def test_what_was_answered_before_the_rollout_is_passed_over(world: World) -> None:
    world.answers(999.0)
    opened(world).advance(1000.0)
    assert "failures_champion" not in opened(world).advance(1001.0).numbers


def test_without_answers_it_is_taken_back_at_the_limit(world: World) -> None:
    opened(world).advance(1000.0)
    assert opened(world).advance(1999.0).state == "shadow"
    state = opened(world).advance(2000.0)
    assert state.state == "rolled_back"
    assert state.reason == "undecided after 1000 s: 0 of 40 answers of the candidate in this step"


def test_a_plan_without_steps_promotes_at_once(world: World) -> None:
    state = carried_out(world, replace(PLAN, shadow=0.0, steps=(100,)))
    assert (state.state, world.served, world.moves) == ("promoted", CANDIDATE, [])


def test_a_candidate_that_does_not_take_its_traffic_is_taken_back_after_three_tries(world: World) -> None:
    world.refuses = True
    plan = replace(PLAN, shadow=0.0)
    for _ in range(2):
        with pytest.raises(ServingError):
            opened(world, plan).advance(1000.0)
    state = opened(world, plan).advance(1000.0)
    assert (state.state, world.served) == ("rolled_back", CHAMPION)
    assert "did not come up" in state.reason


def test_a_rollout_ends_when_another_revision_was_promoted_meanwhile(world: World) -> None:
    opened(world).advance(1000.0)
    world.served = "wine-3-cccc"
    state = opened(world).advance(1001.0)
    assert (state.state, state.reason) == ("rolled_back", "wine-3-cccc was promoted meanwhile")
    # The same candidate beside the new champion is a new rollout.
    assert opened(world).advance(1002.0).state == "shadow"


def test_it_can_be_taken_back_from_outside_at_any_time_but_the_last(world: World) -> None:
    opened(world).advance(1000.0)
    for _ in range(2):
        state = opened(world).take_back("latency fired", 1001.0)
        assert (state.state, state.reason, world.percent) == ("rolled_back", "latency fired", 0)
    assert opened(world).advance(1002.0).state == "rolled_back"


def test_a_rollout_goes_on_under_the_plan_with_which_it_began(world: World) -> None:
    opened(world).advance(1000.0)
    world.answers(1001.0)
    opened(world, replace(PLAN, slower=1.0, steps=(100,))).advance(1010.0)
    assert (world.percent, world.served) == (10, CHAMPION)


def test_a_clock_that_is_set_back_hides_no_failures(world: World) -> None:
    opened(world).advance(10_000.0)
    world.failing = 0.5
    now, state = 10_000.0 - 3600.0, None
    while state is None or not state.ended:
        world.answers(now)
        state = opened(world).advance(now + 5.0)
        now += 10.0
        assert now < 7000.0
    assert state.state == "rolled_back"
    assert "of its answers failed" in state.reason


def test_a_clock_that_is_set_back_does_not_put_the_limit_off(world: World) -> None:
    opened(world).advance(10_000.0)
    world.answers(10_001.0)
    assert opened(world).advance(10_010.0).state == "step"
    assert opened(world).advance(5_000.0).state == "step"
    assert opened(world).advance(5_000.0 + 989.0).state == "step"
    state = opened(world).advance(5_000.0 + 990.0)
    assert (state.state, "undecided after 1000 s" in state.reason) == ("rolled_back", True)


def test_a_clock_that_is_set_back_moves_nothing(world: World) -> None:
    opened(world).advance(1000.0)
    world.answers(1000.0)
    assert opened(world).advance(10.0).state == "shadow"
    assert opened(world).advance(1010.0).state == "step"


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("failing", [0.0, 0.3])
def test_killed_before_or_after_any_effect_it_ends_as_if_it_had_not_been(
    tmp_path: Path, failing: float, after: bool
) -> None:
    unharmed = World(Journal(tmp_path / "unharmed.db"), failing=failing)
    expected = carried_out(unharmed)
    for at in range(unharmed.fuse.count):
        world = World(Journal(tmp_path / f"{at}.db"), failing=failing, fuse=Fuse(at, after))
        now, state = 1000.0, None
        while state is None or not state.ended:
            try:
                state = opened(world).advance(now)
            except Killed:
                assert world.served == CHAMPION or expected.state == "promoted"
                state = opened(world).advance(now)
            world.answers(now + 1.0)
            now += 5.0
        assert (state.state, state.numbers, world.moves) == (expected.state, expected.numbers, unharmed.moves)


# labels


def labelled(world: World, labels: Sequence[tuple[str, str, float, object]], now: float) -> None:
    """Answers (id, revision, probability) and then what turned out to be true of them."""
    for event, revision, probability, _ in labels:
        body = json.dumps({"status": "succeeded", "output": {"probability": probability}}).encode()
        world.events.append(Event(RESPONSE, event, revision, "/predictions", "application/json", body, now, 200, 0.01))
    for event in dict.fromkeys(entry[0] for entry in labels):
        label = next(entry[3] for entry in labels if entry[0] == event)
        body = json.dumps({"id": event, "label": label}).encode()
        world.events.append(Event(FEEDBACK, event, "", "/feedback", "application/json", body, now))


def test_labels_show_that_the_candidate_is_wrong_more_often(world: World) -> None:
    losses = Brier([False, True])
    opened(world, losses=losses).advance(1000.0)
    truth = np.random.default_rng(0).random(300) < 0.3
    asked = []
    for place, late in enumerate(truth):
        asked.append((f"r{place}", CHAMPION, 0.3, bool(late)))
        asked.append((f"r{place}", CANDIDATE, 0.9, bool(late)))
    labelled(world, asked, 1001.0)
    state = opened(world, losses=losses).advance(1002.0)
    assert state.state == "rolled_back"
    assert "its loss is" in state.reason
    assert state.numbers["quality_count"] == 300
    assert state.numbers["quality_champion"] == pytest.approx(np.mean((0.3 - truth) ** 2))


def test_labels_of_requests_that_one_arm_answered_are_paired_as_they_come(world: World) -> None:
    losses = Brier(None)
    opened(world, losses=losses).advance(1000.0)
    labelled(world, [("a", CHAMPION, 1.0, 3.0), ("b", CHAMPION, 2.0, 2.0), ("c", CANDIDATE, 5.0, 4.5)], 1001.0)
    world.events.append(Event(FEEDBACK, "x", "", "/feedback", "application/json", b"{", 1001.0))
    numbers = opened(world, losses=losses).advance(1002.0).numbers
    assert (numbers["quality_count"], numbers["quality_champion"], numbers["quality_candidate"]) == (1, 2.0, 0.5)
    labelled(world, [("d", CANDIDATE, 1.0, "late")], 1003.0)  # no label of a regression
    assert opened(world, losses=losses).advance(1004.0).numbers["quality_count"] == 1


@pytest.mark.parametrize("classes", [[False, True], None])
@pytest.mark.parametrize("body", NO_LABELS)
def test_a_label_that_is_none_is_passed_over(world: World, body: bytes, classes: list[Scalar] | None) -> None:
    losses = Brier(classes)
    opened(world, losses=losses).advance(1000.0)
    labelled(world, [("0-3", CHAMPION, 0.2, "none"), ("0-3", CANDIDATE, 0.3, "none")], 1001.0)
    world.events[-1] = msgspec.structs.replace(world.events[-1], body=body)
    assert opened(world, losses=losses).advance(1002.0).numbers["quality_count"] == 0
    labelled(world, [("b", CHAMPION, 0.2, True), ("b", CANDIDATE, 0.3, True)], 1003.0)
    assert opened(world, losses=losses).advance(1004.0).numbers["quality_count"] == 1


def test_predictions_beyond_all_bounds_are_far_off_and_stop_nothing(world: World) -> None:
    for classes in ([False, True], None):
        losses = Brier(classes)  # type: ignore[arg-type]
        opened(world, losses=losses).advance(1000.0)
        for place, (ours, theirs) in enumerate([(1e299, 0.5), (0.5, -1e299), (1e299, 1e299), (0.1, 0.2)]):
            asked = [(f"{classes}{place}", CHAMPION, ours, True), (f"{classes}{place}", CANDIDATE, theirs, True)]
            labelled(world, asked, 1001.0)
            opened(world, losses=losses).advance(1002.0)
        assert opened(world, losses=losses).state().numbers["quality_champion"] >= 1e49


@pytest.mark.parametrize(("delay", "least"), [(1.0, 59_900), (600.0, 1_000)])
def test_labels_find_their_predictions_also_after_ten_minutes_at_fifty_requests_a_second(
    world: World, delay: float, least: int
) -> None:
    losses, comparison = Brier([False, True]), Comparison(PLAN)
    arms = Arms(CHAMPION, CANDIDATE, losses)
    late = deque[Event]()
    for look in range(120):
        now = 10.0 * look
        for place in range(500):
            at = now + place / 50
            labelled(world, [(f"{at}", CHAMPION, 0.3, False), (f"{at}", CANDIDATE, 0.4, False)], at)
            late.append(world.events.pop())
        while late and late[0].at + delay <= now + 10.0:
            world.events.append(late.popleft())
        arms.read(world, None, comparison, since=0.0, shadow=True)
        world.events.clear()
        arms = Arms.from_json(CHAMPION, CANDIDATE, losses, json.loads(json.dumps(arms.to_json())))
        assert len(arms.to_json()["predictions"]) + len(arms.to_json()["sample"]) <= 5_000
    quality = comparison.evidence().quality
    assert quality.count >= least
    assert (quality.champion, quality.candidate) == (pytest.approx(0.09), pytest.approx(0.16))
    assert quality.harmful


def test_both_answers_to_a_request_are_in_the_sample_or_neither_is(world: World) -> None:
    losses, comparison = Brier(None), Comparison(PLAN)
    arms = Arms(CHAMPION, CANDIDATE, losses)
    ids = [f"r{place}" for place in range(20_000)]
    for event in ids:
        labelled(world, [(event, CHAMPION, 1.0, 0.0), (event, CANDIDATE, 1.0, 0.0)], 1.0)
    labels = [event for event in world.events if event.type == FEEDBACK]
    world.events = [event for event in world.events if event.type != FEEDBACK] + labels
    arms.read(world, None, comparison, since=0.0, shadow=True)
    count = comparison.evidence().quality.count
    assert 2_500 + 1_000 < count <= 5_000
    assert arms.to_json() == {"predictions": {}, "sample": {}, "level": 3, "waiting": [[], []]}


def test_the_brier_score_of_several_classes_is_between_nought_and_one() -> None:
    losses = Brier(["a", "b", "c"])
    assert losses.loss((0.0, 1.0, 0.0), "b") == 0.0
    assert losses.loss((1.0, 0.0, 0.0), "b") == 1.0
    assert losses.loss((1.0, 0.0, 0.0), "z") is None
