"""Whether live traffic differs from the training rows: by how much, and whether chance alone would do that.

Every comparison gives an effect size and a p value. Of many rows the smallest difference is significant, of few rows chance alone
makes a large one: an alarm needs both. How both are computed stands in `engines.two_samples`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from drivetrain.engines.reference import Categorical, Numeric, Reference
from drivetrain.engines.sketches import Window
from drivetrain.engines.two_samples import NOTHING, Distance, Found, either_way, more, of_bins, of_distributions, smooth

TESTS = 3
"""Comparisons of each feature: its distance, its missing values, its unseen values."""

_DAY = 86_400.0
_OUTSIDE = 2
"""Rows of the reference that would lie outside of its own range if each were left out in turn: the least and the greatest."""


@dataclass(frozen=True, slots=True)
class FeatureDrift:
    """One comparison of one feature."""

    feature: str
    distance: str
    """`psi`, `js` or `ks`; `missing`: the share of rows without a value; `unseen`: the share of values that are outside of the
    reference's range, or none of its categories."""
    value: float
    """The effect size: the distance, or by how much the share differs from the reference's (`unseen`: is above it)."""
    critical: float
    """The effect size that chance alone exceeds no more often than the level says; infinite where no difference can be told. A
    number whose values all moved a little can be significant below it."""
    p_value: float
    """How often chance alone gives a value as large when nothing has drifted."""
    rows: int
    """Rows of the window that have a value."""
    missing: float
    """Share of the window's rows without a value."""
    reference_missing: float
    unseen: float
    """Share of the window's values that the reference does not know."""
    significant: bool
    """Whether the p value is below the level that was asked for."""


def corrected_alpha(false_alarms_per_day: float, features: int, window_seconds: float) -> float:
    """The level for each single comparison at which `features` features, compared once for each window, give on average at most
    `false_alarms_per_day` significant ones when nothing drifts. Means add up, so it holds however the features depend."""
    comparisons = max(1, features) * TESTS * max(1.0, _DAY / window_seconds)
    return min(0.5, false_alarms_per_day / comparisons)


def compare(reference: Reference, window: Window, distance: Distance, alpha: float) -> list[FeatureDrift]:
    """Three comparisons a feature, in the reference's order: `distance`, `missing`, `unseen`. `alpha` is the level of each, as
    `corrected_alpha` gives it."""
    return [
        entry
        for name, feature in reference.features.items()
        for entry in _compared(name, feature, window.counts(name), window.rows, distance, alpha)
    ]


@dataclass(frozen=True, slots=True)
class Shares:
    """A feature's bins in words, with the share of the reference's and of the window's values in each."""

    labels: tuple[str, ...]
    reference: tuple[float, ...]
    live: tuple[float, ...]


def shares(reference: Reference, window: Window, feature: str) -> Shares:
    """What a plot of the drift shows. Raises `KeyError` for an unknown feature."""
    known = reference.features[feature]
    expected, found = _bins(known, window.counts(feature))
    return Shares(_labels(known), tuple(_shares(expected).tolist()), tuple(_shares(found).tolist()))


def _labels(feature: Numeric | Categorical) -> tuple[str, ...]:
    if isinstance(feature, Categorical):
        return (*feature.values, "others")
    cuts = [f"{feature.edges[place]:.4g}" for place in feature.bins]
    if not cuts:
        return ("all",)
    between = [f"{low} to {high}" for low, high in pairwise(cuts)]
    return (f"below {cuts[0]}", *between, f"from {cuts[-1]}")


def _shares(counts: np.ndarray) -> np.ndarray:
    return np.asarray(counts / max(1, counts.sum()))


# one feature


def _compared(
    name: str, feature: Numeric | Categorical, counts: np.ndarray, rows: int, distance: Distance, alpha: float
) -> list[FeatureDrift]:
    size = int(counts.sum())
    missing = rows - size
    strange = int(counts[0] + counts[-1]) if isinstance(feature, Numeric) and feature.size else int(counts[-1])
    known_strange = min(_OUTSIDE, feature.size) if isinstance(feature, Numeric) else feature.others
    known_rows = feature.size + feature.missing

    def entry(kind: str, found: Found) -> FeatureDrift:
        return FeatureDrift(
            name,
            kind,
            found.value,
            found.critical,
            found.p_value,
            size,
            missing / max(1, rows),
            feature.missing / max(1, known_rows),
            strange / max(1, size),
            found.p_value < alpha,
        )

    return [
        entry(distance, _distance(feature, counts, distance, alpha)),
        entry("missing", either_way(missing, rows, feature.missing, known_rows, alpha)),
        entry("unseen", more(strange, size, known_strange, feature.size, alpha)),
    ]


def _distance(feature: Numeric | Categorical, counts: np.ndarray, distance: Distance, alpha: float) -> Found:
    if not feature.size:
        return NOTHING
    if isinstance(feature, Categorical):
        return of_bins(*_bins(feature, counts), distance, alpha)
    cells = np.diff(feature.below, prepend=0, append=feature.size)
    bins = _bins(feature, counts)
    third = alpha / 3.0
    found = of_distributions(cells, counts, third) if distance == "ks" else of_bins(*bins, distance, third)
    return Found(found.value, found.critical, min(1.0, 3.0 * min(found.p_value, *smooth(cells, counts))))


def _bins(feature: Numeric | Categorical, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of reference and window in each bin."""
    if isinstance(feature, Categorical):
        return np.array([*feature.counts, feature.others]), counts
    cuts = list(feature.bins)
    below = np.array(feature.below, np.int64)[cuts]
    expected = np.diff(below, prepend=0, append=feature.size)
    found = np.diff(np.cumsum(counts)[cuts], prepend=0, append=counts.sum())
    return expected, found
