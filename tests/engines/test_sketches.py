"""Windows: counts of live rows in the reference's cells."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivetrain.engines.reference import Categorical, Numeric, reference_of
from drivetrain.engines.sketches import Window
from drivetrain.errors import DataError

DRAW = np.random.default_rng(2)
REFERENCE = reference_of(
    {
        "delay": DRAW.normal(size=5000),
        "night": DRAW.random(5000) < 0.3,
        "carrier": DRAW.choice(np.array(["UA", "AA", "B6"], object), 5000),
    }
)
EMPTY = Window(REFERENCE)
FLOATS = st.floats(allow_nan=True, allow_infinity=True)
WORDS = st.sampled_from(["UA", "AA", "ZZ", None])
ROWS = st.lists(st.tuples(FLOATS, st.booleans(), WORDS), max_size=40)


def _columns(rows: list[tuple[float, bool, str | None]]) -> dict[str, np.ndarray]:
    delays, nights, words = zip(*rows, strict=True) if rows else ((), (), ())
    carrier = np.empty(len(rows), object)
    carrier[:] = words
    return {"delay": np.array(delays, float), "night": np.array(nights, bool), "carrier": carrier}


def _window(rows: list[tuple[float, bool, str | None]]) -> Window:
    window = EMPTY.empty()
    window.add(_columns(rows), len(rows))
    return window


@settings(max_examples=40, deadline=None)
@given(ROWS)
def test_every_row_is_counted_once_in_its_cell_or_is_missing(rows):
    window = _window(rows)
    delay, carrier = REFERENCE.features["delay"], REFERENCE.features["carrier"]
    assert isinstance(delay, Numeric)
    assert isinstance(carrier, Categorical)
    with np.errstate(over="ignore"):
        finite = [value for value in np.array([row[0] for row in rows], np.float32).tolist() if math.isfinite(value)]
    bounds = [-math.inf, *delay.edges, math.inf]
    expected = [sum(low <= v < high for v in finite) for low, high in itertools.pairwise(bounds)]
    assert window.counts("delay").tolist() == expected
    words = [word for _, _, word in rows]
    assert window.counts("carrier").tolist() == [words.count(value) for value in carrier.values] + [words.count("ZZ")]


@settings(max_examples=25, deadline=None)
@given(ROWS, ROWS, ROWS)
def test_windows_merge_in_any_order_to_what_all_rows_together_give(first, second, third):
    together = _window(first + second + third).to_bytes()
    for order in itertools.permutations((first, second, third)):
        merged = EMPTY.empty()
        for rows in order:
            merged.merge(_window(rows))
        assert merged.to_bytes() == together


@settings(max_examples=40, deadline=None)
@given(ROWS)
def test_a_window_comes_back_from_its_bytes(rows):
    window = _window(rows)
    again = Window.from_bytes(REFERENCE, window.to_bytes())
    assert again.rows == len(rows)
    assert again.to_bytes() == window.to_bytes()
    again.merge(window)
    assert again.rows == 2 * len(rows)


def test_batches_longer_than_a_chunk_count_the_same_as_single_rows():
    values = np.random.default_rng(3).normal(size=5000)
    whole, parts = Window(REFERENCE), Window(REFERENCE)
    whole.add({"delay": values}, 5000)
    for part in np.array_split(values, 700):
        parts.add({"delay": part}, len(part))
    assert whole.to_bytes() == parts.to_bytes()


def test_a_feature_without_a_column_is_missing_in_every_row():
    window = Window(REFERENCE)
    window.add({"carrier": np.array(["UA"] * 4, object), "unheard": np.zeros(4)}, 4)
    assert window.rows == 4
    assert window.counts("delay").sum() == 0
    assert window.counts("carrier").sum() == 4


def test_an_empty_window_shares_the_reference_and_nothing_else():
    full = _window([(0.0, True, "UA")] * 3)
    fresh = full.empty()
    fresh.add(_columns([(1.0, False, "AA")]), 1)
    assert (full.rows, fresh.rows) == (3, 1)
    assert fresh.to_bytes() == _window([(1.0, False, "AA")]).to_bytes()


def test_twenty_thousand_million_rows_take_no_more_than_twenty_kilobytes_a_feature():
    window = Window(reference_of({"x": DRAW.normal(size=10_000)}))
    window.add({"x": DRAW.normal(size=1000)}, 1000)
    for _ in range(35):
        window.merge(window)
    assert window.rows == 1000 * 2**35
    assert len(window.to_bytes()) <= 20_000
    assert Window.from_bytes(window.reference, window.to_bytes()).counts("x").sum() == window.rows


def test_poison_is_counted_and_keeps_the_window_as_small_as_it_was():
    window = Window(REFERENCE)
    delays = np.array(
        [math.nan, math.inf, -math.inf, 1e308, 1e38, -1e38, None, "x" * 10_000_000, "99.5", 10**400], object
    )
    words = np.array(["x" * 10_000_000, {"a": 1}, ["b"], b"\xff", "\ud800", 1e308, math.nan, None, "", True], object)
    window.add({"delay": delays, "carrier": words}, 10)
    counts = window.counts("delay")
    assert (counts[0], counts[-1], counts.sum()) == (1, 2, 3)
    assert window.counts("carrier").tolist() == [0, 0, 0, 8]
    window.add({"carrier": np.array([f"new {n}" for n in range(100_000)], object)}, 100_000)
    assert window.counts("carrier")[-1] == 100_008
    assert len(window.to_bytes()) < 2000


def test_a_column_of_another_length_is_refused_and_nothing_is_counted():
    window = Window(REFERENCE)
    with pytest.raises(DataError, match="night has 2 values for 3 rows"):
        window.add({"delay": np.zeros(3), "night": np.zeros(2)}, 3)
    assert window.rows == 0
    assert window.counts("delay").sum() == 0


def test_windows_of_another_reference_and_damaged_bytes_are_refused():
    other = reference_of({"delay": np.zeros(3)})
    window = _window([(0.0, True, "UA")])
    with pytest.raises(DataError, match="different references"):
        window.merge(Window(other))
    with pytest.raises(DataError, match="another reference"):
        Window.from_bytes(other, window.to_bytes())
    for cut in (0, 10, 40, len(window.to_bytes()) - 1):
        with pytest.raises(DataError, match="cut short"):
            Window.from_bytes(REFERENCE, window.to_bytes()[:cut])
