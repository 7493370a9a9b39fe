"""Labels and the predictions that they are of, joined whichever came first."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from drivetrain.backends.serving.replica.codecs.jsons import UNREADABLE
from drivetrain.engines.event_windows import Windows
from drivetrain.watch.answers import place_of
from drivetrain.watch.arrivals import Label
from drivetrain.watch.monitor_store import Kept, MonitorStore, in_sample
from drivetrain.watch.subject import Subject, Subjects

MOST_KEPT = 1_000_000
"""Predictions that wait for labels. When there are more, every other one goes, by its identity: those that stay are still a fair sample."""
MOST_WAITING = 100_000
"""Labels that wait for predictions."""
MOST_ROWS = 1000
"""Rows of one prediction that wait for labels."""
LARGEST = 1024**2
"""Bytes of a label that are looked into."""

Outcomes = Counter[tuple[str, str]]


class _Body(msgspec.Struct):
    label: Any


_read = msgspec.json.Decoder(_Body).decode


@dataclass(slots=True)
class Joined:
    """Predictions of one revision whose labels became known in one window."""

    predictions: list[np.ndarray] = field(default_factory=list)
    labels: list[float] = field(default_factory=list)
    slices: list[Mapping[str, str]] = field(default_factory=list)


@dataclass(slots=True)
class Joining:
    """What a batch joins: by revision and start of the window; and rows labelled by start, whatever the revision."""

    found: dict[tuple[str, float], Joined] = field(default_factory=dict)
    rows: Counter[float] = field(default_factory=Counter)
    outcomes: Outcomes = field(default_factory=Counter)


class Labels:
    """Joins within one transaction of the store at a time.

    Predictions are kept for `patience` seconds of event time. A label counts in the window in which it became known, or the first one that
    is open, if it comes late. `level` is that of the sample: one prediction in 2^level is kept.
    """

    def __init__(self, store: MonitorStore, subjects: Subjects, windows: Windows, patience: float) -> None:
        self._store, self._subjects = store, subjects
        self._windows, self._patience = windows, patience
        self._waiting = store.waiting()
        self._kept = store.count_predictions()
        self.level = int(store.facts().get("level", 0))

    def predicted(self, predictions: Sequence[tuple[Kept, float]], closed: set[float]) -> Joining:
        """Keeps predictions, each with the latest time that was seen before it; those whose labels wait are joined."""
        joining = Joining()
        kept: list[Kept] = []
        for one, before in predictions:
            if not one.predictions or not in_sample(one.identity, self.level):
                joining.outcomes["prediction", "left_out"] += 1
                continue
            kept.append(one)
            waiting = self._waiting.get(one.identity)
            if waiting is not None and not self._is_over(waiting[0], before):
                self._store.change_waiting([one.identity], [])
                del self._waiting[one.identity]
                self._join(one.identity, [one], *waiting, before, closed, joining)
                kept.pop()
        self._store.keep_predictions(kept)
        self._kept += len(kept)
        return joining

    def told(self, labels: Sequence[Label], closed: set[float]) -> Joining:
        """Joins labels with the predictions that are kept; others wait."""
        joining = Joining()
        predictions: dict[int, list[Kept]] = {}
        for one in self._store.predictions([label.prediction for label in labels]):
            predictions.setdefault(one.identity, []).append(one)
        waiting: list[tuple[int, float, str]] = []
        done: list[int] = []
        for label in labels:
            text = _label(label.event.body)
            found = [p for p in predictions.get(label.prediction, ()) if p.at + self._patience >= label.before]
            if text is None:
                joining.outcomes["label", "unreadable"] += 1
            elif found:
                done.append(label.prediction)
                self._kept -= len(predictions.pop(label.prediction))
                self._join(label.prediction, found, label.event.at, text, label.before, closed, joining)
            elif not in_sample(label.prediction, self.level):
                joining.outcomes["label", "left_out"] += 1
            elif len(self._waiting) >= MOST_WAITING or self._is_over(label.event.at, label.before):
                joining.outcomes["label", "unknown"] += 1
            else:
                self._waiting[label.prediction] = (label.event.at, text)
                waiting.append((label.prediction, label.event.at, text))
        self._store.drop_predictions(done)
        self._store.change_waiting([], waiting)
        return joining

    def _is_over(self, at: float, before: float) -> bool:
        """Whether a label of the time `at` waits no longer: as long as a window does for stragglers."""
        return at + self._windows.late < before - self._windows.late

    def _join(
        self, identity: int, found: Sequence[Kept], at: float, text: str, before: float, closed: set[float], joining: Joining
    ) -> None:  # fmt: skip
        start = self._open_start(at, before, closed)
        rows = 0
        for one in found:
            subject = self._subjects.find(one.revision)
            values = None if subject is None else _values(subject, text, one)
            if subject is None or values is None:
                continue
            rows = len(values)
            entry = joining.found.setdefault((one.revision, start), Joined())
            entry.predictions.append(np.frombuffer(one.predictions, "<f8").reshape(rows, -1))
            entry.labels += values
            entry.slices += one.slices or [{}] * rows
        joining.outcomes["label", "taken" if rows else "unreadable"] += 1
        joining.outcomes["prediction", "labelled"] += len(found)
        joining.rows[start] += rows

    def _open_start(self, at: float, before: float, closed: set[float]) -> float:
        start = self._windows.start(at)
        if before > -math.inf:
            start = max(start, self._windows.start(before - self._windows.late))
        while start in closed:
            start += self._windows.length
        return start

    def clear(self, latest: float) -> Outcomes:
        """Lets go what has waited too long, and what is too much."""
        outcomes: Outcomes = Counter()
        over = [key for key, (at, _) in self._waiting.items() if self._is_over(at, latest)]
        for key in over:
            del self._waiting[key]
        self._store.change_waiting(over, [])
        old = self._store.drop_old_predictions(latest - self._patience)
        self._kept -= old
        outcomes["label", "unknown"] += len(over)
        outcomes["prediction", "unlabelled"] += old
        while self._kept > MOST_KEPT:
            self.level += 1
            gone = self._store.thin_predictions(self.level)
            self._kept -= gone
            outcomes["prediction", "left_out"] += gone
        if self.level and self._kept < MOST_KEPT // 4:
            self.level -= 1
        self._store.keep_fact("level", self.level)
        return +outcomes


def _label(body: bytes) -> str | None:
    """The label as JSON; None if there is none."""
    if len(body) > LARGEST:
        return None
    try:
        return msgspec.json.encode(_read(body).label).decode()
    except UNREADABLE:
        return None


def _values(subject: Subject, text: str, kept: Kept) -> list[float] | None:
    """The labels of a prediction's rows, as positions of classes or values; None if they are not such, or not as many."""
    found = msgspec.json.decode(text)
    rows = len(kept.predictions) // (8 * subject.answers.width)
    each = found if isinstance(found, list) else [found]
    if len(each) != rows:
        return None
    values = list(_numbers(each, subject.watched.classes))
    return values if all(math.isfinite(value) for value in values) else None


def _numbers(labels: Iterable[Any], classes: Sequence[Any] | None) -> Iterable[float]:
    for label in labels:
        place = label if classes is None else place_of(label, classes)
        known = isinstance(place, int | float) and abs(place) < 1e300
        yield float(place) if known else math.nan  # type: ignore[arg-type]
