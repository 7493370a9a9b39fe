"""The quality of live predictions, once their labels have come: a metric with its 95 % interval, mergeable and bounded.

    scores = Scores("roc_auc", "binary")
    scores.add(probabilities, labels)       # as often as labels come
    scores.merge(another)                   # of another hour, slice or process
    scores.value()                          # Interval(value=0.741, low=0.729, high=0.753, rows=8211)

The values are those of `engines.metrics` over all rows at once (ranking metrics: with the scores sorted into 1024 bins).
"""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import dataclass
from typing import Literal

import numpy as np

from drivetrain.engines import metrics
from drivetrain.engines.tallies import LARGEST, tally
from drivetrain.errors import CorruptArtifact, DataError

Kind = Literal["binary", "multiclass", "regression"]

_ROUNDING = 1e-6
"""By so much a probability may lie outside 0 to 1."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A metric with the ends of its 95 % interval, in the metric's unit; NaN where the rows do not define it."""

    value: float
    low: float
    high: float
    rows: int

    @property
    def defined(self) -> bool:
        """Whether there is a value: ROC AUC, for one, needs rows of both classes."""
        return not math.isnan(self.value)


def loss(metric: str, value: float) -> float:
    """What the metric's value costs: 1 - value, or the value itself where lower is better. Raises `KeyError`."""
    return 1.0 - value if metrics.metric(metric).greater_is_better else value


class Scores:
    """Predictions and labels as one metric sees them; a few kilobytes, whatever the number of rows."""

    __slots__ = ("_tally", "classes", "kind", "metric", "rows", "unusable")

    def __init__(self, metric: str, kind: Kind, classes: int = 2) -> None:
        """Of a metric of `engines.metrics`; `classes` counts for the kind multiclass alone. Raises `DataError` if the metric
        does not suit the kind."""
        if (metrics.metric(metric).task == "regression") != (kind == "regression"):
            raise DataError(f"{metric} does not judge a {kind} model")
        self.metric = metric
        self.kind = kind
        self.classes = {"binary": 2, "multiclass": classes, "regression": 1}[kind]
        self.rows = 0
        """Rows that count."""
        self.unusable = 0
        """Rows left out: a prediction or a label that is no number, no probability or no class."""
        self._tally = tally(metric, self.classes)

    def add(self, predictions: np.ndarray, labels: np.ndarray) -> None:
        """Counts rows.

        Binary: probabilities of the second class, shape (rows,), and labels 0 or 1. Multiclass: probabilities (rows,
        classes), or for accuracy, balanced_accuracy and f1 also the predicted classes (rows,); labels are positions of
        classes. Regression: values. Raises `DataError` if the shape is another.
        """
        if self.kind == "regression":
            values, truth = numbers(predictions), numbers(labels)
            good = (np.abs(values) <= LARGEST) & (np.abs(truth) <= LARGEST)
            self._count(values, truth, np.asarray(good))
            return
        probabilities, good = self.probabilities(predictions)
        truth = numbers(labels)
        good &= (truth >= 0) & (truth < self.classes) & (truth == np.floor(truth))
        self._count(probabilities, _places(np.where(good, truth, 0.0), self.classes), good)

    def expect(self, predictions: np.ndarray, weights: np.ndarray) -> None:
        """Counts rows whose labels are not known: `weights`, shape (rows, classes), are the probabilities of each."""
        probabilities, good = self.probabilities(predictions)
        good &= np.isfinite(weights).all(axis=1)
        self._count(probabilities, weights, good)

    def _count(self, prediction: np.ndarray, truth: np.ndarray, good: np.ndarray) -> None:
        used = int(good.sum())
        self.rows += used
        self.unusable += len(good) - used
        self._tally.add(prediction[good], truth[good])

    def probabilities(self, predictions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The predictions of a classifier as probabilities, shape (rows, classes), and which rows can be used."""
        if self.kind == "multiclass":
            found = self._of_classes(predictions)
        else:
            second = numbers(predictions).reshape(len(predictions))
            found = np.stack([1.0 - second, second], axis=1)
        with np.errstate(invalid="ignore"):
            good = np.asarray(((found >= -_ROUNDING) & (found <= 1.0 + _ROUNDING)).all(axis=1))
        found = np.clip(np.where(good[:, np.newaxis], found, 0.0), 0.0, 1.0)
        return found, good & (found.sum(axis=1) > 0)

    def _of_classes(self, predictions: np.ndarray) -> np.ndarray:
        if predictions.ndim == 2 and predictions.shape[1] == self.classes:
            return numbers(predictions)
        if predictions.ndim != 1:
            raise DataError(f"predictions of shape {predictions.shape} do not suit {self.classes} classes")
        if metrics.metric(self.metric).probabilities:
            raise DataError(f"{self.metric} needs a probability of each class, and the predictions are classes")
        return _places(numbers(predictions), self.classes)

    def merge(self, other: Scores) -> None:
        """Counts the rows of another too. Raises `DataError` if it is of another metric or kind."""
        if (self.metric, self.kind, self.classes) != (other.metric, other.kind, other.classes):
            raise DataError(
                f"scores of {other.metric} ({other.kind}) cannot be merged into {self.metric} ({self.kind})"
            )
        self.rows += other.rows
        self.unusable += other.unusable
        self._tally.absorb(other._tally.sums)

    def value(self) -> Interval:
        """The metric of all rows so far."""
        return Interval(*self._tally.told(), rows=self.rows)

    def to_bytes(self) -> bytes:
        """All of it; the same rows in the same order give the same bytes."""
        head = [self.metric, self.kind, self.classes, self.rows, self.unusable]
        return json.dumps(head).encode() + b"\n" + zlib.compress(self._tally.sums.astype("<f8").tobytes(), 6)

    @classmethod
    def from_bytes(cls, data: bytes) -> Scores:
        """What `to_bytes` gave. Raises `CorruptArtifact` if it is something else."""
        try:
            head, _, body = data.partition(b"\n")
            metric, kind, classes, rows, unusable = json.loads(head)
            scores = cls(metric, kind, classes)
            sums = np.frombuffer(zlib.decompress(body), "<f8").reshape(scores._tally.sums.shape)
        except (ValueError, TypeError, KeyError, zlib.error, DataError) as error:
            raise CorruptArtifact("these bytes are no scores", digest="") from error
        scores.rows, scores.unusable = rows, unusable
        scores._tally.sums = sums.astype(np.float64)
        return scores


def _places(positions: np.ndarray, classes: int) -> np.ndarray:
    """One in the place of each row's class, nought in the others; noughts alone for what is no class."""
    return np.asarray(positions[:, None] == np.arange(classes)).astype(np.float64)


def numbers(values: np.ndarray) -> np.ndarray:
    """The values as floats of their own precision, NaN for whatever is none: texts, nulls, lists."""
    if values.dtype.kind == "f":
        return values
    if values.dtype.kind in "iub":
        return values.astype(np.float64)
    return np.array([_number(value) for value in values.ravel().tolist()], dtype=np.float64).reshape(values.shape)


def _number(value: object) -> float:
    try:
        return float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:
        return math.nan
