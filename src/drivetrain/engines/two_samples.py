"""Two samples, counted in the same cells: how far apart they are, and how often chance alone puts them so far apart.

n and m are the rows of the one and the other, p and q their shares of B cells.

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
level says; tests/engines/test_two_samples.py computes it, and test_drift_alarms.py draws it.

Bins do not know which of them are neighbours, so it takes them many rows to see that all values moved a little. For numbers Neyman's
smooth tests (1937) do: Pearson's sum over the fine cells, projected on the Legendre polynomials of the rank. Degree one is location
and follows chi2(1); one to four are location, spread, skew and tails, and follow chi2(4). The p value of a number is three times the
least of all three (Bonferroni).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.polynomial.legendre import legvander
from scipy import special

Distance = Literal["psi", "js", "ks"]

LEAST = 10.0
"""Rows expected in a cell without drift, in the smaller sample, for the cell to count by itself."""

_SMOOTH_LEAST = 2.0 * LEAST
_SMOOTH_CELLS = 10
_DEGREE = 4


@dataclass(frozen=True, slots=True)
class Found:
    """An effect size, the one that chance exceeds no more often than the level says, and the p value."""

    value: float
    critical: float
    p_value: float


NOTHING = Found(0.0, math.inf, 1.0)


def of_bins(expected: np.ndarray, found: np.ndarray, distance: Distance, alpha: float) -> Found:
    """The distance of two samples whose rows in each cell are given; `ks` is that for categories."""
    if not found.sum():
        return NOTHING
    expected, found = _joined(expected, found, LEAST)
    if len(expected) < 2:
        return NOTHING
    law, noise = _LAWS[distance], _noise(expected, found)
    p = expected / expected.sum()
    pseudo = _PSEUDO_ROWS * len(p)
    q = (found + pseudo * p) / (found.sum() + pseudo)
    pooled = (expected + found) / (expected.sum() + found.sum())
    statistic, degrees = law.statistic(p, q), len(p) - 1
    least = min(statistic, _hellinger(p, q), float(((q - p) ** 2 / pooled).sum()))
    return Found(
        law.value(statistic),
        law.value(float(special.chdtri(degrees, alpha)) * noise),
        float(special.chdtrc(degrees, least / noise)),
    )


def of_distributions(expected: np.ndarray, found: np.ndarray, alpha: float) -> Found:
    """Kolmogorov and Smirnov's distance of two samples of numbers, at the ends of the cells."""
    if not found.sum() or not expected.sum():
        return NOTHING
    apart = np.abs(np.cumsum(found) / found.sum() - np.cumsum(expected) / expected.sum())
    value, noise = float(apart.max()), math.sqrt(_noise(expected, found))
    return Found(value, float(special.kolmogi(alpha)) * noise, float(special.kolmogorov(value / noise)))


def smooth(expected: np.ndarray, found: np.ndarray) -> tuple[float, float]:
    """The p values of Neyman's smooth tests of two samples of numbers, of degree one and four; 1 where the cells are too few for four
    polynomials."""
    if not found.sum():
        return 1.0, 1.0
    expected, found = _joined(expected, found, _SMOOTH_LEAST)
    if len(expected) < _SMOOTH_CELLS:
        return 1.0, 1.0
    pooled = (expected + found) / (expected.sum() + found.sum())
    rank = np.cumsum(pooled) - pooled / 2.0
    shapes = legvander(2.0 * rank - 1.0, _DEGREE)[:, 1:]
    shapes = np.sqrt(pooled)[:, None] * (shapes - pooled @ shapes)
    residual = (found / found.sum() - expected / expected.sum()) / np.sqrt(pooled)
    # The columns of Q come in the order of the degrees, so its first is location alone.
    explained = np.cumsum((np.linalg.qr(shapes)[0].T @ residual) ** 2) / _noise(expected, found)
    return float(special.chdtrc(1, explained[0])), float(special.chdtrc(_DEGREE, explained[-1]))


def _noise(expected: np.ndarray, found: np.ndarray) -> float:
    return float(1.0 / expected.sum() + 1.0 / found.sum())


def _joined(expected: np.ndarray, found: np.ndarray, rows: float) -> tuple[np.ndarray, np.ndarray]:
    """Neighbours joined until each cell is to hold so many rows on both sides. It looks at the one sample's counts alone, so the
    choice cannot favour what the other happens to hold."""
    least = rows * max(1.0, expected.sum() / found.sum())
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


def more(count: int, rows: int, known: int, known_rows: int, alpha: float) -> Found:
    """Whether `count` of `rows` is more than `known` of `known_rows`."""
    if not rows or not known_rows:
        return NOTHING
    share = known / known_rows
    return Found(
        max(0.0, count / rows - share),
        _first(lambda k: _tail(k, rows, known, known_rows) < alpha, known * rows // known_rows, rows) / rows - share,
        _tail(count, rows, known, known_rows),
    )


def either_way(count: int, rows: int, known: int, known_rows: int, alpha: float) -> Found:
    """Whether `count` of `rows` differs from `known` of `known_rows`, towards either side; the critical value is the upper one."""
    if not rows or not known_rows:
        return NOTHING
    above, below = _tail(count, rows, known, known_rows), _tail(known, known_rows, count, rows)
    critical = more(count, rows, known, known_rows, alpha / 2.0).critical
    return Found(abs(count / rows - known / known_rows), critical, min(1.0, 2.0 * min(above, below)))


def _first(holds: Callable[[int], bool], low: int, high: int) -> float:
    """The least count in (low, high] from which on `holds` is true; infinite if it never is."""
    step = 1
    while low + step < high and not holds(low + step):
        low, step = low + step, 2 * step
    if low + step < high:
        high = low + step
    elif not holds(high):
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
