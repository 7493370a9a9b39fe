"""The gate's metrics, each for many weightings of the rows at once.

A bootstrap resample is a weighting: row i counts as often as it was drawn. So every metric here takes `weights` of shape
(resamples, rows) and gives one value a resample; with a single row of ones it is the metric itself. Ranked metrics sort
the scores once for all resamples.

For a classification the truth is an array of positions in the model's classes, and the prediction an array of
probabilities of shape (rows, classes). For a regression both have shape (rows,).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from drivetrain.errors import DataError

Values = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""(truth, prediction, weights) -> values of shape (resamples,); NaN where a resample does not define the metric."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One row of the table."""

    name: str
    values: Values
    task: str
    """`classification` or `regression`."""
    greater_is_better: bool
    probabilities: bool
    """Whether it judges probabilities rather than the likeliest class or the value."""

    def value(self, truth: np.ndarray, prediction: np.ndarray) -> float:
        """The metric over all rows, NaN where they do not define it."""
        return float(self.values(truth, prediction, np.ones((1, len(truth))))[0])

    def difference(self, candidate: float, champion: float) -> float:
        """By how much the candidate is better (negative: worse), in the metric's unit."""
        return candidate - champion if self.greater_is_better else champion - candidate


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.asarray(np.divide(above, below, out=np.full(np.shape(below), np.nan), where=below > 0))


