"""Kinds of models: how each is recognised, which packages it needs again, and how it is asked for numbers.

Nothing of MLflow is in here. A library is imported only when a model of its kind is at hand.
"""

from __future__ import annotations

import importlib.metadata
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from drivetrain.errors import StageError

ACCEPTED = "a scikit-learn estimator or pipeline, a LightGBM model or Booster, a torch.nn.Module or a Keras model"


@dataclass(frozen=True, slots=True)
class Flavor:
    """One kind of model. `name` is MLflow's module (`mlflow.sklearn`), `options` what its `save_model` is told."""

    name: str
    packages: tuple[str, ...]
    raw: Callable[[Any, pd.DataFrame, bool], np.ndarray]
    """(model, features, classification) -> what the model itself gives."""
    options: Mapping[str, Any] = field(default_factory=dict)
    tensors: bool = False
    """Whether it takes one float32 matrix rather than a frame."""


def _estimator_output(model: Any, features: pd.DataFrame, classification: bool) -> np.ndarray:
    return np.asarray(model.predict_proba(features) if classification else model.predict(features))


def _booster_output(model: Any, features: pd.DataFrame, classification: bool) -> np.ndarray:
    return np.asarray(model.predict(features))


def _torch_output(model: Any, features: pd.DataFrame, classification: bool) -> np.ndarray:
    import torch

    model.eval()
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    with torch.no_grad():
        return np.asarray(model(torch.from_numpy(matrix(features)).to(device)).cpu().numpy())


def _keras_output(model: Any, features: pd.DataFrame, classification: bool) -> np.ndarray:
    return np.asarray(model.predict(matrix(features), verbose=0))


# The default of scikit-learn's flavour, skops, refuses the histogram gradient boosting of scikit-learn itself; that of
# PyTorch's, pt2, cannot hold a module whose forward branches on its input.
_PICKLE = {"serialization_format": "cloudpickle"}
_SCIKIT = ("scikit-learn", "scipy", "numpy", "pandas", "cloudpickle")
SKLEARN = Flavor("sklearn", _SCIKIT, _estimator_output, _PICKLE)
LIGHTGBM = Flavor("lightgbm", ("lightgbm", *_SCIKIT), _estimator_output, _PICKLE)
BOOSTER = Flavor("lightgbm", ("lightgbm", "numpy", "pandas"), _booster_output)
PYTORCH = Flavor(
    "pytorch",
    ("torch", "numpy", "pandas", "cloudpickle"),
    _torch_output,
    {"serialization_format": "pickle"},
    tensors=True,
)
KERAS = Flavor("keras", ("keras", "numpy", "pandas"), _keras_output, tensors=True)

_BASES: tuple[tuple[str, str, Flavor], ...] = (
    ("lightgbm", "LGBMModel", LIGHTGBM),
    ("lightgbm", "Booster", BOOSTER),
    ("keras", "Model", KERAS),
    ("torch", "Module", PYTORCH),
    ("sklearn", "BaseEstimator", SKLEARN),
)
"""(library, class name, flavour), the more special first: LightGBM's estimators are scikit-learn's too."""


def recognise(model: object) -> Flavor:
    """The kind of a model. Raises `StageError`, naming what is accepted, if it is none."""
    known = {(base.__module__.partition(".")[0], base.__name__) for base in type(model).__mro__}
    for library, name, flavor in _BASES:
        if (library, name) in known:
            return flavor
    what = "nothing (None)" if model is None else f"a {type(model).__module__}.{type(model).__qualname__}"
    raise StageError(f"the training function returned {what}", hint=f"it has to return {ACCEPTED}")


