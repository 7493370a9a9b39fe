"""A Cog runner for any model that Drivetrain trained: rows of features in, a prediction for each row out.

It stands beside `model/`, an MLflow model directory, and loads the model with its own library alone: importing MLflow
would take longer than everything else. Copy it into your project and name it as `serving.runner` to change it.

`batch` and `infer` are for servers that know them: the rows of several requests are predicted in one go, and arrays are
taken as they come. A neural network runs on the GPU where there is one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cog import BaseRunner, Input

MODEL = Path(__file__).resolve().parent / "model"
NETWORKS = ("pytorch", "keras")
"""Flavours that take one float32 matrix; the others take a data frame."""


class Runner(BaseRunner):
    """Serves the model in `model/`."""

    def setup(self) -> None:
        """Loads the model, with the user code that was stored beside it, and has it predict once."""
        told = json.loads((MODEL / "drivetrain.json").read_text(encoding="utf-8"))
        self.features: list[str] = told["features"]
        self.classes: list[Any] | None = told["classes"]
        self.is_network = told["flavor"] in NETWORKS
        columns = example_columns(self.features)
        self.numbers = {name for name in self.features if self.is_network or is_number(columns.get(name, ()))}
        if (MODEL / "code").is_dir():
            sys.path.insert(0, str(MODEL / "code"))
        self.model = load(told["flavor"], len(self.features), self.classes is not None)
        if columns:
            # What libraries load and compile at first use is not for the first caller to wait for.
            self.run([{name: values[0] for name, values in columns.items()}])

    def run(
        self,
        rows: list[dict[str, Any]] = Input(  # noqa: B008 - Cog reads inputs from the defaults
            description="The rows to predict: each an object of feature names and values, null where a value is unknown."
        ),
    ) -> list[dict[str, Any]]:
        """For each row `{"prediction": label, "probabilities": {label: p}}`, or for a regression `{"prediction": value}`."""
        if not rows:
            return []
        output = self.model(self.table(rows))
        if self.classes is None:
            return [{"prediction": plain(value)} for value in output.reshape(len(rows)).tolist()]
        return labelled(self.classes, as_probabilities(output, self.classes))

    def batch(self, inputs: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
        """What `run` answers to each of the inputs, all their rows predicted in one go."""
        found = iter(self.run([row for one in inputs for row in one["rows"]]))
        return [[next(found) for _ in one["rows"]] for one in inputs]

    def infer(self, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """`prediction` and, for a classifier, `probabilities` (rows, classes), for rows along the first axis.

        Either one tensor of shape (rows, features), under any name, or one of shape (rows,) for each feature. Raises `ValueError` for
        others; it has to be raised here, since a server takes that of a library for a failure of the model.
        """
        output = self.model(self.table_of(tensors))
        if self.classes is None:
            return {"prediction": output.reshape(len(output)).astype("float64")}
        probabilities = as_probabilities(output, self.classes)
        names = np.asarray(self.classes)
        names = names.astype(object) if names.dtype.kind == "U" else names
        return {"prediction": names[likeliest(probabilities)], "probabilities": probabilities}

    def table(self, rows: Sequence[Mapping[str, Any]]) -> Any:
        """The rows as the model takes them: its columns in their order, numbers as numbers even where all are null."""
        try:
            values = [[row[name] for name in self.features] for row in rows]
        except KeyError:
            lacking = ((number, [name for name in self.features if name not in row]) for number, row in enumerate(rows))
            number, missing = next((number, missing) for number, missing in lacking if missing)
            raise ValueError(f"row {number} lacks {', '.join(missing)} (an unknown value is given as null)") from None
        if len(self.numbers) == len(self.features):
            try:
                return self.of_matrix(np.array(values, dtype="float64"))
            except (ValueError, TypeError):
                pass  # the columns one by one, to name the one that is wrong
        return self.of_columns(dict(zip(self.features, zip(*values, strict=True), strict=True)))

    def table_of(self, tensors: Mapping[str, np.ndarray]) -> Any:
        """The tensors as the model takes them."""
        if set(self.features) <= set(tensors):
            columns = {name: tensors[name].reshape(-1) for name in self.features}
            if len({len(column) for column in columns.values()}) > 1:
                raise ValueError("the tensors differ in length")
            if not any(len(column) for column in columns.values()):
                raise ValueError("the tensors have no rows")
            return self.of_columns({name: as_text(name, column) for name, column in columns.items()})
        matrix = next(iter(tensors.values()))
        if len(tensors) > 1 or matrix.ndim < 2 or matrix[:1].size != len(self.features) * len(matrix[:1]):
            raise ValueError(
                f"neither one tensor of shape (rows, {len(self.features)}) nor one of shape (rows,) for each feature: "
                + ", ".join(f"{name} {tensor.shape}" for name, tensor in tensors.items())
            )
        if len(self.numbers) < len(self.features):
            texts = ", ".join(name for name in self.features if name not in self.numbers)
            raise ValueError(f"not every feature is a number ({texts}): give one tensor for each feature")
        if not len(matrix):
            raise ValueError("the tensor has no rows")
        return self.of_matrix(as_numbers(matrix.reshape(len(matrix), -1)))

    def of_matrix(self, matrix: np.ndarray) -> Any:
        """A matrix of all features, which are numbers."""
        if self.is_network:
            return np.ascontiguousarray(matrix, dtype="float32")
        import pandas as pd

        return pd.DataFrame(matrix.astype("float64", copy=False), columns=pd.Index(self.features))

    def of_columns(self, columns: Mapping[str, Sequence[Any]]) -> Any:
        """Column by column: slower, for features that are not all numbers."""
        found: dict[str, Any] = {}
        for name, values in columns.items():
            try:
                found[name] = np.asarray(values, dtype="float64") if name in self.numbers else list(values)
            except (ValueError, TypeError) as error:
                raise ValueError(f"{name} has to be a number: {error}") from error
        if self.is_network:
            return np.column_stack(list(found.values())).astype("float32")
        import pandas as pd

        return pd.DataFrame(found)


def example_columns(features: list[str]) -> dict[str, Sequence[Any]]:
    """The columns of the model's input example: a table, or for a neural network a matrix. None where there is none."""
    path = MODEL / "input_example.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    columns, data = (found["columns"], found["data"]) if "columns" in found else (features, found)
    return dict(zip(columns, zip(*data, strict=True), strict=True)) if data else {}


