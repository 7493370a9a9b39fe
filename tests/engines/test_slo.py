"""Error budgets and burn rates, against counts of every request."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivetrain.engines import slo
from drivetrain.engines.slo import BURN_WINDOWS, PERIOD, Buckets, Budget

NOW = 1_700_000_000.0
HOUR, DAY = 3600.0, 86_400.0


def budget_of(times, bad, now=NOW, percent=99.9):
    found = Budget(slo.allowed(percent))
    found.add(np.asarray(times, float), np.asarray(bad, bool), now)
    return found


def steady(span, share, now=NOW, every=10.0):
    """A request each `every` seconds up to now, of which each 1 / share-th is bad."""
    times = np.arange(now - span, now, every)
    return times, np.arange(len(times)) % round(1 / share) == 0


def test_the_factors_are_those_that_use_the_workbooks_shares_of_a_month():
    used = [pair.factor * pair.long / PERIOD for pair in BURN_WINDOWS]
    assert used == pytest.approx([0.02, 0.05, 0.10])
    assert all(pair.short == pytest.approx(pair.long / 12) for pair in BURN_WINDOWS)


def test_a_burn_rate_of_one_leaves_nothing_after_the_period():
    assert slo.budget_left(bad=10, total=10_000, may_be_bad=slo.allowed(99.9)) == pytest.approx(0.0, abs=1e-9)
    assert slo.burn_rate(bad=1, total=100, may_be_bad=0.001) == pytest.approx(10)
    assert slo.burn_rate(0, 0, 0.001) == 0
    assert slo.budget_left(30, 10_000, 0.001) == pytest.approx(-2.0)


def test_an_outage_alarms_the_fast_window_and_stops_once_it_is_over():
    times, bad = steady(2 * HOUR, 1 / 50, every=0.5)
    found = budget_of(times, bad)
    fast, slow, _ = found.burns(NOW)
    assert (fast.long, fast.short) == pytest.approx((20, 20), rel=0.1)
    assert fast.alarming
    assert slow.alarming
    found.add(np.arange(NOW, NOW + 360, 10.0), np.zeros(36, bool), NOW + 360)
    assert not found.burns(NOW + 360)[0].alarming


def test_a_slow_leak_alarms_the_long_window_alone():
    found = budget_of(*steady(3 * DAY, 1 / 500, every=20.0))
    assert [burn.alarming for burn in found.burns(NOW)] == [False, False, True]
    assert found.left(NOW) == pytest.approx(-1.0, abs=0.02)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([300.0, 1800.0, HOUR, 6 * HOUR, 3 * DAY]))
def test_counts_are_those_of_all_requests_back_to_a_whole_minute_or_hour(seed, window):
    random = np.random.default_rng(seed)
    times = NOW - random.exponential(window, 500)
    times, bad = times[times > NOW - PERIOD], random.random(500) < 0.3
    bad = bad[: len(times)]
    found = Budget(0.01)
    for part in np.array_split(random.permutation(len(times)), 3):
        found.add(times[part], bad[part], NOW)
    step = 60 if window <= 6 * HOUR else 3600
    least, most = times >= NOW - window, times >= NOW - window - step
    wrong, total = found.over(window, NOW)
    assert least.sum() <= total <= most.sum()
    assert (bad & least).sum() <= wrong <= (bad & most).sum()


def test_what_is_older_than_the_period_or_from_the_future_is_not_counted_and_takes_no_room():
    found = Budget(0.001)
    times = np.concatenate(
        [[NOW - PERIOD - 1, NOW + 1e9, math.inf, math.nan, -1e300], NOW - np.arange(0, PERIOD, 30.0)]
    )
    assert found.add(times, np.ones(len(times), bool), NOW) == 5
    assert len(json.dumps(found.to_json())) < 40_000
    found.add(np.array([NOW + 40 * DAY]), np.array([False]), NOW + 40 * DAY)
    assert found.over(PERIOD, NOW + 40 * DAY) == (0, 1)


def test_merged_and_stored_budgets_are_as_good_as_the_whole():
    times, bad = steady(2 * DAY, 1 / 100)
    whole, merged = budget_of(times, bad), Budget(slo.allowed(99.9))
    for part in np.array_split(np.arange(len(times)), 4):
        stored = json.loads(json.dumps(budget_of(times[part], bad[part]).to_json()))
        merged.merge(Budget.from_json(stored))
    assert merged.burns(NOW) == whole.burns(NOW)
    assert merged.left(NOW) == whole.left(NOW)


BOUNDS = (0.01, 0.05, 0.1, 1.0, math.inf)


def test_a_quantile_lies_straight_within_its_bucket():
    buckets = Buckets.cumulative([(0.1, 100), (0.01, 10), (0.05, 90), (1.0, 100), (math.inf, 100)])
    assert buckets.counts == (10, 80, 10, 0, 0)
    assert buckets.quantile(0.5) == pytest.approx(0.01 + 0.04 * 40 / 80)
    assert buckets.quantile(0.05) == pytest.approx(0.005)
    assert buckets.quantile(1.0) == pytest.approx(0.1)


def test_beyond_the_largest_bound_there_is_only_the_bound():
    buckets = Buckets(BOUNDS, (0, 0, 0, 1, 9))
    assert buckets.quantile(0.99) == 1.0
    assert buckets.slower(5.0) == 9
    assert math.isnan(Buckets(BOUNDS, (0, 0, 0, 0, 0)).quantile(0.5))


@given(st.lists(st.integers(0, 1000), min_size=5, max_size=5).filter(any), st.floats(0, 1))
def test_the_share_that_is_slower_than_a_quantile_is_the_rest(counts, q):
    buckets = Buckets(BOUNDS, tuple(counts))
    found = buckets.quantile(q)
    if found < 1.0:
        assert buckets.slower(found) == pytest.approx((1 - q) * sum(counts), abs=1e-6 * sum(counts))
