"""When to begin a batch: at once with what is there, unless company is known to be on its way.

What has arrived while the model was busy is computed together; that alone makes batches under load, and costs nobody anything. Waiting for
more pays only if those who were just answered ask again soon, which is what a fixed number of clients does. So after each batch the policy
expects as many calls as were answered, beside those that already wait, and holds the next batch for them: for half the time that a batch
takes to compute, and never longer than `wait`. A single client is thus never held; where holding does not bring the expected company (calls
that come by chance, not in return), it is given up, and tried again now and then.

The clock is passed in; nothing here waits.
"""

from __future__ import annotations

from dataclasses import dataclass, field

_SMOOTHED = 0.2
_SHARE = 0.5
"""Of a batch's own time, how much is worth waiting for it to grow."""
_PAID = 0.75
"""Share of the missing calls that has to come for a hold to count as a success."""
_TRY_AGAIN = 16
"""Holds passed over after failures before another one is tried."""


@dataclass(slots=True)
class Company:
    """The policy's memory. `most` calls make a full batch; `wait` in seconds, as all times here."""

    most: int
    wait: float
    cost: float = 0.0
    """What a batch has taken lately."""
    luck: float = 1.0
    """Share of recent holds that brought the company they were for."""
    _expected: int = 0
    _ended: float = field(default=float("-inf"))
    _held_at: int | None = None
    _passed: int = 0

    def hold(self, now: float, waiting: int) -> float:
        """For how many seconds to hold a batch of `waiting` calls; 0 to begin it."""
        if waiting >= self._expected or waiting >= self.most:
            return 0.0
        left = self._ended + min(self.wait, _SHARE * self.cost) - now
        if left <= 0.0:
            return 0.0
        if self._held_at is None:
            if self.luck < 0.5 and self._passed < _TRY_AGAIN:
                self._passed += 1
                self._expected = 0  # this batch begins as it is
                return 0.0
            self._held_at = waiting
            self._passed = 0
        return left

    def began(self, waiting: int) -> None:
        """A batch begins, while so many calls are there: tells what holding it has brought."""
        if self._held_at is not None:
            missing = min(self._expected, self.most) - self._held_at
            success = waiting - self._held_at >= _PAID * missing
            self.luck += _SMOOTHED * (success - self.luck)
            self._held_at = None

    def ended(self, now: float, took: float, answered: int, waiting: int) -> None:
        """A batch was computed in `took` seconds, its answers are on their way, and so many calls have come meanwhile."""
        self.cost = took if self.cost == 0.0 else self.cost + _SMOOTHED * (took - self.cost)
        self._ended = now
        self._expected = min(self.most, answered + waiting)
