"""Answers of two arms as blocks, and latencies as histograms."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivetrain.engines.latencies import Latencies
from drivetrain.engines.runs import Blocks, Runs

ANSWERS = st.lists(st.tuples(st.booleans(), st.booleans(), st.floats(0.001, 5.0)), max_size=40)


def columns(answers: list[tuple[bool, bool, float]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    arms, failed, took = zip(*answers, strict=True) if answers else ((), (), ())
    return np.array(arms, dtype=bool), np.array(failed, dtype=bool), np.array(took, dtype=float)


def rows(blocks: Blocks) -> np.ndarray:
    found = (blocks.candidate_failed, blocks.champion_failed, blocks.candidate_took, blocks.champion_took)
    return np.stack(found, axis=1)


def by_hand(answers: list[tuple[bool, bool, float]]) -> list[list[float]]:
    runs: list[list[tuple[bool, bool, float]]] = []
    for answer in answers:
        if not runs or runs[-1][0][0] != answer[0]:
            runs.append([])
        runs[-1].append(answer)
    found = []
    for first, second in zip(runs[0:-1:2], runs[1:-1:2], strict=False):
        share = [sum(answer[1] for answer in run) / len(run) for run in (first, second)]
        took = [math.nan if answer[1] else answer[2] for answer in (first[-1], second[0])]
        ours = 0 if first[0][0] else 1
        found.append([share[ours], share[1 - ours], took[ours], took[1 - ours]])
    return found


@given(ANSWERS, st.integers(0, 40))
def test_blocks_are_runs_beside_each_other_however_the_answers_come(
    answers: list[tuple[bool, bool, float]], cut: int
) -> None:
    runs = Runs()
    first = rows(runs.add(*columns(answers[:cut])))
    runs = Runs.from_json(json.loads(json.dumps(runs.to_json())))
    found = np.concatenate([first, rows(runs.add(*columns(answers[cut:])))])
    np.testing.assert_allclose(found, np.array(by_hand(answers), dtype=float).reshape(-1, 4))


@pytest.mark.parametrize("slower", [1.0, 1.25, 3.0])
def test_latencies_just_within_the_factor_are_no_slower(slower: float) -> None:
    random = np.random.default_rng(0)
    base = random.lognormal(-4, 0.5, 4000)
    same, worse = Latencies(slower), Latencies(slower)
    same.add(base * slower, base)
    worse.add(base * slower * 1.5, base)
    assert same.p_value > 0.5
    assert worse.p_value < 1e-6


def test_quantiles_are_those_of_the_values_and_survive_json() -> None:
    random = np.random.default_rng(0)
    ours, theirs = random.lognormal(-4, 0.5, 5000), random.lognormal(-3, 0.5, 5000)
    found = Latencies(1.25)
    assert all(math.isnan(value) for value in found.quantiles(0.5))
    found.add(ours, theirs)
    again = Latencies.from_json(1.25, json.loads(json.dumps(found.to_json())))
    for level in (0.5, 0.99):
        assert again.quantiles(level) == found.quantiles(level)
        expected = np.quantile(ours, level), np.quantile(theirs, level)
        assert found.quantiles(level) == pytest.approx(expected, rel=0.03)
    assert again.p_value == found.p_value
    assert again.count == 5000


def test_latencies_beyond_the_bins_are_kept_at_their_ends() -> None:
    found = Latencies(1.25)
    found.add(np.array([0.0, 1e9, 5.0]), np.array([1e-12, 0.1, 1e9]))
    assert found.count == 3
    assert 0.0 <= found.p_value <= 1.0
