"""A revision that is watched, events as its gateway would capture them, and a monitor of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from drivetrain.backends.serving.gateway.events import FEEDBACK, REQUEST, RESPONSE, Event
from drivetrain.engines.event_windows import Windows
from drivetrain.engines.live_checks import LiveChecks
from drivetrain.engines.watched import watched
from drivetrain.watch.monitor import Monitor, Rules
from drivetrain.watch.monitor_store import MonitorStore
from drivetrain.watch.subject import Subject, subject

REVISION = "delays-1-0af3b7e2"
CANDIDATE = "delays-2-11111111"
BEGIN = 1_364_774_400.0
"""1 April 2013, midnight UTC."""
WINDOW, LATE = 600.0, 60.0
AIRLINES = np.array(["AA", "DL", "UA"], dtype=object)

NO_LABELS = [
    b"", b"{", b"[]", b'{"id":"0-3"}',
    b'{"id":"0-3","label":"perhaps"}', b'{"id":"0-3","label":[true,false]}', b'{"id":"0-3","label":{"a":1}}',
    b'{"id":"0-3","label":NaN}', b'{"id":"0-3","label":null}', b'{"id":"0-3","label":"' + b"x" * 2**21 + b'"}', b"[" * 10_000,
    b'{"id":"0-3","label":' + b"[" * 10_000, b'{"id":"0-3","label":' + b"9" * 400 + b"}",
    b'{"id":"0-3","label":' + b"9" * 5000 + b"}", b'{"id":"0-3","label":1e299}', b'{"id":"0-3","label":1e400}',
]  # fmt: skip
"""What is sent as the label of the prediction `0-3`, and is none."""

SUITE = {
    "expectations": [
        {
            "type": "expect_column_values_to_be_between",
            "kwargs": {"column": "temp", "min_value": -30, "max_value": 125},
        },
        {"type": "expect_column_values_to_be_in_set", "kwargs": {"column": "airline", "value_set": AIRLINES.tolist()}},
        {"type": "expect_column_values_to_not_be_null", "kwargs": {"column": "temp", "mostly": 0.98}},
    ]
}


def features(rows: int, seed: int = 0, *, warmer: float = 0.0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        "temp": random.normal(60 + warmer, 10, rows).round(2),
        "hour": random.uniform(0, 24, rows).round(2),
        "airline": AIRLINES[random.integers(0, 3, rows)],
    }


def probabilities(columns: dict[str, np.ndarray]) -> np.ndarray:
    """What the model of these tests answers: late when it is warm."""
    return (1 / (1 + np.exp(-(columns["temp"] - 60) / 10))).round(6)


def truth(columns: dict[str, np.ndarray], seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).uniform(size=len(columns["temp"])) < probabilities(columns)


def the_subject(revision: str = REVISION, classes: Any = (False, True), **options: Any) -> Subject:
    columns = features(4000)
    if classes is None:
        seen = watched(columns, None, "rmse", columns["temp"], columns["temp"], slices=("airline",))
    else:
        held_out = features(2000, 7)
        p = probabilities(held_out)
        y = truth(held_out).astype(np.int64)
        seen = watched(
            columns, list(classes), "roc_auc", y, np.stack([1 - p, p], axis=1), slices=("airline",), until=BEGIN
        )
    return subject(revision, "run", seen, LiveChecks.of(SUITE, list(columns)), BEGIN, **options)


class TheSubjects:
    """Knows two revisions."""

    def __init__(self, *known: Subject) -> None:
        self.known = {one.revision: one for one in known}

    def find(self, revision: str) -> Subject | None:
        return self.known.get(revision)

    def look_again(self) -> None:
        pass


_SUBJECTS: TheSubjects | None = None


def subjects() -> TheSubjects:
    """Made once: a reference costs more than everything else."""
    global _SUBJECTS
    if _SUBJECTS is None:
        one = the_subject()
        _SUBJECTS = TheSubjects(one, replace(one, revision=CANDIDATE))
    return _SUBJECTS


def rules(**changes: Any) -> Rules:
    return replace(Rules("delays", Windows(WINDOW, LATE), "psi", 0.05, 20, 2 * 86_400.0), **changes)


def a_monitor(directory: Path, known: TheSubjects | None = None, **changes: Any) -> Monitor:
    return Monitor(MonitorStore(directory / "monitor.db"), known or subjects(), rules(**changes))


@dataclass
class Events:
    """A `Source` of events in memory; its positions are numbers."""

    events: Sequence[Event]
    name: str = "events"

    def after(self, position: str | None) -> Iterator[tuple[str, Event]]:
        for place in range(int(position or 0), len(self.events)):
            yield str(place + 1), self.events[place]


def asked(name: str, at: float, body: Any, revision: str = REVISION, path: str = "/predictions") -> Event:
    content = (
        body if isinstance(body, bytes) else json.dumps({"input": body} if path == "/predictions" else body).encode()
    )
    return Event(REQUEST, name, revision, path, "application/json", content, at)


def answered(
    name: str, at: float, output: Any, revision: str = REVISION, status: int = 200, path: str = "/predictions"
) -> Event:
    content = output if isinstance(output, bytes) else json.dumps({"output": output, "status": "succeeded"}).encode()
    return Event(RESPONSE, name, revision, path, "application/json", content, at, status, 0.01)


def told(name: str, at: float, label: Any) -> Event:
    body = json.dumps({"id": name, "label": label, "time": at}).encode()
    return Event(FEEDBACK, name, "", "/feedback", "application/json", body, at)


def traffic(
    rows: int, start: float = BEGIN, every: float = 1.0, *, seed: int = 0, warmer: float = 0.0, revision: str = REVISION,
    delay: float | None = None, prefix: str = "",
) -> list[Event]:  # fmt: skip
    """Requests and their answers, and after `delay` seconds their labels, in the order of their times."""
    columns = features(rows, seed, warmer=warmer)
    p, y = probabilities(columns), truth(columns, seed + 1)
    found: list[Event] = []
    for row in range(rows):
        name, at = f"{prefix}{seed}-{row}", start + row * every
        inputs = {key: values[row] for key, values in columns.items()}
        found.append(asked(name, at, inputs, revision))
        found.append(answered(name, at + 0.01, {"late": bool(p[row] >= 0.5), "probability": float(p[row])}, revision))
        if delay is not None:
            found.append(told(name, at + delay, bool(y[row])))
    return sorted(found, key=lambda event: event.at)
