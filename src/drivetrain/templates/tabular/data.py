"""The rows: fine-needle samples of breast tissue (Wisconsin, 1995), which come with scikit-learn."""

from __future__ import annotations

from datetime import datetime

import pandas as pd
from sklearn.datasets import load_breast_cancer


def load(start: datetime | None = None, end: datetime | None = None) -> pd.DataFrame:
    """569 samples with 30 measurements each; `malignant` is 1 or 0.

    `start` and `end` bound the rows by their time. These have none.
    """
    bunch = load_breast_cancer(as_frame=True)
    rows = bunch.data.rename(columns=lambda name: name.replace(" ", "_"))
    rows.insert(0, "sample", range(len(rows)))
    return rows.assign(malignant=(bunch.target == 0).astype("int64"))
