"""Captured answers as predictions: the probability of the positive class, one of each class, or a value.

An answer holds for each row an object (`{"probability": 0.3}`, `{"prediction": "late", "probabilities": {"on time": 0.2, ..}}`), a
number, or a list of the probabilities of the classes; in Cog's `output`, V1's `predictions`, or the tensors of V2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from drivetrain.backends.serving.gateway.endings import has_failed
from drivetrain.backends.serving.gateway.events import Event
from drivetrain.backends.serving.replica.codecs.jsons import UNREADABLE
from drivetrain.records import Scalar
from drivetrain.watch import tensors
from drivetrain.watch.payloads import LARGEST, protocol

_KEYS = ("probability", "score", "prediction")

ANSWERED, REFUSED, FAILED, UNREADABLE_ANSWER = "answered", "refused", "failed", "unreadable_answer"


@dataclass(frozen=True, slots=True)
class Predictions:
    """The predictions of several answers. `values` has for each row the shape (width,), NaN where there is none that can be used;
    `outcomes` says of each answer what became of its request."""

    values: np.ndarray
    outcomes: Sequence[str]


class _Told(msgspec.Struct, gc=False):
    """What is looked for in an object where the definition names no key."""

    probability: Any = None
    score: Any = None
    prediction: Any = None
    probabilities: Any = None


class Answers:
    """Decodes answers of one revision.

    `classes` are those of the model, in its order; None for a regression. `output` is the key that the definition names.
    """

    def __init__(self, classes: Sequence[Scalar] | None, output: str | None = None) -> None:
        self._classes = None if classes is None else list(classes)
        self.width = 1 if classes is None or len(classes) == 2 else len(classes)
        """Numbers a prediction has: one, or a probability for each of more than two classes."""
        self._output = output
        self._names = [str(name) for name in self._classes or ()]
        self._nothing = [math.nan] * self.width
        self._readers = {"cog": _reader("output", output), "v1": _reader("predictions", output)}

    def decode(self, events: Iterable[Event], rows: Sequence[int]) -> Predictions:
        """The predictions of the answers, in the order given; `rows` says how many rows each request had, and so its answer."""
        values: list[Sequence[float]] = []
        outcomes: list[str] = []
        for event, count in zip(events, rows, strict=True):
            outcome, found = self._answer(event, count)
            outcomes.append(outcome)
            values += found
        return Predictions(np.array(values, dtype=np.float64).reshape(len(values), self.width), outcomes)

    def _answer(self, event: Event, count: int) -> tuple[str, Sequence[Sequence[float]]]:
        outcome = outcome_of(event)
        if outcome != ANSWERED:
            return outcome, [self._nothing] * count
        try:
            found = self._read(event, count)
        except (*UNREADABLE, *tensors.REFUSED, KeyError):
            found = None
        if found is None or len(found) != count:
            return UNREADABLE_ANSWER, [self._nothing] * count
        return ANSWERED, found

    def _read(self, event: Event, count: int) -> Sequence[Sequence[float]] | None:
        if len(event.body) > LARGEST:
            return None
        form = protocol(event.path, event.body)
        if form == "v2":
            return self._of_tensors(tensors.answer(event.content_type, event.body), count)
        return self._of_output(self._readers[form](event.body), count)

    def _of_output(self, output: Any, count: int) -> Sequence[Sequence[float]]:
        if not isinstance(output, list):
            return [self._of_one(output)]
        if count == 1 and len(output) == len(self._names) and all(isinstance(one, float) for one in output):
            return [self._of_list(output)]  # one row's probabilities, not a value for each row
        return [self._of_one(entry) for entry in output]

    def _of_one(self, found: Any) -> Sequence[float]:
        if isinstance(found, _Told):
            if found.probabilities is not None and self._classes is not None:
                return self._of_probabilities(found.probabilities)
            values = (found.probability, found.score, found.prediction)
            found = next((value for value in values if value is not None), None)
        elif isinstance(found, msgspec.Struct):
            found = getattr(found, "chosen")  # noqa: B009 - made by `_reader`
        return self._of_list(found) if isinstance(found, list) else self._of_value(found)

    def _of_probabilities(self, found: Any) -> Sequence[float]:
        if isinstance(found, dict):
            found = [found.get(name) for name in self._names]
        return self._of_list(found) if isinstance(found, list) else self._nothing

    def _of_list(self, values: Sequence[Any]) -> Sequence[float]:
        """The probabilities of the classes, or a list of the one value."""
        if len(values) == 1:
            return self._of_value(values[0])
        classes = len(self._names)
        if len(values) != classes or not classes:
            return self._nothing
        return [_number(value) for value in (values[1:] if classes == 2 else values)]

    def _of_value(self, value: Any) -> Sequence[float]:
        """A number as it is; a class as the probability one."""
        place = None
        if self._classes is not None and not (isinstance(value, float) and 0 <= value <= 1):
            place = place_of(value, self._classes)
        if self.width == 1:
            return [_number(value) if place is None else float(place)]
        return self._nothing if place is None else [float(place == at) for at in range(self.width)]

    def _of_tensors(self, found: Mapping[str, np.ndarray], count: int) -> Sequence[Sequence[float]] | None:
        columns = {name: array.reshape(len(array), -1).tolist() for name, array in found.items() if array.ndim}
        if self._output is not None:
            kept = columns.get(self._output)
            return None if kept is None else [self._of_list(row) for row in kept]
        if self._classes is not None:
            if "probabilities" in columns:
                return [self._of_list(row) for row in columns["probabilities"]]
            named = [columns.get(f"probabilities.{name}") for name in self._names]
            if all(column is not None for column in named):
                return [self._of_list([cell[0] for cell in row]) for row in zip(*named, strict=True)]
        kept = next((columns[key] for key in _KEYS if key in columns), None)
        if kept is None and len(columns) == 1:
            (kept,) = columns.values()
        return None if kept is None else [self._of_list(row) for row in kept]


def outcome_of(event: Event) -> str:
    """What became of a request: `answered`, `refused` as not valid, or `failed`. Cog's answer to a prediction that failed is 200; KServe's
    logger tells no status, of answers alone."""
    if 400 <= event.status < 500 and event.status not in (408, 429, 499):
        return REFUSED
    if not (200 <= event.status < 300 or event.status == 0) or has_failed(event.body):
        return FAILED
    return ANSWERED


def place_of(label: Any, classes: Sequence[Scalar]) -> int | None:
    """Where a label stands among the classes, by value or by its text; None if it is none of them."""
    for place, name in enumerate(classes):
        if label == name or (isinstance(label, str) and label.lower() == str(name).lower()):
            return place
    return None


def _number(value: Any) -> float:
    """A number that can be a prediction, else NaN."""
    if isinstance(value, int | float) and abs(value) < 1e300:
        return float(value)
    return math.nan


def _reader(key: str, output: str | None) -> Callable[[bytes], Any]:
    """Reads what stands under the key of a body: an object, a number, or a list of such or of lists of numbers."""
    told: Any = _Told
    if output is not None:
        told = msgspec.defstruct("Chosen", [("chosen", Any, None)], rename={"chosen": output}, gc=False)
    plain = float | str | bool | None
    form = told | list[told | list[float | None] | plain] | plain
    decode = msgspec.json.Decoder(msgspec.defstruct("Body", [(key, form)], gc=False)).decode
    return lambda body: getattr(decode(body), key)
