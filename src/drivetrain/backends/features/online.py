"""The newest features of an entity, read straight from what Feast 0.67 wrote: for a gateway, in a millisecond.

Feast itself takes 6 s and 470 MB to import. Values are those of its `get_online_features`, which gives the newest ones however old
they are: a view's `ttl` counts when rows are joined, not here.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from drivetrain.backends.features import online_plan
from drivetrain.backends.features.connection import address
from drivetrain.backends.features.online_demand import Computed, requested, samples
from drivetrain.backends.features.online_keys import Source, sources
from drivetrain.backends.features.online_plan import Plan
from drivetrain.backends.features.online_redis import RedisStore
from drivetrain.backends.features.online_sqlite import SQLiteStore
from drivetrain.backends.features.online_values import decode
from drivetrain.errors import DataError, DrivetrainError

_FIRST = 2.0
"""Seconds that the first connection may take when a look-up is made ready; who asks later has a bound of his own."""
_LOOK = 1.0
"""Seconds between two looks at whether features have been defined anew."""


class Store(Protocol):
    """Where the values lie."""

    async def read(self, asked: Sequence[tuple[int, bytes]]) -> Sequence[Sequence[bytes | None]]:
        """For each (number of the source, key) the stored bytes of the source's columns. Raises `Unavailable`."""
        ...

    async def close(self) -> None: ...


def open_lookup(options: Mapping[str, Any]) -> Lookup:
    """The look-up of `{"plan": path, "store": {"type": "sqlite", "path": ...} | {"type": "redis", "connection_string": ...}}`.

    Nothing is connected to before the first `fetch`. Raises `Unavailable` if there is no plan yet, and `DefinitionError` if the
    plan or the connection cannot be used.
    """
    return Lookup(Path(options["plan"]), options["store"])


