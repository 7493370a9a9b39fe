"""The simulated rollouts of the benchmark: what each rule makes of one candidate."""

from __future__ import annotations

import numpy as np

from benchmarks.loop import canary
from benchmarks.loop.canary import Answers, Case


def test_every_rule_sees_the_same_answers_of_the_candidate() -> None:
    case = Case(0.1, 0.3)
    alone = Answers(case, 1).take(1, 200)
    mixed = Answers(case, 1)
    candidate, failed, took = (
        np.concatenate(parts) for parts in zip(mixed.mixed(25, 400), mixed.mixed(50, 200), strict=True)
    )
    assert candidate.sum() == 200
    np.testing.assert_array_equal(failed[candidate], alone[0])
    np.testing.assert_array_equal(took[candidate], alone[1])


def test_the_race_has_its_targets_and_they_hold() -> None:
    said: list[str] = []
    found = canary.race(said.append, rollouts=8)
    assert [target.verdict for target in found.targets] == ["holds"] * 4
    assert [measured.name for measured in found.measurements] == list(canary.RULES)
    assert len(said) == 2
    assert any("Flagger" in note for note in found.notes)


def test_flaggers_rule_does_not_see_five_times_the_failures_below_its_threshold() -> None:
    assert canary.flagger(Case(0.001, 0.005), 0).state == "promoted"
    assert canary.ours(Case(0.001, 0.02), 0).state == "rolled_back"
