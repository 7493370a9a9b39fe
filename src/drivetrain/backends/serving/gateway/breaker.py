"""When a replica is left alone: after several failures in a row, for a while, until a trial request succeeds.

Pure: the time is passed in, in seconds of any steady clock.
"""

from __future__ import annotations

from enum import Enum


class State(Enum):
    """`CLOSED` lets requests through, `OPEN` none, `HALF_OPEN` the one that tries whether the replica answers again."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class Breaker:
    """Opens after `failures` failures in a row, for `pause` seconds, doubled each time a trial fails, up to `longest`."""

    __slots__ = ("_failures", "_limit", "_longest", "_pause", "_shortest", "_trial", "_until", "state")

    def __init__(self, failures: int = 5, pause: float = 0.5, longest: float = 15.0) -> None:
        self.state = State.CLOSED
        self._limit = failures
        self._shortest = self._pause = pause
        self._longest = longest
        self._failures = 0
        self._until = 0.0
        self._trial = False

    def allows(self, now: float) -> bool:
        """Whether a request may be sent now. Changes nothing but an open breaker whose pause is over: it is half open then."""
        if self.state is State.CLOSED:
            return True
        if self.state is State.OPEN and now >= self._until:
            self.state = State.HALF_OPEN
            self._trial = False
        return self.state is State.HALF_OPEN and not self._trial

    def opens_at(self, now: float) -> float:
        """When the next trial is allowed; now, if requests are."""
        return max(now, self._until) if self.state is State.OPEN else now

    def sent(self) -> None:
        """A request goes out; in a half-open breaker it is the trial."""
        if self.state is State.HALF_OPEN:
            self._trial = True

    def succeeded(self) -> None:
        """The replica answered."""
        self.state = State.CLOSED
        self._failures = 0
        self._pause = self._shortest

    def failed(self, now: float) -> None:
        """The replica did not answer, or broke off."""
        self._failures += 1
        if self.state is State.HALF_OPEN:
            self._pause = min(self._pause * 2, self._longest)
        elif self.state is State.OPEN or self._failures < self._limit:
            return
        self.state = State.OPEN
        self._until = now + self._pause

    def abandoned(self) -> None:
        """A request ended without telling anything of the replica (its client went, its deadline passed): the next is the trial."""
        self._trial = False
