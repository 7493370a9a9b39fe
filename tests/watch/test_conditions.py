"""Every signal of a trigger is a rule on metrics that gateway and monitor really give; objectives are burn rates."""

from __future__ import annotations

from typing import Any

import pytest

from drivetrain.backends.metrics.scrape import read
from drivetrain.backends.serving.gateway.metrics import Metrics
from drivetrain.definition.definition import Definition
from drivetrain.definition.loop import Trigger
from drivetrain.definition.serving import Scale, Slo
from drivetrain.engines.rules import Evaluator, spans
from drivetrain.engines.series import SeriesStore
from drivetrain.watch import conditions
from drivetrain.watch.samples import Sample

NAME = "flights"


def trigger(**parts: Any) -> Trigger:
    return Trigger.model_validate({"name": "watched", **parts})


def value(found: Trigger, *samples: Sample) -> float | None:
    store = SeriesStore(spans([conditions.trigger_rule(found, NAME)]))
    store.scraped("door", [(one.name, one.labels, one.value) for one in samples], 0.0)
    return dict(conditions.signal(found, NAME).value(store, 0.0)).get((("service", NAME),))


def told(metric: str, value: float, /, **labels: str) -> Sample:
    return Sample(f"drivetrain_monitor_{metric}", {"service": NAME, "role": "champion", **labels}, value)


def test_drift_is_the_largest_of_the_champions_features_or_that_of_one() -> None:
    samples = [
        told("drift_significant", 0.3, feature="hour", distance="psi"),
        told("drift_significant", 0.1, feature="wind", distance="psi"),
        told("drift_significant", 0.9, feature="hour", distance="psi", role="candidate"),
        Sample(
            "drivetrain_monitor_drift_significant", {"service": "other", "role": "champion", "feature": "hour"}, 2.0
        ),
        told("drift", 0.8, feature="wind", distance="psi"),
    ]
    assert value(trigger(signal="drift", above=0.2), *samples) == 0.3
    assert value(trigger(signal="drift", above=0.2, feature="wind"), *samples) == 0.1
    assert value(trigger(signal="drift", above=0.2, feature="gone"), *samples) is None


def test_quality_is_that_of_all_rows_and_not_of_a_slice() -> None:
    samples = [told("quality", 0.7, metric="roc_auc"), told("quality", 0.1, metric="roc_auc", slice="origin=EWR")]
    assert value(trigger(signal="quality", below=0.6), *samples) == 0.7


@pytest.mark.parametrize(
    ("signal", "metric"),
    [("data_quality", "data_quality"), ("staleness", "staleness_seconds"), ("new_data", "new_rows")],
)
def test_the_monitors_other_signals_are_read_as_they_are(signal: str, metric: str) -> None:
    assert value(trigger(signal=signal, above=1), told(metric, 5.0), told(metric, 9.0, role="former")) == 5.0


def test_a_schedule_fires_when_it_is_due() -> None:
    due = trigger(signal="schedule", cron="0 4 * * *")
    rule = conditions.trigger_rule(due, NAME)
    for state, fires in ((0.0, False), (1.0, True)):
        store = SeriesStore(spans([rule]))
        for name, known in (("watched", state), ("other", 1.0)):
            store.append("drivetrain_monitor_schedule_due", {"service": NAME, "trigger": name}, 0.0, known)
        assert [alert.state for alert in Evaluator([rule]).evaluate(store, 0.0)] == ["firing"] * fires


def test_latency_errors_and_traffic_come_from_the_gateways_own_counters() -> None:
    metrics = Metrics()
    metrics.of("flights-1")
    signals = {name: trigger(signal=name, above=1) for name in ("latency", "errors", "traffic")}
    store = SeriesStore(spans(conditions.trigger_rule(one, NAME) for one in signals.values()))
    for at in (0.0, 300.0):
        samples = [
            (name, {**labels, "service": NAME}, number) for name, labels, number in read("\n".join(metrics.text()))
        ]
        store.scraped("gateway", samples, at)
        for status, count, seconds in ((200, 90, 0.02), (422, 4, 0.0003), (500, 3, 0.2), (503, 2, 0.2), (504, 1, 0.2)):
            for _ in range(count):
                metrics.of("flights-1").count(status, seconds)
    found = {
        name: conditions.signal(one, NAME).value(store, 300.0)[(("service", NAME),)] for name, one in signals.items()
    }
    assert found["traffic"] == pytest.approx(100 / 300)
    assert found["errors"] == pytest.approx(0.06)
    assert 0.1 < found["latency"] <= 0.25


