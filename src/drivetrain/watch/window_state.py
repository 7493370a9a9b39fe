"""All that is counted of one revision in one window: of a few kilobytes a feature whatever the traffic, and mergeable."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np

from drivetrain.engines import drift
from drivetrain.engines.estimate import Estimate, Estimated
from drivetrain.engines.quality import Interval, Scores
from drivetrain.engines.sketches import Window
from drivetrain.engines.two_samples import Distance
from drivetrain.engines.watched import PREDICTION
from drivetrain.watch.subject import Subject

MOST_SLICES = 50
"""Values of a slicing column that are told apart in a window, those that come first."""
_LEAST_ROWS = 100
"""Rows a window has to have for its drift to be told: fewer show nothing, and would end an alarm that is right."""
_OUTCOMES = ("answered", "refused", "failed", "unreadable", "too_large", "unreadable_answer")
_UNFIT = ("refused", "unreadable", "too_large")
"""Outcomes of requests that have no rows to be judged: each counts as a row that fails."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A value with its 95 % interval, over so many rows."""

    value: float
    low: float
    high: float
    rows: int


@dataclass(frozen=True, slots=True)
class Moved:
    """How far a feature, or `prediction`, is from its reference: `value` is the effect size, in the distance's unit, and `significant`
    says that it is beyond chance, as it is from `critical` on (None: no value would be). `distance` is `psi`, `js` or `ks`; `missing` or
    `unseen` for the shares of such values."""

    feature: str
    distance: str
    value: float
    critical: float | None
    p_value: float
    significant: bool


@dataclass(frozen=True, slots=True)
class WindowReport:
    """One closed window of one revision. Times are seconds since 1970. What could not be told (too few rows or labels) is None or
    absent."""

    revision: str
    start: float
    end: float
    rows: int
    """Rows that were asked and answered."""
    outcomes: Mapping[str, int] = field(default_factory=dict)
    """Requests by what became of them: `answered`, `refused` as not valid, `failed`, `unreadable` or `too_large` for the monitor, and
    `unreadable_answer`, whose answer holds no prediction that it knows."""
    drift: tuple[Moved, ...] = ()
    passing: float | None = None
    """Share of rows that meet every live check. A request that was refused, or could not be read, counts as a row that does not."""
    broken: Mapping[str, int] = field(default_factory=dict)
    """How many rows break each live check, by its column and its name."""
    metric: str = ""
    quality: Measured | None = None
    """Of the labels that became known within the window."""
    slices: Mapping[str, Measured] = field(default_factory=dict)
    """The same by slice, `column=value`."""
    estimate: Measured | None = None
    """What the metric probably is, from the model's own probabilities."""
    labels: int = 0


@dataclass(frozen=True, slots=True)
class Settings:
    """How windows are told: the distance, the level of each comparison, and the least labels for a quality."""

    distance: Distance
    alpha: float
    least_labels: int


class _Stored(msgspec.Struct):
    window: bytes
    outcomes: dict[str, int]
    rows: int
    passing: int
    seen: list[int]
    broken: list[int]
    scores: bytes
    slices: dict[str, bytes]
    estimated: bytes | None


