"""Whether live traffic differs from the training rows: by how much, and whether chance alone would do that.

Every comparison gives an effect size and a p value. Of many rows the smallest difference is significant, of few rows chance alone
makes a large one: an alarm needs both. n and m are the rows of reference and window, p and q their shares of B cells.

    PSI = sum (q - p) ln(q / p)               PSI / (1/n + 1/m)  ~  chi2(B - 1)       Yurdakul 2018
    JS^2 = half of KL(p, c) + KL(q, c),       8 ln(2) JS^2 / (1/n + 1/m)  ~  chi2(B - 1)
           c = (p + q) / 2, base 2            since KL to the mean is to second order an eighth of (p - q)^2 / c
    KS = sup |F - G|                          KS / sqrt(1/n + 1/m)  ~  Kolmogorov     for numbers, over the grid's edges
    KS = sum |q - p| / 2                      (2 KS)^2 / (1/n + 1/m)  <=  chi2(B - 1) for categories: Cauchy and Schwarz
    missing, unseen                           Fisher's exact test of two shares

These laws are for large samples. Before, cells in which fewer than `LEAST` rows are expected are joined with their neighbours. Even
so the logarithms make too much of a rare cell that is overfull, and Pearson's form of the sum may make too much of it where
Hellinger's does not, and the other way round for one that is empty. The p value is therefore the greatest of three that agree where
rows are many: the distance's own, Pearson's and Hellinger's. Chance then exceeds no level from 0.05 down to 1e-6 more often than the
level says; tests/engines/test_drift.py computes it, and test_drift_alarms.py draws it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from scipy import special

from drivetrain.engines.reference import Categorical, Numeric, Reference
from drivetrain.engines.sketches import Window

Distance = Literal["psi", "js", "ks"]

LEAST = 10.0
"""Rows expected in a cell without drift, in the smaller of reference and window, for the cell to count by itself."""

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
    """The effect size below which it is not significant; infinite where no difference would be."""
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

    def entry(kind: str, found: _Found) -> FeatureDrift:
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
        entry("missing", _either_way(missing, rows, feature.missing, known_rows, alpha)),
        entry("unseen", _more(strange, size, known_strange, feature.size, alpha)),
    ]


@dataclass(frozen=True, slots=True)
class _Found:
    value: float
    critical: float
    p_value: float


_NOTHING = _Found(0.0, math.inf, 1.0)


def _distance(feature: Numeric | Categorical, counts: np.ndarray, distance: Distance, alpha: float) -> _Found:
    size = int(counts.sum())
    if not size or not feature.size:
        return _NOTHING
    noise = 1.0 / feature.size + 1.0 / size
    if distance == "ks" and isinstance(feature, Numeric):
        return _ks(feature, counts, noise, alpha)
    expected, found = _joined(*_bins(feature, counts))
    if len(expected) < 2:
        return _NOTHING
    law = _LAWS[distance]
    p = expected / expected.sum()
    pseudo = _PSEUDO_ROWS * len(p)
    q = (found + pseudo * p) / (size + pseudo)
    degrees = len(p) - 1
    statistic = law.statistic(p, q)
    pooled = (expected + found) / (feature.size + size)
    least = min(statistic, _hellinger(p, q), float(((q - p) ** 2 / pooled).sum()))
    return _Found(
        law.value(statistic),
        law.value(float(special.chdtri(degrees, alpha)) * noise),
        float(special.chdtrc(degrees, least / noise)),
    )


def _ks(feature: Numeric, counts: np.ndarray, noise: float, alpha: float) -> _Found:
    live = np.cumsum(counts)[:-1] / counts.sum()
    value = float(np.abs(live - np.array(feature.below) / feature.size).max())
    return _Found(
        value, float(special.kolmogi(alpha)) * math.sqrt(noise), float(special.kolmogorov(value / math.sqrt(noise)))
    )


def _bins(feature: Numeric | Categorical, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of reference and window in each bin."""
    if isinstance(feature, Categorical):
        return np.array([*feature.counts, feature.others]), counts
    cuts = list(feature.bins)
    below = np.array(feature.below, np.int64)[cuts]
    expected = np.diff(below, prepend=0, append=feature.size)
    found = np.diff(np.cumsum(counts)[cuts], prepend=0, append=counts.sum())
    return expected, found


