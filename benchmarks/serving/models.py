"""The models that every server is given, as a function from rows to predictions; imported in each server's own environment.

`echo` has nothing to compute, so that only the server is measured. `flights` is the pipeline of examples/flights: 26 features,
gradient-boosted trees. `digits` is a convolutional network on 8 x 8 pixels, with random weights: the time is the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Rows = Sequence[Mapping[str, Any]]
Predict = Callable[[Rows], list[Any]]

FILES = Path(os.environ.get("BENCH_MODELS", "."))
"""Where `flights.pkl` lies."""


def load(name: str) -> Predict:
    """The model of that name, ready to predict."""
    return {"echo": _echo, "flights": _flights, "digits": _digits}[name]()


def _echo() -> Predict:
    return lambda rows: [3 * row["x"] + row["y"] for row in rows]


def _flights() -> Predict:
    import cloudpickle
    import pandas as pd

    with (FILES / "flights.pkl").open("rb") as file:
        model = cloudpickle.load(file)

    def predict(rows: Rows) -> list[Any]:
        found: list[Any] = model.predict_proba(pd.DataFrame(list(rows)))[:, 1].tolist()
        return found

    return predict


def _digits() -> Predict:
    import torch
    from torch import nn

    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(1024, 128), nn.ReLU(), nn.Linear(128, 10),
    ).eval()  # fmt: skip

    def predict(rows: Rows) -> list[Any]:
        with torch.inference_mode():
            pixels = torch.tensor([row["pixels"] for row in rows], dtype=torch.float32)
            found: list[Any] = model(pixels).argmax(1).tolist()
        return found

    predict([{"pixels": [0.0] * 64}])
    return predict


def resnet50(classes: int = 1000) -> Any:
    """A network of ResNet-50's shape (He et al., 2015, table 1) with random weights: images (N, 3, 224, 224) to logits (N, classes)."""
    from torch import nn

    class Bottleneck(nn.Module):
        def __init__(self, inside: int, width: int, stride: int) -> None:
            super().__init__()
            self.body = nn.Sequential(
                nn.Conv2d(inside, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
                nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
                nn.Conv2d(width, width * 4, 1, bias=False), nn.BatchNorm2d(width * 4),
            )  # fmt: skip
            same = stride == 1 and inside == width * 4
            self.short = nn.Identity() if same else nn.Conv2d(inside, width * 4, 1, stride, bias=False)
            self.last = nn.ReLU()

        def forward(self, images: Any) -> Any:
            return self.last(self.body(images) + self.short(images))

    layers: list[Any] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    inside = 64
    for number, (width, count) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3))):
        for place in range(count):
            layers.append(Bottleneck(inside, width, 2 if place == 0 and number else 1))
            inside = width * 4
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inside, classes)).eval()
