"""One revision in the gateway: what it is made of, its replicas, and what keeps their number right."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

from drivetrain.backends.serving.gateway import processes
from drivetrain.backends.serving.gateway.metrics import OfRevision
from drivetrain.backends.serving.gateway.pool import Pool, Room
from drivetrain.backends.serving.gateway.processes import Launch
from drivetrain.backends.serving.gateway.replicas import Outside, Replicas, Started
from drivetrain.backends.serving.gateway.scaling import Scaler
from drivetrain.backends.serving.gateway.settings import Settings
from drivetrain.backends.serving.gateway.sockets import Sockets
from drivetrain.backends.serving.gateway.state import Source

NAMES = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""What a revision may be called: it becomes part of file names."""


class Revision:
    """A `Scalable`. It starts with no replicas."""

    def __init__(
        self, name: str, source: Source, settings: Settings, sockets: Sockets, room: Room, numbers: OfRevision
    ) -> None:
        loop = asyncio.get_running_loop()
        self.name = name
        self.source = source
        self.pool = Pool(name, room, numbers, loop)
        self.log = Path(settings.home) / f"{settings.name}-{name}.log"
        self._settings = settings
        self._loop = loop
        self._replicas = self._keeper(sockets)
        self._scaling: asyncio.Task[None] | None = None
        self._scaler: Scaler | None = None
        self._follows = False

    @property
    def ready(self) -> int:
        """Replicas that answer."""
        return self.pool.ready

    @property
    def wanted(self) -> int:
        """Replicas that there should be."""
        return self._replicas.wanted

    @property
    def state(self) -> str:
        """`ready`, `asleep` (nothing runs, the next request wakes it), `failed` (its replicas do not come up) or `starting`."""
        if self.ready:
            return "ready"
        if self.pool.failure is not None:
            return "failed"
        return "starting" if self.wanted else "asleep"

    def sample(self, now: float) -> tuple[float, float]:
        """Since the last sample: mean of the requests in flight, waiting ones included, and requests per second."""
        return self.pool.load.sample(now)

    def scale(self, wanted: int) -> None:
        """Starts or drains replicas until there are so many; returns at once."""
        self._replicas.scale(wanted)

    def follow_load(self) -> None:
        """From now on there are as many replicas as the load asks for."""
        bounds = self._settings.scaling
        if self._scaling is not None or isinstance(self._replicas, Outside):
            return
        self._follows = True
        self.scale(min(max(self.wanted, bounds.min, 1), bounds.max))
        if bounds.min == bounds.max:
            return
        self._scaler = Scaler(bounds, self, self._loop.time, self.name)
        self.pool.wake = self._scaler.poke
        self._scaling = self._loop.create_task(self._scaler.run())

    def rebound(self, settings: Settings) -> None:
        """Follows the load within the bounds of these settings from now on, if it follows it at all."""
        self._settings = settings
        if self._follows:
            self._unfollow()
            self.follow_load()

    async def reach(self, replicas: int) -> str | None:
        """Waits until so many are ready, starting what is missing. Says why they are not, if it does not come to that.

        Where the autoscaler wants fewer meanwhile, fewer are enough.
        """
        if self.wanted < replicas:
            self.scale(replicas)
        within = self._settings.ready_within + 5.0

        def enough() -> bool:
            return self.ready >= min(replicas, self.wanted)

        await self.pool.until(lambda: enough() or self.pool.failure is not None, within)
        if enough():
            return None
        return self.pool.failure or f"it was not ready within {within:g} s"

    def log_tail(self) -> str:
        """The end of what its replicas have printed."""
        return processes.tail(self.log)

    async def close(self, *, drain: bool = True) -> None:
        """Ends its replicas, with `drain` when they have answered what they have in hand, and waits for that."""
        self._unfollow()
        await self._replicas.close(drain=drain)
        self.pool.refuse_all(f"revision {self.name} has been taken out of traffic")

    def _unfollow(self) -> None:
        if self._scaling is not None:
            self._scaling.cancel()
            self._scaling = None
            self.pool.wake = lambda: None

    def _keeper(self, sockets: Sockets) -> Replicas:
        url = self._settings.upstreams.get(self.name)
        if url is not None:
            return Outside(self.pool, url)
        return Started(self.pool, Launch(self._settings, self.source, self.log), sockets, self._settings.timeout)