class WindowState:
    """Counts of one window. Adding in another order, or in parts that are merged, gives the same."""

    def __init__(self, subject: Subject) -> None:
        watched = subject.watched
        self.subject = subject
        self._window = subject.empty.empty()
        self._outcomes = dict.fromkeys(_OUTCOMES, 0)
        self._rows = self._passing = 0
        self._seen, self._broken = np.zeros((2, len(subject.checks.checks)), dtype=np.int64)
        self._scores = self._new_scores()
        self._slices: dict[str, Scores] = {}
        self._estimated = None
        if watched.calibration is not None:
            self._estimated = Estimated(watched.metric, watched.calibration)

    def _new_scores(self) -> Scores:
        watched = self.subject.watched
        return Scores(watched.metric, watched.kind, len(watched.classes or ()))

    def add_rows(self, columns: Mapping[str, np.ndarray], predictions: np.ndarray) -> None:
        """Counts rows that were answered: columns of shape (rows,), predictions of shape (rows, width)."""
        rows = len(predictions)
        self._rows += rows
        self._window.add({**columns, PREDICTION: self.subject.answered(predictions)}, rows)
        found = self.subject.checks.failing(columns, rows)
        self._passing += rows - int(np.count_nonzero(found.rows))
        self._seen += found.seen
        self._broken += found.broken
        if self._estimated is not None:
            self._estimated.add(self.subject.as_scores(predictions))

    def add_outcomes(self, outcomes: Mapping[str, int]) -> None:
        """Counts requests by what became of them."""
        for name, count in outcomes.items():
            self._outcomes[name] += count

    def add_labels(self, predictions: np.ndarray, labels: np.ndarray, slices: Sequence[Mapping[str, str]]) -> None:
        """Counts predictions, shape (rows, width), whose labels have come: positions of classes or values, shape (rows,)."""
        scores = self.subject.as_scores(predictions)
        self._scores.add(scores, labels)
        places: dict[str, list[int]] = {}
        for row, entry in enumerate(slices):
            for column, value in entry.items():
                places.setdefault(f"{column}={value}", []).append(row)
        for name, rows in places.items():
            if name not in self._slices and not self._is_room_for(name):
                continue
            self._slices.setdefault(name, self._new_scores()).add(scores[rows], labels[rows])

    def _is_room_for(self, name: str) -> bool:
        column = name.partition("=")[0] + "="
        return sum(known.startswith(column) for known in self._slices) < MOST_SLICES

    def merge(self, other: WindowState) -> None:
        """Counts what another has counted, of the same revision. Raises `DataError` if it is of another reference."""
        self._window.merge(other._window)
        self.add_outcomes(other._outcomes)
        self._rows += other._rows
        self._passing += other._passing
        self._seen += other._seen
        self._broken += other._broken
        self._scores.merge(other._scores)
        if self._estimated is not None and other._estimated is not None:
            self._estimated.merge(other._estimated)
        for name, scores in other._slices.items():
            if name in self._slices or self._is_room_for(name):
                self._slices.setdefault(name, self._new_scores()).merge(scores)

    def to_bytes(self) -> bytes:
        """All of it but the subject; the same counts give the same bytes."""
        stored = _Stored(
            window=self._window.to_bytes(),
            outcomes=self._outcomes,
            rows=self._rows,
            passing=self._passing,
            seen=self._seen.tolist(),
            broken=self._broken.tolist(),
            scores=self._scores.to_bytes(),
            slices={name: self._slices[name].to_bytes() for name in sorted(self._slices)},
            estimated=None if self._estimated is None else self._estimated.to_bytes(),
        )
        return msgspec.msgpack.encode(stored)

    @classmethod
    def from_bytes(cls, subject: Subject, data: bytes) -> WindowState:
        """What `to_bytes` gave. Raises `DataError` or `CorruptArtifact` for anything else, `msgspec.MsgspecError` for no such thing."""
        stored = msgspec.msgpack.decode(data, type=_Stored)
        made = cls(subject)
        made._window = Window.from_bytes(subject.watched.reference, stored.window)
        made._outcomes |= stored.outcomes
        made._rows, made._passing = stored.rows, stored.passing
        made._seen = np.array(stored.seen, dtype=np.int64)
        made._broken = np.array(stored.broken, dtype=np.int64)
        made._scores = Scores.from_bytes(stored.scores)
        made._slices = {name: Scores.from_bytes(scores) for name, scores in stored.slices.items()}
        if stored.estimated is not None and subject.watched.calibration is not None:
            made._estimated = Estimated.from_bytes(subject.watched.calibration, stored.estimated)
        return made

    def report(self, start: float, end: float, settings: Settings) -> WindowReport:
        """What the window tells."""
        watched, checks = self.subject.watched, self.subject.checks
        judged = self._rows + sum(self._outcomes[outcome] for outcome in _UNFIT)
        verdicts = checks.verdicts(self._seen, self._broken)
        estimated = None if self._estimated is None else _measured(self._estimated.value(), _LEAST_ROWS)
        slices = {name: _measured(self._slices[name].value(), settings.least_labels) for name in sorted(self._slices)}
        return WindowReport(
            revision=self.subject.revision,
            start=start,
            end=end,
            rows=self._rows,
            outcomes=dict(self._outcomes),
            drift=self._drift(settings) if self._rows >= _LEAST_ROWS else (),
            passing=self._passing / judged if judged else None,
            broken={f"{v.check.column} {v.check.expectation}": v.broken for v in verdicts if v.broken},
            metric=watched.metric,
            quality=_measured(self._scores.value(), settings.least_labels),
            slices={name: found for name, found in slices.items() if found is not None},
            estimate=estimated,
            labels=self._scores.rows,
        )

    def _drift(self, settings: Settings) -> tuple[Moved, ...]:
        found = drift.compare(self.subject.watched.reference, self._window, settings.distance, settings.alpha)
        return tuple(
            Moved(
                entry.feature, entry.distance, entry.value, entry.critical if math.isfinite(entry.critical) else None, entry.p_value,
                entry.significant,
            )
            for entry in found
        )  # fmt: skip

    def shares(self, feature: str) -> drift.Shares:
        """A feature's bins beside the reference's. Raises `KeyError` for an unknown feature."""
        return drift.shares(self.subject.watched.reference, self._window, feature)


def _measured(found: Interval | Estimate, least: int) -> Measured | None:
    if not found.defined or found.rows < least:
        return None
    # A single class has no interval in some metrics.
    low, high = (bound if math.isfinite(bound) else found.value for bound in (found.low, found.high))
    return Measured(found.value, low, high, found.rows)
