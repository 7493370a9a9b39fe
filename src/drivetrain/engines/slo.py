"""Service level objectives: how fast the error budget burns, what is left of it, and latencies from a histogram's buckets.

The alerts are those of the Site Reliability Workbook (Beyer et al. 2018, chapter 5, "Multiwindow, multi-burn-rate alerts"):
a burn rate of 1 uses the budget up in exactly the period; one alerts if it burns too fast over a long window, so that it
matters, and still over a short one, so that it is not over yet.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

PERIOD = 30 * 86_400.0
"""Seconds over which an objective is kept: thirty days, for which the factors below are made."""


@dataclass(frozen=True, slots=True)
class BurnWindow:
    """A pair of windows, in seconds, and the burn rate that is too high in both."""

    long: float
    short: float
    factor: float
    severity: Literal["page", "ticket"]


BURN_WINDOWS = (
    BurnWindow(3_600.0, 300.0, 14.4, "page"),  # 2 % of the budget in an hour
    BurnWindow(21_600.0, 1_800.0, 6.0, "page"),  # 5 % in six hours
    BurnWindow(259_200.0, 21_600.0, 1.0, "ticket"),  # 10 % in three days
)


def allowed(percent: float) -> float:
    """The share of requests that may be bad under an objective such as 99.9 (percent)."""
    return 1.0 - percent / 100.0


def burn_rate(bad: float, total: float, may_be_bad: float) -> float:
    """The share of bad requests by that which is allowed; 0 where nothing was asked."""
    return bad / total / may_be_bad if total > 0 else 0.0


def budget_left(bad: float, total: float, may_be_bad: float) -> float:
    """The share of the error budget that is left after so many requests: 1 untouched, negative overdrawn."""
    return 1.0 - burn_rate(bad, total, may_be_bad)


@dataclass(frozen=True, slots=True)
class Burn:
    """How fast the budget burns in a pair of windows."""

    window: BurnWindow
    long: float
    short: float

    @property
    def alarming(self) -> bool:
        """Whether it burns too fast in both."""
        return self.long > self.window.factor and self.short > self.window.factor


_MINUTE = 60
_HOUR = 3_600
_FINE = 6 * _HOUR
"""Seconds for which every minute is kept; before that, every hour. Every short window lies within."""


class Budget:
    """Requests of a period and how many were bad: about a thousand pairs of numbers, however many requests.

    A window begins with a whole minute, one of more than six hours with a whole hour.
    """

    __slots__ = ("_hours", "_minutes", "may_be_bad")

    def __init__(self, may_be_bad: float) -> None:
        """Of an objective that allows this share of bad requests."""
        self.may_be_bad = may_be_bad
        self._minutes: dict[int, tuple[int, int]] = {}
        self._hours: dict[int, tuple[int, int]] = {}

    def add(self, times: np.ndarray, bad: np.ndarray, now: float) -> int:
        """Counts requests, answered at `times` (seconds since the epoch, any order), and gives the number of those that are
        not counted: before the period, or later than the minute after `now`."""
        known = (times > now - PERIOD) & (times < now + _MINUTE)
        minutes, places = np.unique((times[known] // _MINUTE).astype(np.int64), return_inverse=True)
        totals = np.bincount(places, minlength=len(minutes)).tolist()
        broken = np.bincount(places, weights=bad[known], minlength=len(minutes)).astype(np.int64).tolist()
        for minute, total, wrong in zip(minutes.tolist(), totals, broken, strict=True):
            _count(self._minutes, minute * _MINUTE, total, wrong)
        self._settle(now)
        return int(len(times) - np.count_nonzero(known))

    def _settle(self, now: float) -> None:
        for start in [start for start in self._minutes if start < now - _FINE - _MINUTE]:
            _count(self._hours, start // _HOUR * _HOUR, *self._minutes.pop(start))
        for start in [start for start in self._hours if start < now - PERIOD - _HOUR]:
            del self._hours[start]

    def merge(self, other: Budget) -> None:
        """Counts the requests of another too."""
        for mine, theirs in ((self._minutes, other._minutes), (self._hours, other._hours)):
            for start, counts in theirs.items():
                _count(mine, start, *counts)

    def over(self, window: float, now: float) -> tuple[int, int]:
        """Bad requests and all of them in the `window` seconds before `now`."""
        kept = [counts for start, counts in self._minutes.items() if start > now - window - _MINUTE]
        if window > _FINE:
            kept += [counts for start, counts in self._hours.items() if start > now - window - _HOUR]
        return sum(bad for _, bad in kept), sum(total for total, _ in kept)

    def left(self, now: float) -> float:
        """The share of the period's error budget that is left: 1 untouched, negative overdrawn."""
        return budget_left(*self.over(PERIOD, now), self.may_be_bad)

    def burns(self, now: float) -> tuple[Burn, ...]:
        """How fast it burns, for each pair of `BURN_WINDOWS`."""
        rates = [
            [burn_rate(*self.over(span, now), self.may_be_bad) for span in (pair.long, pair.short)]
            for pair in BURN_WINDOWS
        ]
        return tuple(Burn(pair, long, short) for pair, (long, short) in zip(BURN_WINDOWS, rates, strict=True))

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        parts = {"minutes": self._minutes, "hours": self._hours}
        return {"may_be_bad": self.may_be_bad} | {
            name: [[start, *counts] for start, counts in sorted(part.items())] for name, part in parts.items()
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Budget:
        """What `to_json` gave."""
        found = cls(float(document["may_be_bad"]))
        for name, part in (("minutes", found._minutes), ("hours", found._hours)):
            part.update({int(start): (int(total), int(bad)) for start, total, bad in document[name]})
        return found


def _count(part: dict[int, tuple[int, int]], start: int, total: int, bad: int) -> None:
    before = part.get(start, (0, 0))
    part[start] = before[0] + total, before[1] + bad


@dataclass(frozen=True, slots=True)
class Buckets:
    """A histogram of latencies: upper bounds in seconds, rising, the last one infinite, and how many lie in each bucket."""

    bounds: tuple[float, ...]
    counts: tuple[float, ...]

    @classmethod
    def cumulative(cls, buckets: Sequence[tuple[float, float]]) -> Buckets:
        """From Prometheus' buckets: (`le`, how many at most that)."""
        bounds, running = zip(*sorted(buckets), strict=True)
        return cls(bounds, tuple(np.diff(running, prepend=0.0).tolist()))

    def quantile(self, q: float) -> float:
        """The latency that the share `q` of the requests stays within, as Prometheus' `histogram_quantile` has it: straight
        through the bucket, and the largest finite bound for what lies beyond it. NaN without requests."""
        running = np.cumsum(self.counts)
        if len(self.bounds) < 2 or not running[-1] > 0:
            return math.nan
        rank = q * running[-1]
        place = bisect_left(running[:-1].tolist(), rank)
        if place == len(self.bounds) - 1:
            return self.bounds[-2]
        begin = self.bounds[place - 1] if place else 0.0
        before = running[place - 1] if place else 0.0
        share = (rank - before) / self.counts[place] if self.counts[place] else 0.0
        return float(begin + (self.bounds[place] - begin) * share)

    def slower(self, seconds: float) -> float:
        """How many requests took longer, straight through the bucket in which `seconds` lies; those beyond the largest
        finite bound all count."""
        place = bisect_left(self.bounds, seconds)
        if place == len(self.bounds) - 1:
            return self.counts[-1]
        begin = self.bounds[place - 1] if place else 0.0
        within = self.counts[place] * (self.bounds[place] - seconds) / (self.bounds[place] - begin)
        return within + sum(self.counts[place + 1 :])
