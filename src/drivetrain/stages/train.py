"""Train: the user's function fits a model, inside a tracked run, on the rows before the hold-out."""

from __future__ import annotations

import difflib
import inspect
import random
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from drivetrain import usercode
from drivetrain.backends.tracking import Tracking
from drivetrain.errors import DataError, StageError
from drivetrain.records import Artifact, Reference, Scalar, TrainOutputs, Verdict
from drivetrain.stages import StageContext, frame

_EXAMPLE_ROWS = 5
_MOST_CLASSES = 100
"""A label with more distinct values is none of classes."""
_NOT_THE_USERS = {"site-packages", "dist-packages", ".venv", ".drivetrain"}


@dataclass(frozen=True, slots=True)
class Inputs:
    """What is trained on, and that it passed its checks."""

    frame: Artifact
    checked: Verdict


def run(context: StageContext, inputs: Inputs, *, tracking: Tracking) -> TrainOutputs:
    """The fitted model and the tracked run.

    The function is called as `function(features, label, **parameters)`: features with the columns that the frame lists, in
    that order and of the frame's own types (numbers, booleans, text as objects), label a Series, both indexed from
    nought. If it has a parameter `seed`, it is given the definition's.

    Raises `DataError` if there is too little to train on, and `StageError` if the function cannot be called so, raises, or
    returns no model.
    """
    part = context.definition.train
    function = usercode.load_function(context.project, part.function)
    arguments = call_arguments(function, part.parameters, part.seed, part.function)
    features, label = _training_rows(context, inputs.frame)
    context.say(f"training on {len(features):,} rows with {features.shape[1]} features: {part.function}")
    tags = {"drivetrain.run": context.run_id, "drivetrain.frame": inputs.frame.digest}
    tags |= {f"drivetrain.{name}": value for name, value in context.fingerprints.items()}
    directory = context.work / "model"
    with tracking.train(context.definition.name, context.run_id, tags, arguments) as tracked:
        uri = context.objects.uri(inputs.frame)
        tracked.log_dataset("frame", inputs.frame.digest, uri, len(features), list(features.columns), str(label.name))
        seed_everything(part.seed)
        model = _fit(context.project, function, part.function, features, label, arguments)
        saved = tracked.save_model(
            model, _example(features), directory, labels=_labels(label), code=_modules(context.project)
        )
        reference = Reference("mlflow_run", tracked.id, {"experiment": context.definition.name})
    metadata: dict[str, Scalar] = {
        "flavor": saved.flavor,
        "task": "regression" if saved.classes is None else "classification",
        "classes": len(saved.classes or ()),
        "rows": len(features),
        "features": features.shape[1],
    }
    return TrainOutputs(context.objects.put("model", directory, metadata), reference)


def call_arguments(
    function: Callable[..., Any], parameters: Mapping[str, Any], seed: int, where: str
) -> dict[str, Any]:
    """The keyword arguments of the user's function. Raises `StageError` for one that it does not take, or lacks."""
    known = list(inspect.signature(function).parameters.values())
    open_ended = any(entry.kind is entry.VAR_KEYWORD for entry in known)
    named = [entry for entry in known[2:] if entry.kind in (entry.POSITIONAL_OR_KEYWORD, entry.KEYWORD_ONLY)]
    if len([entry for entry in known if entry.kind is not entry.KEYWORD_ONLY]) < 2:
        raise StageError("the training function has to take features and label first", where=where)
    names = [entry.name for entry in named]
    for name in parameters:
        if name not in names and not open_ended:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it takes {', '.join(names) or 'none'}"
            raise StageError(
                f"the training function takes no parameter {name} (train.parameters)", hint=hint, where=where
            )
    arguments = dict(parameters)
    if "seed" in names:
        arguments.setdefault("seed", seed)
    lacking = [entry.name for entry in named if entry.default is entry.empty and entry.name not in arguments]
    if lacking:
        raise StageError(
            f"the training function needs {', '.join(lacking)}", hint="give it under train.parameters", where=where
        )
    return arguments


def _training_rows(context: StageContext, artifact: Artifact) -> tuple[pd.DataFrame, pd.Series[Any]]:
    read = frame.read(context.objects.get(artifact, context.work / "frame"))
    definition = context.definition
    parts = frame.divide(read, definition.evaluate.holdout, definition.data.label_delay)
    rows = read.rows[parts.train].reset_index(drop=True)
    label = rows[read.label]
    if label.nunique() < 2:
        raise DataError(
            f"all {len(rows):,} training rows have the same {read.label}: {label.iloc[0]!r}",
            hint="a longer data.window, or a smaller hold-out",
        )
    if parts.embargoed:
        context.say(f"{parts.embargoed:,} rows left out: their labels were not known when the hold-out begins")
    return rows[list(read.features)], label


def seed_everything(seed: int) -> None:
    """Seeds Python, NumPy, and those of PyTorch and Keras that the user's code has imported."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)
    if "keras" in sys.modules:
        sys.modules["keras"].utils.set_random_seed(seed % 2**32)


def _fit(
    project: Path, function: Callable[..., Any], name: str, features: pd.DataFrame, label: pd.Series[Any],
    arguments: Mapping[str, Any],
) -> Any:  # fmt: skip
    try:
        return function(features, label, **arguments)
    except MemoryError as error:
        traceback.print_exc()
        raise StageError(
            "the training function ran out of memory",
            hint="raise train.resources.memory, or train on fewer rows",
            where=name,
        ) from error
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        place = _innermost(project, error)
        raise StageError(
            f"the training function raised {type(error).__name__}: {error}",
            hint=f"at {place}; the whole traceback is in the stage's log",
            where=name,
        ) from error


def _innermost(project: Path, error: BaseException) -> str:
    """File and line of the last call that is in the user's project."""
    calls = [call for call in traceback.extract_tb(error.__traceback__) if _is_users(project, Path(call.filename))]
    return (
        f"{Path(calls[-1].filename).relative_to(project)}:{calls[-1].lineno}"
        if calls
        else "a place outside the project"
    )


def _is_users(project: Path, file: Path) -> bool:
    return file.is_relative_to(project) and not _NOT_THE_USERS.intersection(file.relative_to(project).parts)


def _modules(project: Path) -> dict[str, Path]:
    """The project's modules that the function and its imports have loaded: what a stored model may refer to."""
    found = {}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file and file.endswith(".py") and name != "__main__" and _is_users(project, Path(file)):
            found[name] = Path(file)
    return found


def _example(features: pd.DataFrame) -> pd.DataFrame:
    """A few rows, without nulls if there are such."""
    whole = features.dropna()
    return (whole if len(whole) else features).head(_EXAMPLE_ROWS)


def _labels(label: pd.Series[Any]) -> Sequence[Scalar] | None:
    found = label.unique().tolist()
    return sorted(found) if len(found) <= _MOST_CLASSES else None
