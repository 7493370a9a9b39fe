"""What rules say, told in small series; that it is what Prometheus says is held by test_rules_promtool.py."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from drivetrain.engines.expressions import (
    Aggregate,
    Both,
    Compare,
    Divide,
    Expression,
    Quantile,
    Rate,
    Select,
    duration,
    number,
)
from drivetrain.engines.rules import Evaluator, Rule, fingerprint, spans
from drivetrain.engines.series import Matcher, SeriesStore

ONE = {"service": "flights"}
KEY = (("service", "flights"),)
HIGH = Rule("high", Compare(Select("level"), ">", 10.0), hold=60.0, clear=5.0, labels={"action": "retrain"})


def states(rule: Rule, values: list[float | None], every: float = 30.0) -> list[str]:
    """The rule's state for each value, one value every half minute; None: the series ends."""
    store, evaluator, found = SeriesStore(spans([rule])), Evaluator([rule]), []
    for place, value in enumerate(values):
        if value is None:
            store.end("level", ONE, place * every)
        else:
            store.append("level", ONE, place * every, value)
        evaluator = Evaluator.from_json([rule], json.loads(json.dumps(evaluator.to_json())))
        found.append(" ".join(alert.state for alert in evaluator.evaluate(store, place * every)))
    return found


def test_an_alert_pends_for_its_hold_then_fires_until_it_is_clear() -> None:
    values: list[float | None] = [9, 11, 12, 11, 6, 7, 5, 6, 11]
    assert states(HIGH, values) == ["", "pending", "pending", "firing", "firing", "firing", "resolved", "", "pending"]


def test_a_pending_alert_starts_anew_after_a_dip() -> None:
    assert states(HIGH, [11, 11, 9, 11, 11, 11]) == ["pending", "pending", "", "pending", "pending", "firing"]


def test_without_a_hold_an_alert_fires_at_once_and_ends_with_its_series() -> None:
    assert states(replace(HIGH, hold=0.0), [11, None, 11, math.nan]) == ["firing", "resolved", "firing", "resolved"]


def test_an_alert_tells_since_when_and_with_which_value() -> None:
    store, evaluator = SeriesStore(spans([HIGH])), Evaluator([HIGH])
    for at, value in ((0, 11.0), (30, 12.0), (60, 13.0), (90, 6.0), (120, 1.0)):
        store.append("level", ONE, at, value)
        [alert] = evaluator.evaluate(store, at)
        seen = (alert.state, alert.since, alert.at, alert.value)
        assert seen == {
            0: ("pending", 0, 0, 11.0), 30: ("pending", 0, 30, 12.0), 60: ("firing", 60, 60, 13.0),
            90: ("firing", 60, 90, 6.0), 120: ("resolved", 60, 120, 6.0),
        }[at]  # fmt: skip
    assert alert.labels == {"alertname": "high", "service": "flights", "action": "retrain"}
    assert evaluator.evaluate(store, 150) == []


def test_a_clock_that_was_set_back_does_not_hold_up_an_alert() -> None:
    store, evaluator = SeriesStore(spans([HIGH])), Evaluator([HIGH])
    found = []
    for at in (5_000_000.0, 1000.0, 1030.0, 1060.0):
        store.append("level", ONE, at, 11.0)
        found += [alert.state for alert in evaluator.evaluate(store, at)]
    assert found == ["pending", "pending", "pending", "firing"]


def test_a_rule_that_is_gone_leaves_no_alert_and_a_new_one_starts_calm() -> None:
    store, evaluator = SeriesStore({"level": 0.0}), Evaluator([replace(HIGH, hold=0.0)])
    store.append("level", ONE, 0.0, 11.0)
    evaluator.evaluate(store, 0.0)
    other = replace(HIGH, name="other", hold=0.0)
    assert [alert.trigger for alert in Evaluator.from_json([other], evaluator.to_json()).evaluate(store, 1.0)] == [
        "other"
    ]


def test_the_fingerprint_is_fnv_of_names_and_values() -> None:
    assert fingerprint({}) == "cbf29ce484222325"
    assert fingerprint({"a": "b", "c": "d"}) == fingerprint({"c": "d", "a": "b"})
    assert fingerprint({"a": "bc"}) != fingerprint({"ab": "c"})


def test_conditions_read_as_prometheus_wants_them() -> None:
    failed = Select("asked_total", (Matcher("outcome", "=~", "failed|expired"),))
    share = Divide(
        Aggregate("sum", Rate(failed, 300), ("service",)),
        Aggregate("sum", Rate(Select("asked_total"), 300), ("service",)),
    )
    assert share.promql == (
        'sum by (service) (rate(asked_total{outcome=~"failed|expired"}[5m])) / sum by (service) (rate(asked_total[5m]))'
    )
    assert (
        Both(Compare(share, ">", 0.01), Compare(Select("a"), "<", 1)).promql == f"(({share.promql}) > 0.01) and (a < 1)"
    )
    assert HIGH.promql == (
        '(level > 10) or ((level > 5) and on (service) ALERTS{alertname="high", alertstate="firing"})'
    )
    assert [duration(s) for s in (0, 0.25, 90, 300, 7200, 259200)] == ["0s", "250ms", "90s", "5m", "2h", "3d"]
    assert [number(n) for n in (3.0, 0.05, math.inf, 1e300)] == ["3", "0.05", "+Inf", "1e+300"]


def of(expression: Expression, at: float, **metrics: list[tuple[float, float]]) -> float | None:
    kept: dict[str, float] = {}
    for metric, span in expression.reads():
        kept[metric] = max(span, kept.get(metric, 0.0))
    store = SeriesStore(kept)
    for name, samples in metrics.items():
        for time, value in samples:
            store.append(name, ONE, time, value)
    return dict(expression.value(store, at)).get(KEY)


def test_a_rate_stretches_to_both_ends_of_its_window() -> None:
    rate = Rate(Select("asked"), 60)
    # Samples at both ends: exactly what was counted. Both ends belong to the window.
    assert of(rate, 60, asked=[(0, 5), (30, 35), (60, 65)]) == pytest.approx(1.0)
    # The first 15 seconds and the last 15 are stretched over, as they are shorter than 1.1 times the distance of samples.
    assert of(rate, 60, asked=[(15, 100), (45, 130)]) == pytest.approx(1.0)
    # A counter does not stretch to before it was zero.
    assert of(rate, 60, asked=[(15, 0), (45, 30)]) == pytest.approx(30 * 45 / 30 / 60)
    # It was started anew: 20 before, 10 after.
    assert of(rate, 60, asked=[(0, 100), (30, 120), (60, 10)]) == pytest.approx(0.5)
    assert of(rate, 60, asked=[(30, 1)]) is None


def test_a_quantile_lies_within_its_bucket() -> None:
    store = SeriesStore({"took": 60})
    for bound, count in (("0.1", 50), ("0.5", 90), ("+Inf", 100), ("unreadable", 1)):
        store.append("took", {**ONE, "le": bound}, 0, count)
    found = [Quantile(q, Select("took")).value(store, 0)[KEY] for q in (0.5, 0.7, 0.99)]
    assert found == pytest.approx([0.1, 0.3, 0.5])


def test_of_nothing_there_is_no_share() -> None:
    share = Divide(Select("failed"), Select("asked"))
    assert math.isnan(of(share, 0, failed=[(0, 0)], asked=[(0, 0)]) or 0.0)
    assert of(share, 0, failed=[(0, 1)], asked=[(0, 0)]) == math.inf
    assert of(share, 0, failed=[(0, 1)]) is None
