"""What the monitor costs: processor time to read, decode, pair and count what a gateway has captured, from the log on the disk to the state
on the disk; requests with 26 features as those of examples/flights, with and without labels."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from benchmarks.measures import Findings, Measurement, Target, at_most
from drivetrain.backends.serving.gateway.events import FEEDBACK, REQUEST, RESPONSE, Event, head
from drivetrain.backends.serving.gateway.segments import Record, Segments, packed
from drivetrain.engines.event_windows import Windows
from drivetrain.engines.live_checks import LiveChecks
from drivetrain.engines.watched import watched
from drivetrain.watch.monitor import Monitor, Rules
from drivetrain.watch.monitor_store import MonitorStore
from drivetrain.watch.sources import Log
from drivetrain.watch.subject import Subject, subject

RACE = "monitor"
REQUESTS = 100_000
RATE = 1000
"""Requests a second that it is to keep up with."""
REVISION = "flights-1-0af3b7e2"
BEGIN = 1_364_774_400.0
TEXTS = {"from_airport": 3, "to_airport": 90, "airline": 16}
NUMBERS = [f"number_{place}" for place in range(23)]
ROUNDS = 3


def race(say: Callable[[str], None] = print, requests: int = REQUESTS) -> Findings:
    """The race with its targets. Takes about two minutes on one core."""
    watched_one = _subject()
    measurements: list[Measurement] = []
    targets: list[Target] = []
    for labels, name in ((False, "requests and answers"), (True, "requests, answers and labels")):
        with tempfile.TemporaryDirectory() as directory:
            place = Path(directory)
            _capture(place / "log", requests, labels=labels)
            say(f"  {requests:,} {name}")
            times = [_seconds(place, number, watched_one) for number in range(ROUNDS)]
        each = Measurement("Drivetrain", name, tuple(1e6 * seconds / requests for seconds in times), "us")
        share = Measurement("Drivetrain", f"{name}, share of a core", tuple(RATE * s / requests for s in times), "")
        measurements += [each, share]
        targets.append(at_most(RACE, f"{name}: share of one core at {RATE:,} requests a second", share, 0.2))
    return Findings(targets, measurements)


def _seconds(place: Path, number: int, watched_one: Subject) -> float:
    """Processor time for the whole log."""
    rules = Rules("flights", Windows(3600.0, 60.0), "psi", 0.05, 200, 4 * 86_400.0)
    with Monitor(MonitorStore(place / f"{number}.db"), _Known(watched_one), rules) as monitor:
        started = time.process_time()
        monitor.catch_up(Log(place / "log", "log"), BEGIN + 1e6)
        return time.process_time() - started


class _Known:
    """Knows one revision."""

    def __init__(self, one: Subject) -> None:
        self._one = one

    def find(self, revision: str) -> Subject | None:
        return self._one if revision == self._one.revision else None

    def look_again(self) -> None:
        pass


def _columns(rows: int, seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    texts = {
        name: np.array([f"{name[0].upper()}{value:02d}" for value in range(count)], dtype=object)[
            random.integers(0, count, rows)
        ]
        for name, count in TEXTS.items()
    }
    return texts | {name: random.normal(50, 10, rows).round(4) for name in NUMBERS}


def _subject() -> Subject:
    columns = _columns(80_000, 0)
    random = np.random.default_rng(1)
    p = random.uniform(size=20_000)
    seen = watched(
        columns,
        [False, True],
        "roc_auc",
        (random.uniform(size=len(p)) < p).astype(np.int64),
        np.stack([1 - p, p], axis=1),
    )
    between = {"min_value": -100, "max_value": 200}
    checks = [
        {"type": "expect_column_values_to_be_between", "kwargs": {"column": name, **between}} for name in NUMBERS[:7]
    ]
    checks.append(
        {"type": "expect_column_values_to_match_regex", "kwargs": {"column": "airline", "regex": "^A[0-9]+$"}}
    )
    return subject(REVISION, "run", seen, LiveChecks.of({"expectations": checks}, list(columns)), BEGIN)


def _capture(directory: Path, requests: int, *, labels: bool) -> None:
    segments = Segments(directory, segment=64 * 1024**2, keep=8 * 1024**3, sync="never")
    portion: list[Record] = []
    for event in _events(requests, labels=labels):
        portion.append(packed(head(event), event.body))
        if len(portion) == 1000:
            segments.append(portion)
            portion = []
    segments.append(portion)
    segments.close()


def _events(requests: int, *, labels: bool) -> Iterator[Event]:
    random = np.random.default_rng(2)
    columns = {name: values.tolist() for name, values in _columns(requests, 3).items()}
    p = random.uniform(size=requests)
    late = random.uniform(size=requests) < p
    for row in range(requests):
        name, at = f"{row:026x}", BEGIN + row / 20
        asked = json.dumps({"input": {key: values[row] for key, values in columns.items()}})
        output = {"late": bool(p[row] >= 0.5), "probability": p[row]}
        answer = {"id": name, "logs": "", "metrics": {"predict_time": 0.004}, "output": output, "status": "succeeded"}
        about = "/predictions", "application/json"
        yield Event(REQUEST, name, REVISION, *about, asked.encode(), at, service="flights", source="gateway")
        yield Event(
            RESPONSE, name, REVISION, *about, json.dumps(answer).encode(), at + 0.004, 200, 0.004, "flights", "gateway"
        )
        if labels:
            told = json.dumps({"id": name, "label": bool(late[row])}).encode()
            yield Event(FEEDBACK, name, "", "/feedback", "application/json", told, at + 1, service="flights")
