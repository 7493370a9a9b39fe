"""Service level objectives: how fast the error budget may burn, and what is left of it.

The alerts are those of the Site Reliability Workbook (Beyer et al. 2018, chapter 5, "Multiwindow, multi-burn-rate alerts"):
a burn rate of 1 uses the budget up in exactly the period; one alerts if it burns too fast over a long window, so that it
matters, and still over a short one, so that it is not over yet.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

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


def budget_left(bad: float, total: float, may_be_bad: float) -> float:
    """The share of the error budget that is left after so many requests, one at least: 1 untouched, negative overdrawn."""
    return 1.0 - bad / total / may_be_bad


_HOUR = 3_600


class Budget:
    """Requests of a period and how many were bad, by hours: some seven hundred pairs of numbers, however many requests."""

    __slots__ = ("_hours", "may_be_bad")

    def __init__(self, may_be_bad: float) -> None:
        """Of an objective that allows this share of bad requests."""
        self.may_be_bad = may_be_bad
        self._hours: dict[int, tuple[float, float]] = {}

    def count(self, at: float, total: float, bad: float) -> None:
        """Adds requests that were answered at `at`, in seconds since the epoch, which goes on; what lies after it is forgotten, as the
        clock was set back."""
        start = int(at // _HOUR) * _HOUR
        before = self._hours.get(start, (0.0, 0.0))
        self._hours[start] = before[0] + total, before[1] + bad
        for gone in [known for known in self._hours if not at - PERIOD - _HOUR < known <= at]:
            del self._hours[gone]

    def left(self, now: float) -> float | None:
        """The share of the period's error budget that is left: 1 untouched, negative overdrawn; None if nothing was asked. The period
        begins with a whole hour."""
        kept = [counts for start, counts in self._hours.items() if now - PERIOD - _HOUR < start <= now]
        total, bad = sum(total for total, _ in kept), sum(bad for _, bad in kept)
        return budget_left(bad, total, self.may_be_bad) if total > 0 else None

    def to_json(self) -> list[tuple[int, float, float]]:
        """Its hours, for `restore`."""
        return [(start, *counts) for start, counts in sorted(self._hours.items())]

    def restore(self, hours: Iterable[Sequence[float]]) -> None:
        """Takes up what `to_json` gave. Raises `ValueError` or `TypeError` for anything else."""
        self._hours = {int(start): (float(total), float(bad)) for start, total, bad in hours}
