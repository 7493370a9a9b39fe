"""The benchmark of the whole loop: its world, its definition, and what it makes of what was measured."""

from __future__ import annotations

from typing import Any

import pandas as pd

from benchmarks.loop import false_alarms, made, whole
from benchmarks.loop.bench import OURS
from benchmarks.loop.whole import Closed
from drivetrain.project import open_project


def test_the_world_changes_in_one_feature_and_is_the_same_for_the_same_seed() -> None:
    calm = whole.world(1e9, 1e9 + 40, whole.REAL, 1)
    moved = whole.world(1e9 + 40, 1e9 + 80, whole.REAL, 1, moved=True)
    assert len(calm) == len(moved) == 10 * whole.ROWS
    assert calm["at"].is_monotonic_increasing
    assert 2.5 < moved["a"].mean() - calm["a"].mean() < 3.5
    assert abs(moved["b"].mean() - calm["b"].mean()) < 0.2
    pd.testing.assert_frame_equal(calm, whole.world(1e9, 1e9 + 40, whole.REAL, 1))


def test_both_speeds_have_the_definition_whose_spans_the_target_counts(tmp_path: Any) -> None:
    for window in (whole.REAL, whole.SIMULATED):
        project = tmp_path / str(window)
        whole.write(project, whole.definition(1_700_000_000, window), whole.world(1.7e9, 1.7e9 + 40, 4, 0))
        found = open_project(project, checked=False).definition
        looks = 2 * found.loop.every.total_seconds()
        spans = 2 * found.monitoring.window.total_seconds() + found.monitoring.late.total_seconds() + looks
        assert whole.in_time(window) == spans


def test_a_round_that_is_late_or_not_promoted_misses_and_one_without_a_retraining_is_not_measured() -> None:
    good, late = Closed(3.0, 5.0, 20.0, "promoted"), Closed(9.0, 12.0, None, "rolled back (slower)")
    never = Closed(None, None, None, "never decided on")
    assert [found.verdict for found in whole.targets("here", 4, [good])] == ["holds", "holds"]
    assert [found.verdict for found in whole.targets("here", 4, [good, late])] == ["misses", "misses"]
    found = whole.targets("here", 4, [good, never])
    assert [target.verdict for target in found] == ["unmeasured", "misses"]
    assert found[0].error == "never decided on"


def test_a_replay_is_counted_from_the_first_request_of_the_changed_world_in_simulated_time() -> None:
    held = {"run": None, "at": 90.0, "changed": 90.0, "state": "held", "reason": ""}
    promoted = {"run": "r", "at": 150.0, "changed": 400.0, "state": "promoted", "reason": "no worse"}
    played = {"decisions": [held, promoted], "failed": 1, "asked": 9}
    assert whole.closed_in(played, 100.0) == Closed(50.0, 50.0, 300.0, "promoted (no worse)", 1, 9)
    assert whole.closed_in({**played, "decisions": [held]}, 100.0).running is None


def test_the_target_on_power_names_the_shift_that_its_mean_hides() -> None:
    ours = {shift.name: 0.9 for shift in made.SHIFTS}
    theirs = dict.fromkeys(ours, 0.5) | {made.SHIFTS[0].name: 0.95}
    found = false_alarms._no_weaker("Peer", {OURS: ours, "Peer": theirs}, "")
    assert found.verdict == "holds"
    assert found.text.endswith(f"; behind on {made.SHIFTS[0].name}: found in 90%, by Peer in 95%")
    assert false_alarms._no_weaker("Peer", {OURS: ours, "Peer": ours}, "").text.endswith("; behind on none")
    assert false_alarms._no_weaker("Peer", {OURS: ours}, "gone").verdict != "holds"
