"""Requests and answers as counts: decoded by revision, many at a time, and sorted into their windows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from drivetrain.engines.reference import text_of
from drivetrain.watch.answers import ANSWERED, UNREADABLE_ANSWER, outcome_of
from drivetrain.watch.arrivals import Pair
from drivetrain.watch.labels import MOST_ROWS, Outcomes
from drivetrain.watch.monitor_store import Kept
from drivetrain.watch.payloads import Columns
from drivetrain.watch.subject import Subject, Subjects

Key = tuple[str, float]
"""A revision and the start of a window."""


@dataclass(slots=True)
class Counted:
    """What a batch of pairs comes to: outcomes of requests by window; rows by window, as columns and predictions; predictions that
    wait for labels, each with the latest time that was seen before it."""

    outcomes: Outcomes = field(default_factory=Counter)
    of_windows: dict[Key, Counter[str]] = field(default_factory=dict)
    rows: list[tuple[Key, Mapping[str, np.ndarray], np.ndarray]] = field(default_factory=list)
    kept: list[tuple[Kept, float]] = field(default_factory=list)


def count(pairs: Sequence[Pair], subjects: Subjects) -> Counted:
    """Counts the pairs."""
    counted = Counted()
    of_revision: dict[str, list[Pair]] = {}
    for pair in pairs:
        of_revision.setdefault(pair.request.revision, []).append(pair)
    for revision, some in of_revision.items():
        subject = subjects.find(revision)
        if subject is None:
            counted.outcomes["request", "unknown_revision"] += len(some)
            counted.outcomes["response", "unknown_revision"] += len(some)
        else:
            _count(some, subject, counted)
    return counted


def _count(pairs: Sequence[Pair], subject: Subject, counted: Counted) -> None:
    asked: list[Pair] = []
    for pair in pairs:
        outcome = outcome_of(pair.response)
        if outcome == ANSWERED:
            asked.append(pair)
        else:
            _tell(counted, subject, pair, outcome)
    faulty = {"request": 0, "response": 0}
    columns = subject.requests.decode(pair.request for pair in asked)
    rows = columns.rows.tolist()
    found = subject.answers.decode((pair.response for pair in asked), rows)
    for pair, fault, outcome in zip(asked, columns.faults, found.outcomes, strict=True):
        _tell(counted, subject, pair, fault or outcome)
        if fault:
            faulty["request"] += 1
            counted.outcomes["request", fault] += 1
        elif outcome == UNREADABLE_ANSWER:
            faulty["response"] += 1
            counted.outcomes["response", "unreadable"] += 1
    for kind, count in faulty.items():
        counted.outcomes[kind, "taken"] += len(pairs) - count
    starts = np.repeat([pair.start for pair in asked], columns.rows)
    for start in np.unique(starts).tolist():
        here = starts == start
        chosen = columns.values if here.all() else {name: values[here] for name, values in columns.values.items()}
        counted.rows.append(((subject.revision, start), chosen, found.values[here]))
    counted.kept += _kept(asked, subject, columns, found.values)


def _tell(counted: Counted, subject: Subject, pair: Pair, outcome: str) -> None:
    counted.of_windows.setdefault((subject.revision, pair.start), Counter())[outcome] += 1


def _kept(
    pairs: Sequence[Pair], subject: Subject, columns: Columns, predictions: np.ndarray
) -> Iterable[tuple[Kept, float]]:
    sliced = [name for name in subject.watched.slices if name in columns.values]
    usable = np.isfinite(predictions).all(axis=1).tolist()
    raw, width = predictions.astype("<f8").tobytes(), 8 * subject.answers.width
    end = 0
    for pair, rows in zip(pairs, columns.rows.tolist(), strict=True):
        start, end = end, end + rows
        if not rows:
            continue
        here = raw[start * width : end * width] if rows <= MOST_ROWS and all(usable[start:end]) else b""
        slices = [
            {name: text_of(columns.values[name][row]) or "" for name in sliced} for row in range(start, end) if sliced
        ]
        yield Kept(pair.prediction, subject.revision, pair.request.at, here, slices), pair.before
