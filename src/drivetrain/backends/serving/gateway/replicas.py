"""The replicas of one revision: as many processes as are wanted, started again when they die, drained before they end."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Protocol

from drivetrain.backends.serving.gateway import health, processes
from drivetrain.backends.serving.gateway.pool import Pool
from drivetrain.backends.serving.gateway.processes import Launch, Process
from drivetrain.backends.serving.gateway.sockets import Sockets
from drivetrain.backends.serving.gateway.upstreams import Upstream
from drivetrain.backends.serving.http.client import Address, Client, parse

log = logging.getLogger(__name__)

_ASKED_EVERY, _ANSWERED_WITHIN = 0.5, 1.0
_HUNG_AFTER = 4
"""So many questions in a row without an answer, and the replica is killed."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 30.0
_STEADY = 10.0
"""A replica that has been ready for so long has not failed to start: the next one is started at once again."""
_ENDED_WITHIN = 10.0
_CONNECTIONS = 1024
_LARGEST_ANSWER = 256 * 1024**2


class Replicas(Protocol):
    """What keeps a pool filled."""

    wanted: int

    def scale(self, wanted: int) -> None:
        """Starts or drains replicas until there are so many; returns at once."""
        ...

    async def close(self, *, drain: bool) -> None:
        """Ends all of them, with `drain` when they have answered what they have in hand, and waits for that."""
        ...


class Started:
    """Replicas that are processes of this gateway. `sockets` is where they listen; `patience` is how long a drained one may take."""

    def __init__(self, pool: Pool, launch: Launch, sockets: Sockets, patience: float) -> None:
        self.wanted = 0
        self._pool = pool
        self._launch = launch
        self._sockets = sockets
        self._patience = patience
        self._slots: list[_Slot] = []
        self._leaving: set[asyncio.Task[None]] = set()

    def scale(self, wanted: int) -> None:
        """Starts or drains replicas until there are so many; returns at once."""
        self.wanted = wanted
        if not self._slots:
            self._pool.failure = None
        while len(self._slots) < wanted:
            self._slots.append(_Slot(self._pool, self._launch, self._sockets.take(), self._patience))
        while len(self._slots) > wanted:
            # One that is not ready has nothing to lose; of the others the youngest.
            slot = min(reversed(self._slots), key=lambda slot: slot.ready)
            self._slots.remove(slot)
            self._leaving.add(slot.task)
            slot.task.add_done_callback(self._leaving.discard)
            slot.leave()
        self._pool.notify()

    async def close(self, *, drain: bool) -> None:
        """Ends all of them, with `drain` when they have answered what they have in hand, and waits for that."""
        if not drain:
            for slot in self._slots:
                slot.patience = 0.0
        self.scale(0)
        if self._leaving:
            await asyncio.wait(self._leaving)


