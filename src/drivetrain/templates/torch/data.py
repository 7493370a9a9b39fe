"""The rows: hand-written digits of 8 by 8 pixels, which come with scikit-learn."""

from __future__ import annotations

from datetime import datetime

import pandas as pd
from sklearn.datasets import load_digits


def load(start: datetime | None = None, end: datetime | None = None) -> pd.DataFrame:
    """1 797 images, one a row: 64 columns of brightness from 0 to 16, and the `digit` shown.

    `start` and `end` bound the rows by their time. These have none.
    """
    bunch = load_digits(as_frame=True)
    rows = bunch.data.astype("float32")
    rows.insert(0, "image", range(len(rows)))
    return rows.assign(digit=bunch.target.astype("int64"))
