"""Tracking: experiments recorded, models stored and registered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from drivetrain.records import Scalar

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """A registered version; `tags` carry every digest it was made from."""

    name: str
    version: str
    run_id: str
    aliases: Sequence[str]
    tags: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class SavedModel:
    """What was stored: the flavour is MLflow's (`sklearn`, `lightgbm`, `pytorch`, `keras`)."""

    flavor: str
    classes: Sequence[Scalar] | None
    """None for a regression."""


class TrackedRun(Protocol):
    """An experiment's run while the user's function trains inside it, with autologging on."""

    @property
    def id(self) -> str: ...

    def log_dataset(self, name: str, digest: str, uri: str, rows: int, features: Sequence[str], label: str) -> None:
        """Records which data the model is trained on."""
        ...

    def save_model(
        self,
        model: Any,
        example: pd.DataFrame,
        directory: Path,
        *,
        labels: Sequence[Scalar] | None,
        code: Mapping[str, Path],
    ) -> SavedModel:
        """Logs the fitted model with signature, input example and locked requirements, and writes the same model to
        `directory` without ids and times, so that equal models give equal bytes.

        `example` holds a few rows of the features, in the order in which the model takes them. `labels` are the distinct
        values it was trained on, sorted; None if they are too many to be classes. `code` maps names of modules to their
        files: they are stored beside the model, so that it loads without the project.

        Raises `StageError` if what the training function returned is no model that can be stored.
        """
        ...


class Predictor(Protocol):
    """A stored model, loaded."""

    @property
    def classes(self) -> Sequence[Scalar] | None:
        """The labels in the order of the probability columns; None for a regression."""
        ...

    @property
    def features(self) -> Sequence[str]:
        """The columns that the model takes, in their order; others may be present."""
        ...

    def predict(self, features: pd.DataFrame) -> np.ndarray:
        """Class probabilities of shape (rows, classes), or for a regression the values, of shape (rows,), as floats.

        Raises `StageError` if a column is missing, or the model itself raises.
        """
        ...


class Tracking(Protocol):
    """An experiment tracker with a model registry. Every verb raises `Unavailable` when its server does not answer."""

    def train(
        self, experiment: str, name: str, tags: Mapping[str, str], parameters: Mapping[str, Any]
    ) -> AbstractContextManager[TrackedRun]:
        """A run with autologging and system metrics; marked as failed if the block raises."""
        ...

    def load(self, directory: Path) -> Predictor:
        """The model that `save_model` wrote, with the user code stored beside it. Raises `StageError` if it does not load."""
        ...

    def log_evaluation(self, run_id: str, metrics: Mapping[str, float], directory: Path) -> None:
        """Adds hold-out metrics, and the directory's files as artifacts, to a finished run."""
        ...

    def register(self, name: str, run_id: str, tags: Mapping[str, str], description: str) -> ModelVersion:
        """Registers the run's model. The same run registered twice is the same version."""
        ...

    def set_alias(self, name: str, alias: str, version: str) -> None:
        """Moves an alias (`champion`, `challenger`) to a version."""
        ...

    def drop_alias(self, name: str, alias: str) -> None:
        """Takes an alias away; nothing happens where there is none."""
        ...

    def version(self, name: str, selector: str) -> ModelVersion | None:
        """The version of that number or alias, or None."""
        ...

    def tag_version(self, name: str, version: str, tags: Mapping[str, str]) -> None:
        """Adds tags to a registered version."""
        ...