def _joined(expected: np.ndarray, found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Neighbours joined until each cell is to hold `LEAST` rows on both sides. It looks at the reference's counts alone, so the
    choice cannot favour what the window happens to hold."""
    least = LEAST * max(1.0, expected.sum() / found.sum())
    starts: list[int] = []
    held = math.inf
    for place, count in enumerate(expected.tolist()):
        if held >= least:
            starts.append(place)
            held = 0
        held += count
    if held < least and len(starts) > 1:
        starts.pop()
    return np.add.reduceat(expected, starts), np.add.reduceat(found, starts)


# the laws of large samples


@dataclass(frozen=True, slots=True)
class _Law:
    """A distance whose `statistic` follows chi2 times (1/n + 1/m), or stays below it; `value` is increasing in it."""

    statistic: Callable[[np.ndarray, np.ndarray], float]
    value: Callable[[float], float]


_PSEUDO_ROWS = 0.5
"""Rows a cell that draw the window towards the reference, so that an empty cell has a logarithm too."""


def _psi(p: np.ndarray, q: np.ndarray) -> float:
    return float(((q - p) * np.log(q / p)).sum())


def _js(p: np.ndarray, q: np.ndarray) -> float:
    middle = (p + q) / 2.0
    return 4.0 * float((special.rel_entr(p, middle) + special.rel_entr(q, middle)).sum())


def _hellinger(p: np.ndarray, q: np.ndarray) -> float:
    return 4.0 * float(((np.sqrt(q) - np.sqrt(p)) ** 2).sum())


def _variation(p: np.ndarray, q: np.ndarray) -> float:
    return float(np.abs(q - p).sum()) ** 2


_LAWS = {
    "psi": _Law(_psi, lambda statistic: statistic),
    "js": _Law(_js, lambda statistic: min(1.0, math.sqrt(max(0.0, statistic) / (8.0 * math.log(2.0))))),
    "ks": _Law(_variation, lambda statistic: min(1.0, math.sqrt(statistic) / 2.0)),
}


# two shares


def _more(count: int, rows: int, known: int, known_rows: int, alpha: float) -> _Found:
    """Whether `count` of `rows` is more than `known` of `known_rows`."""
    if not rows or not known_rows:
        return _NOTHING
    share = known / known_rows
    return _Found(
        max(0.0, count / rows - share),
        _first(lambda k: _tail(k, rows, known, known_rows) < alpha, known * rows // known_rows, rows) / rows - share,
        _tail(count, rows, known, known_rows),
    )


def _either_way(count: int, rows: int, known: int, known_rows: int, alpha: float) -> _Found:
    """Whether `count` of `rows` differs from `known` of `known_rows`, towards either side; the critical value is the upper one."""
    if not rows or not known_rows:
        return _NOTHING
    more, fewer = _tail(count, rows, known, known_rows), _tail(known, known_rows, count, rows)
    critical = _more(count, rows, known, known_rows, alpha / 2.0).critical
    return _Found(abs(count / rows - known / known_rows), critical, min(1.0, 2.0 * min(more, fewer)))


def _first(holds: Callable[[int], bool], low: int, high: int) -> float:
    """The least count in (low, high] from which on `holds` is true; infinite if it never is."""
    if not holds(high):
        return math.inf
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _tail(count: int, rows: int, known: int, known_rows: int) -> float:
    """Fisher's exact test: how often at least `count` of all `count + known` fall among `rows` rather than `known_rows`, if they
    are dealt out at random. 1 where `count` is no more than is expected."""
    total, everything = count + known, rows + known_rows
    mean = total * rows / everything
    if count <= mean:
        return 1.0
    # Beyond the mean the terms fall faster than a geometric series; after some twelve deviations none of them counts.
    deviation = math.sqrt(mean * (1.0 - total / everything) * known_rows / everything)
    last = min(total, rows, count + int(12.0 * deviation) + 50)
    x = np.arange(count, last, dtype=np.float64)
    ratios = (rows - x) * (total - x) / ((x + 1.0) * (known_rows - total + x + 1.0))
    return min(1.0, math.exp(_log_chance(count, rows, known, known_rows)) * float(1.0 + np.cumprod(ratios).sum()))


def _log_chance(count: int, rows: int, known: int, known_rows: int) -> float:
    return _log_choose(rows, count) + _log_choose(known_rows, known) - _log_choose(rows + known_rows, count + known)


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
