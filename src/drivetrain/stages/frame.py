"""The training frame as the later stages read it: which column is what, and which rows train and which decide."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from drivetrain.definition.parts import Holdout
from drivetrain.engines import split
from drivetrain.errors import DataError

_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Frame:
    """Every row with its features as of its time. `times` are microseconds since 1970 UTC, None without a timestamp."""

    rows: pd.DataFrame
    label: str
    timestamp: str | None
    features: Sequence[str]
    times: np.ndarray | None


def read(directory: Path) -> Frame:
    """The frame of a `frame` artifact. Raises `DataError` if a label or a time is null."""
    description: dict[str, Any] = json.loads((directory / "frame.json").read_bytes())
    rows = pd.read_parquet(directory / "frame.parquet").reset_index(drop=True)
    label, timestamp = description["label"], description["timestamp"]
    for column in filter(None, (label, timestamp)):
        nulls = int(rows[column].isna().sum())
        if nulls:
            raise DataError(
                f"{nulls:,} of {len(rows):,} rows have no {column}",
                hint="leave such rows out where the rows are loaded",
            )
    times = None
    if timestamp is not None:
        times = pd.to_datetime(rows[timestamp], utc=True).to_numpy(dtype="datetime64[us]").astype(np.int64)
    return Frame(rows, label, timestamp, tuple(description["features"]), times)


def divide(frame: Frame, holdout: Holdout, label_delay: timedelta) -> split.Split:
    """The rows that train and those that decide. Raises `DataError` if there are none of either."""
    if frame.times is None:
        parts = split.by_draw(len(frame.rows), fraction=holdout.fraction)
    else:
        start = None if holdout.start is None else round(holdout.start.timestamp() * 1_000_000)
        parts = split.by_time(frame.times, fraction=holdout.fraction, start=start, delay=label_delay // _MICROSECOND)
    if not parts.holdout.any():
        raise DataError(
            "no row falls into the hold-out", hint="evaluate.holdout: a larger fraction or an earlier start"
        )
    if not parts.train.any():
        late = f" ({parts.embargoed:,} rows are earlier, with labels not yet known then)" if parts.embargoed else ""
        raise DataError(
            f"no row is left to train on before the hold-out{late}",
            hint="evaluate.holdout: a smaller fraction or a later start; or more rows in data.window",
        )
    return parts
