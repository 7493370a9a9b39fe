"""Where the replicas of a gateway listen: a directory of sockets, locked for as long as the gateway lives."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import shutil
import tempfile
from pathlib import Path

_PREFIX = "drivetrain-"
_LONGEST = 60
"""Characters of a temporary directory's path; the path of a socket may have 107 in all, on macOS 103."""


class Sockets:
    """A new directory, and the paths in it. The lock ends with the process, however that ends."""

    def __init__(self) -> None:
        short = "/tmp" if len(tempfile.gettempdir()) > _LONGEST else None
        self.directory = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=short))
        self._numbers = itertools.count(1)
        self._lock = os.open(self.directory, os.O_RDONLY)
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def take(self) -> Path:
        """The next path, with a number of its own."""
        return self.directory / f"{next(self._numbers)}.sock"

    def remove(self) -> None:
        """Removes the directory."""
        shutil.rmtree(self.directory, ignore_errors=True)
        os.close(self._lock)


def sweep(directory: str | None) -> None:
    """Removes what a gateway has left behind. That of one which lives is not touched: its replicas still listen there."""
    if directory is None or not Path(directory).name.startswith(_PREFIX):
        return
    with contextlib.suppress(OSError):
        lock = os.open(directory, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(directory, ignore_errors=True)
        finally:
            os.close(lock)
