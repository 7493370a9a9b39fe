"""Random series and rules, and Prometheus' own tool asked what the rules do on them."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pytest

from drivetrain.engines.expressions import Expression, number
from drivetrain.engines.rules import Alert, Evaluator, Rule, spans
from drivetrain.engines.series import SeriesStore, ordered, quoted

TICK = 5
"""Seconds between two places in a series; samples lie on some of them."""

Values = list[float | str | None]
"""A series: a value at each tick, None where there is no sample, "stale" where it ends."""


@dataclass
class Case:
    """Series and rules, evaluated every `interval` seconds, `steps` times. `tick` is the distance of places in the series; `rendered` is
    the file of the rules, where it is not to be made here."""

    interval: int
    steps: int
    rules: list[Rule]
    series: list[tuple[str, dict[str, str], Values]] = field(default_factory=list)
    expressions: list[Expression] = field(default_factory=list)
    tick: int = TICK
    rendered: Mapping[str, object] | None = None

    def times(self) -> list[int]:
        return [step * self.interval for step in range(self.steps)]

    def stored(self, until: int | None = None) -> SeriesStore:
        """The samples up to a time, as a store that keeps what rules and expressions read."""
        kept = spans(self.rules)
        for expression in self.expressions:
            for metric, span in expression.reads():
                kept[metric] = max(span, kept.get(metric, 0.0))
        store = SeriesStore({metric: span + self.interval * self.steps for metric, span in kept.items()})
        self.feed(store, -1, until if until is not None else self.interval * self.steps)
        return store

    def feed(self, store: SeriesStore, after: int, until: int) -> None:
        for name, labels, values in self.series:
            for place in range(max(after // self.tick + 1, 0), until // self.tick + 1):
                value = values[place] if place < len(values) else None
                if value == "stale":
                    store.end(name, labels, place * self.tick)
                elif value is not None:
                    store.append(name, labels, place * self.tick, float(value))

    @cached_property
    def evaluated(self) -> dict[int, list[Alert]]:
        """What the evaluator says at each instant, given the samples up to it; it is written down and read again in between."""
        store = SeriesStore(spans(self.rules))
        evaluator = Evaluator(self.rules)
        found = {}
        for time in self.times():
            self.feed(store, time - self.interval, time)
            found[time] = evaluator.evaluate(store, time)
            evaluator = Evaluator.from_json(self.rules, json.loads(json.dumps(evaluator.to_json())))
            store = (
                SeriesStore.from_bytes(store.to_bytes(), spans(self.rules)) if time % (84 * self.tick) == 0 else store
            )
        return found


def drawn(values: random.Random, kind: str, ticks: int) -> Values:
    """A series of some kind, with the gaps, the jitter and the ends that scrapes have."""
    found: Values = []
    level, next_at, ended = values.uniform(0, 10), values.randrange(6), False
    every = values.choice([3, 6, 12])
    for tick in range(ticks):
        level = _next(values, kind, level)
        if tick < next_at:
            found.append(None)
            continue
        next_at = tick + max(1, every + values.choice([-1, 0, 0, 1]))
        fate = values.random()
        if fate < 0.04 and not ended:
            found.append("stale")
            ended, next_at = True, tick + values.choice([2, 10, 90])
        elif fate < 0.1:
            found.append(None)
            next_at = tick + values.choice([6, 24, 59, 60, 61, 100])
        else:
            ended = False
            found.append(math.nan if kind == "gauge" and fate > 0.99 else round(level, 3))
    return found


def _next(values: random.Random, kind: str, level: float) -> float:
    if kind == "gauge":
        return level + values.gauss(0, 0.8) - (level - 5) * 0.05
    if values.random() < 0.006:
        return float(values.choice([0, 0, 3]))
    return level + (values.choice([0, 0, 1, 5, 40]) if values.random() < 0.8 else 0)


def told(cases: Sequence[Case], directory: Path) -> subprocess.CompletedProcess[str]:
    """One run of promtool over all cases; it fails where an alert or a value is not what is said here."""
    if shutil.which("promtool") is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("promtool is not installed (Debian: prometheus)")
    files = [str(_written(case, directory, place)) for place, case in enumerate(cases)]
    command = ["promtool", "test", "rules", *files]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=directory)


def _written(case: Case, directory: Path, place: int) -> Path:
    rules = [
        {"alert": rule.name, "expr": rule.promql, "for": f"{round(rule.hold)}s", "labels": dict(rule.labels)}
        for rule in case.rules
    ]
    own = directory / f"rules-{place}.yml"
    own.write_text(json.dumps(case.rendered or {"groups": [{"name": "drawn", "rules": rules}]}))
    tests = [*_alerts(case), *_values(case)]
    inputs = [{"series": _series(name, labels), "values": _text(values)} for name, labels, values in case.series]
    test = {"interval": f"{case.tick}s", "input_series": inputs, "promql_expr_test": tests}
    path = directory / f"test-{place}.yml"
    path.write_text(json.dumps({"rule_files": [own.name], "evaluation_interval": f"{case.interval}s", "tests": [test]}))
    return path


def _alerts(case: Case) -> list[dict[str, object]]:
    found = []
    for time, alerts in case.evaluated.items():
        samples = [
            {"labels": _series("ALERTS", {**alert.labels, "alertstate": alert.state}), "value": 1}
            for alert in alerts
            if alert.state != "resolved"
        ]
        found.append({"expr": "ALERTS", "eval_time": f"{time}s", "exp_samples": samples})
    return found


def _values(case: Case) -> list[dict[str, object]]:
    """That each expression has the same labels, and the same values but for the rounding of sums in another order."""
    found: list[dict[str, object]] = []
    store = case.stored()
    for time in case.times():
        for expression in case.expressions:
            text, value = expression.promql, expression.value(store, time)
            found.append(_test(f"count({text}) or vector(0)", time, "{}", len(value)))
            for labels, number_ in value.items():
                # A value that no number is equal to is told by being unlike itself.
                matching = f"({text}) and on ({', '.join(name for name, _ in labels)}) {_marker(labels)}"
                same = f"(({matching}) != ({matching}))" if math.isnan(number_) else _near(matching, number_)
                found.append(_test(f"count({same}) or vector(0)", time, "{}", 1))
    return found


def _near(text: str, value: float) -> str:
    if math.isinf(value):
        return f"({text}) == {number(value)}"
    return f"abs(({text}) - {number(value)}) <= {max(abs(value), 1e-3) * 1e-9!r}"


def _marker(labels: Sequence[tuple[str, str]]) -> str:
    text = "vector(1)"
    for name, value in labels:
        text = f'label_replace({text}, "{name}", {quoted(value)}, "", "")'
    return text


def _test(expression: str, time: int, labels: str, value: float) -> dict[str, object]:
    return {"expr": expression, "eval_time": f"{time}s", "exp_samples": [{"labels": labels, "value": value}]}


def _series(name: str, labels: Mapping[str, str]) -> str:
    return name + "{" + ", ".join(f"{key}={quoted(value)}" for key, value in ordered(labels)) + "}"


def _text(values: Values) -> str:
    words = []
    for value in values:
        if isinstance(value, float):
            words.append("NaN" if math.isnan(value) else repr(value))
        else:
            words.append("_" if value is None else value)
    return " ".join(words)
