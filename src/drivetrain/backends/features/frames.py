"""What goes into Feast's join and what comes out of it, as pandas."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from drivetrain.backends.features import FeatureColumn
from drivetrain.errors import DataError

TIME = "event_timestamp"
"""Feast's own name for the rows' time."""
ROW = "__row"
"""The row's number, to find a lost row or another order by."""
_ARROW = {
    "String": pa.string(),
    "Bool": pa.bool_(),
    "Int32": pa.int32(),
    "Int64": pa.int64(),
    "Float32": pa.float32(),
    "Float64": pa.float64(),
    "UnixTimestamp": pa.timestamp("us", tz="UTC"),
}


def as_declared(column: pa.ChunkedArray, feature: FeatureColumn) -> pd.Series[Any]:
    """The column in its declared type, whatever its rows are.

    `Int32`, `Int64`, `Bool` and `Float64` come as float64 with NaN for null (a row without history has no integer to show),
    `Float32` as float32, which is what the online store holds; `String` as object with None; `UnixTimestamp` as
    datetime64[us, UTC]; anything else as it is. Raises `DataError` if the values are not of the declared type.
    """
    declared = _ARROW.get(feature.type)
    try:
        if declared is not None:
            if pa.types.is_floating(column.type) and not pa.types.is_floating(declared):
                column = pc.if_else(pc.is_nan(column), None, column)
            column = column.cast(declared)
            if pa.types.is_boolean(declared):
                column = column.cast(pa.int8())
            if pa.types.is_integer(column.type):
                column = column.cast(pa.float64())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(
            f"feature {feature.name} is declared as {feature.type} and holds something else: {error}",
            hint="correct the type in the view's schema; whole numbers must be below 2**53",
            where=f"feature view {feature.view}",
        ) from error
    values: pd.Series[Any] = column.to_pandas()
    return values


def entity_frame(rows: pd.DataFrame, names: Sequence[str], timestamp: str) -> pd.DataFrame:
    """What Feast is given of the rows: `names`, the time in microseconds, and the row's number.

    Raises `DataError` if a column is missing or a row has no time.
    """
    refuse_missing([*names, timestamp], rows.columns, "the rows")
    if TIME in names and timestamp != TIME:
        raise DataError(f"{TIME} is Feast's name for the rows' time and cannot be a key", hint="rename the column")
    times = pd.to_datetime(rows[timestamp], utc=True).astype("datetime64[us, UTC]")
    if times.isna().any():
        raise DataError(f"{int(times.isna().sum())} rows have no time", where=timestamp)
    frame = rows[list(names)].reset_index(drop=True)
    frame[TIME] = times.array
    frame[ROW] = range(len(frame))
    return frame


def refuse_missing(names: Sequence[str], present: Container[str], what: str) -> None:
    """Raises `DataError` if not all `names` are present."""
    missing = [name for name in names if name not in present]
    if missing:
        raise DataError(
            f"{', '.join(missing)}: missing from {what}", hint="rows carry every join key of the feature service"
        )
