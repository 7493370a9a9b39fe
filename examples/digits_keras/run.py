"""The service: a Cog runner that needs the model and this file, and nothing of Drivetrain or MLflow.

Beside `run` it has two methods that Drivetrain's replica knows: `batch` answers several callers in one go, and `infer`
takes whole arrays, as the Open Inference Protocol sends them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from cog import BaseModel, BaseRunner, Input

MODEL = Path(__file__).parent / "model" / "data" / "model.keras"
PIXELS = 64


class Answer(BaseModel):
    """The digit, and how sure the network is of it."""

    digit: int
    probability: float


class Runner(BaseRunner):
    """Tells which digit an image of 8 by 8 pixels shows. TensorFlow uses the GPU by itself where there is one."""

    def setup(self) -> None:
        """Loads the network as one graph, and has it answer once, so that no caller waits for what is done at first use.

        `network.predict` is made for whole data sets: it takes tens of milliseconds for one image.
        """
        network = keras.saving.load_model(MODEL)
        shape = tf.TensorSpec([None, PIXELS], tf.float32)  # one trace for batches of every size
        self.network = tf.function(lambda pixels: network(pixels, training=False), input_signature=[shape])
        self.network(np.zeros((1, PIXELS), dtype="float32"))

    def run(
        self,
        pixels: list[float] = Input(  # noqa: B008 - Cog reads inputs from the defaults
            description="Brightness from 0 to 16 of the 64 pixels, row by row from the top left."
        ),
    ) -> Answer:
        """The answer for one image."""
        return self.batch([{"pixels": pixels}])[0]

    def batch(self, inputs: list[dict[str, Any]]) -> list[Answer]:
        """The answers for several images, predicted in one go."""
        for one in inputs:
            if len(one["pixels"]) != PIXELS:
                raise ValueError(f"pixels holds {len(one['pixels'])} values; an image has {PIXELS}")
        probabilities = self.probabilities(np.array([one["pixels"] for one in inputs], dtype="float32"))
        digits = probabilities.argmax(axis=1)
        best = np.take_along_axis(probabilities, digits[:, None], axis=1)[:, 0]
        return [Answer(digit=d, probability=p) for d, p in zip(digits.tolist(), best.tolist(), strict=True)]

    def infer(self, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """`digit` of shape (images,) and `probabilities` of shape (images, 10), for `pixels` of shape (images, 64) or
        (images, 8, 8)."""
        if list(tensors) != ["pixels"] or tensors["pixels"].size != PIXELS * len(tensors["pixels"]):
            found = ", ".join(f"{name} {tensor.shape}" for name, tensor in tensors.items())
            raise ValueError(f"one tensor, pixels, of shape (images, {PIXELS}) is wanted, not {found}")
        probabilities = self.probabilities(tensors["pixels"].reshape(-1, PIXELS).astype("float32"))
        return {"digit": probabilities.argmax(axis=1), "probabilities": probabilities}

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:
        """What the network says, one row an image."""
        if not ((pixels >= 0) & (pixels <= 16)).all():
            raise ValueError("a pixel has to be a number from 0 to 16")
        found: np.ndarray = self.network(pixels).numpy()
        return found
