"""Tumbling windows of event time: which window an event belongs to, whether it is still open, and which events came twice.

A window [start, start + length) takes events until the watermark has reached its end. The watermark is the latest time that an event
has had so far, less the lateness that is allowed. So what an event counts for depends on the order of the events alone: not on
when, or in portions of which size, they are looked at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

ON_TIME, LATE, FUTURE = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Windows:
    """Windows of `length` seconds, aligned to the epoch (a day's begin at midnight UTC), that wait `late` seconds for stragglers."""

    length: float
    late: float

    def starts(self, at: np.ndarray) -> np.ndarray:
        """The start of the window that each time falls into."""
        found: np.ndarray = np.floor(at / self.length) * self.length
        return found

    def start(self, at: float) -> float:
        """The start of the window that a time falls into."""
        return math.floor(at / self.length) * self.length

    def is_closed(self, start: float, latest: float) -> bool:
        """Whether the window takes no more, once an event of the time `latest` has been seen."""
        return start + self.length <= latest - self.late

    def placed(self, at: np.ndarray, latest: float, now: float) -> Placed:
        """Places events, in the order in which they came, that follow on events up to the time `latest`.

        One that is ahead of `now` by more than the lateness is of a clock that is wrong: it is marked, and does not move the
        watermark, since everything else would come late after it.
        """
        future = ~(at <= now + self.late)
        reached = np.maximum.accumulate(np.concatenate(([latest], np.where(future, -np.inf, at))))
        before = reached[:-1]
        closed = self.starts(at) + self.length <= before - self.late
        verdict = np.where(future, FUTURE, np.where(closed, LATE, ON_TIME)).astype(np.int8)
        return Placed(verdict, before, float(reached[-1]))


@dataclass(frozen=True, slots=True)
class Placed:
    """`verdict` is ON_TIME, LATE or FUTURE for each event, `before` the latest time seen before each, `latest` that after all."""

    verdict: np.ndarray
    before: np.ndarray
    latest: float


def identity(*parts: str) -> int:
    """64 bits that stand for the parts: two different ones agree once in 10^19."""
    return int.from_bytes(blake2b("\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


class Seen:
    """Which identities have been seen, of the last `capacity` ones at most and at least half as many: 8 bytes for each.

    It is the same again if it is given the same arrays in the same order.
    """

    def __init__(self, capacity: int) -> None:
        self._half = max(1, capacity // 2)
        self._former: list[np.ndarray] = []
        self._current: list[np.ndarray] = []
        self._count = 0
        self.forgotten = 0
        """How often the older half has been let go."""

    def first(self, identities: np.ndarray) -> np.ndarray:
        """Whether each is seen for the first time, within the array too; all of them count as seen from now on."""
        values, places = np.unique(identities, return_index=True)
        known = np.zeros(len(values), dtype=bool)
        for run in (*self._former, *self._current):
            known |= _among(values, run)
        new = np.zeros(len(identities), dtype=bool)
        new[places[~known]] = True
        self._keep(values[~known])
        return new

    def _keep(self, values: np.ndarray) -> None:
        """`values` are sorted, and not among those that are kept."""
        if self._count + len(values) > self._half and self._current:
            self._former, self._current, self._count = self._current, [], 0
            self.forgotten += 1
        if len(values):
            self._current.append(values)
            self._count += len(values)
        # Runs of a few lengths only, as a merge sort keeps them: a look-up in each is quick.
        while len(self._current) > 1 and 2 * len(self._current[-1]) > len(self._current[-2]):
            self._current[-2:] = [np.sort(np.concatenate(self._current[-2:]), kind="stable")]


def _among(values: np.ndarray, run: np.ndarray) -> np.ndarray:
    """Whether each of the values is in the sorted run."""
    places = np.searchsorted(run, values)
    found: np.ndarray = run[np.minimum(places, len(run) - 1)] == values
    return found


def identities(keys: Sequence[int]) -> np.ndarray:
    """The array that `Seen` takes."""
    return np.array(keys, dtype=np.uint64)
