"""What is kept of predictions and their truth, so that a metric and its 95 % interval can be told at any time.

A tally is a few numbers, however many rows it has seen; two of them add up to that of all rows. The truth of a
classification has a weight for each class, shape (rows, classes): 1 and noughts where the label is known, probabilities
where it is only expected. Fractions count like rows, and so one tally serves both.

Every metric is that of `engines.metrics`; those that rank (roc_auc, average_precision) go by a histogram of the scores,
and rows within one of its bins count as tied.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
from scipy.special import stdtrit

BINS = 1024
"""Bins of a histogram of scores, for a model of few classes."""

_CELLS = 65_536
"""Most bins over all classes: a histogram of a thousand classes stays within a megabyte."""

_Z = 1.959963984540054

LARGEST = 1e70
"""Values of a regression beyond this are not used: the fourth power of an error has to be a number."""

Told = tuple[float, float, float]
"""Value, and the ends of its interval; NaN where the rows do not define them."""

UNDEFINED: Told = (math.nan, math.nan, math.nan)


class Tally(Protocol):
    """The state of one metric, all of it in `sums`."""

    sums: np.ndarray

    def add(self, prediction: np.ndarray, truth: np.ndarray) -> None:
        """Counts rows: probabilities (rows, classes) with weights of the same shape, or values with values, both (rows,)."""

    def absorb(self, sums: np.ndarray) -> None:
        """Counts the rows of another tally of the same metric, given its `sums`."""

    def told(self) -> Told:
        """The metric of the rows so far."""


def wilson(share: float, size: float) -> Told:
    """A share with Wilson's score interval, as if `size` rows had been drawn (Wilson 1927; with an effective size for
    other means of values in 0 to 1: Newcombe 2006, Statistics in Medicine 25, 559-573)."""
    if not size > 0 or math.isnan(share):
        return UNDEFINED
    weight = 1.0 + _Z**2 / size
    centre = (share + _Z**2 / (2.0 * size)) / weight
    half = _Z / weight * math.sqrt(max(share * (1.0 - share), 0.0) / size + _Z**2 / (4.0 * size**2))
    return share, max(0.0, centre - half), min(1.0, centre + half)


def _of_variance(share: float, variance: float, least: float) -> Told:
    """Wilson's interval for the size at which a share would have that variance; `least` rows where it has none."""
    spread = share * (1.0 - share)
    return wilson(share, spread / variance if variance > 0 and spread > 0 else least)


def _quantile(rows: float) -> float:
    """Student's 97.5 % quantile for the mean of so many rows, NaN below two."""
    return float(stdtrit(rows - 1.0, 0.975)) if rows >= 2 else math.nan


