"""What is known of a model when it is made and needed when it is watched: the file `reference.json` of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from drivetrain.engines import metrics
from drivetrain.engines.estimate import Calibration
from drivetrain.engines.quality import Kind
from drivetrain.engines.reference import Reference, reference_of
from drivetrain.errors import DataError
from drivetrain.records import Scalar

PREDICTION = "prediction"
"""The name under which what the model answers is a feature."""


@dataclass(frozen=True, slots=True)
class Watched:
    """`reference` holds the features of the training rows, and as `prediction` what the model answers on the hold-out: the probability
    of the second of two classes, the likeliest of more, or the value. `until` is the time of the newest row, in seconds since 1970."""

    features: Sequence[str]
    """All that the model takes, in its order; those that are instants, or called `prediction`, have no reference."""
    reference: Reference
    calibration: Calibration | None
    """None for a regression."""
    kind: Kind
    classes: Sequence[Scalar] | None
    metric: str
    slices: Sequence[str] = ()
    until: float | None = None

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "features": list(self.features),
            "reference": self.reference.to_json(),
            "calibration": None if self.calibration is None else self.calibration.to_json(),
            "kind": self.kind,
            "classes": None if self.classes is None else list(self.classes),
            "metric": self.metric,
            "slices": list(self.slices),
            "until": self.until,
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Watched:
        """What `to_json` gave. Raises `DataError` for anything else."""
        try:
            calibration = document["calibration"]
            return cls(
                tuple(document["features"]),
                Reference.from_json(document["reference"]),
                None if calibration is None else Calibration.from_json(calibration),
                document["kind"],
                document["classes"],
                document["metric"],
                tuple(document["slices"]),
                document["until"],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"this is no reference of an evaluation: {error!r}") from error


def watched(
    columns: Mapping[str, np.ndarray], classes: Sequence[Scalar] | None, metric: str, truth: np.ndarray, prediction: np.ndarray,
    *, slices: Sequence[str] = (), until: float | None = None,
) -> Watched:  # fmt: skip
    """Of a model that was trained on the columns, and predicted the hold-out so: `truth` and `prediction` as `engines.metrics` takes
    them."""
    kind: Kind = "binary"
    calibration: Calibration | None = None
    if classes is None:
        kind, answered = "regression", prediction
    elif len(classes) == 2:
        answered = prediction[:, 1]
        calibration = Calibration.of(answered, truth)
    else:
        kind, answered = "multiclass", class_names(metrics.likeliest(prediction), classes)
        calibration = Calibration.of(prediction, truth)
    reference = reference_of(columns).with_feature(PREDICTION, answered)
    return Watched(tuple(columns), reference, calibration, kind, classes, metric, slices, until)


def class_names(places: np.ndarray, classes: Sequence[Scalar]) -> np.ndarray:
    """The classes at these positions, as text."""
    names = np.empty(len(classes), dtype=object)
    names[:] = [str(name) for name in classes]
    return np.asarray(names[places])
