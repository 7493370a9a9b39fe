"""The rules of a whole definition as they are rendered: `promtool test rules` has the same alerts as the evaluator at each instant."""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any, get_args

import pytest

from drivetrain.backends.metrics.prometheus import rule_groups
from drivetrain.backends.serving.gateway.metrics import BOUNDS
from drivetrain.definition.definition import Definition
from drivetrain.definition.loop import Signal
from drivetrain.watch import conditions
from tests.engines.promtool import Case, Values, told

MINUTES = 80 * 60
EVERY = 240
"""Seconds from one evaluation to the next: less than five minutes, as rules with `clear` need it. Series have a sample each minute."""
TRIGGERS: list[dict[str, Any]] = [
    {"name": "drifted", "signal": "drift", "above": 0.25, "clear": 0.15, "hold": "1h"},
    {"name": "of-temp", "signal": "drift", "feature": "temp", "above": 0.25},
    {"name": "worse", "signal": "quality", "below": 0.7, "clear": 0.72},
    {"name": "dirty", "signal": "data_quality", "below": 0.95, "hold": "30m"},
    {"name": "slow", "signal": "latency", "above": "50ms", "clear": "20ms", "window": "30m", "hold": "10m"},
    {"name": "broken", "signal": "errors", "above": 0.01, "window": "10m"},
    {"name": "quiet", "signal": "traffic", "below": 0.2, "window": "1h"},
    {"name": "full", "signal": "saturation", "above": 0.9, "clear": 0.7, "hold": "20m"},
    {"name": "old", "signal": "staleness", "above": "2d"},
    {"name": "nightly", "signal": "schedule", "cron": "0 4 * * *"},
    {"name": "enough", "signal": "new_data", "above": 1000, "hold": "2h"},
]
TEXT = {
    "name": "flights", "data": {"source": "a.csv", "label": "late"}, "train": {"function": "train.py:train"},
    "evaluate": {"metric": "accuracy"}, "serving": {"slo": {"latency": "50ms", "availability": 99.9}, "scale": {"target": 4}},
    "triggers": TRIGGERS,
}  # fmt: skip
OUTCOMES = ("succeeded", "refused", "failed", "overloaded", "expired", "abandoned")


def trouble(hour: float) -> tuple[float, float]:
    """The share of requests that fail, and that are slow: a slow leak, two hours of a worse one, half an hour without any answer."""
    if 20 <= hour < 20.5:
        return 0.5, 0.6
    if 50 <= hour < 58:
        return 0.02, 0.15
    return (0.002, 0.02) if hour < 66 else (0.0, 0.0)


class Counts:
    """The counters of a revision, as its gateway would have them."""

    def __init__(self, revision: str) -> None:
        self.revision = revision
        self._outcomes = dict.fromkeys(OUTCOMES, 0)
        self._buckets = [0] * (len(BOUNDS) + 1)

    def ask(self, values: random.Random, requests: int, bad: float, slow: float) -> None:
        for _ in range(requests):
            self._outcomes[
                values.choice(OUTCOMES[2:5]) if values.random() < bad else OUTCOMES[values.random() < 0.02]
            ] += 1
            took = values.uniform(0.06, 0.4) if values.random() < slow else values.uniform(0.001, 0.009)
            self._buckets[bisect_left(BOUNDS, took)] += 1

    def told(self) -> Iterator[tuple[str, float, dict[str, str]]]:
        for outcome, count in self._outcomes.items():
            yield "requests_total", count, {"outcome": outcome}
        for bound, count in zip([*map(repr, BOUNDS), "+Inf"], accumulate(self._buckets), strict=True):
            yield "request_seconds_bucket", count, {"le": bound}
        yield "request_seconds_count", sum(self._buckets), {}