class Lookup:
    """The features of one service. A plan that is written anew is taken up within a second; if it cannot be, the former stays."""

    def __init__(self, plan: Path, store: Mapping[str, Any]) -> None:
        self._path = plan
        self._options = store
        self._stamp = _stamp(plan)
        self._service = _Service(online_plan.read(plan), store)
        self._next_look = time.monotonic() + _LOOK
        self._renewing: asyncio.Task[None] | None = None

    @property
    def keys(self) -> Sequence[str]:
        """What an entity has to name: join keys, and what on-demand features are computed from."""
        return self._service.keys

    @property
    def entity_keys(self) -> Sequence[str]:
        """The join keys alone; all keys where there are none."""
        return self._service.entity_keys

    @property
    def features(self) -> Sequence[str]:
        """The names of the answer, in its order."""
        return self._service.features

    async def prepare(self) -> None:
        """Connects to the store, and computes on-demand features once; raises nothing."""
        await self._service.prepare()

    async def fetch(self, entities: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        """For each entity its features, None where there is no value. One look-up for all of them.

        Raises `Unavailable` if the store does not answer, `SystemFault` if it refuses, `DataError` if an entity lacks a key or
        has one of a wrong type, and `StageError` if an on-demand view's function fails.
        """
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + _LOOK
            self._look()
        return await self._service.fetch(entities)

    async def close(self) -> None:
        """Lets the store go."""
        if self._renewing is not None:
            self._renewing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._renewing
        await self._service.close()

    def _look(self) -> None:
        stamp = _stamp(self._path)
        if stamp is not None and stamp != self._stamp and self._renewing is None:
            self._stamp = stamp
            self._renewing = asyncio.get_running_loop().create_task(self._renew())

    async def _renew(self) -> None:
        try:
            # In a thread: a view in pandas imports it.
            fresh = await asyncio.to_thread(lambda: _Service(online_plan.read(self._path), self._options))
            await fresh.prepare()
            former, self._service = self._service, fresh
            try:
                await former.drained()
            finally:
                await former.close()
        except DrivetrainError:
            return
        finally:
            self._renewing = None


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino


class _Service:
    """One plan, and the store that it is for."""

    def __init__(self, plan: Plan, options: Mapping[str, Any]) -> None:
        self.features = plan.features
        self.keys = tuple(sorted({*plan.entity_keys, *plan.requested}))
        self.entity_keys = plan.entity_keys or self.keys
        self._requested = plan.requested
        self._sources = sources(plan.views)
        self._computed = [Computed(view) for view in plan.on_demand]
        self._slow = any(view.slow for view in self._computed)
        columns = [column for source in self._sources for column in source.columns]
        self._blank = dict.fromkeys(columns if self._computed else plan.features)
        self._store = _store(plan, options, self._sources)
        self._under_way = 0
        self._tried = samples(plan)

    async def prepare(self) -> None:
        """Asks once for an entity that stands for any: what fails now is told by whoever asks for a real one."""
        tried = self._tried
        with contextlib.suppress(DrivetrainError, TimeoutError):
            async with asyncio.timeout(_FIRST):
                keys = [(number, source.key(tried)) for number, source in enumerate(self._sources)]
                await self._store.read([(number, key) for number, key in keys if key is not None])
        with contextlib.suppress(DrivetrainError):
            # In a thread, since pandas may have to be imported.
            await asyncio.to_thread(self._compute, [tried.copy()])

    async def fetch(self, entities: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        self._under_way += 1
        try:
            asked: dict[tuple[int, bytes], int] = {}
            places = [self._ask(entity, asked) for entity in entities]
            found = await self._store.read(list(asked)) if asked else []
        finally:
            self._under_way -= 1
        decoded = [
            dict(zip(self._sources[source].columns, map(decode, values), strict=True))
            for (source, _), values in zip(asked, found, strict=True)
        ]
        rows = [self._merged(place, decoded) for place in places]
        return await self._with_computed(entities, rows) if self._computed else rows

    def _ask(self, entity: Mapping[str, Any], asked: dict[tuple[int, bytes], int]) -> list[int]:
        """Which of the questions are the entity's; new ones are added to them."""
        places = []
        try:
            for number, source in enumerate(self._sources):
                key = source.key(entity)
                if key is not None:
                    places.append(asked.setdefault((number, key), len(asked)))
        except KeyError as error:
            raise self._lacking(entity) from error
        return places

    def _merged(self, places: list[int], decoded: list[dict[str, Any]]) -> dict[str, Any]:
        row = self._blank.copy()
        for place in places:
            row.update(decoded[place])
        return row

    async def _with_computed(
        self, entities: Sequence[Mapping[str, Any]], rows: list[dict[str, Any]]
    ) -> Sequence[Mapping[str, Any]]:
        for entity, row in zip(entities, rows, strict=True):
            try:
                for key in self.entity_keys:
                    row.setdefault(key, entity[key])
                for name, kind in self._requested.items():
                    row[name] = requested(name, kind, entity[name])
            except KeyError as error:
                raise self._lacking(entity) from error
        return await asyncio.to_thread(self._compute, rows) if self._slow else self._compute(rows)

    def _compute(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if rows:
            given = [view.compute(rows) for view in self._computed]
            for number, row in enumerate(rows):
                for computed in given:
                    row.update(computed[number])
        return [{name: row[name] for name in self.features} for row in rows]

    def _lacking(self, entity: Mapping[str, Any]) -> DataError:
        missing = [name for name in self.keys if name not in entity]
        return DataError(
            "missing from an entity", hint=f"it has to name {', '.join(self.keys)}", where=", ".join(missing)
        )

    async def drained(self) -> None:
        """Waits until nothing is under way."""
        while self._under_way:
            await asyncio.sleep(0.01)

    async def close(self) -> None:
        await self._store.close()


def _store(plan: Plan, options: Mapping[str, Any], found: Sequence[Source]) -> Store:
    if options["type"] == "redis":
        return RedisStore(address(str(options["connection_string"]), os.environ), plan.project, found)
    return SQLiteStore(Path(options["path"]), plan.project, found)
