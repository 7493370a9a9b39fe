"""Metrics kept in a few numbers, against the same metrics over all rows at once."""

import json

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from drivetrain.engines import metrics
from drivetrain.engines.quality import Scores, loss
from drivetrain.engines.tallies import BINS, bin_of
from drivetrain.errors import CorruptArtifact, DataError

SEEDS = st.integers(0, 2**32 - 1)
CLASSIFIED = [row.name for row in metrics.of_task("classification")]
VALUED = [row.name for row in metrics.of_task("regression")]
# One score to a bin, so that a histogram loses nothing.
MIDDLES = (np.arange(3, BINS, 7) + 0.5) / BINS
GRID = MIDDLES**3 / (MIDDLES**3 + (1 - MIDDLES) ** 3)


def test_each_score_of_the_grid_has_a_bin_of_its_own():
    assert bin_of(GRID).tolist() == list(range(3, BINS, 7))


def binary(seed, rows=300):
    """Probabilities of the grid, and labels that go by them."""
    random = np.random.default_rng(seed)
    probabilities = random.choice(GRID, rows)
    return probabilities, (random.random(rows) < probabilities).astype(int)


def of_classes(seed, classes=4, rows=300):
    random = np.random.default_rng(seed)
    probabilities = random.dirichlet(np.ones(classes), rows)
    return probabilities, (probabilities.cumsum(axis=1) > random.random(rows)[:, None]).argmax(axis=1)


def both(probabilities):
    return np.stack([1 - probabilities, probabilities], axis=1)


def told(metric, kind, predictions, labels, classes=2):
    scores = Scores(metric, kind, classes)
    scores.add(predictions, labels)
    return scores.value()


@pytest.mark.parametrize("name", CLASSIFIED)
@settings(max_examples=25, deadline=None)
@given(SEEDS)
def test_of_two_classes_each_value_is_that_of_all_rows_at_once(name, seed):
    probabilities, labels = binary(seed)
    expected = metrics.metric(name).value(labels, both(probabilities))
    assert told(name, "binary", probabilities, labels).value == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", [name for name in CLASSIFIED if name not in ("roc_auc", "average_precision")])
@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_of_four_classes_each_value_is_that_of_all_rows_at_once(name, seed):
    probabilities, labels = of_classes(seed)
    expected = metrics.metric(name).value(labels, probabilities)
    assert told(name, "multiclass", probabilities, labels, 4).value == pytest.approx(expected, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.floats(0.2, 20), st.floats(0.2, 20), st.integers(2, 2000))
def test_the_area_differs_at_most_by_half_of_the_pairs_that_share_a_bin(seed, a, b, rows):
    random = np.random.default_rng(seed)
    probabilities = random.beta(a, b, rows)
    labels = (random.random(rows) < probabilities).astype(int)
    assume(0 < labels.sum() < rows)
    bins = bin_of(probabilities)
    hits, misses = (np.bincount(bins[labels == truth], minlength=BINS) for truth in (1, 0))
    bound = 0.5 * (hits @ misses) / (hits.sum() * misses.sum())
    exact = metrics.metric("roc_auc").value(labels, both(probabilities))
    assert abs(told("roc_auc", "binary", probabilities, labels).value - exact) <= bound + 1e-9


@pytest.mark.parametrize("name", ["roc_auc", "average_precision"])
@pytest.mark.parametrize(("a", "b"), [(2, 5), (0.1, 100)])
def test_ranks_of_many_rows_are_told_to_the_third_digit_also_for_rare_events(name, a, b):
    random = np.random.default_rng(3)
    probabilities = random.beta(a, b, 200_000)
    labels = (random.random(200_000) < probabilities).astype(int)
    exact = metrics.metric(name).value(labels, both(probabilities))
    assert told(name, "binary", probabilities, labels).value == pytest.approx(exact, abs=2e-3)