def is_classifier(model: Any, flavor: Flavor, output: tuple[int, ...] | None, labels: Sequence[object] | None) -> bool:
    """Whether a model tells classes apart: estimators and Boosters say so themselves.

    A network is one if it gives as many outputs as there are `labels` (None: too many to be classes), a single output
    counting for two. `output` is the shape of a network's output.
    """
    if flavor in (SKLEARN, LIGHTGBM):
        from sklearn.base import is_classifier as says_so

        return bool(says_so(model))
    if flavor is BOOSTER:
        objective = re.search(r"^objective=(\w+)", model.model_to_string(num_iteration=1), re.MULTILINE)
        return objective is not None and objective[1] in {"binary", "multiclass", "multiclassova", "cross_entropy"}
    width = output[1] if output is not None and len(output) > 1 else 1
    return labels is not None and len(labels) == max(width, 2)


def check(model: Any, flavor: Flavor, classification: bool) -> None:
    """Raises `StageError` if an estimator cannot give what its task needs."""
    wanted = "predict_proba" if classification else "predict"
    if flavor in (SKLEARN, LIGHTGBM) and not hasattr(model, wanted):
        raise StageError(
            f"the training function returned a {type(model).__name__}, which has no {wanted}",
            hint="wrap it in sklearn.calibration.CalibratedClassifierCV"
            if classification
            else "return one that predicts",
        )


def matrix(features: pd.DataFrame) -> np.ndarray:
    """The columns as one float32 matrix. Raises `StageError` if a column holds anything but numbers."""
    try:
        return features.to_numpy(dtype=np.float32, na_value=np.nan)
    except (ValueError, TypeError) as error:
        raise StageError(
            f"a neural network takes numbers alone: {error}", hint="encode the text columns among the features"
        ) from error


def probabilities(output: np.ndarray, classes: Sequence[object]) -> np.ndarray:
    """A model's output of shape (rows,), (rows, 1) or (rows, classes), as probabilities of shape (rows, classes).

    Raises `StageError` if its shape does not fit the classes, or its values are no probabilities.
    """
    values = np.asarray(output, dtype=np.float64)
    if values.ndim == 1:
        values = values[:, None]
    if values.shape[1:] == (1,) and len(classes) == 2:
        values = np.hstack([1.0 - values, values])
    if values.shape[1:] != (len(classes),):
        raise StageError(f"the model gives an output of shape {output.shape} for {len(classes)} classes")
    if len(values) and (values.min() < 0.0 or values.max() > 1.0):
        raise StageError(
            f"the model gives values from {values.min():.3g} to {values.max():.3g} where probabilities are due",
            hint="end a neural network with a sigmoid or softmax",
        )
    return values


def classes_of(model: Any, classes: Sequence[Any] | None) -> list[Any] | None:
    """The labels in the order of the model's own probability columns, as plain values."""
    if classes is None:
        return None
    own = getattr(model, "classes_", None)
    return [plain(label) for label in (classes if own is None else own)]


def plain(label: Any) -> Any:
    """A label as a value that JSON knows."""
    return label.item() if isinstance(label, np.generic) else label


def requirements(model: Any, flavor: Flavor) -> list[str]:
    """`package==version` for all that the model needs to be loaded, as installed here, sorted."""
    packages = set(flavor.packages)
    parts = model.get_params(deep=True).values() if hasattr(model, "get_params") and not isinstance(model, type) else ()
    packages |= _distributions({type(part).__module__.partition(".")[0] for part in (model, *parts)})
    if flavor is KERAS:
        # Keras computes with another library, and does not depend on it.
        packages |= _distributions({sys.modules["keras"].backend.backend()})
    return sorted(f"{name}=={importlib.metadata.version(name)}" for name in packages)


def _distributions(modules: Iterable[str]) -> set[str]:
    known = {"sklearn": "scikit-learn", "numpy": "numpy", "pandas": "pandas", "lightgbm": "lightgbm"}
    strange = {name for name in modules if name not in known and name not in sys.stdlib_module_names}
    found = {known[name] for name in modules if name in known}
    if strange:
        # Reads every installed package's file list: a quarter of a second, so only for what is not known.
        by_module = importlib.metadata.packages_distributions()
        found |= {by_module[name][0] for name in strange if name in by_module}
    return found
