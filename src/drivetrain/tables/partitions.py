"""Days, ISO weeks, months and years in UTC, and the pieces into which they cut a window."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

Size = Literal["day", "week", "month", "year"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Piece:
    """A partition's part of a window: from `start` up to but not including `end`."""

    name: str
    start: datetime
    end: datetime


def begin(instant: datetime, size: Size) -> datetime:
    """First instant of the partition that `instant` (with a zone) lies in; weeks begin on Monday."""
    day = instant.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    match size:
        case "day":
            return day
        case "week":
            return day - timedelta(days=day.weekday())
        case "month":
            return day.replace(day=1)
        case "year":
            return day.replace(month=1, day=1)


def after(instant: datetime, size: Size) -> datetime:
    """First instant after the partition that `instant` lies in. Raises `OverflowError` beyond the year 9999."""
    first = begin(instant, size)
    match size:
        case "day":
            return first + timedelta(days=1)
        case "week":
            return first + timedelta(days=7)
        case "month":
            return begin(first + timedelta(days=31), "month")
        case "year":
            return begin(first + timedelta(days=366), "year")


def name(instant: datetime, size: Size) -> str:
    """`2013-02-01`, `2013-W05`, `2013-02` or `2013`: names in the order of time."""
    instant = instant.astimezone(UTC)
    match size:
        case "day":
            return f"{instant.year:04d}-{instant.month:02d}-{instant.day:02d}"
        case "week":
            year, week, _ = instant.isocalendar()
            return f"{year:04d}-W{week:02d}"
        case "month":
            return f"{instant.year:04d}-{instant.month:02d}"
        case "year":
            return f"{instant.year:04d}"


def pieces(start: datetime, end: datetime, size: Size) -> list[Piece]:
    """The partitions between two instants, the first and the last clipped to them; none if `end` is not after `start`."""
    found = []
    while start < end:
        stop = min(after(start, size), end)
        found.append(Piece(name(start, size), start, stop))
        start = stop
    return found


def to_micros(instant: datetime) -> int:
    """Microseconds since 1970."""
    return (instant - _EPOCH) // timedelta(microseconds=1)


def from_micros(micros: int) -> datetime:
    """The instant in UTC. Raises `OverflowError` outside of the years 1 to 9999."""
    return _EPOCH + timedelta(microseconds=micros)
