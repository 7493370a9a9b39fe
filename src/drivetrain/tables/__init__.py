"""Reading raw tables: from a function, files or S3, in chunks, into one sorted table without duplicates.

    functions.py, files.py   chunks from the user's function, from parquet and CSV files
    chunks.py, times.py      a chunk in the one form that is stored: plain column types, times in UTC
    staging.py               chunks on disk, within the window, with what was wrong in them counted
    snapshot.py              staged rows deduplicated, sorted and written in partitions
    partitions.py            days, weeks, months and years

Memory stays bounded by the size of a chunk and DuckDB's limit, whatever the size of the table. Here is only what is
known of a table by itself: nothing of stages, artifacts or the definition's other parts.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import datetime


def s3_endpoint() -> str | None:
    """The server that `s3://` sources lie on, as AWS's own variables name it; None for AWS itself."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


@dataclass(frozen=True, slots=True)
class TableSpec:
    """What is asked of one table."""

    name: str
    """`rows`, or the name of a further table."""
    source: str
    """`FILE.py:FUNCTION`, a path, or an `s3://` URI."""
    timestamp: str | None
    key: tuple[str, ...]
    needed: tuple[tuple[str, str], ...]
    """(What it is for, column): `("label", "late")`. All of them have to be there."""
    timezone: str
    """Zone of times that name none; `reject` refuses them."""
    start: datetime | None
    end: datetime | None
    keeps_earlier: bool
    """Whether rows before `start` stay: a history looks back."""

    @property
    def where(self) -> str:
        """The table as messages name it."""
        return f"{self.name} ({self.source})"
