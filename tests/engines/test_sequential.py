"""Tests that may be looked at at any time: their formulae, and their errors under continuous looks."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import norm

from drivetrain.engines.sequential import Bets, band, band_p_value, mixture

ALPHA = 0.05


def test_bets_on_values_whose_mean_is_not_above_zero_rarely_win_at_any_time() -> None:
    random = np.random.default_rng(1)
    for share in (0.002, 0.02, 0.3):
        won = 0
        for _ in range(500):
            bets = Bets(-share)
            bets.add((random.random(1500) < share) - share)
            won += bets.p_value <= ALPHA
        # Of 500 with a chance of 0.05 at most, more than 43 are less likely than 1 in 10,000.
        assert won <= 43, share


def test_bets_find_a_mean_above_zero() -> None:
    random = np.random.default_rng(2)
    bets = Bets(-0.015)
    bets.add((random.random(1000) < 0.05) - 0.015)
    assert bets.p_value < 1e-4


@given(st.lists(st.floats(-0.5, 0.5), max_size=60), st.integers(0, 60))
def test_bets_know_the_same_however_the_values_come(values: list[float], cut: int) -> None:
    whole, pieces = Bets(-0.5), Bets(-0.5)
    whole.add(np.array(values))
    pieces.add(np.array(values[:cut]))
    pieces = Bets.from_json(-0.5, json.loads(json.dumps(pieces.to_json())))
    pieces.add(np.array(values[cut:]))
    assert pieces.p_value == pytest.approx(whole.p_value, rel=1e-9)
    assert 0.0 < whole.p_value <= 1.0


@settings(max_examples=30)
@given(st.integers(50, 5000), st.floats(-0.2, 0.2), st.floats(0.05, 2.0), st.floats(-0.1, 0.1))
def test_the_normal_mixture_is_the_integral_that_it_stands_for(
    count: int, mean: float, variance: float, null: float
) -> None:
    room = -2.0 * math.log(ALPHA)
    tau = math.sqrt(variance * (room + math.log(room) + 1.0) / 500)
    peak = max(0.0, mean - null)

    def weighted(effect: float) -> float:
        ratio = effect * count * (mean - null) / variance - count * effect**2 / (2.0 * variance)
        return float(2.0 * norm.pdf(effect, 0.0, tau) * math.exp(min(ratio, 600.0)))

    sigma = math.sqrt(variance / count)
    edges = sorted({0.0, max(0.0, peak - 8 * sigma), peak, peak + 8 * sigma, 8 * tau + peak + 8 * sigma})
    expected = sum(quad(weighted, low, high)[0] for low, high in itertools.pairwise(edges))
    found = mixture(count, mean, variance, null, ALPHA)
    if 1e-200 < found < 1.0:
        assert found == pytest.approx(1.0 / expected, rel=1e-4)
    elif found == 1.0:
        assert expected <= 1.0 + 1e-6


def test_the_normal_mixture_rarely_stops_for_nothing_and_says_nothing_of_a_few() -> None:
    random = np.random.default_rng(3)
    stopped = 0
    for _ in range(400):
        values = random.exponential(1.0, 2000) - 1.0
        sums, squares = np.cumsum(values), np.cumsum(values**2)
        looks = range(50, 2001, 10)
        stopped += any(
            mixture(n, sums[n - 1] / n, squares[n - 1] / n - (sums[n - 1] / n) ** 2, 0.0, ALPHA) <= ALPHA for n in looks
        )
    assert stopped <= 36  # 1 in 10,000, where the chance is 0.05
    assert mixture(49, 10.0, 1.0, 0.0, ALPHA) == 1.0


def test_the_band_is_as_it_was_published_and_holds_the_distribution_at_all_times() -> None:
    assert band(1000, 0.05) == pytest.approx(
        0.85 * math.sqrt((math.log(math.log(math.e * 1000)) + 0.8 * math.log(1612 / 0.05)) / 1000)
    )
    assert band(0, 0.05) == 1.0
    random = np.random.default_rng(4)
    for _ in range(50):
        values = random.random(3000)
        for count in range(20, 3001, 20):
            seen = np.sort(values[:count])
            steps = np.arange(1, count + 1) / count
            distance = max((steps - seen).max(), (seen - steps + 1 / count).max())
            assert distance <= band(count, 0.05)


@given(st.integers(1, 10**6), st.floats(0.01, 1.0))
def test_the_bands_p_value_is_where_two_bands_come_apart(count: int, gap: float) -> None:
    found = band_p_value(gap, count)
    if 1e-290 < found < 1.0:
        assert 2.0 * band(count, found / 2.0) == pytest.approx(gap, rel=1e-6)
    assert band_p_value(0.0, count) == band_p_value(gap, 0) == 1.0
