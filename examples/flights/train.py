"""The model: gradient-boosted trees over the schedule, the weather and how flights have been doing."""

from __future__ import annotations

import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OrdinalEncoder

CATEGORIES = ["airline", "from_airport", "to_airport"]


def train(
    features: pd.DataFrame,
    label: pd.Series,
    *,
    learning_rate: float = 0.1,
    max_iter: int = 100,
    max_leaf_nodes: int = 15,
    min_samples_leaf: int = 100,
    seed: int = 0,
) -> Pipeline:
    """A fitted pipeline that takes the features by name. Airports and airlines never seen in training count as missing."""
    numbers = [name for name in features.columns if name not in CATEGORIES]
    columns = ColumnTransformer(
        [
            ("category", OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=np.nan), CATEGORIES),
            ("number", "passthrough", numbers),
        ]
    )
    trees = HistGradientBoostingClassifier(
        learning_rate=learning_rate,
        max_iter=max_iter,
        max_leaf_nodes=max_leaf_nodes,
        min_samples_leaf=min_samples_leaf,
        categorical_features=list(range(len(CATEGORIES))),
        early_stopping=False,
        random_state=seed,
    )
    return Pipeline([("columns", columns), ("trees", trees)]).fit(features, label)
