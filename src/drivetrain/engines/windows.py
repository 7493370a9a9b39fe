"""Averages and maxima over sliding windows of time, as Knative's autoscaler computes them. Times are seconds of any one clock."""

from __future__ import annotations

import math
from collections import deque

_LEAST_COEFFICIENT = 0.2
_WEIGHTS_SUM = 0.9999
_DIGITS = 6


class Buckets:
    """Sums by bucket of `granularity` seconds, over the last `window` seconds.

    A gap shorter than the window counts as zeros. After a longer one everything starts anew: the average is then over the part of
    the window since the first value, so that a service that wakes up is scaled by what it gets, not by how long it had slept.
    """

    __slots__ = ("_buckets", "_first", "_last", "_total", "coefficient", "granularity", "window")

    def __init__(self, window: float, granularity: float = 1.0) -> None:
        self.window = window
        self.granularity = granularity
        count = math.ceil(window / granularity)
        self.coefficient = smoothing(count)
        self._buckets = [0.0] * count
        self._first: int | None = None
        self._last: int | None = None
        self._total = 0.0

    def record(self, now: float, value: float) -> None:
        """Adds `value` to the bucket of `now`; one that is older than the window is ignored."""
        index = int(now // self.granularity)
        last = self._last
        if index != last:
            if last is not None and (last - index) * self.granularity >= self.window:
                return
            if self._first is None or index < self._first:
                self._first = index
            if last is None or index > last:
                self._advance(index, last)
        self._buckets[index % len(self._buckets)] += value
        self._total += value

    def _advance(self, index: int, last: int | None) -> None:
        buckets = self._buckets
        count = len(buckets)
        if last is None or (index - last) * self.granularity >= self.window:
            self._first = index
            self._buckets = [0.0] * count
            self._total = 0.0
        else:
            for skipped in range(last + 1, index + 1):
                self._total -= buckets[skipped % count]
                buckets[skipped % count] = 0.0
        self._last = index

    def empty(self, now: float) -> bool:
        """Whether nothing was recorded for longer than the window."""
        if self._last is None:
            return True
        return (int(now // self.granularity) - self._last) * self.granularity > self.window

    def mean(self, now: float) -> float:
        """The plain average of the buckets, rounded to six decimals; 0 if there was nothing for a window."""
        last, first, count = self._last, self._first, len(self._buckets)
        if last is None or first is None:
            return 0.0
        index = int(now // self.granularity)
        if index <= last:
            return rounded(self._total / min(last - first + 1, count))
        gap = index - last
        if gap * self.granularity >= self.window:
            return 0.0
        total = self._total
        for expired in range(last + 1, index + 1):
            total -= self._buckets[expired % count]
        return rounded(total / min(last - first + 1, count - gap))

    def weighted_mean(self, now: float) -> float:
        """The average with weights that fall exponentially with age (`coefficient` is that of the newest bucket); not rounded."""
        last = self._last
        if last is None or self.empty(now):
            return 0.0
        weight, count = self.coefficient, len(self._buckets)
        gap = max(0, int(now // self.granularity) - last)
        if gap:
            weight *= math.pow(1 - self.coefficient, gap)
        found = 0.0
        for age in range(count - gap):
            found += self._buckets[(last - age) % count] * weight
            weight *= 1 - self.coefficient
        return found

    def resize(self, window: float, now: float) -> None:
        """Changes the window and keeps the newest buckets; what is older than the former window by `now` is dropped."""
        if window == self.window:
            return
        former, last = self._buckets, self._last
        count = math.ceil(window / self.granularity)
        buckets, total = [0.0] * count, 0.0
        if last is None or self.empty(now):
            self._first = None
        else:
            for index in range(last, last - min(count, len(former)), -1):
                buckets[index % count] = former[index % len(former)]
                total += former[index % len(former)]
            self._first = last - (len(former) - 1)
        self.window, self.coefficient = window, smoothing(count)
        self._buckets, self._total = buckets, total

    def values(self, now: float) -> list[float]:
        """The sums by bucket, newest first, without those that have left the window by `now`."""
        if self._last is None:
            return []
        count = len(self._buckets)
        gap = max(0, int(now // self.granularity) - self._last)
        return [self._buckets[(self._last - age) % count] for age in range(count - gap)]


class Peak:
    """The largest value of the last `slots` slots; slots are numbered by the caller and never go back."""

    __slots__ = ("_falling", "slots")

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._falling: deque[tuple[int, int]] = deque()

    def record(self, slot: int, value: int) -> int:
        """Notes a value, and gives the largest of those that count."""
        falling = self._falling
        # A value that is older and no larger can never be the maximum again.
        while falling and falling[-1][1] <= value:
            falling.pop()
        while falling and slot - falling[0][0] >= self.slots:
            falling.popleft()
        if not falling or falling[-1][0] != slot:
            falling.append((slot, value))
        return falling[0][1]


def smoothing(count: int) -> float:
    """The weight of the newest of `count` buckets: all weights sum up to 0.9999, and it is never under 0.2."""
    return max(1 - math.pow(1 - _WEIGHTS_SUM, 1 / count), _LEAST_COEFFICIENT)


def rounded(value: float, digits: int = _DIGITS) -> float:
    """Half away from zero, as Go rounds; hides what adding and taking away in floating point leaves behind."""
    scale = math.pow(10, digits)
    scaled = value * scale
    whole = math.trunc(scaled)
    if abs(scaled - whole) >= 0.5:
        whole += 1 if scaled > 0 else -1
    return whole / scale
