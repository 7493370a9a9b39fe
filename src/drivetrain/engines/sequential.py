"""Tests that may be looked at after every observation, and stopped by what was seen: their error holds at all times at once.

The failures' test is a mixture SPRT (Robbins 1970) over bets (Waudby-Smith & Ramdas 2024, Estimating means of bounded random variables by
betting): exact for bounded values of any distribution, where a normal mixture stops far too often on failures that are rare. The normal
mixture (Johari et al. 2017) serves for mean losses, the time-uniform band (Howard & Ramdas 2022) for whole distributions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_BETS = 8
_BOLDEST = 0.98
"""Of the largest stake that cannot ruin: what is staked at most, so that a single loss can be made up for."""
_LEAST = 50
"""Observations before a normal approximation is trusted."""
_PLANNED = 500
"""Observations at which the normal mixture is tightest."""


class Bets:
    """Gathers evidence that the mean of some values, given all that came before, is above 0.

    A player who starts with 1 stakes on each value; if the mean is never above 0, his capital is a supermartingale, and the chance that it
    ever reaches 1/p is at most p (Ville 1939). He spreads it over eight stakes, each half of the one before. `least` is the least that a
    value can be, below 0.
    """

    __slots__ = ("_capitals", "_peak", "_stakes")

    def __init__(self, least: float, capitals: Sequence[float] | None = None, peak: float = 0.0) -> None:
        self._stakes = _BOLDEST / -least * 0.5 ** np.arange(_BETS)
        shares = 1.0 / ((np.arange(_BETS) + 1.0) * (np.arange(_BETS) + 2.0))
        self._capitals = np.array(np.log(shares / shares.sum()) if capitals is None else capitals, dtype=float)
        self._peak = peak

    def add(self, values: np.ndarray) -> None:
        """More values, in order."""
        if len(values) == 0:
            return
        steps = np.log1p(np.multiply.outer(values, self._stakes))
        paths = self._capitals + np.cumsum(steps, axis=0)
        top = paths.max(axis=1)
        totals = top + np.log(np.exp(paths - top[:, None]).sum(axis=1))
        self._capitals = paths[-1]
        self._peak = max(self._peak, float(totals.max()))

    @property
    def p_value(self) -> float:
        """Valid however often it is looked at."""
        return math.exp(-self._peak)

    def to_json(self) -> dict[str, Any]:
        """What `from_json` makes the same of."""
        return {"capitals": [float(value) for value in self._capitals], "peak": self._peak}

    @classmethod
    def from_json(cls, least: float, found: Mapping[str, Any]) -> Bets:
        """As it was kept."""
        return cls(least, found["capitals"], float(found["peak"]))


def mixture(count: int, mean: float, variance: float, null: float, alpha: float) -> float:
    """An anytime-valid p-value, for large counts, of the hypothesis that a mean is at most `null`.

    The one-sided normal mixture SPRT (Robbins 1970; Johari et al. 2017): with s2 the variance, tau2 that of the mixture N(0, tau2) cut to
    its upper half, d = mean - null and v = 1 / (n / s2 + 1 / tau2), the likelihood ratio is
    2 sqrt(s2 / (s2 + n tau2)) exp(n2 tau2 d2 / (2 s2 (s2 + n tau2))) Phi(d n / s2 sqrt(v)). tau2 is what makes it tightest at 500
    observations for this alpha (Howard et al. 2021, section 3.5). 1 below 50 observations.
    """
    if count < _LEAST:
        return 1.0
    spread = max(variance, 1e-18)
    room = -2.0 * math.log(alpha)
    tau2 = spread * (room + math.log(room) + 1.0) / _PLANNED
    distance, whole = mean - null, spread + count * tau2
    exponent = (count * distance) ** 2 * tau2 / (2.0 * spread * whole)
    score = count * distance / spread * math.sqrt(1.0 / (count / spread + 1.0 / tau2))
    upper = 0.5 * math.erfc(-score / math.sqrt(2.0))
    if upper == 0.0:
        return 1.0
    log_ratio = math.log(2.0) + 0.5 * math.log(spread / whole) + exponent + math.log(upper)
    return min(1.0, math.exp(-min(log_ratio, 700.0)))


def band(count: int, alpha: float) -> float:
    """Half the height of a band around an empirical distribution function of `count` values that holds the true one, at every place and
    for all counts at once, with probability 1 - alpha: u_n = 0.85 sqrt((log log(e n) + 0.8 log(1612 / alpha)) / n) (Howard & Ramdas 2022,
    Sequential estimation of quantiles, theorem 2)."""
    if count < 1:
        return 1.0
    return 0.85 * math.sqrt((math.log(math.log(math.e * count)) + 0.8 * math.log(1612.0 / alpha)) / count)


def band_p_value(gap: float, count: int) -> float:
    """The least alpha at which two such bands, each for half of it and of `count` values, are apart where the functions differ by `gap`."""
    if count < 1 or gap <= 0.0:
        return 1.0
    room = (gap / 2.0 / 0.85) ** 2 * count - math.log(math.log(math.e * count))
    return min(1.0, 2.0 * 1612.0 * math.exp(-max(room, 0.0) / 0.8))
