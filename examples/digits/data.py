"""The rows: 1 797 hand-written digits of 8 by 8 pixels, which come with scikit-learn."""

from __future__ import annotations

from datetime import datetime

import pandas as pd
from sklearn.datasets import load_digits


def images(start: datetime | None = None, end: datetime | None = None) -> pd.DataFrame:
    """One image a row: 64 columns of brightness from 0 to 16, row by row from the top left, and the `digit` shown.

    `start` and `end` bound the rows by their time. These have none.
    """
    bunch = load_digits(as_frame=True)
    rows = bunch.data.astype("float32")
    rows.insert(0, "image", range(len(rows)))
    return rows.assign(digit=bunch.target.astype("int64"))