def _mean(losses: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return _ratio(weights @ losses, weights.sum(axis=1))


def _one_vs_rest(binary: Values) -> Values:
    """Two classes: of the second. More: the unweighted mean over the classes that define it, each against the rest."""

    def values(truth: np.ndarray, prediction: np.ndarray, weights: np.ndarray) -> np.ndarray:
        classes = [1] if prediction.shape[1] == 2 else range(prediction.shape[1])
        each = [binary((truth == k).astype(float), prediction[:, k], weights) for k in classes]
        return _mean_of_defined(np.stack(each, axis=1))

    return values


def _tied(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The order of descending scores, and where each group of equal ones begins in it."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    return order, np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])


def _roc_auc(positive: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mann-Whitney's statistic: the share of (positive, negative) pairs ranked rightly, ties counting half."""
    order, begins = _tied(scores)
    ranked, truth = weights[:, order], positive[order]
    hits = np.add.reduceat(ranked * truth, begins, axis=1)
    misses = np.add.reduceat(ranked * (1.0 - truth), begins, axis=1)
    # Those above a group are won by its negatives' rivals; within the group half is won.
    above = np.cumsum(hits, axis=1) - 0.5 * hits
    return _ratio((above * misses).sum(axis=1), hits.sum(axis=1) * misses.sum(axis=1))


def _average_precision(positive: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The sum over thresholds of (gain in recall) x precision, without interpolation."""
    order, begins = _tied(scores)
    ranked = weights[:, order]
    hits = np.add.reduceat(ranked * positive[order], begins, axis=1)
    seen = np.cumsum(np.add.reduceat(ranked, begins, axis=1), axis=1)
    precision = np.divide(np.cumsum(hits, axis=1), seen, out=np.zeros_like(seen), where=seen > 0)
    return _ratio((hits * precision).sum(axis=1), hits.sum(axis=1))


def likeliest(probabilities: np.ndarray) -> np.ndarray:
    """Positions of the likeliest classes; of two classes the second from one half on."""
    if probabilities.shape[1] == 2:
        return (probabilities[:, 1] >= 0.5).astype(np.int64)
    return np.asarray(probabilities.argmax(axis=1))


def _accuracy(truth: np.ndarray, prediction: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return _mean((likeliest(prediction) == truth).astype(float), weights)


def _onehot(positions: np.ndarray, classes: int) -> np.ndarray:
    return np.asarray(positions[:, None] == np.arange(classes)).astype(float)


def _mean_of_defined(each: np.ndarray) -> np.ndarray:
    defined = ~np.isnan(each)
    return _ratio(np.where(defined, each, 0.0).sum(axis=1), defined.sum(axis=1))


def _balanced_accuracy(truth: np.ndarray, prediction: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The mean recall over the classes that occur."""
    actual = _onehot(truth, prediction.shape[1])
    right = actual * (likeliest(prediction) == truth)[:, None]
    return _mean_of_defined(_ratio(weights @ right, weights @ actual))


def _f1(truth: np.ndarray, prediction: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """2 TP / (2 TP + FP + FN): of the second of two classes, else the mean over the classes that occur."""
    classes = prediction.shape[1]
    actual, said = _onehot(truth, classes), _onehot(likeliest(prediction), classes)
    each = _ratio(2.0 * (weights @ (actual * said)), weights @ actual + weights @ said)
    # A class that neither occurs nor is predicted is not defined; with two classes that means a score of nought.
    return np.nan_to_num(each[:, 1]) if classes == 2 else _mean_of_defined(each)


def _log_loss(truth: np.ndarray, prediction: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The mean of -log p(true class), with p kept away from nought by the precision of its type."""
    total = prediction.sum(axis=1, keepdims=True)
    chosen = (prediction / total)[np.arange(len(truth)), truth]
    return _mean(-np.log(np.clip(chosen, np.finfo(prediction.dtype).eps, 1.0)), weights)


def _brier(truth: np.ndarray, prediction: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The mean squared error of the probabilities: of the second of two classes, else summed over the classes (Brier 1950)."""
    squares = (prediction - _onehot(truth, prediction.shape[1])) ** 2
    return _mean(squares[:, 1] if prediction.shape[1] == 2 else squares.sum(axis=1), weights)


def _rmse(truth: np.ndarray, prediction: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return np.asarray(np.sqrt(_mean((truth - prediction) ** 2, weights)))


def _mae(truth: np.ndarray, prediction: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return _mean(np.abs(truth - prediction), weights)


def _r2(truth: np.ndarray, prediction: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """One less the share of the label's variance that is left unexplained."""
    # Centred first: the difference of two large squares would lose its digits.
    centred = truth - truth.mean()
    count = weights.sum(axis=1)
    total = weights @ centred**2 - _ratio((weights @ centred) ** 2, count)
    return 1.0 - _ratio(weights @ (truth - prediction) ** 2, np.where(total > 1e-12 * count, total, 0.0))


METRICS: tuple[Metric, ...] = (
    Metric("roc_auc", _one_vs_rest(_roc_auc), "classification", greater_is_better=True, probabilities=True),
    Metric(
        "average_precision",
        _one_vs_rest(_average_precision),
        "classification",
        greater_is_better=True,
        probabilities=True,
    ),
    Metric("accuracy", _accuracy, "classification", greater_is_better=True, probabilities=False),
    Metric("balanced_accuracy", _balanced_accuracy, "classification", greater_is_better=True, probabilities=False),
    Metric("f1", _f1, "classification", greater_is_better=True, probabilities=False),
    Metric("log_loss", _log_loss, "classification", greater_is_better=False, probabilities=True),
    Metric("brier", _brier, "classification", greater_is_better=False, probabilities=True),
    Metric("rmse", _rmse, "regression", greater_is_better=False, probabilities=False),
    Metric("mae", _mae, "regression", greater_is_better=False, probabilities=False),
    Metric("r2", _r2, "regression", greater_is_better=True, probabilities=False),
)


def metric(name: str) -> Metric:
    """The metric of that name. Raises `KeyError`."""
    for row in METRICS:
        if row.name == name:
            return row
    raise KeyError(name)


def of_task(task: str) -> list[Metric]:
    """All metrics of `classification` or `regression`, in the table's order."""
    return [row for row in METRICS if row.task == task]


def positions(labels: np.ndarray, classes: Sequence[object]) -> np.ndarray:
    """Where each label stands in `classes`. Raises `DataError` if one is not among them."""
    place = {label: index for index, label in enumerate(classes)}
    known, codes = np.unique(labels, return_inverse=True)
    strange = [label for label in known.tolist() if label not in place]
    if strange:
        shown = ", ".join(repr(label) for label in strange[:5])
        raise DataError(
            f"the hold-out has labels that the model was never trained on: {shown}",
            hint="train on a window in which every label occurs",
        )
    return np.asarray([place[label] for label in known.tolist()], dtype=np.int64)[codes.reshape(-1)]


def require_defined(rule: Metric, truth: np.ndarray) -> None:
    """Raises `DataError` if the hold-out cannot decide: no rows, or one class where a metric compares classes."""
    if len(truth) == 0:
        raise DataError("the hold-out has no rows", hint="evaluate.holdout.fraction or .start leaves none")
    if rule.task == "classification" and len(np.unique(truth)) < 2:
        raise DataError(
            f"the hold-out has only one class, so {rule.name} is not defined",
            hint="make it longer: evaluate.holdout.fraction, or an earlier evaluate.holdout.start",
        )
    if rule.name == "r2" and len(np.unique(truth)) < 2:
        raise DataError(
            "every label of the hold-out is the same, so r2 is not defined", hint="make the hold-out longer"
        )