class Told:
    """Series of the service, with a place for each minute."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, tuple[tuple[str, str], ...]], Values] = {}

    def put(self, minute: int, name: str, value: float, labels: Mapping[str, str]) -> None:
        key = (name, tuple({"service": "flights", **labels}.items()))
        self._found.setdefault(key, [None] * MINUTES)[minute] = float(value)

    def series(self) -> list[tuple[str, dict[str, str], Values]]:
        """A series that tells nothing for the last hour has ended."""
        for own in self._found.values():
            last = max(place for place, value in enumerate(own) if value is not None)
            if last + 60 < MINUTES:
                own[last + 1] = "stale"
        return [(name, dict(labels), own) for (name, labels), own in self._found.items()]


def series(values: random.Random) -> list[tuple[str, dict[str, str], Values]]:
    """What gateway and monitor tell over days: of two revisions, the first of which begins anew and later ends."""
    found = Told()
    counts = {revision: Counts(revision) for revision in "12"}
    for minute in range(MINUTES):
        hour = minute / 60
        if minute == 44 * 60:
            counts["1"] = Counts("1")
        revisions = ["1"] * (hour < 70) + ["2"] * (hour >= 30)
        silent = 41 <= hour < 41.2 or values.random() < 0.01
        for own in (counts[revision] for revision in revisions):
            own.ask(values, values.choice([10, 20, 30] if hour % 24 > 5 else [0, 0, 10]), *trouble(hour))
            if not silent:
                _gateway(found, values, minute, own)
        _monitor(found, minute, {"revision": revisions[0], "role": "champion"})
    return found.series()


def _gateway(found: Told, values: random.Random, minute: int, own: Counts) -> None:
    hour, revision = minute / 60, {"revision": own.revision}
    for name, count, labels in own.told():
        found.put(minute, f"drivetrain_gateway_{name}", count, revision | labels)
    ready = 1 if hour < 60 else 2
    found.put(minute, "drivetrain_gateway_in_flight", values.choice([0, 1, 2]) + 14 * (22 <= hour < 23), revision)
    found.put(minute, "drivetrain_gateway_replicas_ready", 0 if 65 <= hour < 66 else ready, revision)


def _monitor(found: Told, minute: int, model: Mapping[str, str]) -> None:
    hour = minute / 60

    def put(name: str, value: float, labels: Mapping[str, str]) -> None:
        found.put(minute, f"drivetrain_monitor_{name}", value, labels)

    for place, feature in enumerate(("temp", "wind")):
        since = (hour + 9 * place) % 30
        moved = 0.1 + 0.2 * (since > 20) - 0.1 * (since > 26)
        put("drift_significant", moved, {"feature": feature, "distance": "psi", **model})
    quality = {"metric": "accuracy", **model}
    put("quality", 0.75 - 0.06 * (hour % 40 > 30) + 0.02 * (hour % 40 > 36), quality)
    put("quality", 0.1, {"slice": "origin=JFK", **quality})
    put("data_quality", 0.9 if hour % 36 > 34 else 0.99, model)
    put("staleness_seconds", hour % 70 * 3600, model)
    put("new_rows", round(hour % 30) * 40, model)
    put("schedule_due", 4 <= hour % 24 < 5, {"trigger": "nightly"})


@pytest.mark.slow
def test_the_rules_of_a_definition_with_every_signal_fire_at_the_same_instants_as_in_prometheus(tmp_path: Path) -> None:
    definition = Definition.model_validate(TEXT)
    assert {trigger["signal"] for trigger in TRIGGERS} == set(get_args(Signal))
    rules = conditions.rules(definition)
    rendered = rule_groups("flights", rules, float(EVERY))
    case = Case(EVERY, MINUTES * 60 // EVERY, rules, series(random.Random(7)), tick=60, rendered=rendered)
    for rule in rules:
        states = {alert.state for alerts in case.evaluated.values() for alert in alerts if alert.trigger == rule.name}
        assert {"firing", "resolved"} <= states, rule.name
        assert ("pending" in states) == (rule.hold > 0), rule.name
    answer = told([case], tmp_path)
    assert answer.returncode == 0, (answer.stdout + answer.stderr)[-3000:]
