"""Windows of event time: late, repeated and disordered events."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivetrain.engines.event_windows import FUTURE, LATE, ON_TIME, Seen, Windows, identities, identity

WINDOWS = Windows(length=60.0, late=10.0)
NEVER = float("-inf")
times = st.lists(st.integers(0, 600).map(float), max_size=60)


def place(at, now=1e9):
    return WINDOWS.placed(np.array(at, dtype=float), NEVER, now)


def test_windows_are_aligned_to_the_epoch_and_open_at_their_end():
    assert WINDOWS.starts(np.array([-1.0, 0.0, 59.999999, 60.0, 1_364_774_400.5])).tolist() == [
        -60.0, 0.0, 0.0, 60.0, 1_364_774_400.0,
    ]  # fmt: skip
    assert Windows(86_400.0, 0.0).start(1_364_774_400.5) % 86_400 == 0


def test_an_event_is_on_time_until_the_watermark_reaches_the_end_of_its_window():
    # 69 s is 9 s after the end of the first window, 70 s is 10 s.
    assert place([69.0, 5.0]).verdict.tolist() == [ON_TIME, ON_TIME]
    assert place([70.0, 5.0, 61.0]).verdict.tolist() == [ON_TIME, LATE, ON_TIME]
    assert WINDOWS.is_closed(0.0, 70.0)
    assert not WINDOWS.is_closed(0.0, 69.999)


def test_an_event_ahead_of_the_clock_is_marked_and_moves_nothing():
    found = place([5.0, 1e6, 6.0, 110.0, 110.1], now=100.0)
    assert found.verdict.tolist() == [ON_TIME, FUTURE, ON_TIME, ON_TIME, FUTURE]
    assert found.latest == 110.0


def test_a_time_that_is_no_number_moves_nothing():
    found = place([5.0, float("nan"), 6.0])
    assert found.verdict.tolist() == [ON_TIME, FUTURE, ON_TIME]
    assert found.latest == 6.0


@given(times, st.lists(st.integers(0, 60), max_size=6))
def test_the_size_of_the_portions_changes_nothing(at, cuts):
    whole = place(at)
    latest, verdicts, before = NEVER, [], []
    edges = [0, *sorted(min(cut, len(at)) for cut in cuts), len(at)]
    for start, end in pairwise(edges):
        part = WINDOWS.placed(np.array(at[start:end], dtype=float), latest, 1e9)
        latest = part.latest
        verdicts += part.verdict.tolist()
        before += part.before.tolist()
    assert verdicts == whole.verdict.tolist()
    assert before == whole.before.tolist()
    assert latest == whole.latest


@given(times.map(sorted), st.randoms(use_true_random=False))
def test_what_is_disordered_by_less_than_the_lateness_is_never_late(at, random):
    disordered = sorted(at, key=lambda time: time + random.uniform(0, WINDOWS.late * 0.999))
    assert (place(disordered).verdict == ON_TIME).all()


def test_an_identity_tells_parts_apart_and_stays_the_same():
    assert identity("request", "r-1", "a") == identity("request", "r-1", "a")
    assert len({identity("a", "bc"), identity("ab", "c"), identity("abc"), identity("a", "b", "c")}) == 4
    assert identity("\ud800") != identity("x")
    # Kept on disk, so it must not change from one version to the next.
    assert identity("q", "flights-1-0af3b7e2", "x") == 0x9E3A2B67034037DE


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 40), max_size=12), max_size=12))
def test_each_identity_is_first_once(portions):
    seen, known = Seen(10_000), set()
    for portion in portions:
        expected = []
        for value in portion:
            expected.append(value not in known)
            known.add(value)
        assert seen.first(identities(portion)).tolist() == expected


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 2**64 - 1), max_size=9), max_size=30))
def test_at_least_the_last_half_of_the_capacity_is_remembered_and_never_more_than_all_of_it(portions):
    seen, firsts = Seen(20), []
    for portion in portions:
        new = seen.first(identities(portion))
        firsts += sorted(value for value, is_new in zip(portion, new, strict=True) if is_new)
        assert sum(len(run) for run in (*seen._former, *seen._current)) <= 20
        kept = np.concatenate([np.zeros(0, np.uint64), *seen._former, *seen._current])
        assert np.isin(identities(firsts[-10:]), kept).all()


def test_the_same_portions_in_the_same_order_give_the_same_again():
    random = np.random.default_rng(0)
    portions = [random.integers(0, 500, 50).astype(np.uint64) for _ in range(30)]
    one, other = Seen(200), Seen(200)
    for portion in portions:
        assert (one.first(portion) == other.first(portion)).all()
    assert one.forgotten == other.forgotten > 0


@pytest.mark.parametrize("count", [1, 2, 1000])
def test_runs_stay_few(count):
    seen = Seen(10**6)
    for number in range(count):
        seen.first(identities(range(number * 100, number * 100 + 100)))
    assert len(seen._current) <= 12
