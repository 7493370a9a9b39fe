"""A Cog runner for any model that Drivetrain trained: rows of features in, a prediction for each row out.

It stands beside `model/`, an MLflow model directory, and loads the model with its own library alone: importing MLflow
would take longer than everything else. Copy it into your project and name it as `serving.runner` to change it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from cog import BaseRunner, Input

MODEL = Path(__file__).resolve().parent / "model"


class Runner(BaseRunner):
    """Serves the model in `model/`."""

    def setup(self) -> None:
        """Loads the model, with the user code that was stored beside it."""
        told = json.loads((MODEL / "drivetrain.json").read_text(encoding="utf-8"))
        self.features: list[str] = told["features"]
        self.classes: list[Any] | None = told["classes"]
        self.flavor: str = told["flavor"]
        self.numbers = number_columns(self.features)
        if (MODEL / "code").is_dir():
            sys.path.insert(0, str(MODEL / "code"))
        self.model = load(self.flavor)

    def run(
        self,
        rows: list[dict[str, Any]] = Input(  # noqa: B008 - Cog reads inputs from the defaults
            description="The rows to predict: each an object of feature names and values, null where a value is unknown."
        ),
    ) -> list[dict[str, Any]]:
        """For each row `{"prediction": label, "probabilities": {label: p}}`, or for a regression `{"prediction": value}`."""
        if not rows:
            return []
        output = predict(self.model, self.flavor, self.frame(rows), self.classes is not None)
        if self.classes is None:
            return [{"prediction": plain(value)} for value in output.reshape(len(rows))]
        return [label(self.classes, row) for row in as_probabilities(output, self.classes)]

    def frame(self, rows: list[dict[str, Any]]) -> pd.DataFrame:
        """The rows as the model knows them: its columns in their order, numbers as numbers even where all are null."""
        for number, row in enumerate(rows):
            missing = [name for name in self.features if name not in row]
            if missing:
                raise ValueError(f"row {number} lacks {', '.join(missing)} (an unknown value is given as null)")
        frame = pd.DataFrame(rows, columns=pd.Index(self.features))
        for name in self.numbers:
            try:
                frame[name] = pd.to_numeric(frame[name]).astype("float64")
            except (ValueError, TypeError) as error:
                raise ValueError(f"{name} has to be a number: {error}") from error
        return frame


def number_columns(features: list[str]) -> list[str]:
    """The features that hold numbers in the model's input example."""
    path = MODEL / "input_example.json"
    example = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if "columns" not in example:  # a matrix: all of them are
        return features if example else []
    columns = dict(zip(example["columns"], zip(*example["data"], strict=True), strict=True))
    return [name for name in features if is_number(columns.get(name, ()))]


def is_number(values: Any) -> bool:
    """Whether all known values are numbers, and there is one."""
    known = [value for value in values if value is not None]
    return bool(known) and all(isinstance(value, int | float) and not isinstance(value, bool) for value in known)


def load(flavor: str) -> Any:
    """The model, by the library of its kind."""
    if flavor == "pytorch":
        import torch

        model = torch.load(MODEL / "data" / "model.pth", map_location="cpu", weights_only=False)
        model.eval()
        return model
    if flavor == "keras":
        import keras

        return keras.saving.load_model(MODEL / "data" / "model.keras")
    if (MODEL / "model.lgb").is_file():
        import lightgbm

        return lightgbm.Booster(model_file=MODEL / "model.lgb")
    import cloudpickle

    with (MODEL / "model.pkl").open("rb") as file:
        return cloudpickle.load(file)


def predict(model: Any, flavor: str, frame: pd.DataFrame, classification: bool) -> Any:
    """What the model itself gives, as an array."""
    if flavor == "pytorch":
        import torch

        with torch.no_grad():
            return model(torch.from_numpy(frame.to_numpy("float32"))).numpy()
    if flavor == "keras":
        return np.asarray(model.predict(frame.to_numpy("float32"), verbose=0))
    own = hasattr(model, "predict_proba") and classification
    return np.asarray(model.predict_proba(frame) if own else model.predict(frame))


def as_probabilities(output: Any, classes: list[Any]) -> Any:
    """Shape (rows, classes), also where a model gives the probability of the second of two classes alone."""
    values = output.reshape(len(output), -1).astype("float64")
    return np.hstack([1.0 - values, values]) if values.shape[1] == 1 and len(classes) == 2 else values


def label(classes: list[Any], probabilities: Any) -> dict[str, Any]:
    """The likeliest label, and the probability of each."""
    named = {str(name): float(value) for name, value in zip(classes, probabilities, strict=True)}
    return {"prediction": classes[int(np.argmax(probabilities))], "probabilities": named}


def plain(value: Any) -> float | None:
    """A float that JSON knows."""
    number = float(value)
    return number if np.isfinite(number) else None
