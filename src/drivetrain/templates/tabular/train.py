"""The model. Anything that scikit-learn or LightGBM fits can be returned."""

from __future__ import annotations

import pandas as pd
from sklearn.ensemble import HistGradientBoostingClassifier


def train(
    features: pd.DataFrame, label: pd.Series, *, learning_rate: float = 0.1, max_iter: int = 100, seed: int = 0
) -> HistGradientBoostingClassifier:
    """A fitted classifier. The keyword arguments are `train.parameters` of drivetrain.yaml, and are logged to MLflow."""
    model = HistGradientBoostingClassifier(learning_rate=learning_rate, max_iter=max_iter, random_state=seed)
    return model.fit(features, label)
