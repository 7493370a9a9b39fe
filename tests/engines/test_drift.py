"""Drift: effect sizes by their definitions, p values by the laws of chance."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial.distance import jensenshannon

from drivetrain.engines import two_samples
from drivetrain.engines.drift import compare, corrected_alpha, shares
from drivetrain.engines.reference import Categorical, Reference, reference_of
from drivetrain.engines.sketches import Window

DISTANCES = ("psi", "js", "ks")


def _entries(reference_column, live_column, distance="psi", alpha=1e-3):
    reference = reference_of({"x": reference_column})
    window = Window(reference)
    window.add({"x": live_column}, len(live_column))
    return {entry.distance: entry for entry in compare(reference, window, distance, alpha)}


def _normal(rows: int, seed: int, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, 1.0, rows)


def _cells(reference_column, live_column):
    reference = reference_of({"x": reference_column})
    window = Window(reference)
    window.add({"x": live_column}, len(live_column))
    feature = reference.features["x"]
    return np.diff(feature.below, prepend=0, append=feature.size), window.counts("x")


def _categories(known: list[int], live: list[int], distance: str, alpha: float = 1e-3):
    names = tuple(f"v{n}" for n in range(len(known)))
    reference = Reference({"x": Categorical(names, tuple(known), 0, 0)}, sum(known))
    window = Window(reference)
    column = np.repeat(np.array(names, object), live)
    window.add({"x": column}, len(column))
    return compare(reference, window, distance, alpha)[0]


# effect sizes


def test_psi_and_js_are_those_of_the_textbook_where_rows_are_many():
    known, live = [40_000, 30_000, 20_000, 10_000], [30_000, 30_000, 22_000, 18_000]
    p, q = np.array(known) / sum(known), np.array(live) / sum(live)
    assert _categories(known, live, "psi").value == pytest.approx(((q - p) * np.log(q / p)).sum(), rel=1e-3)
    assert _categories(known, live, "js").value == pytest.approx(jensenshannon(p, q, base=2), rel=1e-3)
    assert _categories(known, live, "ks").value == pytest.approx(np.abs(p - q).sum() / 2, rel=1e-3)


def test_ks_is_the_largest_difference_of_the_two_distribution_functions_to_a_cell_of_the_grid():
    reference, live = _normal(4000, 1), _normal(3000, 2, 0.2)
    found = _entries(reference, live, "ks")["ks"]
    exact = stats.ks_2samp(reference, live)
    assert exact.statistic - 1 / 500 <= found.value <= exact.statistic
    by_itself = two_samples.of_distributions(*_cells(reference, live), 1e-3)
    assert math.log(by_itself.p_value) == pytest.approx(math.log(exact.pvalue), rel=0.05)


def test_a_feature_that_does_not_move_has_no_drift_and_one_that_is_elsewhere_has_all_of_it():
    reference = _normal(5000, 1)
    assert _entries(reference, reference, "js")["js"].value == pytest.approx(0.0, abs=1e-9)
    # A tenth of the reference is in the last bin too, whose upper end is open.
    assert _entries(reference, reference + 100.0, "js")["js"].value > 0.85
    assert _entries(reference, reference + 100.0, "ks")["ks"].value == 1.0


@settings(deadline=None)
@given(st.lists(st.integers(0, 300), min_size=2, max_size=8), st.sampled_from(DISTANCES))
def test_distances_are_finite_and_never_negative_whatever_the_counts_are(live, distance):
    found = _categories([100] * len(live), live, distance)
    assert 0.0 <= found.value < math.inf
    assert 0.0 <= found.p_value <= 1.0


def test_a_constant_feature_that_takes_another_value_is_unseen():
    found = _entries(np.zeros(1000), np.full(200, 5.0))
    assert found["unseen"].value == pytest.approx(1.0, abs=0.01)
    assert found["unseen"].significant


def test_a_new_category_is_unseen_and_drifts():
    reference = np.array(["a", "b"] * 500, object)
    found = _entries(reference, np.array(["a", "b", "new", "new"] * 50, object))
    assert found["unseen"].unseen == 0.5
    assert found["unseen"].significant
    assert found["psi"].significant


def test_a_rise_and_a_fall_of_the_missing_rate_are_both_significant():
    gaps = np.where(np.arange(4000) % 10 == 0, np.nan, 1.0)
    more, none = np.where(np.arange(400) % 3 == 0, np.nan, 1.0), np.ones(400)
    for live, share in ((more, 134 / 400), (none, 0.0)):
        found = _entries(gaps, live)["missing"]
        assert found.significant
        assert (found.missing, found.reference_missing) == (pytest.approx(share), pytest.approx(0.1))
        assert found.value == pytest.approx(abs(share - 0.1))


# significance


@pytest.mark.parametrize("distance", DISTANCES)
def test_a_tiny_shift_of_many_rows_is_significant_but_small_and_a_large_one_of_few_rows_is_neither_hidden_nor_certain(
    distance,
):
    many = _entries(_normal(200_000, 1), _normal(200_000, 2, 0.03), distance)[distance]
    assert many.significant
    assert many.value < {"psi": 0.01, "js": 0.05, "ks": 0.05}[distance]
    few = _entries(_normal(200_000, 1), _normal(30, 2, 0.3), distance)[distance]
    assert not few.significant
    assert few.value > {"psi": 0.01, "js": 0.05, "ks": 0.05}[distance]


@pytest.mark.parametrize("distance", DISTANCES)
def test_categories_and_shares_below_the_critical_value_are_never_significant(distance):
    for moved in range(0, 100, 5):
        found = _categories([500, 300, 200], [500 - moved, 300 + moved, 200], distance)
        assert found.significant == (found.p_value < 1e-3)
        assert not found.significant or found.value >= found.critical
    for entry in _entries(_normal(3000, 1), _normal(2000, 2, 0.3)).values():
        assert not entry.significant or entry.distance == "psi" or entry.value >= entry.critical


def test_a_small_shift_of_all_values_is_seen_where_bins_alone_do_not_see_it():
    reference = reference_of({"x": _normal(10_000, 1)})
    both = bins = 0
    for seed in range(100):
        window = Window(reference)
        window.add({"x": _normal(1000, seed + 2, 0.15)}, 1000)
        found = compare(reference, window, "psi", 1e-3)[0]
        both += found.significant
        bins += found.value > found.critical
    assert both > bins + 10


# windows with nothing in them


def test_a_window_without_rows_and_a_feature_without_values_have_no_drift():
    reference = reference_of({"x": np.arange(100.0), "void": np.full(100, np.nan)})
    window = Window(reference)
    assert all(
        not e.significant and e.p_value == 1.0 and e.value == 0.0 for e in compare(reference, window, "psi", 0.05)
    )
    window.add({"x": np.arange(50.0), "void": np.ones(50)}, 50)
    found = {(entry.feature, entry.distance): entry for entry in compare(reference, window, "psi", 0.05)}
    assert found["void", "missing"].significant
    assert not found["void", "psi"].significant


def test_a_feature_that_is_missing_in_the_whole_window_says_so():
    found = _entries(_normal(1000, 1), np.full(300, np.nan))
    assert found["missing"].missing == 1.0
    assert found["missing"].significant
    assert found["psi"].rows == 0
    assert found["psi"].value == 0.0


# levels and pictures


def test_the_level_shares_out_the_false_alarms_of_a_day():
    assert corrected_alpha(0.05, 20, 3600.0) == pytest.approx(0.05 / (20 * 3 * 24))
    assert corrected_alpha(0.05, 1, 7 * 86_400.0) == pytest.approx(0.05 / 3)
    assert corrected_alpha(1e6, 1, 3600.0) == 0.5


def test_the_shares_of_a_picture_add_up_and_have_a_label_each():
    reference = reference_of({"x": _normal(1000, 1), "c": np.array(["a", "b"] * 500, object)})
    window = Window(reference)
    window.add({"x": _normal(100, 2), "c": np.array(["a", "z"] * 50, object)}, 100)
    seen = shares(reference, window, "x")
    assert len(seen.labels) == len(seen.reference) == len(seen.live) == 10
    assert sum(seen.reference) == pytest.approx(1.0)
    assert sum(seen.live) == pytest.approx(1.0)
    words = shares(reference, window, "c")
    assert words.labels == ("a", "b", "others")
    assert words.live == (0.5, 0.0, 0.5)
