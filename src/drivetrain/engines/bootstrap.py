"""Percentile bootstrap intervals (Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapter 13)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from drivetrain.engines.metrics import Metric

_CELLS = 2_000_000
"""Most weights held at once: 16 MB, so that a hold-out of a million rows does not need gigabytes."""


@dataclass(frozen=True, slots=True)
class Interval:
    """From `low` to `high`, in the metric's unit; NaN without resamples."""

    low: float
    high: float


def _weights(rows: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each row was drawn in each resample, in pieces of shape (some, rows)."""
    random = np.random.default_rng(seed)
    step = max(1, _CELLS // max(rows, 1))
    for begin in range(0, resamples, step):
        count = min(step, resamples - begin)
        drawn = random.integers(0, rows, size=(count, rows), dtype=np.int64)
        drawn += (np.arange(count) * rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=count * rows).reshape(count, rows).astype(float)


def resampled(
    rule: Metric, truth: np.ndarray, predictions: Sequence[np.ndarray], *, resamples: int, seed: int = 0
) -> np.ndarray:
    """The metric of each prediction in each resample, of shape (predictions, resamples).

    Every prediction sees the same resamples, so that their differences are paired.
    """
    pieces = [
        np.stack([rule.values(truth, prediction, weights) for prediction in predictions])
        for weights in _weights(len(truth), resamples, seed)
    ]
    return np.concatenate(pieces, axis=1) if pieces else np.empty((len(predictions), 0))


def interval(values: np.ndarray, level: float = 0.95) -> Interval:
    """The central `level` of the resampled values; resamples that do not define the metric are left out."""
    defined = values[~np.isnan(values)]
    if len(defined) == 0:
        return Interval(float("nan"), float("nan"))
    low, high = np.quantile(defined, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return Interval(float(low), float(high))
