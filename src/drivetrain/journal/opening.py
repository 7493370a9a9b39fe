"""SQLite databases that several processes write."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

_WITHIN = 30.0
"""Seconds that a statement waits for another process."""
_PAUSE = 0.02


def connect(path: Path) -> sqlite3.Connection:
    """The database, made if it is not there, with a log that is written ahead (WAL), and without transactions but those that are begun.

    Raises `sqlite3.Error` if that cannot be.
    """
    database = sqlite3.connect(path, timeout=_WITHIN, isolation_level=None)
    deadline = time.monotonic() + _WITHIN
    while True:
        try:
            database.execute("pragma journal_mode=wal")
            return database
        except sqlite3.OperationalError as error:
            # Of two processes that make one database SQLite refuses one at once, whatever the time that it may wait.
            if "locked" not in str(error) or time.monotonic() > deadline:
                database.close()
                raise
        time.sleep(_PAUSE)