def is_number(values: Sequence[Any]) -> bool:
    """Whether all known values are numbers, and there is one."""
    known = [value for value in values if value is not None]
    return bool(known) and all(isinstance(value, int | float) and not isinstance(value, bool) for value in known)


def load(flavor: str, width: int, classification: bool) -> Callable[[Any], np.ndarray]:
    """The model, by the library of its kind: a function from a table to what the model itself gives."""
    if flavor == "pytorch":
        return load_torch()
    if flavor == "keras":
        return load_keras(width)
    if (MODEL / "model.lgb").is_file():
        import lightgbm

        booster = lightgbm.Booster(model_file=MODEL / "model.lgb")
        return lambda frame: np.asarray(booster.predict(frame))
    import cloudpickle

    with (MODEL / "model.pkl").open("rb") as file:
        model = cloudpickle.load(file)
    predict = model.predict_proba if classification and hasattr(model, "predict_proba") else model.predict
    return lambda frame: np.asarray(predict(frame))


def load_torch() -> Callable[[np.ndarray], np.ndarray]:
    """A PyTorch module, on the GPU where there is one."""
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = torch.load(MODEL / "data" / "model.pth", map_location=device, weights_only=False).eval()

    def predict(matrix: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            output: np.ndarray = model(torch.from_numpy(matrix).to(device)).cpu().numpy()
        return output

    return predict


def load_keras(width: int) -> Callable[[np.ndarray], np.ndarray]:
    """A Keras model. `model.predict` is made for whole data sets: it takes tens of milliseconds for one row."""
    import keras

    model = keras.saving.load_model(MODEL / "data" / "model.keras")
    if keras.backend.backend() != "tensorflow":
        return lambda matrix: np.asarray(keras.ops.convert_to_numpy(model(matrix, training=False)))
    import tensorflow as tf

    shape = tf.TensorSpec([None, width], tf.float32)  # one trace for batches of every size
    graph = tf.function(lambda matrix: model(matrix, training=False), input_signature=[shape])
    return lambda matrix: np.asarray(graph(matrix).numpy())


def as_probabilities(output: np.ndarray, classes: list[Any]) -> np.ndarray:
    """Shape (rows, classes), also where a model gives the probability of the second of two classes alone."""
    values = output.reshape(len(output), -1).astype("float64")
    return np.hstack([1.0 - values, values]) if values.shape[1] == 1 and len(classes) == 2 else values


def likeliest(probabilities: np.ndarray) -> np.ndarray:
    """Positions of the likeliest classes; of two classes the second from one half on, as the gate has judged the model."""
    if probabilities.shape[1] == 2:
        return (probabilities[:, 1] >= 0.5).astype("int64")
    return probabilities.argmax(axis=1)


def labelled(classes: list[Any], probabilities: np.ndarray) -> list[dict[str, Any]]:
    """For each row the likeliest label, and the probability of each."""
    names = [str(name) for name in classes]
    return [
        {"prediction": classes[place], "probabilities": dict(zip(names, row, strict=True))}
        for place, row in zip(likeliest(probabilities).tolist(), probabilities.tolist(), strict=True)
    ]


def plain(value: Any) -> float | None:
    """A float that JSON knows."""
    number = float(value)
    return number if np.isfinite(number) else None


def as_numbers(matrix: np.ndarray) -> np.ndarray:
    """A tensor of bytes as the numbers that it spells; any other as it is."""
    if matrix.dtype.kind not in "OSU":
        return matrix
    try:
        return matrix.astype("float64")
    except (ValueError, TypeError) as error:
        raise ValueError(f"the tensor has to be of numbers: {error}") from error


def as_text(name: str, column: np.ndarray) -> np.ndarray:
    """A tensor of bytes as text; any other as it is."""
    if column.dtype.kind not in "OS":
        return column
    try:
        return np.array([one.decode() if isinstance(one, bytes) else one for one in column], dtype=object)
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} has to be text in UTF-8: {error}") from error
