"""The split between revisions: exact shares, values that stick, values that move one way."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivetrain.backends.serving.gateway.routing import Router, Routes, turns


@st.composite
def weights(draw: st.DrawFn, least: int = 1) -> dict[str, int]:
    """Weights of several revisions that add up to 100."""
    cuts = sorted(draw(st.lists(st.integers(0, 100), min_size=least - 1, max_size=4)))
    bounds = [0, *cuts, 100]
    return {f"rev{n}": high - low for n, (low, high) in enumerate(itertools.pairwise(bounds))}


@given(weights(), st.integers(0, 300))
def test_in_any_hundred_requests_in_a_row_each_revision_answers_its_weight(split: dict[str, int], skipped: int) -> None:
    router = Router(Routes(split))
    for _ in range(skipped):
        router.pick()
    found = Counter(router.pick() for _ in range(100))
    assert found == Counter({name: weight for name, weight in split.items() if weight})


def test_a_canary_of_five_percent_gets_every_twentieth_request() -> None:
    router = Router(Routes({"old": 95, "new": 5}))
    places = [n for n in range(2000) if router.pick() == "new"]
    assert len(places) == 100
    assert {later - earlier for earlier, later in itertools.pairwise(places)} == {20}


@given(weights(least=2))
def test_a_split_is_spread_evenly(split: dict[str, int]) -> None:
    period = turns(split)
    for name, weight in split.items():
        share = weight / 100
        for length in range(1, len(period) + 1):
            assert abs(period[:length].count(name) - share * length) <= len(split)


@given(weights(), st.binary(max_size=80))
def test_a_value_keeps_its_revision(split: dict[str, int], key: bytes) -> None:
    first, again = Router(Routes(split)), Router(Routes(dict(reversed(split.items()))))
    assert {first.pick(key) for _ in range(5)} == {again.pick(key)}
    assert split[str(first.pick(key))] > 0


@given(st.binary(max_size=40), st.integers(0, 40), st.integers(0, 40))
def test_a_value_that_has_left_a_revision_never_returns_while_weights_move_one_way(
    key: bytes, constant: int, step: int
) -> None:
    seen = []
    for new in range(0, 101 - constant, max(step, 1)):
        seen.append(Router(Routes({"old": 100 - constant - new, "new": new, "third": constant})).pick(key))
    visited = [name for n, name in enumerate(seen) if n == 0 or seen[n - 1] != name]
    assert len(visited) == len(set(visited))


def test_with_two_revisions_a_growing_canary_only_takes_values() -> None:
    keys = [str(n).encode() for n in range(300)]
    on_canary: set[bytes] = set()
    for weight in range(0, 101, 5):
        router = Router(Routes({"old": 100 - weight, "new": weight}))
        now = {key for key in keys if router.pick(key) == "new"}
        assert on_canary <= now
        on_canary = now
    assert on_canary == set(keys)


def test_values_fall_to_revisions_as_their_weights_say() -> None:
    router = Router(Routes({"a": 70, "b": 25, "c": 5}))
    found = Counter(router.pick(f"user-{n}".encode()) for n in range(20_000))
    assert {name: round(count / 200) for name, count in found.items()} == pytest.approx(
        {"a": 70, "b": 25, "c": 5}, abs=1
    )


def test_sticky_requests_do_not_disturb_the_split_of_the_others() -> None:
    router = Router(Routes({"old": 90, "new": 10}))
    found = []
    for n in range(200):
        router.pick(str(n).encode())
        found.append(router.pick())
    assert Counter(found) == {"old": 180, "new": 20}


def test_without_weights_no_revision_is_picked() -> None:
    assert Router(Routes()).pick() is None
    assert Router(Routes()).pick(b"key") is None
    assert Routes().primary is None


@pytest.mark.parametrize("split", [{"a": 99}, {"a": 101}, {"a": 150, "b": -50}])
def test_weights_that_are_no_percentages_are_refused(split: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="weight"):
        Routes(split)


def test_a_revision_that_answers_cannot_be_the_shadow_too() -> None:
    with pytest.raises(ValueError, match="shadow"):
        Routes({"a": 90, "b": 10}, shadow="b")
    assert Routes({"a": 100, "b": 0}, shadow="b").used == {"a", "b"}


def test_the_primary_has_the_largest_weight() -> None:
    assert Routes({"a": 5, "b": 95}).primary == "b"
    assert Routes({"b": 50, "a": 50}).primary == "a"
