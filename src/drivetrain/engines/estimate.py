"""The quality of live predictions before their labels come: an estimate from how sure the model is of them.

Confidence-based performance estimation: a calibrated probability says how often a prediction is right, so that the counts
behind a metric can be expected where they cannot be counted yet. It sees the inputs change (more flights that are hard to
tell), not the world behind them (the same flights now late more often): that needs labels. It is not made for regressions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from drivetrain.engines.metrics import metric
from drivetrain.engines.quality import Kind, Scores, numbers
from drivetrain.errors import DataError

_GROUPS, _LEAST = 200, 20
"""Most groups of rows with scores next to each other through which a calibration goes, and the least rows in one. Through
single rows it would follow their chance order, and every estimate would be too good: by 0.015 of ROC AUC for 500 rows."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What the metric is expected to be, with the 95 % interval of the value that labels would give, provided that the
    calibration still holds; NaN where the rows do not define it."""

    value: float
    low: float
    high: float
    rows: int

    @property
    def defined(self) -> bool:
        """Whether there is a value."""
        return not math.isnan(self.value)


@dataclass(frozen=True, slots=True)
class Calibration:
    """How often a class occurs at each score of the model: for each class a rising line through `knots`."""

    knots: tuple[tuple[tuple[float, ...], tuple[float, ...]], ...]
    """Scores, rising, and shares; one pair for the second of two classes, or one for each of more."""
    rows: int
    """Rows of the hold-out behind it."""

    @classmethod
    def of(cls, scores: np.ndarray, labels: np.ndarray) -> Calibration:
        """Isotonic regression (Zadrozny and Elkan 2002) on rows that the model has not been trained on.

        `scores`: probabilities of the second class, shape (rows,), or of each class, (rows, classes); `labels`: positions
        of classes. Raises `DataError` without rows.
        """
        if len(labels) == 0:
            raise DataError("a calibration needs rows")
        columns = [scores] if scores.ndim == 1 else list(scores.T)
        first = 1 if scores.ndim == 1 else 0
        knots = tuple(_isotonic(column, labels == first + place) for place, column in enumerate(columns))
        return cls(knots, len(labels))

    @property
    def classes(self) -> int:
        """Classes of the model."""
        return max(2, len(self.knots))

    def shares(self, probabilities: np.ndarray) -> np.ndarray:
        """The calibrated probability of each class, shape (rows, classes), for probabilities of that shape."""
        columns = [1] if len(self.knots) == 1 else range(len(self.knots))
        lines = zip(columns, self.knots, strict=True)
        found = np.stack([np.interp(probabilities[:, column], *line) for column, line in lines], axis=1)
        if len(self.knots) == 1:
            return np.concatenate([1.0 - found, found], axis=1)
        total = found.sum(axis=1, keepdims=True)
        return np.where(total > 0, found / np.where(total > 0, total, 1.0), 1.0 / found.shape[1])

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        lines = [{"scores": list(scores), "shares": list(shares)} for scores, shares in self.knots]
        return {"rows": self.rows, "knots": lines}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Calibration:
        """What `to_json` gave."""
        lines: Sequence[Mapping[str, Any]] = document["knots"]
        return cls(tuple((tuple(line["scores"]), tuple(line["shares"])) for line in lines), int(document["rows"]))


def _isotonic(scores: np.ndarray, occurs: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    # Only where it is fitted: whoever applies a calibration needs none of it.
    from sklearn.isotonic import IsotonicRegression

    order = np.argsort(scores, kind="stable")
    groups = max(1, min(_GROUPS, len(scores) // _LEAST))
    middles, shares, sizes = (
        [function(part) for part in np.array_split(values[order].astype(np.float64), groups)]
        for values, function in ((scores, np.mean), (occurs, np.mean), (scores, len))
    )
    fitted = IsotonicRegression(y_min=0.0, y_max=1.0).fit(middles, shares, sample_weight=sizes)
    return tuple(fitted.X_thresholds_.tolist()), tuple(fitted.y_thresholds_.tolist())


class Estimated:
    """Predictions as one metric expects their labels to be: like `Scores`, without labels."""

    __slots__ = ("_calibration", "_scores")

    def __init__(self, name: str, calibration: Calibration) -> None:
        """Of the metric of that name in `engines.metrics`. Raises `DataError` if it is one of regressions."""
        self._calibration = calibration
        kind: Kind = "binary" if len(calibration.knots) == 1 else "multiclass"
        self._scores = Scores(name, kind, calibration.classes)

    @property
    def rows(self) -> int:
        """Rows that count."""
        return self._scores.rows

    @property
    def unusable(self) -> int:
        """Rows left out: not probabilities."""
        return self._scores.unusable

    def add(self, probabilities: np.ndarray) -> None:
        """Counts rows: probabilities of the second class, shape (rows,), or of each class, (rows, classes)."""
        found, _ = self._scores.probabilities(numbers(probabilities))
        self._scores.expect(probabilities, self._calibration.shares(found))

    def merge(self, other: Estimated) -> None:
        """Counts the rows of another too, made with the same calibration. Raises `DataError` if it is of another metric."""
        self._scores.merge(other._scores)

    def value(self) -> Estimate:
        """The estimate over all rows so far."""
        told = self._scores.value()
        # The calibration was itself counted on so many rows: its error adds to that of the labels to come.
        widened = math.sqrt(1.0 + told.rows / self._calibration.rows)
        low, high = told.value - (told.value - told.low) * widened, told.value + (told.high - told.value) * widened
        # No metric of a classification is negative, and those that rise with quality end at 1.
        most = 1.0 if metric(self._scores.metric).greater_is_better else math.inf
        return Estimate(told.value, float(np.clip(low, 0.0, most)), float(np.clip(high, 0.0, most)), told.rows)

    def to_bytes(self) -> bytes:
        """All of it but the calibration."""
        return self._scores.to_bytes()

    @classmethod
    def from_bytes(cls, calibration: Calibration, data: bytes) -> Estimated:
        """What `to_bytes` gave. Raises `CorruptArtifact` if it is something else."""
        scores = Scores.from_bytes(data)
        found = cls(scores.metric, calibration)
        found._scores = scores
        return found


def estimate(name: str, probabilities: np.ndarray, calibration: Calibration) -> Estimate:
    """The estimate over these rows alone, of the metric of that name."""
    found = Estimated(name, calibration)
    found.add(probabilities)
    return found.value()
