"""How many requests a revision has had in flight, as a time-weighted mean. Pure: the time is passed in."""

from __future__ import annotations


class Load:
    """Requests in flight, waiting ones included."""

    __slots__ = ("_area", "_arrivals", "_changed", "_sampled", "now")

    def __init__(self, now: float) -> None:
        self.now = 0
        """How many there are at this moment."""
        self._area = 0.0
        self._arrivals = 0
        self._changed = self._sampled = now

    def enter(self, now: float) -> None:
        """A request has come."""
        self._area += self.now * (now - self._changed)
        self._changed = now
        self._arrivals += 1
        self.now += 1

    def leave(self, now: float) -> None:
        """A request has its answer, or its client has gone."""
        self._area += self.now * (now - self._changed)
        self._changed = now
        self.now -= 1

    def sample(self, now: float) -> tuple[float, float]:
        """Since the last sample: the mean number in flight, and requests per second."""
        self._area += self.now * (now - self._changed)
        span = now - self._sampled
        mean, rate = (self._area / span, self._arrivals / span) if span > 0 else (float(self.now), 0.0)
        self._area, self._arrivals = 0.0, 0
        self._changed = self._sampled = now
        return mean, rate
