"""A column of times, in whatever form, as instants in UTC; what cannot be read is counted, with an example."""

from __future__ import annotations

import zoneinfo
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from drivetrain.errors import DataError

INSTANT = pa.timestamp("us", tz="UTC")

# The date in full and in front: pandas alone would take "2013" or "1312010100" for a time.
_LOOKS_LIKE_A_TIME = r"^\d{4}-\d{2}-\d{2}([T ]|$)"
_NAMES_A_ZONE = r":\d{2}([.,]\d+)?\s*([Zz]|[+-]\d{2}(:?\d{2})?)$"


@dataclass(slots=True)
class Faults:
    """What is wrong with a table's rows, each kind once with its count and the first example."""

    where: str
    counts: dict[tuple[str, str], int] = field(default_factory=dict)
    examples: dict[tuple[str, str], str] = field(default_factory=dict)

    def note(self, text: str, hint: str, bad: pa.Array, values: pa.Array | None = None) -> None:
        """Counts the rows where the mask `bad` is true; `text` has `{}` for their number."""
        count = pc.sum(bad).as_py() or 0
        if not count:
            return
        kind = (text, hint)
        self.counts[kind] = self.counts.get(kind, 0) + count
        if values is not None and kind not in self.examples:
            self.examples[kind] = str(values.filter(bad)[0].as_py())

    def check(self) -> None:
        """Raises one `DataError` with everything noted, if anything was."""
        if not self.counts:
            return
        lines = []
        for (text, _), count in self.counts.items():
            example = self.examples.get((text, _))
            lines.append(text.format(f"{count:,}") + (f", such as {example!r}" if example is not None else ""))
        hints = dict.fromkeys(hint for _, hint in self.counts if hint)
        raise DataError("; ".join(lines), hint="; ".join(hints), where=self.where)


def check_zone(zone: str, where: str) -> None:
    """Raises `DataError` if `zone` is neither `reject` nor the name of a time zone."""
    if zone == "reject":
        return
    try:
        zoneinfo.ZoneInfo(zone)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise DataError(
            f"data.timezone: there is no time zone {zone!r}", hint="a name such as UTC or America/New_York", where=where
        ) from error


def to_utc(column: pa.Array, name: str, zone: str, faults: Faults) -> pa.Array:
    """The column as `timestamp[us, UTC]`; null where it is null or was noted as a fault.

    Takes times with and without a zone, dates (their midnight), and ISO 8601 strings. Raises `DataError` for any other
    type of column.
    """
    kind = column.type
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        return column.cast(pa.timestamp("us", tz=kind.tz), safe=False).cast(INSTANT)
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return _from_wall(column.cast(pa.timestamp("us"), safe=False), name, zone, faults, column)
    if pa.types.is_string(kind):
        return _from_text(column, name, zone, faults)
    if pa.types.is_null(kind):
        return pa.nulls(len(column), INSTANT)
    raise DataError(
        f"column {name!r} has type {kind}, which is no time",
        hint="give times, dates or ISO 8601 text; `pd.to_datetime(column, unit='s', utc=True)` reads seconds since 1970",
        where=faults.where,
    )


def _from_text(column: pa.Array, name: str, zone: str, faults: Faults) -> pa.Array:
    text = pc.utf8_trim_whitespace(column)
    text = pc.if_else(pc.equal(text, ""), None, text)
    given = text.is_valid()
    looks = pc.fill_null(pc.match_substring_regex(text, _LOOKS_LIKE_A_TIME), False)
    parsed = pd.to_datetime(
        pc.if_else(looks, text, None).to_pandas(), format="ISO8601", utc=True, errors="coerce"
    ).dt.floor("us")
    read = pa.array(parsed, type=INSTANT, from_pandas=True)
    faults.note(
        f"column {name!r}: {{}} values are no times", "times are written as 2013-04-01T06:00:00Z",
        pc.and_(given, pc.invert(read.is_valid())), column,
    )  # fmt: skip
    zoned = pc.fill_null(pc.match_substring_regex(text, _NAMES_A_ZONE), False)
    if pc.all(pc.or_(zoned, pc.invert(given))).as_py():
        return read
    wall = pc.if_else(zoned, None, read).cast(pa.int64()).cast(pa.timestamp("us"))
    return pc.if_else(zoned, read, _from_wall(wall, name, zone, faults, column))


def _from_wall(wall: pa.Array, name: str, zone: str, faults: Faults, column: pa.Array) -> pa.Array:
    """Times on a clock in `zone` as instants. `column` holds the values as they were given."""
    if zone == "UTC":
        return wall.cast(pa.int64()).cast(INSTANT)
    if zone == "reject":
        faults.note(
            f"column {name!r}: {{}} times name no zone", "write the zone into the data, or set data.timezone",
            wall.is_valid(), column,
        )  # fmt: skip
        return pa.nulls(len(wall), INSTANT)
    clock = pd.DatetimeIndex(wall.to_numpy(zero_copy_only=False))
    local = clock.tz_localize(zone, ambiguous="NaT", nonexistent="NaT")
    bad = np.logical_and(local.isna(), clock.notna())
    if bad.any():
        twice = bad & clock.tz_localize(zone, ambiguous="NaT", nonexistent="shift_forward").isna()
        hint = "write the UTC offset into the data"
        faults.note(
            f"column {name!r}: {{}} times happen twice in {zone}, when clocks go back", hint, pa.array(twice), column
        )
        faults.note(
            f"column {name!r}: {{}} times do not exist in {zone}, when clocks go forward", hint,
            pa.array(bad & ~twice), column,
        )  # fmt: skip
    return pa.array(local.tz_convert("UTC"), type=INSTANT, from_pandas=True)
