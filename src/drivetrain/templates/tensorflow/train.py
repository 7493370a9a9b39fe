"""The model: a network with one hidden layer.

A network is called with the features as one float32 matrix, columns in their order, and has to answer with values (a
classification: with probabilities, one column a class).
"""

from __future__ import annotations

import keras
import pandas as pd
from keras import layers


def train(
    features: pd.DataFrame,
    label: pd.Series,
    *,
    hidden: int = 32,
    epochs: int = 60,
    learning_rate: float = 0.005,
    batch: int = 32,
) -> keras.Model:
    """The fitted network. The keyword arguments are `train.parameters` of drivetrain.yaml."""
    x, y = features.to_numpy("float32"), label.to_numpy("float32")
    scale = layers.Normalization()  # brings every column to one scale, so that raw ones can be sent
    scale.adapt(x)
    network = keras.Sequential(
        [
            keras.Input((x.shape[1],)),
            scale,
            layers.Dense(hidden, activation="relu"),
            layers.Dropout(0.1),
            # Starts at the mean, which plain gradient descent would take many steps to reach.
            layers.Dense(1, bias_initializer=keras.initializers.Constant(float(y.mean()))),
        ]
    )
    network.compile(optimizer=keras.optimizers.Adam(learning_rate), loss="mean_squared_error")
    network.fit(x, y, batch_size=batch, epochs=epochs, verbose=0)
    return network