class _Slot:
    """A place for one replica: the process in it is replaced when it dies."""

    def __init__(self, pool: Pool, launch: Launch, socket: Path, patience: float) -> None:
        self._name = socket.stem
        self._pool = pool
        self._launch = launch
        self._socket = socket
        self.patience = patience
        self._left = asyncio.Event()
        self._upstream: Upstream | None = None
        self._ready_at: float | None = None
        self.task = asyncio.get_running_loop().create_task(self._keep())

    @property
    def ready(self) -> bool:
        return self._upstream is not None and self._upstream.ready

    def leave(self) -> None:
        """Has the replica drained and ended."""
        self._left.set()
        if self._upstream is not None:
            self._pool.leave(self._upstream)

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        pause = _FIRST_PAUSE
        while not self._left.is_set():
            self._ready_at = None
            try:
                failure = await self._live()
            except OSError as error:
                failure = f"its process cannot be started: {error}"
            if self._left.is_set():
                return
            if failure is not None:
                log.error("%s, replica %s: %s", self._pool.revision, self._name, failure)
                self._pool.failed(failure)
            if self._ready_at is not None and loop.time() - self._ready_at > _STEADY:
                pause = _FIRST_PAUSE
            await self._rest(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def _live(self) -> str | None:
        """One process from its start to its end. Says why it did not become ready, or why it will not be so again."""
        process = await processes.start(self._launch, self._socket)
        client = _client(Address(path=str(self._socket)))
        upstream = Upstream(self._name, client, self._pool)
        try:
            failure = await self._await_ready(process, client)
            if failure is None and not self._left.is_set():
                self._upstream = upstream
                self._ready_at = asyncio.get_running_loop().time()
                self._pool.join(upstream)
                failure = await self._watch(process, upstream)
            return failure
        finally:
            self._pool.leave(upstream)
            self._upstream = None
            await self._end(process, upstream)

    async def _await_ready(self, process: Process, client: Client) -> str | None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._launch.settings.ready_within
        while not self._left.is_set():
            said = await health.ask(client, _ANSWERED_WITHIN)
            if said.ready:
                return None
            if said.failed:
                return f"its setup failed: {said.reason or 'no reason given'}"
            if process.ended.done():
                return f"its process ended with code {process.ended.result()}"
            if loop.time() > deadline:
                return f"it was not ready within {self._launch.settings.ready_within:g} s"
            await self._either(process, 0.02)
        return None

    async def _watch(self, process: Process, upstream: Upstream) -> str | None:
        """Returns when the process has ended, hangs, or is to leave; or when it lives but has given its model up, and then says why."""
        misses = 0
        while not self._left.is_set() and not process.ended.done():
            await self._either(process, _ASKED_EVERY)
            if process.ended.done() or self._left.is_set():
                break
            said = await health.ask(upstream.client, _ANSWERED_WITHIN)
            misses = 0 if said.status else misses + 1
            if said.ready is not upstream.ready and not upstream.leaving:
                self._pool.turned(upstream, ready=said.ready)
            if said.given_up:
                return f"it has given up: {said.reason or said.status}"
            if misses >= _HUNG_AFTER:
                log.error("%s, replica %s: it does not answer, and is killed", self._pool.revision, self._name)
                await process.kill()
        if process.ended.done():
            log.warning("%s, replica %s: its process ended", self._pool.revision, self._name)
        return None

    async def _end(self, process: Process, upstream: Upstream) -> None:
        if not process.ended.done():
            await upstream.emptied(self.patience)
            # Predictions that were asked for asynchronously still run, though nobody waits for an answer of theirs.
            await process.end(max(_ENDED_WITHIN, self.patience))
        await upstream.client.close()
        self._socket.unlink(missing_ok=True)

    async def _either(self, process: Process, within: float) -> None:
        """Waits for the process to end or to be told to leave."""
        left = asyncio.ensure_future(self._left.wait())
        await asyncio.wait([process.ended, left], timeout=within, return_when=asyncio.FIRST_COMPLETED)
        left.cancel()

    async def _rest(self, pause: float) -> None:
        try:
            async with asyncio.timeout(pause):
                await self._left.wait()
        except TimeoutError:
            pass


class Outside:
    """Replicas behind an address that something else runs and scales; here they are asked for their health alone."""

    def __init__(self, pool: Pool, url: str) -> None:
        self.wanted = 1
        self._pool = pool
        # Some servers (uvicorn) close a connection that was idle for 5 s, whatever has just been sent on it.
        self._upstream = Upstream(url, _client(parse(url), idle_time=3.0), pool)
        self._task = asyncio.get_running_loop().create_task(self._watch())

    def scale(self, wanted: int) -> None:
        """Nothing: they are somebody else's."""

    async def close(self, *, drain: bool) -> None:
        """Closes the connections, with `drain` when there are no more requests in flight."""
        self._task.cancel()
        self._pool.leave(self._upstream)
        await self._upstream.emptied(_ENDED_WITHIN if drain else 0.0)
        await self._upstream.client.close()

    async def _watch(self) -> None:
        said = health.SILENT
        while not said.ready:
            said = await health.ask(self._upstream.client, _ANSWERED_WITHIN)
            if not said.ready:
                await asyncio.sleep(0.1)
        self._pool.join(self._upstream)
        while True:
            await asyncio.sleep(_ASKED_EVERY)
            said = await health.ask(self._upstream.client, _ANSWERED_WITHIN)
            if said.ready is not self._upstream.ready:
                self._pool.turned(self._upstream, ready=said.ready)


def _client(address: Address, idle_time: float = 30.0) -> Client:
    return Client(address, connections=_CONNECTIONS, body_limit=_LARGEST_ANSWER, idle_time=idle_time)
