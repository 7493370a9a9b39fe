"""The answers of champion and candidate, read from what was captured, for their comparison; and how wrong they were, once labels come."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import msgspec
import numpy as np

from drivetrain.backends.serving.gateway.events import FEEDBACK, RESPONSE, Event
from drivetrain.engines.canary import Comparison
from drivetrain.records import Scalar
from drivetrain.watch.answers import ANSWERED, Answers, outcome_of, place_of
from drivetrain.watch.sources import Position, Source

_PREDICTIONS = 5_000
"""Predictions whose labels are waited for; the oldest go first."""
_UNPAIRED = 1_000
"""Losses of one arm that wait for one of the other."""
_PORTION = 20_000
"""Events that are held at a time."""

Prediction = tuple[float, ...]


class Losses(Protocol):
    """How wrong predictions are."""

    def predictions(self, answers: Sequence[Event]) -> Sequence[Prediction | None]:
        """The prediction of each answer to one row; None where there is none that can be used."""
        ...

    def loss(self, prediction: Prediction, label: Any) -> float | None:
        """The loss of a prediction, given what turned out to be true; None for a label that makes no sense."""
        ...


class Brier:
    """Losses of one model: for classes the squared distance between probabilities and truth, halved, so that it is between 0 and 1 (Brier
    1950); for values the absolute error. `classes` are the model's, in its order, None for a regression; `output` is the answer's key that
    the definition names."""

    def __init__(self, classes: Sequence[Scalar] | None, output: str | None = None) -> None:
        self._classes = classes
        self._answers = Answers(classes, output)

    def predictions(self, answers: Sequence[Event]) -> Sequence[Prediction | None]:
        """See `Losses`."""
        rows = self._answers.decode(answers, [1] * len(answers)).values
        return [tuple(row) if all(map(math.isfinite, row)) else None for row in rows.tolist()]

    def loss(self, prediction: Prediction, label: Any) -> float | None:
        """See `Losses`."""
        if self._classes is None:
            is_number = isinstance(label, int | float) and math.isfinite(label)
            return abs(prediction[0] - label) if is_number else None
        place = place_of(label, self._classes)
        if place is None:
            return None
        if len(prediction) == 1:
            return (prediction[0] - place) ** 2
        return 0.5 * sum((value - (at == place)) ** 2 for at, value in enumerate(prediction))


class _Label(msgspec.Struct, gc=False):
    id: str
    label: Any = None


_label = msgspec.json.Decoder(_Label).decode


class Arms:
    """Reads for one comparison, and remembers predictions until their labels come."""

    def __init__(self, champion: str, candidate: str, losses: Losses | None) -> None:
        self._arms = {champion: 0, candidate: 1}
        self._losses = losses
        self._predictions: dict[str, list[Prediction | None]] = {}
        self._waiting: list[list[float]] = [[], []]

    def read(
        self, source: Source, position: Position | None, comparison: Comparison, *, since: float, shadow: bool
    ) -> Position | None:
        """Adds what came after `position` to the comparison; the position after it. What happened before `since` is passed over, and so
        are copies that a shadow was too busy for.

        Of a shadow no latencies count: callers wait for the champion before they ask again, and for the copies nobody waits, so that
        these queue up where the champion's requests never do.
        """
        events = iter(source.after(position))
        while portion := list(itertools.islice(events, _PORTION)):
            position = portion[-1][0]
            self._take([event for _, event in portion if event.at >= since], comparison, shadow)
        return position

    def _take(self, events: Sequence[Event], comparison: Comparison, shadow: bool) -> None:
        answers = [
            event for event in events
            if event.type == RESPONSE
            and event.revision in self._arms
            and not (shadow and event.status == 503 and self._arms[event.revision])
        ]  # fmt: skip
        failed = np.array([outcome_of(event) != ANSWERED for event in answers], dtype=bool)
        candidate = np.array([self._arms[event.revision] == 1 for event in answers], dtype=bool)
        took = np.array([math.nan if shadow else event.took for event in answers], dtype=float)
        comparison.add(candidate, failed, took)
        if self._losses is not None:
            self._remember(answers, self._losses)
            labels = [event for event in events if event.type == FEEDBACK]
            pairs = np.array(list(self._pairs(labels, self._losses)), dtype=float).reshape(-1, 2)
            if len(pairs):
                comparison.add_losses(pairs[:, 1], pairs[:, 0])

    def _remember(self, answers: Sequence[Event], losses: Losses) -> None:
        for event, prediction in zip(answers, losses.predictions(answers), strict=True):
            if prediction is not None:
                both = self._predictions.setdefault(event.id, [None, None])
                both[self._arms[event.revision]] = prediction
        for old in list(itertools.islice(self._predictions, max(0, len(self._predictions) - _PREDICTIONS))):
            del self._predictions[old]

    def _pairs(self, labels: Iterable[Event], losses: Losses) -> Iterator[tuple[float, float]]:
        """Losses of champion and candidate: of one request if both answered it, else of the next two."""
        for event in labels:
            told = _told(event)
            both = self._predictions.pop(told.id, None) if told is not None else None
            if told is None or both is None:
                continue
            found = [None if prediction is None else losses.loss(prediction, told.label) for prediction in both]
            if found[0] is not None and found[1] is not None:
                yield found[0], found[1]
                continue
            for arm, loss in enumerate(found):
                if loss is not None and len(self._waiting[arm]) < _UNPAIRED:
                    self._waiting[arm].append(loss)
            while self._waiting[0] and self._waiting[1]:
                yield self._waiting[0].pop(0), self._waiting[1].pop(0)

    def to_json(self) -> dict[str, Any]:
        """What `from_json` makes the same of."""
        return {"predictions": self._predictions, "waiting": self._waiting}

    @classmethod
    def from_json(cls, champion: str, candidate: str, losses: Losses | None, found: Mapping[str, Any]) -> Arms:
        """As it was kept."""
        made = cls(champion, candidate, losses)
        made._predictions = {
            event: [None if prediction is None else tuple(prediction) for prediction in both]
            for event, both in found["predictions"].items()
        }
        made._waiting = [list(losses_of) for losses_of in found["waiting"]]
        return made


def _told(event: Event) -> _Label | None:
    try:
        return _label(event.body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
