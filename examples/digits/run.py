"""The service: a Cog runner that needs the model and the files beside it, and nothing of Drivetrain or MLflow.

Beside `run` it has two methods that Drivetrain's replica knows: `batch` answers several callers in one go, and `infer`
takes whole arrays, as the Open Inference Protocol sends them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cog import BaseModel, BaseRunner, Input
from gpu import FixedSizes
from torch import nn

MODEL = Path(__file__).parent / "model" / "data" / "model.pth"
PIXELS = 64


class Answer(BaseModel):
    """The digit, and how sure the network is of it."""

    digit: int
    probability: float


class Runner(BaseRunner):
    """Tells which digit an image of 8 by 8 pixels shows: on the GPU where there is one, else on the CPU."""

    def setup(self) -> None:
        """Loads the network and has it answer once, so that no caller waits for what is done at first use."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        # A pickle, but one that this project has written itself.
        network = torch.load(MODEL, map_location=device, weights_only=False).eval()
        self.network = FixedSizes(network, PIXELS, device) if device.type == "cuda" else on_cpu(network)
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
        probabilities = self.network(checked(np.array([one["pixels"] for one in inputs], dtype="float32")))
        digits = probabilities.argmax(axis=1)
        best = np.take_along_axis(probabilities, digits[:, None], axis=1)[:, 0]
        return [Answer(digit=d, probability=p) for d, p in zip(digits.tolist(), best.tolist(), strict=True)]

    def infer(self, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """`digit` of shape (images,) and `probabilities` of shape (images, 10), for `pixels` of shape (images, 64) or
        (images, 8, 8)."""
        if list(tensors) != ["pixels"] or tensors["pixels"].size != PIXELS * len(tensors["pixels"]):
            found = ", ".join(f"{name} {tensor.shape}" for name, tensor in tensors.items())
            raise ValueError(f"one tensor, pixels, of shape (images, {PIXELS}) is wanted, not {found}")
        pixels = tensors["pixels"].reshape(-1, PIXELS).astype("float32")
        probabilities = self.network(checked(pixels))
        return {"digit": probabilities.argmax(axis=1), "probabilities": probabilities}


def on_cpu(network: nn.Module) -> Callable[[np.ndarray], np.ndarray]:
    """The network as a function from rows to its output: there is nothing to pad for, and nothing to copy."""
    # One image takes 0.12 ms on one thread and 0.2 ms on two; and threads wait for each other where replicas share cores.
    torch.set_num_threads(1)

    def call(rows: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            output: np.ndarray = network(torch.from_numpy(rows)).numpy()
        return output

    return call


def checked(pixels: np.ndarray) -> np.ndarray:
    """The pixels, if that is what they are."""
    if not ((pixels >= 0) & (pixels <= 16)).all():
        raise ValueError("a pixel has to be a number from 0 to 16")
    return pixels
