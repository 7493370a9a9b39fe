"""The hold-out."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivetrain.engines import split

TIMES = st.lists(st.integers(-50, 50), min_size=1, max_size=60).map(np.array)
FRACTIONS = st.floats(0.01, 0.99)


@given(TIMES, FRACTIONS, st.integers(0, 30))
def test_no_row_trains_that_is_as_late_as_the_hold_out_or_whose_label_was_not_known_at_its_start(
    times, fraction, delay
):
    parts = split.by_time(times, fraction=fraction, delay=delay)
    assert not (parts.train & parts.holdout).any()
    assert (times[parts.holdout] >= parts.cut).all()
    assert (times[parts.train] < parts.cut).all()
    assert (times[parts.train] + delay <= parts.cut).all()


@given(TIMES, FRACTIONS, st.integers(0, 30))
def test_every_row_trains_decides_or_is_counted_as_embargoed(times, fraction, delay):
    parts = split.by_time(times, fraction=fraction, delay=delay)
    assert parts.train.sum() + parts.holdout.sum() + parts.embargoed == len(times)
    left_out = ~parts.train & ~parts.holdout
    assert (times[left_out] + delay > parts.cut).all()


@given(TIMES, FRACTIONS)
def test_rows_of_equal_time_are_on_one_side(times, fraction):
    parts = split.by_time(times, fraction=fraction)
    for time in np.unique(times):
        assert len(np.unique(parts.holdout[times == time])) == 1


@given(TIMES, FRACTIONS)
def test_at_least_the_fraction_is_held_out_and_no_more_than_ties_make_it(times, fraction):
    parts = split.by_time(times, fraction=fraction)
    wanted = fraction * len(times)
    assert parts.holdout.sum() >= wanted - 1e-6
    assert (times > parts.cut).sum() <= wanted + 1e-6


def test_a_fifth_of_ten_rows_is_the_last_two():
    parts = split.by_time(np.arange(10), fraction=0.2)
    assert parts.holdout.nonzero()[0].tolist() == [8, 9]


def test_a_start_takes_the_place_of_the_fraction():
    parts = split.by_time(np.array([5, 1, 3, 2, 4]), fraction=0.99, start=4)
    assert parts.holdout.tolist() == [True, False, False, False, True]


def test_the_order_of_the_rows_does_not_matter():
    times = np.array([3, 1, 2, 5, 4])
    assert split.by_time(times, fraction=0.4).holdout.tolist() == [False, False, False, True, True]


def test_a_delay_near_the_end_of_representable_time_does_not_wrap():
    times = np.array([0, np.iinfo(np.int64).max - 1, np.iinfo(np.int64).max])
    parts = split.by_time(times, fraction=0.3, delay=10)
    assert parts.train.tolist() == [True, False, False]


@given(st.integers(0, 200), st.integers(0, 50), FRACTIONS)
def test_without_times_a_row_keeps_its_side_when_rows_are_added(rows, more, fraction):
    fewer, all_rows = split.by_draw(rows, fraction=fraction), split.by_draw(rows + more, fraction=fraction)
    assert (all_rows.holdout[:rows] == fewer.holdout).all()
    assert (fewer.train ^ fewer.holdout).all()


def test_a_draw_holds_out_about_the_fraction():
    assert split.by_draw(10_000, fraction=0.2).holdout.mean() == pytest.approx(0.2, abs=0.02)
