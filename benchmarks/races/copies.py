"""The tables of one period again and again, so that a longer window holds more of them.

The benchmark puts this file beside the example's `data.py`, with its own values of FIRST, PERIOD and COPIES and a
function for each table at the end.
"""

from datetime import datetime, timedelta

import data  # noqa: F401  (the functions at the end call it)
import pandas as pd

FIRST = datetime.fromisoformat("2013-01-01T00:00:00+00:00")
PERIOD = timedelta(days=91)
COPIES = 10


def periodic(function, start, end, parameters):
    """The rows from `start` to `end` of a table that repeats itself, each copy with ids of its own."""
    parts = []
    for number in range(COPIES):
        shift = number * PERIOD
        since = FIRST if start is None else max(start - shift, FIRST)
        until = FIRST + PERIOD if end is None else min(end - shift, FIRST + PERIOD)
        if since < until:
            parts.append(moved(function(since, until, **parameters), number, shift))
    return pd.concat(parts, ignore_index=True) if parts else function(FIRST, FIRST, **parameters)


def moved(rows, number, shift):
    """The rows at a later time, with the number of the copy in what identifies them."""
    moments = [name for name in rows.columns if isinstance(rows[name].dtype, pd.DatetimeTZDtype)]
    ids = [name for name in rows.columns if name.endswith("_id")]
    return rows.assign(
        **{name: rows[name] + shift for name in moments},
        **{name: f"{number}-" + rows[name].astype(str) for name in ids},
    )
