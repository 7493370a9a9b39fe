"""The evaluator says at each instant what Prometheus says: Debian's `promtool test rules` on the same random series."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from drivetrain.engines.expressions import Aggregate, Both, Compare, Divide, Expression, Quantile, Rate, Select
from drivetrain.engines.rules import Rule
from drivetrain.engines.series import Matcher
from tests.engines.promtool import TICK, Case, Values, drawn, told

BOUNDS = ("0.01", "0.1", "0.5", "2.5", "+Inf")
OUTCOMES = ("succeeded", "failed", "expired")


def series(values: random.Random, ticks: int) -> list[tuple[str, dict[str, str], Values]]:
    """Gauges, counters and histograms: of one service with two revisions, and of one with one."""
    found: list[tuple[str, dict[str, str], Values]] = []
    for service, revision in (("flights", "1"), ("flights", "2"), ("wine", "1")):
        own = {"service": service, "revision": revision}
        found.append(("level", own, drawn(values, "gauge", ticks)))
        found += [("asked_total", {**own, "outcome": word}, drawn(values, "counter", ticks)) for word in OUTCOMES]
        found += [("took_bucket", {**own, "le": bound}, drawn(values, "counter", ticks)) for bound in BOUNDS]
    return found


def expressions(values: random.Random, by: tuple[str, ...]) -> list[tuple[Expression, float]]:
    """One expression of each kind, and a level that its value crosses now and then."""
    window = values.choice([60.0, 120.0, 300.0])
    failed = Select("asked_total", (Matcher("outcome", "=~", "failed|expired"),))
    asked = Aggregate("sum", Rate(Select("asked_total"), window), by)
    narrow = Select("level", (Matcher("revision", "!=", "2"), Matcher("service", "!~", "wi.*")))
    took = Aggregate("sum", Rate(Select("took_bucket"), window), (*by, "le"))
    return [
        (Aggregate(values.choice(["max", "min", "avg", "sum"]), Select("level"), by), 5.0),
        (Aggregate("max", narrow, by), 5.0),
        (asked, 0.6),
        (Divide(Aggregate("sum", Rate(failed, window), by), asked), 0.4),
        (Quantile(values.choice([0.0, 0.5, 0.99, 1.0]), took), 0.3),
    ]


def case(seed: int, steps: int = 60) -> Case:
    """Conditions on the expressions, with a hold or none, with hysteresis or none; and two conditions at once."""
    values = random.Random(seed)
    interval = values.choice([15, 30, 60])
    by = values.choice([("service",), ("service", "revision")])
    found = expressions(values, by)
    rules = []
    for place, (expression, level) in enumerate(found):
        condition = Compare(expression, values.choice([">", "<"]), level)
        clear = values.choice([None, level * (0.8 if condition.operator == ">" else 1.2)])
        hold = values.choice([0.0, 0.0, 30.0, 90.0, 200.0])
        rules.append(Rule(f"drawn-{place}", condition, hold, clear, {"signal": "drawn"}, on=by))
    both = Both(Compare(found[2][0], ">", 0.3), Compare(found[3][0], ">", 0.3))
    rules.append(Rule("both", both, 60.0, labels={"signal": "both"}))
    return Case(
        interval, steps, rules, series(values, interval * steps // TICK), [expression for expression, _ in found]
    )


def test_alerts_pend_fire_and_end_at_the_same_instants_as_in_prometheus(tmp_path: Path) -> None:
    cases = [replace(case(seed), expressions=[]) for seed in range(10)]
    states = [alert.state for one in cases for alerts in one.evaluated.values() for alert in alerts]
    assert min(states.count(state) for state in ("pending", "firing", "resolved")) > 100
    answer = told(cases, tmp_path)
    assert answer.returncode == 0, (answer.stdout + answer.stderr)[-3000:]


@pytest.mark.slow
def test_alerts_are_those_of_prometheus_in_a_hundred_and_fifty_long_cases(tmp_path: Path) -> None:
    answer = told([replace(case(seed, steps=120), expressions=[]) for seed in range(1000, 1150)], tmp_path)
    assert answer.returncode == 0, (answer.stdout + answer.stderr)[-3000:]


def test_values_are_those_of_prometheus(tmp_path: Path) -> None:
    answer = told([replace(case(seed, steps=20), rules=[]) for seed in range(100, 110)], tmp_path)
    assert answer.returncode == 0, (answer.stdout + answer.stderr)[-3000:]


def test_promtool_notices_an_alert_that_is_told_an_instant_too_late(tmp_path: Path) -> None:
    rule = Rule("high", Compare(Select("level"), ">", 1.0), 30.0)
    one = Case(15, 5, [rule], [("level", {"service": "flights"}, [2.0] * 20)])
    assert told([one], tmp_path).returncode == 0
    one.evaluated[30] = one.evaluated[15]
    assert told([one], tmp_path).returncode != 0