@pytest.mark.parametrize("name", ["roc_auc", "average_precision"])
def test_ranks_of_four_classes_are_means_over_the_classes(name):
    probabilities, labels = of_classes(5, rows=20_000)
    exact = metrics.metric(name).value(labels, probabilities)
    assert told(name, "multiclass", probabilities, labels, 4).value == pytest.approx(exact, abs=2e-3)


@pytest.mark.parametrize("name", VALUED)
@settings(max_examples=25, deadline=None)
@given(SEEDS, st.integers(1, 60))
def test_of_values_each_value_is_that_of_all_rows_at_once_however_they_come(name, seed, first):
    random = np.random.default_rng(seed)
    labels = random.normal(1e6, 5, 60)
    predictions = labels + random.normal(0, 2, 60)
    scores, rest = Scores(name, "regression"), Scores(name, "regression")
    scores.add(predictions[:first], labels[:first])
    rest.add(predictions[first:], labels[first:])
    scores.merge(rest)
    assert scores.value().value == pytest.approx(metrics.metric(name).value(labels, predictions), rel=1e-7)


@pytest.mark.parametrize(
    ("name", "kind"), [(name, "binary") for name in CLASSIFIED] + [(name, "regression") for name in VALUED]
)
@settings(max_examples=15, deadline=None)
@given(SEEDS, st.lists(st.integers(0, 300), max_size=4))
def test_merged_and_stored_parts_are_as_good_as_the_whole(name, kind, seed, cuts):
    probabilities, labels = binary(seed)
    merged = Scores(name, kind)
    for predicted, truth in zip(np.split(probabilities, sorted(cuts)), np.split(labels, sorted(cuts)), strict=True):
        part = Scores(name, kind)
        part.add(predicted, truth)
        merged.merge(Scores.from_bytes(part.to_bytes()))
    whole = told(name, kind, probabilities, labels)
    found = merged.value()
    assert found.rows == whole.rows
    assert (found.value, found.low, found.high) == pytest.approx(
        (whole.value, whole.low, whole.high), rel=1e-9, nan_ok=True
    )


TRIALS = 250


def covered(name, kind, draw, rows, truth, classes=2):
    """The share of samples whose interval holds the truth."""
    random = np.random.default_rng(11)
    inside = 0
    for _ in range(TRIALS):
        found = told(name, kind, *draw(random, rows), classes)
        inside += found.low <= truth <= found.high
    return inside / TRIALS


def drawn_binary(random, rows):
    probabilities = random.beta(2, 5, rows)
    # Not calibrated, so that nothing depends on it.
    return probabilities, (random.random(rows) < probabilities**1.3).astype(int)


def drawn_values(random, rows):
    labels = random.gamma(4, 10, rows)
    return labels + random.normal(0, 5, rows) * (1 + labels / 80), labels


@pytest.mark.parametrize("rows", [200, 1000])
@pytest.mark.parametrize("name", CLASSIFIED)
def test_intervals_of_two_classes_hold_the_true_value_as_often_as_they_say(name, rows):
    probabilities, labels = drawn_binary(np.random.default_rng(1), 400_000)
    truth = metrics.metric(name).value(labels, both(probabilities))
    assert 0.92 <= covered(name, "binary", drawn_binary, rows, truth) <= 0.985


@pytest.mark.parametrize("name", ["accuracy", "balanced_accuracy", "f1", "log_loss", "brier"])
def test_intervals_of_four_classes_hold_the_true_value_as_often_as_they_say(name):
    def draw(random, rows):
        probabilities = random.dirichlet([3, 2, 1, 0.5], rows)
        return probabilities, (probabilities.cumsum(axis=1) > random.random(rows)[:, None]).argmax(axis=1)

    probabilities, labels = draw(np.random.default_rng(1), 200_000)
    truth = metrics.metric(name).value(labels, probabilities)
    assert 0.92 <= covered(name, "multiclass", draw, 400, truth, 4) <= 0.985


