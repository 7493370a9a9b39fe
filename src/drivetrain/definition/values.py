"""The small value types of the definition: durations, sizes, instants, and names of things in the project."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, WithJsonSchema

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]i?)?B?")
_UNITS = tuple(enumerate("KMGT", 1))
_BYTES: dict[str | None, int] = {
    None: 1,
    **{unit: 1000**power for power, unit in _UNITS},
    **{f"{unit}i": 1024**power for power, unit in _UNITS},
}


def parse_duration(value: Any) -> timedelta:
    """`90s`, `15m`, `6h`, `1d12h`, `15ms`. Raises `ValueError` on anything else."""
    if isinstance(value, timedelta):
        return value
    text = str(value).replace(" ", "")
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError("a duration such as 90s, 15m, 6h or 1d12h is wanted")
    return timedelta(seconds=sum(float(number) * _SECONDS[unit] for number, unit in parts))


def format_duration(value: timedelta) -> str:
    """The shortest text that `parse_duration` reads back: `1d12h`."""
    left, parts = round(value.total_seconds() * 1000), []
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)):
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


def parse_size(value: Any) -> int:
    """Bytes from `512Mi`, `2Gi`, `1.5G` or a plain number. Raises `ValueError` on anything else."""
    found = _SIZE.fullmatch(str(value).strip())
    if not found:
        raise ValueError("a size such as 512Mi, 2Gi or 1500000 is wanted")
    return int(float(found[1]) * _BYTES[found[2]])


def parse_instant(value: Any) -> datetime:
    """A date or a time, in UTC where the text names no zone. Raises `ValueError` on anything else."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise ValueError("a date or time such as 2013-04-01 or 2013-04-01T06:00:00Z is wanted") from None
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    if not isinstance(value, datetime):
        raise ValueError("a date or time such as 2013-04-01 is wanted")
    return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)


Duration = Annotated[
    timedelta,
    BeforeValidator(parse_duration),
    PlainSerializer(format_duration),
    WithJsonSchema({"type": "string", "pattern": r"^(\d+(\.\d+)?(ms|s|m|h|d|w))+$", "examples": ["15m", "6h"]}),
]
Size = Annotated[
    int,
    BeforeValidator(parse_size),
    WithJsonSchema({"type": ["string", "integer"], "examples": ["512Mi", "2Gi"]}),
]
Instant = Annotated[
    datetime,
    BeforeValidator(parse_instant),
    PlainSerializer(lambda value: value.isoformat()),
    WithJsonSchema({"type": "string", "examples": ["2013-04-01", "2013-04-01T06:00:00Z"]}),
]


class Part(BaseModel):
    """A part of the definition: immutable, and refusing keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True, use_attribute_docstrings=False)


def matching(project: Path, name: str) -> list[Path]:
    """The files and directories that a path or glob names, relative to the project or absolute, sorted."""
    path = project / name
    if not any(mark in name for mark in "*?["):
        return [path] if path.exists() else []
    return sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))


def split_function(name: str) -> tuple[str, str]:
    """`train.py:train` as file and function. Raises `ValueError` if it is not of that form."""
    file, colon, function = name.rpartition(":")
    if not colon or not file.endswith(".py") or not function.isidentifier():
        raise ValueError("a function is named FILE.py:FUNCTION, such as train.py:train")
    return file, function


def is_function(name: str) -> bool:
    """Whether the text names a function (`data.py:load`), as opposed to a path or a URI."""
    return ".py:" in name
