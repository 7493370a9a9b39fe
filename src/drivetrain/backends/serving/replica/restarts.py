"""How long to wait before a dead worker is started again, and when to give it up."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Restarts:
    """At once after the first death, then ever later up to `longest`; one that has served for `forgives` seconds starts afresh. A worker
    that dies `chances` times in a row before it is ready is given up."""

    first: float = 0.05
    longest: float = 10.0
    forgives: float = 30.0
    chances: int = 5
    _deaths: int = 0
    _unready: int = 0
    _ready_since: float | None = None

    def ready(self, now: float) -> None:
        """It has come up."""
        self._ready_since = now
        self._unready = 0

    def died(self, now: float) -> float | None:
        """Seconds until it should be started again; None if it has had its chances."""
        if self._ready_since is None:
            self._unready += 1
        elif now - self._ready_since >= self.forgives:
            self._deaths = 0
        self._ready_since = None
        self._deaths += 1
        if self._unready >= self.chances:
            return None
        return min(self.longest, self.first * 2.0 ** (self._deaths - 1))
