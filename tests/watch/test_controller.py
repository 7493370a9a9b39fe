"""The controller as a state machine in the journal: what it does, in which order, and that it can be killed at any instant."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivetrain.engines.triggers import OPEN, Policy, Worth
from drivetrain.errors import ServingError, UsageError
from drivetrain.journal import Decision, Journal
from drivetrain.watch.controller import PATIENCE, UNANSWERED, Controller, Firing, Progress, Seen
from drivetrain.watch.retraining import Trained

NOW = 1_400_000_000.0
HOUR = 3600.0
POLICIES = [
    Policy("drift", "retrain", 24 * HOUR, 3),
    Policy("asked", "retrain", 24 * HOUR, 3, approval=True),
    Policy("slow", "rollback", HOUR, 3),
    Policy("busy", "scale", 60.0, 100),
    Policy("tell", "notify", 24 * HOUR, 7),
]


DONE = Trained("done", "")


class Killed(BaseException):
    """The controller is killed here."""


@dataclass
class World:
    """What the controller acts upon, as it outlives the controller: runs, traffic, bounds."""

    training_takes: int = 2
    rollout_takes: float = 60.0
    ends: Trained = DONE
    same_model: bool = False
    harmful: bool = False
    unreachable: bool = False
    champion: str = "wine-1"
    before: str | None = "wine-0"
    runs: dict[str, int] = field(default_factory=dict)
    rollouts: dict[str, float] = field(default_factory=dict)
    taken_back: list[str] = field(default_factory=list)
    rolled_back: list[str] = field(default_factory=list)
    bounds: str | None = None
    fuse: int | None = None

    def _spark(self) -> None:
        """Counts down to the kill."""
        if self.fuse is not None:
            self.fuse -= 1
            if self.fuse < 0:
                raise Killed

    @contextmanager
    def acting(self) -> Iterator[None]:
        """The kill may come before an effect, or after it."""
        self._spark()
        if self.unreachable:
            raise ServingError("no gateway of wine runs")
        yield
        self._spark()

    def train(self, run_id: str, as_of: float) -> Trained | None:
        with self.acting():
            others = [name for name, left in self.runs.items() if left > 0 and name != run_id]
            assert others == [], "two runs at once"
            left = self.runs[run_id] = self.runs.get(run_id, self.training_takes + 1) - 1
            return self.ends if left <= 0 else None

    def trained(self, run_id: str) -> str | None:
        with self.acting():
            return None if self.same_model else f"wine-{run_id}"

    def roll_out(self, candidate: str, now: float) -> Progress:
        with self.acting():
            if candidate in self.taken_back:
                return Progress("rolled_back", "taken back", {})
            began = self.rollouts.setdefault(candidate, now)
            if now - began < self.rollout_takes:
                return Progress("rollout", f"for {now - began:g} s", {"seconds": now - began})
            if self.harmful:
                return Progress("rolled_back", "more failures", {"failures": 0.2})
            if self.champion != candidate:
                self.before, self.champion = self.champion, candidate
            return Progress("promoted", "it is no worse", {})

    def take_back(self, candidate: str, reason: str, now: float) -> None:
        with self.acting():
            if candidate not in self.taken_back:
                self.taken_back.append(candidate)

    def former(self) -> str:
        with self.acting():
            if self.before is None:
                raise UsageError("no other revision has served yet")
            return self.before

    def roll_back(self, revision: str) -> None:
        with self.acting():
            if revision != self.champion:
                self.before, self.champion = self.champion, revision
                self.rolled_back.append(revision)

    def scale(self, trigger: str | None) -> None:
        with self.acting():
            self.bounds = trigger


class Sparking(Journal):
    """A journal whose writes the kill may come before or after."""

    def __init__(self, path: Path, world: World) -> None:
        super().__init__(path)
        self._world = world
        self._db.execute("pragma synchronous=off")  # it is the process that is killed, not the machine

    def open_decision(self, decision: Decision) -> bool:
        self._world._spark()
        done = super().open_decision(decision)
        self._world._spark()
        return done

    def change_decision(self, decision: Decision) -> None:
        self._world._spark()
        super().change_decision(decision)
        self._world._spark()


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def journal(tmp_path: Path, world: World) -> Journal:
    return Sparking(tmp_path / "journal.db", world)


def controller(journal: Journal, world: World, worth: Worth | None = None) -> Controller:
    return Controller(journal, POLICIES, world, backoff=HOUR, worth=worth)


def fires(*names: str, since: float = NOW) -> list[Firing]:
    return [Firing(name, since, f"{name} is 0.3, above 0.25", {"value": 0.3, "threshold": 0.25}) for name in names]


def looks(control: Controller, *ticks: tuple[float, list[Firing]], **more: Any) -> list[list[tuple[str, str]]]:
    """What each look at that time gave: trigger and state of the decisions."""
    return [
        [(decision.trigger, decision.state) for decision in control.step(Seen(at, firing, **more))]
        for at, firing in ticks
    ]


def test_a_drift_is_retrained_for_rolled_out_and_promoted(journal: Journal, world: World) -> None:
    control = controller(journal, world)
    found = looks(control, *[(NOW + 30 * look, fires("drift")) for look in range(6)])
    assert found[0] == [("drift", "training")]
    assert [entry for look in found for entry in look][-1] == ("drift", "promoted")
    (decision,) = [row for row in journal.decisions() if row.state != "held"]
    assert (decision.run_id, decision.revision) == (decision.id, f"wine-{decision.id}")
    assert world.champion == decision.revision
    assert decision.numbers["value"] == 0.3
    states = [state for _, state, _ in journal.decision_steps(decision.id)]
    assert (states[0], states[-1]) == ("training", "promoted")


@pytest.mark.parametrize(
    ("change", "state", "said"),
    [
        ({"ends": Trained("failed", "train: ValueError")}, "failed", "train: ValueError"),
        ({"ends": Trained("refused", "evaluate: 0.61 is below 0.70")}, "refused", "below 0.70"),
        ({"same_model": True}, "unchanged", "the champion's model again"),
        ({"harmful": True}, "rolled_back", "more failures"),
    ],
)
def test_a_retraining_that_comes_to_nothing_leaves_the_champion_and_the_loop_rests_longer_each_time(
    journal: Journal, world: World, change: dict[str, Any], state: str, said: str
) -> None:
    world.training_takes, world.rollout_takes = 0, 0.0
    for name, value in change.items():
        setattr(world, name, value)
    free = [Policy("drift", "retrain", 0.0, 1000)]
    control = Controller(journal, free, world, backoff=HOUR)
    began = []
    for minute in range(0, 8 * 60, 10):
        for decision in control.step(Seen(NOW + 60 * minute, fires("drift"))):
            if decision.state == state:
                began.append(minute)
                assert said in decision.reason
                assert "the champion stays" in decision.reason
    assert began == [0, 60, 180, 420], "rests of one, two and four hours"
    last = next(row for row in journal.decisions() if row.state == state)
    assert "nothing is retrained for 8 h" in last.reason
    assert world.champion == "wine-1"


def test_why_a_trigger_is_not_acted_upon_is_written_down_once_a_day(journal: Journal, world: World) -> None:
    control = controller(journal, world, worth=Worth(10.0))
    ticks = [(NOW + HOUR * hour, fires("drift")) for hour in range(30)]
    found = looks(control, *ticks, staying=4.0)
    assert [number for number, look in enumerate(found) if look] == [0, 24]
    assert "staying has cost 4" in journal.decisions()[-1].reason
    assert looks(control, (NOW + 31 * HOUR, fires("drift")), staying=11.0) == [[("drift", "training")]]


def test_a_decision_that_waits_is_done_when_somebody_approves_it_and_not_otherwise(
    journal: Journal, world: World
) -> None:
    control = controller(journal, world)
    assert looks(control, (NOW, fires("asked")), (NOW + 30, fires("asked"))) == [[("asked", "waiting")], []]
    waiting = journal.decisions(1)[0]
    assert f"--approve {waiting.id}" in waiting.reason
    journal.approve(waiting.id, True, NOW + 40)
    assert looks(control, (NOW + 60, []), maintenance=NOW + 90) == [[]]
    assert looks(control, (NOW + 90, [])) == [[("asked", "training")]]
    assert list(world.runs) == [waiting.run_id]


def test_what_is_rejected_or_never_answered_is_not_done(journal: Journal, world: World) -> None:
    control = controller(journal, world)
    looks(control, (NOW, fires("asked")))
    journal.approve(journal.decisions(1)[0].id, False, NOW + 10)
    assert looks(control, (NOW + 30, [])) == [[("asked", "rejected")]]
    later = NOW + 48 * HOUR
    assert looks(control, (later, fires("asked")), (later + UNANSWERED + 1, [])) == [
        [("asked", "waiting")],
        [("asked", "rejected")],
    ]
    assert world.runs == {}


def test_a_rollback_goes_to_the_former_revision_once(journal: Journal, world: World) -> None:
    control = controller(journal, world)
    looks(control, *[(NOW + 30 * look, fires("slow")) for look in range(5)])
    assert (world.champion, world.rolled_back) == ("wine-0", ["wine-0"])
    (done,) = [row for row in journal.decisions() if row.state == "done"]
    assert done.revision == "wine-0"


def test_a_rollback_with_nothing_to_go_back_to_fails_and_says_so(journal: Journal, world: World) -> None:
    world.before = None
    assert looks(controller(journal, world), (NOW, fires("slow"))) == [[("slow", "failed")]]
    assert "no other revision has served yet" in journal.decisions(1)[0].reason


def test_a_rollback_during_a_rollout_takes_the_candidate_back_and_leaves_the_champion(
    journal: Journal, world: World
) -> None:
    world.training_takes, world.rollout_takes = 0, HOUR
    control = controller(journal, world)
    looks(control, (NOW, fires("drift")), (NOW + 30, fires("drift")))
    found = dict(looks(control, (NOW + 60, fires("drift", "slow")))[0])
    assert found == {"drift": "rolled_back", "slow": "done"}
    assert (world.champion, world.rolled_back, len(world.taken_back)) == ("wine-1", [], 1)
    assert looks(control, (NOW + 90, fires("slow"))) == [[]], "the champion is not rolled back as well"


def test_bounds_are_changed_while_the_trigger_fires(journal: Journal, world: World) -> None:
    control = controller(journal, world)
    assert looks(control, (NOW, fires("busy"))) == [[("busy", "scaled")]]
    world.bounds = None  # a gateway that was started anew
    assert looks(control, (NOW + 30, fires("busy"))) == [[]]
    assert world.bounds == "busy"
    assert looks(control, (NOW + 60, [])) == [[("busy", "done")]]
    assert world.bounds is None


def test_an_action_that_does_not_succeed_is_tried_again_for_a_while(journal: Journal, world: World) -> None:
    world.unreachable = True
    control = controller(journal, world)
    found = looks(control, *[(NOW + at, fires("slow")) for at in (0.0, 30.0, PATIENCE, PATIENCE + 30.0)])
    assert found == [[("slow", "acting")], [], [], [("slow", "failed")]]
    assert "no gateway of wine runs" in next(row for row in journal.decisions() if row.state == "failed").reason


def test_an_action_that_succeeds_at_the_second_try_is_done(journal: Journal, world: World) -> None:
    world.unreachable = True
    control = controller(journal, world)
    looks(control, (NOW, fires("slow")))
    world.unreachable = False
    assert looks(control, (NOW + 30, fires("slow"))) == [[("slow", "done")]]
    assert world.champion == "wine-0"


def test_two_hiccups_that_have_nothing_to_do_with_each_other_end_nothing(journal: Journal, world: World) -> None:
    control = controller(journal, world)
    looks(control, (NOW, fires("busy")))
    for at in (30.0, 30.0 + 2 * PATIENCE):
        world.unreachable = True
        (failing,) = control.step(Seen(NOW + at, fires("busy")))
        assert failing.reason == "not done yet: no gateway of wine runs"
        world.unreachable = False
        (back,) = control.step(Seen(NOW + at + 30, fires("busy")))
        assert (back.state, back.reason) == ("scaled", "busy is 0.3, above 0.25")
        assert "failing_since" not in back.numbers
        assert looks(control, (NOW + at + 60, fires("busy"))) == [[]]
    assert world.bounds == "busy"


def test_what_is_said_of_an_action_that_succeeded_later_is_not_that_it_failed(journal: Journal, world: World) -> None:
    world.training_takes, world.unreachable = 1, True
    control = controller(journal, world)
    looks(control, (NOW, fires("slow", "drift")))
    world.unreachable = False
    looks(control, (NOW + 30, fires("slow", "drift")))
    found = {row.trigger: row for row in journal.decisions() if row.state != "held"}
    assert found["slow"].reason == "slow is 0.3, above 0.25; wine-0 serves again"
    assert (found["drift"].state, found["drift"].reason) == ("training", "drift is 0.3, above 0.25")


def test_a_clock_that_was_set_back_a_year_does_not_stop_the_loop_for_a_year(journal: Journal, world: World) -> None:
    control = controller(journal, world)
    assert looks(control, (NOW + 365 * 24 * HOUR, fires("tell"))) == [[("tell", "done")]]
    assert looks(control, *[(NOW + at * HOUR, fires("tell")) for at in (0, 23)], set_back=NOW) == [[], []]
    assert looks(control, (NOW + 25 * HOUR, fires("tell")), set_back=NOW) == [[("tell", "done")]]


looks_of_triggers = st.builds(
    lambda change, others: {*others, *([change] if change else [])},
    st.sampled_from(["", "drift", "slow"]),
    st.sets(st.sampled_from(["busy", "tell"])),
)


@settings(max_examples=15, deadline=None)
@given(
    st.lists(looks_of_triggers, min_size=1, max_size=8), st.lists(st.integers(0, 12), max_size=8), st.booleans(),
    st.sampled_from([0.0, 2 * HOUR, 4 * HOUR]),
)  # fmt: skip
def test_killed_anywhere_it_makes_the_decisions_that_it_would_have_made(
    schedule: list[set[str]], kills: list[int], harmful: bool, rollout_takes: float
) -> None:
    """A look may be killed before or after any effect or write; another controller then goes on from the journal."""

    def lived_through(kills: list[int]) -> tuple[list[tuple[Any, ...]], World]:
        world = World(training_takes=0, rollout_takes=rollout_takes, harmful=harmful)
        left = iter(kills)
        with TemporaryDirectory() as place:
            journal = Sparking(Path(place) / "journal.db", world)
            for look, firing in enumerate([*schedule, set(), set(), set()]):
                seen = Seen(NOW + 2 * HOUR * look, fires(*sorted(firing)))
                while True:
                    world.fuse = next(left, None)
                    try:
                        controller(journal, world).step(seen)
                        break
                    except Killed:
                        continue  # and it is started again at once
            rows = journal.decisions()
            journal.close()
        return sorted((row.id, row.action, row.state, row.revision) for row in rows if row.state != "held"), world

    (calm, one), (cut, other) = lived_through([]), lived_through(kills)
    assert cut == calm
    assert all(state not in OPEN for _, _, state, _ in cut)
    assert (other.champion, other.rolled_back, other.taken_back) == (one.champion, one.rolled_back, one.taken_back)
    assert (other.bounds, other.runs.keys()) == (one.bounds, one.runs.keys())
