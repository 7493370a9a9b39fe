"""Burn rates' windows and factors, and error budgets against counts of every request."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivetrain.engines import slo
from drivetrain.engines.slo import BURN_WINDOWS, PERIOD, Budget

NOW = 1_700_000_000.0
HOUR, DAY = 3600.0, 86_400.0


def test_the_factors_are_those_that_use_the_workbooks_shares_of_a_month() -> None:
    used = [pair.factor * pair.long / PERIOD for pair in BURN_WINDOWS]
    assert used == pytest.approx([0.02, 0.05, 0.10])
    assert all(pair.short == pytest.approx(pair.long / 12) for pair in BURN_WINDOWS)


def test_what_is_allowed_leaves_nothing_and_three_times_that_is_overdrawn() -> None:
    assert slo.budget_left(bad=10, total=10_000, may_be_bad=slo.allowed(99.9)) == pytest.approx(0.0, abs=1e-9)
    assert slo.budget_left(30, 10_000, 0.001) == pytest.approx(-2.0)
    assert slo.budget_left(0, 1, 0.001) == 1


def test_of_a_service_that_nobody_asked_nothing_is_known() -> None:
    found = Budget(0.001)
    assert found.left(NOW) is None
    found.count(NOW, 0, 0)
    assert found.left(NOW) is None


@given(st.lists(st.tuples(st.floats(0, 40 * DAY), st.integers(0, 100), st.floats(0, 1)), min_size=1, max_size=60))
def test_it_is_what_the_requests_of_thirty_days_leave_back_to_a_whole_hour(
    looks: list[tuple[float, int, float]],
) -> None:
    found = Budget(0.01)
    counted = [(NOW + after, total, round(total * share)) for after, total, share in sorted(looks)]
    for at, total, bad in counted:
        found.count(at, total, bad)
    now = counted[-1][0]
    kept = [look for look in counted if look[0] // HOUR * HOUR > now - PERIOD - HOUR]
    total, bad = sum(look[1] for look in kept), sum(look[2] for look in kept)
    assert found.left(now) == (pytest.approx(1 - bad / total / 0.01) if total else None)
    assert all(look in kept for look in counted if look[0] >= now - PERIOD)


def test_it_takes_no_more_room_than_thirty_days_of_hours_and_outlives_its_process() -> None:
    found = Budget(0.001)
    for place in range(5000):
        found.count(NOW + place * HOUR / 2, 100, place % 2)
    assert len(found.to_json()) in (720, 721, 722)
    again = Budget(0.001)
    again.restore(json.loads(json.dumps(found.to_json())))
    assert again.left(NOW + 2500 * HOUR) == found.left(NOW + 2500 * HOUR) == pytest.approx(1 - 0.005 / 0.001)


def test_after_the_clock_was_set_back_what_lies_ahead_is_forgotten() -> None:
    found = Budget(0.001)
    found.count(NOW + 10 * DAY, 100, 100)
    assert found.left(NOW) is None
    found.count(NOW, 100, 0)
    assert found.left(NOW + 10 * DAY) == 1
