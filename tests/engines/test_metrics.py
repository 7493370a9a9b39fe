"""The metrics, against scikit-learn's."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from drivetrain.definition.parts import Metric as Names
from drivetrain.engines import metrics
from drivetrain.errors import DataError

SEEDS = st.integers(0, 2**32 - 1)


def classified(seed, classes, rows=40):
    """Truth, probabilities rounded so that ties occur, and whole weights with noughts among them."""
    random = np.random.default_rng(seed)
    truth = random.integers(0, classes, rows)
    probabilities = random.dirichlet(np.ones(classes), rows).round(1)
    probabilities = (probabilities + 0.01) / (probabilities + 0.01).sum(axis=1, keepdims=True)
    return truth, probabilities, random.integers(0, 4, rows).astype(float)


def ours(name, truth, prediction, weights):
    return metrics.metric(name).values(truth, prediction, weights[None, :])[0]


def test_the_table_holds_every_metric_that_the_definition_may_name():
    assert [row.name for row in metrics.METRICS] == list(Names.__args__)


BINARY = {
    "roc_auc": lambda t, p, w: reference.roc_auc_score(t, p[:, 1], sample_weight=w),
    "average_precision": lambda t, p, w: reference.average_precision_score(t, p[:, 1], sample_weight=w),
    "accuracy": lambda t, p, w: reference.accuracy_score(t, p[:, 1] >= 0.5, sample_weight=w),
    "balanced_accuracy": lambda t, p, w: reference.balanced_accuracy_score(t, p[:, 1] >= 0.5, sample_weight=w),
    "f1": lambda t, p, w: reference.f1_score(t, p[:, 1] >= 0.5, sample_weight=w, zero_division=0),
    "log_loss": lambda t, p, w: reference.log_loss(t, p[:, 1], sample_weight=w),
    "brier": lambda t, p, w: reference.brier_score_loss(t, p[:, 1], sample_weight=w),
}


@pytest.mark.parametrize("name", BINARY)
@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_of_two_classes_every_metric_is_that_of_scikit_learn(name, seed):
    truth, probabilities, weights = classified(seed, 2)
    assume(len(np.unique(truth[weights > 0])) == 2)
    assert ours(name, truth, probabilities, weights) == pytest.approx(
        BINARY[name](truth, probabilities, weights), abs=1e-9
    )


MANY = {
    "roc_auc": lambda t, p: reference.roc_auc_score(t, p, multi_class="ovr"),
    "average_precision": lambda t, p: reference.average_precision_score(np.eye(4)[t], p),
    "accuracy": lambda t, p: reference.accuracy_score(t, p.argmax(axis=1)),
    "balanced_accuracy": lambda t, p: reference.balanced_accuracy_score(t, p.argmax(axis=1)),
    "f1": lambda t, p: reference.f1_score(t, p.argmax(axis=1), average="macro"),
    "log_loss": reference.log_loss,
    "brier": lambda t, p: reference.brier_score_loss(t, p, scale_by_half=False),
}


@pytest.mark.parametrize("name", MANY)
@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_of_four_classes_every_metric_is_that_of_scikit_learn(name, seed):
    truth, probabilities, _ = classified(seed, 4)
    assume(len(np.unique(truth)) == 4)
    assert metrics.metric(name).value(truth, probabilities) == pytest.approx(MANY[name](truth, probabilities), abs=1e-9)


REGRESSION = {
    "rmse": lambda t, p, w: reference.root_mean_squared_error(t, p, sample_weight=w),
    "mae": lambda t, p, w: reference.mean_absolute_error(t, p, sample_weight=w),
    "r2": lambda t, p, w: reference.r2_score(t, p, sample_weight=w),
}


@pytest.mark.parametrize("name", REGRESSION)
@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_of_values_every_metric_is_that_of_scikit_learn(name, seed):
    random = np.random.default_rng(seed)
    truth, predicted = random.normal(1000, 5, 30), random.normal(1000, 5, 30)
    weights = random.integers(0, 4, 30).astype(float)
    assume((weights > 0).sum() > 2)
    assert ours(name, truth, predicted, weights) == pytest.approx(REGRESSION[name](truth, predicted, weights), rel=1e-8)


@pytest.mark.parametrize("row", metrics.METRICS, ids=lambda row: row.name)
@settings(max_examples=15, deadline=None)
@given(SEEDS)
def test_a_weighted_value_is_that_of_the_rows_repeated_so_often(row, seed):
    truth, prediction, weights = classified(seed, 3)
    if row.task == "regression":
        prediction = prediction[:, 0]
    repeated = np.repeat(np.arange(len(truth)), weights.astype(int))
    assume(len(np.unique(truth[repeated])) == 3)
    many = row.values(truth, prediction, np.stack([np.ones(len(truth)), weights]))
    assert many[1] == pytest.approx(row.value(truth[repeated], prediction[repeated]), abs=1e-9)
    assert many[0] == pytest.approx(row.value(truth, prediction), abs=1e-9)


@pytest.mark.parametrize("name", ["roc_auc", "average_precision"])
def test_a_ranked_metric_of_one_class_is_not_defined(name):
    one_class = metrics.metric(name).value(np.zeros(4, int), np.full((4, 2), 0.5))
    assert np.isnan(one_class)


@pytest.mark.parametrize(("name", "better"), [("roc_auc", 0.8), ("rmse", 0.7)])
def test_a_difference_is_positive_when_the_candidate_is_better(name, better):
    row = metrics.metric(name)
    assert row.difference(better, 1.5 - better) == pytest.approx(0.1)


def test_a_hold_out_of_one_class_is_refused_with_what_to_do():
    with pytest.raises(DataError, match="the hold-out has only one class") as caught:
        metrics.require_defined(metrics.metric("roc_auc"), np.zeros(5, int))
    assert "evaluate.holdout" in caught.value.hint


def test_an_empty_hold_out_and_one_of_equal_values_are_refused():
    with pytest.raises(DataError, match="no rows"):
        metrics.require_defined(metrics.metric("mae"), np.array([]))
    with pytest.raises(DataError, match="r2 is not defined"):
        metrics.require_defined(metrics.metric("r2"), np.ones(3))


def test_labels_become_positions_among_the_classes_whatever_their_type():
    assert metrics.positions(np.array(["b", "a", "b"], dtype=object), ["a", "b"]).tolist() == [1, 0, 1]
    assert metrics.positions(np.array([True, False]), [False, True]).tolist() == [1, 0]
    assert metrics.positions(np.array([7, 3]), [3, 7]).tolist() == [1, 0]


def test_a_label_that_the_model_never_saw_is_named():
    with pytest.raises(DataError, match="never trained on: 'c'"):
        metrics.positions(np.array(["a", "c"], dtype=object), ["a", "b"])


def test_an_unknown_metric_is_a_key_error():
    with pytest.raises(KeyError):
        metrics.metric("gini")
