"""SQLite as Feast 0.67 fills it, read where it is asked for.

An indexed read of a page that is in memory takes some 20 us a view, less than a thread would add. A writer keeps readers out
only while it commits; until then this tries again, and the event loop goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from drivetrain.backends.features.online_keys import Source, sqlite_table
from drivetrain.errors import Unavailable

_AGAIN = 0.002
"""Seconds until a locked database is tried again."""
_PATIENCE = 2.0
"""Seconds after which a database that stays locked is unavailable."""
_AT_ONCE = 500
"""Keys in one statement; SQLite takes 32766 variables, older ones 999."""


class SQLiteStore:
    """The tables of one project."""

    def __init__(self, path: Path, project: str, sources: Sequence[Source]) -> None:
        self._path = path
        self._sources = sources
        self._tables = [[sqlite_table(project, view.name) for view in source.views] for source in sources]
        self._places = [_places(source) for source in sources]
        self._connection: sqlite3.Connection | None = None

    async def read(self, asked: Sequence[tuple[int, bytes]]) -> Sequence[Sequence[bytes | None]]:
        """For each (source, key) the values of the source's columns. Raises `Unavailable`."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _PATIENCE
        while True:
            try:
                return self._read(asked)
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or loop.time() > deadline:
                    await self.close()
                    raise self._fault(error) from error
            except sqlite3.DatabaseError as error:
                await self.close()
                raise self._fault(error) from error
            await asyncio.sleep(_AGAIN)

    async def close(self) -> None:
        """Lets the file go; the next `read` opens it again."""
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    def _fault(self, error: Exception) -> Unavailable:
        return Unavailable(
            f"the online store cannot be read: {error}", hint="drivetrain run writes it", where=str(self._path)
        )

    def _read(self, asked: Sequence[tuple[int, bytes]]) -> list[list[bytes | None]]:
        if self._connection is None:
            self._connection = _open(self._path)
        answers: list[list[bytes | None]] = []
        rows: list[dict[bytes, list[bytes | None]]] = [{} for _ in self._sources]
        for source, key in asked:
            rows[source][key] = [None] * len(self._sources[source].columns)
            answers.append(rows[source][key])
        for source, found in enumerate(rows):
            keys = list(found)
            for first in range(0, len(keys), _AT_ONCE):
                self._fill(self._connection, source, keys[first : first + _AT_ONCE], found)
        return answers

    def _fill(
        self, connection: sqlite3.Connection, source: int, keys: list[bytes], found: dict[bytes, list[bytes | None]]
    ) -> None:
        marks = ",".join("?" * len(keys))
        for table, places in zip(self._tables[source], self._places[source], strict=True):
            statement = f"SELECT entity_key, feature_name, value FROM {table} WHERE entity_key IN ({marks})"
            for key, feature, value in connection.execute(statement, keys):
                place = places.get(feature)
                if place is not None:
                    found[key][place] = value


def _places(source: Source) -> list[dict[str, int]]:
    """For each view, where its features stand in the source's columns."""
    numbers = iter(range(len(source.columns)))
    return [{feature.name: next(numbers) for feature in view.features} for view in source.views]


def _open(path: Path) -> sqlite3.Connection:
    # Without a wait of SQLite's own, which would hold the event loop.
    return sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=0.0, isolation_level=None)
