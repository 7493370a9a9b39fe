"""Two samples: the laws of chance, drawn and summed."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from drivetrain.engines import two_samples


def test_the_smooth_tests_follow_chi2():
    draw = np.random.default_rng(4)
    known, rows, cells = 10_000, 1000, 50
    truth = draw.dirichlet(np.full(cells, known / cells), size=1500)
    expected = np.full(cells, known // cells)
    for values in zip(*(two_samples.smooth(expected, draw.multinomial(rows, p)) for p in truth), strict=True):
        assert stats.kstest(values, "uniform").pvalue > 1e-3


def test_the_smooth_test_of_degree_one_is_the_rank_test():
    draw = np.random.default_rng(6)
    one, other = draw.normal(size=5000), draw.normal(0.1, 1.0, 3000)
    edges = np.quantile(one, np.arange(1, 200) / 200)
    counts = [np.bincount(np.searchsorted(edges, values), minlength=200) for values in (one, other)]
    assert two_samples.smooth(*counts)[0] == pytest.approx(stats.mannwhitneyu(one, other).pvalue, rel=0.1)


@settings(deadline=None)
@given(st.integers(0, 40), st.integers(1, 60), st.integers(0, 40), st.integers(1, 60))
def test_two_shares_are_compared_by_fishers_exact_test(count, rows, known, known_rows):
    count, known = min(count, rows), min(known, known_rows)
    exact = stats.fisher_exact([[count, rows - count], [known, known_rows - known]], alternative="greater").pvalue
    ours = two_samples._tail(count, rows, known, known_rows)
    if count * known_rows > known * rows:
        assert ours == pytest.approx(exact, rel=1e-9)
    else:
        assert ours == 1.0


def test_fishers_test_is_exact_for_millions_of_rows():
    found = two_samples._tail(10_500, 1_000_000, 100_000, 10_000_000)
    exact = stats.hypergeom.sf(10_499, 11_000_000, 110_500, 1_000_000)
    assert found == pytest.approx(exact, rel=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 200), st.integers(0, 60), st.integers(60, 2000))
def test_the_critical_share_is_the_least_that_is_significant(rows, known, known_rows):
    found = two_samples.more(0, rows, known, known_rows, 0.01)
    counts = np.arange(rows + 1)
    significant = [k for k in counts if two_samples._tail(int(k), rows, known, known_rows) < 0.01]
    expected = min(significant) / rows - known / known_rows if significant else math.inf
    assert found.critical == pytest.approx(expected)


@pytest.mark.parametrize("distance", ["psi", "js"])
@pytest.mark.parametrize("expected", [10, 20, 50])
@pytest.mark.parametrize(("known", "rows"), [(100_000, 1000), (5000, 300), (1000, 1000)])
def test_two_cells_one_of_them_rare_exceed_no_level_more_often_than_it_says(distance, expected, known, rows):
    """Not drawn but summed: every pair of counts with its binomial probability."""
    share = expected / rows
    likely = stats.binom.pmf(np.arange(known + 1), known, share)
    levels = np.array([0.05, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6])
    live = np.arange(min(rows, expected * 5 + 60) + 1)
    chances = stats.binom.pmf(live, rows, share)
    exceeded, weight = np.zeros(len(levels)), 0.0
    least, most = (int(stats.binom.ppf(x, known, share)) for x in (1e-9, 1 - 1e-9))
    for count in np.unique(np.linspace(least, most, 13).astype(int)).tolist():
        values = [_two_cells(known, count, rows, k, distance) for k in live.tolist()]
        exceeded += likely[count] * np.array([chances[np.array(values) < level].sum() for level in levels])
        weight += likely[count]
    assert (exceeded / weight <= levels * 1.05).all()


def _two_cells(known: int, count: int, rows: int, found: int, distance: str) -> float:
    return two_samples.of_bins(
        np.array([known - count, count]), np.array([rows - found, found]), distance, 1e-3
    ).p_value


@pytest.mark.parametrize("distance", ["psi", "js"])
def test_ten_bins_keep_to_chi2(distance):
    draw = np.random.default_rng(3)
    known, rows = 10_000, 2000
    # Bins at the reference's own quantiles hold equal counts; what varies is what they hold of the truth.
    truth = draw.dirichlet(np.full(10, known / 10), size=3000)
    expected = np.full(10, known // 10)
    values = [two_samples.of_bins(expected, draw.multinomial(rows, p), distance, 0.05).p_value for p in truth]
    # The greatest of three p values is somewhat above a uniform one, and nowhere below.
    assert stats.kstest(values, "uniform", alternative="greater").pvalue > 1e-3
