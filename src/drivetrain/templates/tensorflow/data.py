"""The rows: patients with diabetes and how their disease went on within a year, which come with scikit-learn."""

from __future__ import annotations

from datetime import datetime

import pandas as pd
from sklearn.datasets import load_diabetes


def load(start: datetime | None = None, end: datetime | None = None) -> pd.DataFrame:
    """442 patients with 10 measurements each; `progression` is a score from 25 to 346.

    `start` and `end` bound the rows by their time. These have none.
    """
    bunch = load_diabetes(as_frame=True, scaled=False)
    rows = bunch.data.astype("float64")
    rows.insert(0, "patient", range(len(rows)))
    return rows.assign(progression=bunch.target.astype("float64"))