class Ranks:
    """roc_auc and average_precision: for each class that is judged, the scores of its rows and of all others.

    The bins are narrow at both ends, so that a model of rare events (p near 0.001) is told apart as well as any.
    """

    def __init__(self, metric: str, classes: int) -> None:
        self._judged = [1] if classes == 2 else list(range(classes))
        self._bins = max(32, min(BINS, _CELLS // len(self._judged)))
        self._of_class = _auc if metric == "roc_auc" else _average_precision
        self.sums = np.zeros((len(self._judged), 2, self._bins))

    def add(self, prediction: np.ndarray, truth: np.ndarray) -> None:
        for place, label in enumerate(self._judged):
            bins = bin_of(prediction[:, label], self._bins)
            hits = np.bincount(bins, weights=truth[:, label], minlength=self._bins)
            self.sums[place, 0] += hits
            self.sums[place, 1] += np.bincount(bins, weights=1.0 - truth[:, label], minlength=self._bins)

    def absorb(self, sums: np.ndarray) -> None:
        self.sums += sums.reshape(self.sums.shape)

    def told(self) -> Told:
        each = [found for hits, misses in self.sums if (found := self._of_class(hits, misses)) is not None]
        if not each:
            return UNDEFINED
        values, errors, sizes = (np.asarray(part) for part in zip(*each, strict=True))
        # The classes' errors are not independent: as if they went up and down together, the widest they can be.
        return _of_variance(float(values.mean()), float(errors.mean()) ** 2, float(sizes.min()))


def bin_of(scores: np.ndarray, bins: int = BINS) -> np.ndarray:
    """The bin of each probability: equal steps of 1 / (1 + ((1 - p) / p)^(1/3)), a flattened logistic scale."""
    above, below = np.cbrt(scores), np.cbrt(1.0 - scores)
    return np.asarray(np.minimum(above / (above + below) * bins, bins - 1).astype(np.int64))


def _auc(hits: np.ndarray, misses: np.ndarray) -> tuple[float, float, float] | None:
    """The area, its standard error (DeLong et al. 1988, Biometrics 44, 837-845) and the rows of the rarer class."""
    positives, negatives = float(hits.sum()), float(misses.sum())
    if not (positives > 0 and negatives > 0):
        return None
    # The share of the other class that each row beats (a hit) or is not beaten by (a miss), ties counting half.
    of_hits = (np.cumsum(misses) - 0.5 * misses) / negatives
    of_misses = 1.0 - (np.cumsum(hits) - 0.5 * hits) / positives
    area = float(hits @ of_hits / positives)
    fewest = min(positives, negatives)
    if fewest <= 1.0:
        return area, math.sqrt(area * (1.0 - area) / fewest), fewest
    variance = float(hits @ (of_hits - area) ** 2) / ((positives - 1.0) * positives)
    variance += float(misses @ (of_misses - area) ** 2) / ((negatives - 1.0) * negatives)
    return area, math.sqrt(variance), fewest


def _average_precision(hits: np.ndarray, misses: np.ndarray) -> tuple[float, float, float] | None:
    """The precision, its standard error (binomial: Boyd, Eng and Page 2013, ECML PKDD) and the positives."""
    positives = float(hits.sum())
    if not positives > 0:
        return None
    hits, seen = hits[::-1], np.cumsum((hits + misses)[::-1])
    precision = np.divide(np.cumsum(hits), seen, out=np.zeros_like(seen), where=seen > 0)
    found = min(float(hits @ precision) / positives, 1.0)
    return found, math.sqrt(found * (1.0 - found) / positives), positives


class Confusion:
    """accuracy, balanced_accuracy and f1: how many rows of each class were taken for which, shape (truth, prediction)."""

    def __init__(self, metric: str, classes: int) -> None:
        self._told = {"accuracy": _accuracy, "balanced_accuracy": _balanced_accuracy, "f1": _f1}[metric]
        self.sums = np.zeros((classes, classes))

    def add(self, prediction: np.ndarray, truth: np.ndarray) -> None:
        from_one_half = prediction.shape[1] == 2
        said = (prediction[:, 1] >= 0.5).astype(np.int64) if from_one_half else prediction.argmax(axis=1)
        for label in range(len(self.sums)):
            self.sums[label] += np.bincount(said, weights=truth[:, label], minlength=len(self.sums))

    def absorb(self, sums: np.ndarray) -> None:
        self.sums += sums.reshape(self.sums.shape)

    def told(self) -> Told:
        rows = float(self.sums.sum())
        if not rows > 0:
            return UNDEFINED
        value, slope, least = self._told(self.sums)
        # The delta method: the cells are a multinomial draw, the metric is as good as linear in them.
        shares = self.sums / rows
        variance = (float((shares * slope**2).sum()) - float((shares * slope).sum()) ** 2) / rows
        return _of_variance(value, variance, least)


_Sloped = tuple[float, np.ndarray, float]
"""The metric, its derivative by each cell's share of the rows, and the rows behind it where it has no variance."""


def _accuracy(cells: np.ndarray) -> _Sloped:
    return float(np.trace(cells) / cells.sum()), np.eye(len(cells)), float(cells.sum())


def _balanced_accuracy(cells: np.ndarray) -> _Sloped:
    rows = cells.sum(axis=1)
    occurs = rows > 0
    recall = np.divide(cells.diagonal(), rows, out=np.zeros_like(rows), where=occurs)
    weight = np.divide(cells.sum(), rows, out=np.zeros_like(rows), where=occurs) / occurs.sum()
    slope = (np.eye(len(cells)) - recall[:, None]) * weight[:, None]
    return float(recall[occurs].mean()), slope, float(rows[occurs].min())


def _f1(cells: np.ndarray) -> _Sloped:
    """Of the second of two classes, else the mean over the classes that occur or are predicted."""
    right, both = cells.diagonal(), cells.sum(axis=0) + cells.sum(axis=1)
    judged = np.array([False, True]) if len(cells) == 2 else both > 0
    each = np.divide(2.0 * right, both, out=np.zeros_like(both), where=both > 0)
    weight = np.divide(cells.sum(), both, out=np.zeros_like(both), where=judged & (both > 0)) / judged.sum()
    slope = np.diag(2.0 * weight) - (each * weight)[:, None] - (each * weight)[None, :]
    least = (both - right)[judged].min()
    return float(each[judged].mean()), slope, float(least) if least > 0 else float(cells.sum())


class Mean:
    """log_loss, brier, mae and rmse: rows, and the sums of their losses and of the squares of these."""

    def __init__(self, metric: str, classes: int) -> None:
        self._metric = metric
        self.sums = np.zeros(3)

    def add(self, prediction: np.ndarray, truth: np.ndarray) -> None:
        if self._metric in ("mae", "rmse"):
            losses = np.abs(prediction - truth) if self._metric == "mae" else (prediction - truth) ** 2
            self.sums += len(losses), losses.sum(), (losses**2).sum()
            return
        losses = _log_losses(prediction) if self._metric == "log_loss" else _brier_losses(prediction)
        self.sums += truth.sum(), (truth * losses).sum(), (truth * losses**2).sum()

    def absorb(self, sums: np.ndarray) -> None:
        self.sums += sums

    def told(self) -> Told:
        rows, total, squares = (float(each) for each in self.sums)
        if not rows > 0:
            return UNDEFINED
        mean = total / rows
        error = math.sqrt(max(squares / rows - mean**2, 0.0) / (rows - 1.0)) if rows > 1 else math.nan
        half = _quantile(rows) * error
        if self._metric != "rmse":
            return mean, max(0.0, mean - half), mean + half
        if mean == 0:
            return 0.0, 0.0, 0.0
        # Mean squares are skewed to the right, less so their logarithm.
        return math.sqrt(mean), math.sqrt(mean) * math.exp(-half / mean / 2), math.sqrt(mean) * _grown(half / mean / 2)


def _grown(exponent: float) -> float:
    return math.exp(exponent) if exponent < 700 else math.inf


def _log_losses(prediction: np.ndarray) -> np.ndarray:
    """What each row loses, were it of each class; p is kept away from nought by the precision of its type."""
    shares = prediction / prediction.sum(axis=1, keepdims=True)
    return np.asarray(-np.log(np.clip(shares, np.finfo(prediction.dtype).eps, 1.0)))


def _brier_losses(prediction: np.ndarray) -> np.ndarray:
    if prediction.shape[1] == 2:
        return np.stack([prediction[:, 1] ** 2, (1.0 - prediction[:, 1]) ** 2], axis=1)
    return np.asarray((prediction**2).sum(axis=1, keepdims=True) - 2.0 * prediction + 1.0)


class Residuals:
    """r2: power sums of the labels about a pivot near their mean (else two large squares would lose their digits) and of
    the squared errors, as `pivot, n, d, d2, d3, d4, e2, e4, e2 d, e2 d2` with d = label - pivot."""

    def __init__(self, metric: str, classes: int) -> None:
        self.sums = np.zeros(10)

    def add(self, prediction: np.ndarray, truth: np.ndarray) -> None:
        if len(truth) == 0:
            return
        pivot = float(self.sums[0]) if self.sums[1] else float(truth.mean())
        off, square = truth - pivot, (prediction - truth) ** 2
        powers = [off**power for power in range(5)]
        with_errors = [square, square**2, square * off, square * off**2]
        self.absorb(np.array([pivot, *(part.sum() for part in (*powers, *with_errors))]))

    def absorb(self, sums: np.ndarray) -> None:
        if not self.sums[1]:
            self.sums = sums.copy()
        elif sums[1]:
            self.sums[1:] += _about(sums, float(self.sums[0]))[1:]

    def told(self) -> Told:
        rows = float(self.sums[1])
        if not rows > 0:
            return UNDEFINED
        mean = self.sums[0] + self.sums[2] / rows
        _, _, _, total, _, fourth, errors, squares, _, crossed = (float(each) for each in _about(self.sums, mean))
        if not total > 1e-12 * rows:
            return UNDEFINED
        left = errors / total
        if left == 0:
            return 1.0, 1.0, 1.0
        # The delta method on a ratio of means, on the scale of the logarithm of what is left unexplained.
        variance = max(squares - 2.0 * left * crossed + left**2 * fourth, 0.0) / total**2
        half = _quantile(rows) * math.sqrt(variance) / left
        return 1.0 - left, 1.0 - left * _grown(half), 1.0 - left * math.exp(-half)


def _about(sums: np.ndarray, pivot: float) -> np.ndarray:
    """The same sums about another pivot, by the binomial theorem."""
    was, n, d, d2, d3, d4, e2, e4, e2d, e2d2 = (float(each) for each in sums)
    by = was - pivot
    return np.array([
        pivot, n, d + by * n, d2 + 2 * by * d + by**2 * n, d3 + 3 * by * d2 + 3 * by**2 * d + by**3 * n,
        d4 + 4 * by * d3 + 6 * by**2 * d2 + 4 * by**3 * d + by**4 * n,
        e2, e4, e2d + by * e2, e2d2 + 2 * by * e2d + by**2 * e2,
    ])  # fmt: skip


def tally(metric: str, classes: int) -> Tally:
    """An empty one for that metric of `engines.metrics`; `classes` is of no account in a regression."""
    kinds: dict[str, type[Ranks | Confusion | Mean | Residuals]] = {
        "roc_auc": Ranks, "average_precision": Ranks, "accuracy": Confusion, "balanced_accuracy": Confusion, "f1": Confusion,
        "log_loss": Mean, "brier": Mean, "mae": Mean, "rmse": Mean, "r2": Residuals,
    }  # fmt: skip
    return kinds[metric](metric, classes)