@pytest.mark.parametrize("name", VALUED)
def test_intervals_of_values_hold_the_true_value_as_often_as_they_say(name):
    predictions, labels = drawn_values(np.random.default_rng(1), 400_000)
    truth = metrics.metric(name).value(labels, predictions)
    assert 0.92 <= covered(name, "regression", drawn_values, 400, truth) <= 0.985


def test_intervals_of_a_perfect_model_still_have_a_width():
    labels = np.array([0, 1] * 100)
    for name in ("roc_auc", "accuracy", "balanced_accuracy", "f1"):
        found = told(name, "binary", labels * 0.8 + 0.1, labels)
        assert found.value == 1.0
        assert 0.93 < found.low < 1.0


def test_what_the_rows_do_not_define_is_no_number():
    assert not told("roc_auc", "binary", np.array([0.2, 0.7]), np.array([1, 1])).defined
    assert not told("r2", "regression", np.array([1.0, 2.0]), np.array([3.0, 3.0])).defined
    for name in CLASSIFIED:
        assert not Scores(name, "binary").value().defined


def test_rows_that_are_no_predictions_or_no_labels_are_left_out_and_counted():
    scores = Scores("accuracy", "binary")
    predictions = np.array([0.9, None, "0.9", float("nan"), 1e308, -1, [1], True, 10**400, 0.2], dtype=object)
    scores.add(predictions, np.array([1, 1, 1, 1, 1, 1, 1, 1, 1, 0]))
    assert (scores.rows, scores.unusable) == (3, 7)
    scores.add(np.array([0.9, 0.9, 0.9, 0.9]), np.array([2, 0.5, -1, np.nan]))
    assert (scores.rows, scores.unusable) == (3, 11)
    assert scores.value().value == 1.0


def test_values_too_large_to_be_squared_do_not_spoil_the_others():
    for name in VALUED:
        scores = Scores(name, "regression")
        scores.add(np.array([1.0, 2.0, 1e308, np.inf, 4.0]), np.array([1.5, 2.5, 3.0, 3.0, -1e308]))
        assert (scores.rows, scores.unusable) == (2, 3)
        assert np.isfinite(scores.value().value)


def test_classes_alone_suit_what_judges_classes_and_nothing_else():
    labels = np.array([0, 1, 2, 2])
    assert told("accuracy", "multiclass", np.array([0, 1, 2, 0]), labels, 3).value == 0.75
    with pytest.raises(DataError, match="log_loss needs a probability of each class"):
        told("log_loss", "multiclass", np.array([0, 1, 2, 0]), labels, 3)
    with pytest.raises(DataError, match="do not suit 3 classes"):
        told("accuracy", "multiclass", np.zeros((4, 2)), labels, 3)


def test_a_metric_of_another_kind_is_refused():
    with pytest.raises(DataError, match="rmse does not judge a binary model"):
        Scores("rmse", "binary")
    with pytest.raises(DataError, match="cannot be merged"):
        Scores("f1", "binary").merge(Scores("accuracy", "binary"))


@pytest.mark.parametrize("data", [b"", b"x", b"[]\n", b'["f1", "binary", 2, 0, 0]\nx', b'["f2", "binary", 2, 0, 0]\nx'])
def test_bytes_of_something_else_are_refused(data):
    with pytest.raises(CorruptArtifact):
        Scores.from_bytes(data)


def test_a_million_rows_take_a_few_kilobytes():
    random = np.random.default_rng(0)
    scores = Scores("roc_auc", "binary")
    scores.add(random.random(1_000_000), random.integers(0, 2, 1_000_000))
    assert len(scores.to_bytes()) < 8_192
    assert json.loads(scores.to_bytes().partition(b"\n")[0])[3] == 1_000_000


def test_the_loss_rises_as_the_model_gets_worse():
    assert loss("roc_auc", 0.75) == 0.25
    assert loss("rmse", 3.0) == 3.0
