"""The reference: what of the training rows is kept."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivetrain.engines.reference import CELLS, MOST_ROWS, Categorical, Numeric, Reference, reference_of, text_of
from drivetrain.errors import DataError

DRAW = np.random.default_rng(11)
FLOATS = st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=1, max_size=200).map(np.array)


def _columns(rows: int = 2000) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(5)
    return {
        "delay": np.where(draw.random(rows) < 0.05, np.nan, draw.normal(size=rows)),
        "rain": np.where(draw.random(rows) < 0.95, 0.0, draw.random(rows)),
        "night": draw.random(rows) < 0.3,
        "carrier": draw.choice(np.array(["UA", "AA", None], object), rows),
        "tail": np.array([f"N{n}" for n in draw.integers(0, 500, rows)], object),
    }


def test_the_same_rows_give_the_same_bytes_and_they_come_back_equal():
    one, other = reference_of(_columns()), reference_of(_columns())
    written = json.dumps(one.to_json())
    assert written == json.dumps(other.to_json())
    assert Reference.from_json(json.loads(written)) == one
    assert one.digest == other.digest


@settings(deadline=None)
@given(FLOATS)
def test_every_edge_says_exactly_how_many_values_lie_below_it_and_what_is_not_finite_is_missing(values):
    feature = reference_of({"x": values}).features["x"]
    with np.errstate(over="ignore"):
        values = values.astype(np.float32)
    finite = values[np.isfinite(values)]
    assert isinstance(feature, Numeric)
    assert feature.size == len(finite)
    assert feature.missing == len(values) - len(finite)
    assert all(below == (finite < edge).sum() for edge, below in zip(feature.edges, feature.below, strict=True))
    assert list(feature.edges) == sorted(set(feature.edges))


def test_of_a_long_history_some_rows_are_looked_at_and_always_the_same_ones():
    columns = {"row": np.arange(1_000_000), "hour": np.arange(1_000_000) % 24}
    reference = reference_of(columns)
    row, hour = reference.features["row"], reference.features["hour"]
    assert reference == reference_of(columns)
    assert reference.rows == row.size == MOST_ROWS
    assert isinstance(row, Numeric)
    assert isinstance(hour, Numeric)
    assert np.allclose(np.array(row.edges) / 1_000_000, np.array(row.below) / MOST_ROWS, atol=1e-4)
    assert np.allclose(np.diff(hour.below), MOST_ROWS / 24, rtol=0.05)


def test_a_continuous_feature_gets_equal_bins():
    feature = reference_of({"x": np.random.default_rng(1).normal(size=10_000)}).features["x"]
    assert isinstance(feature, Numeric)
    assert len(feature.edges) == CELLS + 1
    held = np.diff([0, *[feature.below[place] for place in feature.bins], feature.size])
    assert held.tolist() == [1000] * 10


def test_a_value_that_most_rows_share_is_a_bin_of_its_own_and_the_rest_is_told_apart_from_it():
    feature = reference_of({"rain": _columns()["rain"]}).features["rain"]
    assert isinstance(feature, Numeric)
    first = [feature.below[place] for place in feature.bins]
    assert len(first) == 1
    assert 0.94 < first[0] / feature.size < 0.97


def test_object_columns_of_numbers_are_numeric_and_instants_are_no_features():
    columns = {
        "count": np.array([1, None, 3], object),
        "word": np.array(["1", None, 3], object),
        "time": np.array(["2013-01-01"] * 3, "datetime64[s]"),
    }
    kinds = {name: type(feature) for name, feature in reference_of(columns).features.items()}
    assert kinds == {"count": Numeric, "word": Categorical}


def test_few_frequent_categories_are_counted_in_all_rows():
    feature = reference_of({"carrier": _columns()["carrier"]}).features["carrier"]
    assert isinstance(feature, Categorical)
    assert set(feature.values) == {"UA", "AA"}
    assert feature.others == 0
    assert feature.size + feature.missing == 2000


def test_categories_that_had_to_be_chosen_are_counted_in_the_rows_that_did_not_choose():
    feature = reference_of({"tail": _columns()["tail"]}).features["tail"]
    assert isinstance(feature, Categorical)
    assert len(feature.values) == 50
    assert feature.size == 1000
    # Each of 500 equally frequent ones holds 2 rows of 1000; the luckiest 50 would hold twice that among those that chose them.
    assert sum(feature.counts) < 150


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, None), (math.nan, None), (np.datetime64("NaT"), None), (1, "1"), (1.0, "1"), ("1", "1"), (1.5, "1.5"),
     (True, "True"), (math.inf, "inf"), (["a"], "['a']"), ("NaT", "NaT")],
)  # fmt: skip
def test_a_value_counts_as_the_category_that_it_is_written_as(value, text):
    assert text_of(value) == text


def test_a_very_long_category_is_kept_short_and_still_told_from_others():
    long, other = "x" * 10_000_000, "x" * 9_999_999 + "y"
    assert text_of(long) != text_of(other)
    assert len(text_of(long) or "") == len(text_of(other) or "") == 64
    reference = reference_of({"word": np.array([long] * 30 + [other] * 30, object)})
    assert len(json.dumps(reference.to_json())) < 1000


def test_the_prediction_is_a_feature_with_rows_of_its_own():
    reference = reference_of({"x": np.arange(10.0)}).with_feature("prediction", np.linspace(0, 1, 7))
    assert reference.rows == 10
    assert reference.features["prediction"].size == 7


def test_columns_of_different_lengths_are_refused():
    with pytest.raises(DataError, match="different lengths"):
        reference_of({"a": np.zeros(3), "b": np.zeros(4)})


@pytest.mark.parametrize("content", [{}, {"rows": 1, "features": {"a": {}}}, {"rows": 1, "features": 3}, []])
def test_what_is_no_reference_is_refused(content):
    with pytest.raises(DataError, match="no reference"):
        Reference.from_json(content)