@pytest.mark.parametrize(("scale", "wanted"), [({"target": 4}, 1.5), ({"target": 0.05, "metric": "rps"}, 2.0)])
def test_saturation_is_what_is_asked_of_what_the_ready_replicas_can_carry(
    scale: dict[str, object], wanted: float
) -> None:
    rule = conditions.trigger_rule(trigger(signal="saturation", above=0.9), NAME, Scale.model_validate(scale))
    store = SeriesStore(spans([rule]))
    for at in (0.0, 150.0, 300.0):
        for revision, in_flight, ready in (("1", 8.0, 2.0), ("2", 10.0, 1.0)):
            own = {"service": NAME, "revision": revision}
            store.append("drivetrain_gateway_in_flight", own, at, in_flight)
            store.append("drivetrain_gateway_replicas_ready", own, at, ready)
            store.append("drivetrain_gateway_requests_total", own, at, 0.15 * at)
    assert rule.signal.value(store, 300.0) == {(("service", NAME),): pytest.approx(wanted)}
    assert rule.promql.endswith(f" / {scale['target']}) > 0.9")


def test_what_waits_while_nothing_is_ready_saturates_and_a_service_that_sleeps_does_not() -> None:
    rule = conditions.trigger_rule(trigger(signal="saturation", above=0.9), NAME)
    for waiting, states in ((3.0, ["firing"]), (0.0, [])):
        store = SeriesStore(spans([rule]))
        store.append("drivetrain_gateway_in_flight", {"service": NAME}, 0.0, waiting)
        store.append("drivetrain_gateway_replicas_ready", {"service": NAME}, 0.0, 0.0)
        assert [alert.state for alert in Evaluator([rule]).evaluate(store, 0.0)] == states


def test_hold_clear_and_action_are_the_triggers() -> None:
    rule = conditions.trigger_rule(
        trigger(signal="latency", above="50ms", clear="20ms", hold="10m", action="rollback", window="2m"), NAME
    )
    assert (rule.level, rule.hold, rule.clear) == (0.05, 600.0, 0.02)
    assert rule.labels == {"signal": "latency", "action": "rollback"}
    assert rule.annotations["summary"] == "latency of flights is above 0.05"
    assert "[2m]" in rule.promql
    assert rule.promql.endswith('and on (service) ALERTS{alertname="watched", alertstate="firing"})')


def test_objectives_burn_in_pairs_of_windows_and_only_notify() -> None:
    found = conditions.slo_rules(Slo.model_validate({"latency": "40ms", "availability": 99.9}), NAME)
    assert [rule.name for rule in found] == [
        "slo-availability-1h", "slo-latency-1h", "slo-availability-6h", "slo-latency-6h", "slo-availability-3d", "slo-latency-3d",
    ]  # fmt: skip
    assert {rule.labels["action"] for rule in found} == {"notify"}
    assert [rule.labels["severity"] for rule in found] == ["page"] * 4 + ["ticket"] * 2
    assert "> 0.0144) and (" in found[0].promql
    assert 'le="0.05"' in found[1].promql
    assert "< 0.856) and (" in found[1].promql


def test_an_objective_that_cannot_be_missed_so_far_has_no_rule() -> None:
    lax = Slo.model_validate({"latency": "2h", "availability": 90})
    assert [rule.name for rule in conditions.slo_rules(lax, NAME)] == ["slo-availability-6h", "slo-availability-3d"]


def test_a_definition_has_a_rule_for_each_trigger_and_objective() -> None:
    text = {
        "name": NAME, "data": {"source": "a.csv", "label": "late"}, "train": {"function": "train.py:train"},
        "evaluate": {"metric": "accuracy"}, "triggers": [{"name": "old", "signal": "staleness", "above": "30d"}],
    }  # fmt: skip
    found = conditions.rules(Definition.model_validate(text))
    assert found[0].name == "old"
    assert found[0].level == 30 * 86400
    assert len(found) == 7
