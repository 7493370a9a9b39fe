"""One replica as the gateway sees it: where it is, what it has in hand, and whether it is to get more."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING

from drivetrain.backends.serving.gateway.breaker import Breaker, State
from drivetrain.backends.serving.http.client import Client

if TYPE_CHECKING:
    from drivetrain.backends.serving.gateway.pool import Pool

_PAUSE, _LONGEST_PAUSE = 0.002, 0.25
_GROWTH = 64
"""So many answers in a row, without a word of being busy, raise a learned limit."""


class Upstream:
    """A replica.

    Cog's own server answers 409 beyond its slots and does not say how many it has: how many requests it takes is learned from that.
    A replica that cannot take any rests for a moment, longer each time.
    """

    __slots__ = (
        "_answers", "_emptied", "_limit", "_pause", "_resting", "breaker", "client", "in_flight", "leaving", "name", "pool", "ready",
    )  # fmt: skip

    def __init__(self, name: str, client: Client, pool: Pool) -> None:
        self.name = name
        self.client = client
        self.pool = pool
        self.breaker = Breaker()
        self.in_flight = 0
        self.ready = False
        """Whether it said so when it was last asked for its health."""
        self.leaving = False
        self._limit: int | None = None
        self._answers = 0
        self._pause = _PAUSE
        self._resting = 0.0
        self._emptied: asyncio.Event | None = None

    def takes(self, now: float) -> bool:
        """Whether a request may be sent now."""
        if not self.ready or self._resting > now or (self._limit is not None and self.in_flight >= self._limit):
            return False
        return self.breaker.state is State.CLOSED or self.breaker.allows(now)

    def free_at(self, now: float) -> float | None:
        """When a request may be sent, if that is a matter of time and not of other requests' answers."""
        if not self.ready or (self._limit is not None and self.in_flight >= self._limit):
            return None
        if not self.breaker.allows(now) and self.breaker.state is State.HALF_OPEN:
            return None
        return max(self._resting, self.breaker.opens_at(now))

    def sent(self) -> None:
        """A request goes out."""
        self.in_flight += 1
        if self.breaker.state is not State.CLOSED:
            self.breaker.sent()

    def succeeded(self) -> None:
        """It has answered."""
        self._release()
        self.breaker.succeeded()
        self._resting, self._pause = 0.0, _PAUSE
        if self._limit is not None:
            self._answers += 1
            if self._answers >= _GROWTH:
                self._answers = 0
                self._limit += max(1, self._limit // 8)

    def busy(self, now: float, learn: bool) -> None:
        """It has not taken the request. `learn`: because of those that it has in hand."""
        self._release()
        self.breaker.succeeded()
        self._answers = 0
        # One that frees its slot a little after its answer refuses the next, with nothing in hand: all that wait, sent to it at once
        # after its rest, would be refused again but for one, and have lost a try each.
        self._limit = max(1, self.in_flight) if learn else None
        if not learn or not self.in_flight:
            self._rest(now)

    def unreachable(self, now: float) -> None:
        """There was no connection to be had."""
        self._release()
        self.breaker.failed(now)
        self._rest(now)

    def failed(self, now: float) -> None:
        """It did not answer, or broke off."""
        self._release()
        self.breaker.failed(now)

    def abandoned(self) -> None:
        """Nobody waits for its answer any more."""
        self._release()
        self.breaker.abandoned()

    async def emptied(self, within: float) -> bool:
        """Waits until it has nothing in hand; False if that takes longer."""
        if self.in_flight == 0:
            return True
        self._emptied = asyncio.Event()
        try:
            async with asyncio.timeout(within):
                await self._emptied.wait()
        except TimeoutError:
            return False
        return True

    def _rest(self, now: float) -> None:
        self._resting = now + self._pause
        self._pause = min(self._pause * 2, _LONGEST_PAUSE)

    def _release(self) -> None:
        self.in_flight -= 1
        if self._emptied is not None and self.in_flight == 0:
            self._emptied.set()


class Holders:
    """Which replica has which prediction, the latest of them, so that a second PUT or a cancel goes where the first went."""

    def __init__(self, most: int = 10_000) -> None:
        self._most = most
        self._held: OrderedDict[str, Upstream] = OrderedDict()

    def put(self, prediction: str, upstream: Upstream) -> None:
        """The prediction has gone to that replica."""
        self._held[prediction] = upstream
        self._held.move_to_end(prediction)
        if len(self._held) > self._most:
            self._held.popitem(last=False)

    def find(self, prediction: str) -> Upstream | None:
        """The replica that has it, if it is known and still there."""
        found = self._held.get(prediction)
        return found if found is not None and found.ready and not found.leaving else None
