"""The model: a small convolutional network, in plain Keras.

A network is called with the features as one float32 matrix, columns in their order, and has to answer with
probabilities, one column a class.
"""

from __future__ import annotations

import keras
import pandas as pd
from keras import layers

SIDE = 8


def train(
    features: pd.DataFrame,
    label: pd.Series,
    *,
    width: int = 16,
    epochs: int = 20,
    learning_rate: float = 0.003,
    batch: int = 64,
) -> keras.Model:
    """The fitted network; MLflow logs each epoch's loss. The keyword arguments are `train.parameters` of
    drivetrain.yaml."""
    pixels, digits = features.to_numpy("float32"), label.to_numpy("int64")
    network = convolutional(width, classes=int(digits.max()) + 1)
    steps = epochs * -(-len(pixels) // batch)
    rate = keras.optimizers.schedules.CosineDecay(learning_rate, steps)
    network.compile(optimizer=keras.optimizers.Adam(rate), loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    network.fit(pixels, digits, batch_size=batch, epochs=epochs, verbose=0)
    return network


def convolutional(width: int, classes: int) -> keras.Model:
    """Rows of 64 pixels in, one probability a class out."""
    return keras.Sequential(
        [
            keras.Input((SIDE * SIDE,)),
            layers.Rescaling(1 / 16),  # so that raw pixels can be sent
            layers.Reshape((SIDE, SIDE, 1)),
            layers.Conv2D(width, 3, padding="same"),
            layers.BatchNormalization(momentum=0.9),
            layers.ReLU(),
            layers.Conv2D(2 * width, 3, padding="same"),
            layers.BatchNormalization(momentum=0.9),
            layers.ReLU(),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dropout(0.3),
            layers.Dense(64, activation="relu"),
            layers.Dense(classes, activation="softmax"),
        ]
    )
