"""The answers of champion and candidate, read from what was captured, for their comparison; and how wrong they were, once labels come."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import msgspec
import numpy as np

from drivetrain.backends.serving.gateway.events import FEEDBACK, RESPONSE, Event
from drivetrain.backends.serving.replica.codecs.jsons import UNREADABLE
from drivetrain.engines.canary import Comparison
from drivetrain.engines.event_windows import identity
from drivetrain.records import Scalar
from drivetrain.watch.answers import ANSWERED, Answers, outcome_of, place_of
from drivetrain.watch.monitor_store import in_sample
from drivetrain.watch.sources import Position, Source

_NEWEST = 2_500
"""Of the predictions that wait for labels, the newest, which are all kept: a label that comes soon always finds its own."""
_SAMPLE = 2_500
"""Of the older ones, a fair sample. When there are more, every other one goes, by its identity."""
_UNPAIRED = 1_000
"""Losses of one arm that wait for one of the other."""
_PORTION = 20_000
"""Events that are held at a time."""
_BEYOND = 1e50
"""No label is as large, and a prediction that is counts as this: the squares of what follows from it are still numbers."""

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
        rows = self._answers.decode(answers, [1] * len(answers)).values.clip(-_BEYOND, _BEYOND)
        return [None if any(map(math.isnan, row)) else tuple(row) for row in rows.tolist()]

    def loss(self, prediction: Prediction, label: Any) -> float | None:
        """See `Losses`."""
        if self._classes is None:
            is_number = isinstance(label, int | float) and abs(label) < _BEYOND  # also where no float is as large
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
    """Reads for one comparison, and remembers predictions until their labels come, however late: of the older ones a sample, which is
    thinned by the requests' ids, so that both answers to a request are in it or neither is."""

    def __init__(self, champion: str, candidate: str, losses: Losses | None) -> None:
        self._arms = {champion: 0, candidate: 1}
        self._losses = losses
        self._newest: dict[str, list[Prediction | None]] = {}
        self._sample: dict[str, list[Prediction | None]] = {}
        self._level = 0
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
                both = self._sample.get(event.id) or self._newest.setdefault(event.id, [None, None])
                both[self._arms[event.revision]] = prediction
        for old in list(itertools.islice(self._newest, max(0, len(self._newest) - _NEWEST))):
            both = self._newest.pop(old)
            if _stays(old, self._level):
                self._sample[old] = both
        while len(self._sample) > _SAMPLE:
            self._level += 1
            self._sample = {event: both for event, both in self._sample.items() if _stays(event, self._level)}

    def _pairs(self, labels: Iterable[Event], losses: Losses) -> Iterator[tuple[float, float]]:
        """Losses of champion and candidate: of one request if both answered it, else of the next two."""
        for event in labels:
            told = _told(event)
            if told is None:
                continue
            both = self._newest.pop(told.id, None) or self._sample.pop(told.id, None)
            if both is None:
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
        return {"predictions": self._newest, "sample": self._sample, "level": self._level, "waiting": self._waiting}

    @classmethod
    def from_json(cls, champion: str, candidate: str, losses: Losses | None, found: Mapping[str, Any]) -> Arms:
        """As it was kept."""
        made = cls(champion, candidate, losses)
        made._newest = _predictions(found["predictions"])
        # A rollout that began before there was a sample has none.
        made._sample, made._level = _predictions(found.get("sample", {})), found.get("level", 0)
        made._waiting = [list(losses_of) for losses_of in found["waiting"]]
        return made


def _predictions(found: Mapping[str, Any]) -> dict[str, list[Prediction | None]]:
    return {
        event: [None if prediction is None else tuple(prediction) for prediction in both]
        for event, both in found.items()
    }


def _stays(event: str, level: int) -> bool:
    return in_sample(identity("prediction", event), level)


def _told(event: Event) -> _Label | None:
    try:
        return _label(event.body)
    except UNREADABLE:
        return None
