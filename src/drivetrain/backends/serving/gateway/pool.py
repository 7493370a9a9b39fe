"""The replicas of one revision, and the requests that wait until one of them can take them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol

from drivetrain.backends.serving.gateway.load import Load
from drivetrain.backends.serving.gateway.metrics import OfRevision
from drivetrain.backends.serving.gateway.upstreams import Upstream

_TICK = 0.02
"""Seconds between looks at the deadlines of waiting requests."""


class Waiter(Protocol):
    """A request that wants a replica."""

    deadline: float
    preferred: Upstream | None
    patient: bool

    def send(self, upstream: Upstream) -> None:
        """Goes to that replica."""
        ...

    def refuse(self, status: int, reason: str, retry_after: float | None = None) -> None:
        """Ends with the gateway's own answer."""
        ...

    def move(self, pool: Pool) -> None:
        """Goes to another revision."""
        ...


class Room:
    """How many requests of a service may wait, all of its revisions together."""

    __slots__ = ("places", "taken")

    def __init__(self, places: int) -> None:
        self.places = places
        self.taken = 0


class Pool:
    """Sends a request to the replica with the fewest in flight, or keeps it until there is one, its deadline passes, or its client goes.

    `wake` is called when a request waits while nothing is ready.
    """

    def __init__(self, revision: str, room: Room, numbers: OfRevision, loop: asyncio.AbstractEventLoop) -> None:
        self.revision = revision
        self.numbers = numbers
        self.mark = (b"x-drivetrain-revision", revision.encode())
        self.upstreams: list[Upstream] = []
        self.load = Load(loop.time())
        self.failure: str | None = None
        """Why no replica came up the last time that one was started; None when one has since."""
        self.wake: Callable[[], None] = lambda: None
        self._room = room
        self._loop = loop
        self._queue: deque[Waiter] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._news = asyncio.Event()
        self._successor: Callable[[Waiter], None] | None = None

    @property
    def ready(self) -> int:
        """Replicas that answer."""
        return sum(1 for upstream in self.upstreams if upstream.ready)

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return len(self._queue)

    def submit(self, waiter: Waiter) -> None:
        """Sends the request, now or when there is a replica for it."""
        if not self._queue and (upstream := self._choose(waiter)) is not None:
            waiter.send(upstream)
        else:
            self._keep(waiter, first=False)

    def resubmit(self, waiter: Waiter) -> None:
        """Sends a request that a replica has not taken, before those that came later."""
        if (upstream := self._choose(waiter)) is not None:
            waiter.send(upstream)
        else:
            self._keep(waiter, first=True)

    def forget(self, waiter: Waiter) -> None:
        """The request does not wait any more."""
        if waiter in self._queue:
            self._queue.remove(waiter)
            self._room.taken -= 1

    def pump(self) -> None:
        """Sends those that wait and can go: called whenever a replica may have become free."""
        while self._queue and (upstream := self._choose(self._queue[0])) is not None:
            self._room.taken -= 1
            self._queue.popleft().send(upstream)
        if self._queue:
            self._arm()

    def join(self, upstream: Upstream) -> None:
        """A replica has become ready for the first time."""
        self.upstreams.append(upstream)
        self.failure = None
        self.turned(upstream, ready=True)

    def turned(self, upstream: Upstream, *, ready: bool) -> None:
        """What a replica says of its health has changed."""
        upstream.ready = ready
        self.pump()
        self.notify()

    def leave(self, upstream: Upstream) -> None:
        """A replica gets no more requests."""
        upstream.ready, upstream.leaving = False, True
        if upstream in self.upstreams:
            self.upstreams.remove(upstream)
        self.notify()

    def failed(self, reason: str) -> None:
        """A replica did not come up: if there is no other, nobody is kept waiting for one."""
        if not self.upstreams:
            self.failure = reason
            self.refuse_all(f"revision {self.revision} does not come up: {reason}")
        self.notify()

    def hand_over(self, successor: Callable[[Waiter], None]) -> None:
        """From now on requests that would have to wait go to `successor`."""
        self._successor = successor
        waiting = list(self._queue)
        self._room.taken -= len(waiting)
        self._queue.clear()
        for waiter in waiting:
            successor(waiter)

    def refuse_all(self, reason: str) -> None:
        """Answers those that wait."""
        while self._queue:
            self._room.taken -= 1
            self._queue.popleft().refuse(503, reason, 5.0)

    def notify(self) -> None:
        """Has those that wait in `until` look again."""
        self._news.set()
        self._news = asyncio.Event()

    async def until(self, condition: Callable[[], bool], within: float) -> bool:
        """Waits for a change after which the condition holds; False if that takes longer."""
        try:
            async with asyncio.timeout(within):
                while not condition():
                    await self._news.wait()
        except TimeoutError:
            return False
        return True

    def _choose(self, waiter: Waiter) -> Upstream | None:
        now = self._loop.time()
        preferred = waiter.preferred
        if preferred is not None and preferred.takes(now):
            return preferred
        best: Upstream | None = None
        for upstream in self.upstreams:
            if (best is None or upstream.in_flight < best.in_flight) and upstream.takes(now):
                best = upstream
        return best

    def _keep(self, waiter: Waiter, *, first: bool) -> None:
        if not waiter.patient:
            waiter.refuse(503, "no replica is free")
            return
        if self._successor is not None:
            self._successor(waiter)
            return
        if self.failure is not None and not self.upstreams:
            self.wake()
            waiter.refuse(503, f"revision {self.revision} does not come up: {self.failure}", 5.0)
            return
        if self._room.taken >= self._room.places:
            waiter.refuse(503, "too many requests are waiting", 1.0)
            return
        self._room.taken += 1
        if first:
            self._queue.appendleft(waiter)
        else:
            self._queue.append(waiter)
        if not self.ready:
            self.wake()
        self._arm()

    def _arm(self) -> None:
        """Looks again when a replica's rest is over; at the latest in a tick, for the deadlines."""
        now = self._loop.time()
        times = [at for upstream in self.upstreams if (at := upstream.free_at(now)) is not None]
        at = max(min([now + _TICK, *times]), now + 0.001)
        if self._timer is None or at < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = at
            self._timer = self._loop.call_at(at, self._look)

    def _look(self) -> None:
        self._timer = None
        now = self._loop.time()
        for waiter in [waiter for waiter in self._queue if waiter.deadline <= now]:
            self.forget(waiter)
            waiter.refuse(504, "the deadline has passed before a replica could take the request")
        self.pump()
