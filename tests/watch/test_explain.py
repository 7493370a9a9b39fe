"""What is said of a trigger whose signal has no value now."""

from __future__ import annotations

from collections.abc import Sequence

from drivetrain.definition.loop import Trigger
from drivetrain.definition.serving import Slo
from drivetrain.engines.rules import Alert, spans
from drivetrain.engines.series import SeriesStore
from drivetrain.engines.triggers import Verdict
from drivetrain.watch.conditions import REQUESTS, slo_rules, trigger_rule
from drivetrain.watch.explain import Explained, explain, explain_objectives, numbers
from drivetrain.watch.samples import Sample

NOW = 1_377_000_000.0
END = 1_376_913_600.0  # 2013-08-19 12:00 UTC


def explained(
    trigger: Trigger, earlier: Sequence[Sample], alert: Alert | None = None, verdict: Verdict | None = None
) -> Explained:
    rule = trigger_rule(trigger, "flights")
    store = SeriesStore(spans([rule]))
    alerts = {trigger.name: alert} if alert else {}
    verdicts = {trigger.name: verdict} if verdict else {}
    return explain([trigger], {trigger.name: rule}, store, [], alerts, verdicts, lambda signals: earlier, NOW)[0]


def told(name: str, value: float, role: str = "champion", **labels: str) -> Sample:
    return Sample(f"drivetrain_monitor_{name}", {"revision": "flights-2", "role": role, **labels}, value)


def test_a_signal_without_a_value_is_told_as_the_last_window_had_it() -> None:
    trigger = Trigger(name="season", signal="drift", feature="temp", above=1.0, action="retrain")
    windows = [
        told("window_end_seconds", END),
        told("drift_significant", 4.02, feature="temp", distance="psi"),
        told("drift_significant", 9.0, feature="wind", distance="psi"),
        told("drift_significant", 7.0, role="former", feature="temp", distance="psi"),
    ]
    found = explained(trigger, windows)
    assert (found.value, found.state, found.last, found.last_at) == (None, "unknown", 4.02, END)
    assert found.why == (
        "drift is not known now; of the last window, which ended 2013-08-19 12:00 UTC: drift of temp (psi) is 4.02, above 1"
    )


def test_of_quality_it_is_that_of_all_rows_and_not_of_a_slice() -> None:
    trigger = Trigger(name="quality", signal="quality", below=0.69, action="retrain")
    windows = [
        told("window_end_seconds", END),
        told("quality", 0.75, metric="roc_auc", slice=""),
        told("quality", 0.5, metric="roc_auc", slice="origin=JFK"),
    ]
    found = explained(trigger, windows)
    assert found.last == 0.75
    assert found.why.endswith("quality is 0.75, not below 0.69")


def test_without_a_window_nothing_is_said_of_one() -> None:
    trigger = Trigger(name="quality", signal="quality", below=0.69, action="retrain")
    assert explained(trigger, []).why == "quality is not known yet"
    slow = Trigger(name="slow", signal="latency", above=0.05, action="notify")
    assert explained(slow, [told("window_end_seconds", END)]).last is None


def test_since_when_it_fires_and_why_nothing_is_done_are_said_all_the_same() -> None:
    """As of an alert that Alertmanager told."""
    trigger = Trigger(name="quality", signal="quality", below=0.69, action="retrain")
    windows = [told("window_end_seconds", END), told("quality", 0.6, metric="roc_auc", slice="")]
    firing = Alert("quality", "f", "firing", END, NOW, 0.6)
    found = explained(trigger, windows, firing, Verdict("quality", "retrain", "hold", "cooldown", "it rests"))
    assert (found.state, found.last) == ("firing", 0.6)
    assert found.why.endswith("quality is 0.6, below 0.69, since 2013-08-19 12:00 UTC; not now: it rests")


def test_what_is_infinite_is_told_in_words_alone() -> None:
    """JSON has no number for it."""
    trigger = Trigger(name="full", signal="saturation", above=0.9, action="notify")
    rule = trigger_rule(trigger, "flights")
    store = SeriesStore(spans([rule]))
    for name, value in (("in_flight", 3.0), ("replicas_ready", 0.0)):
        store.append(f"drivetrain_gateway_{name}", {"service": "flights"}, NOW, value)
    (found,) = explain([trigger], {"full": rule}, store, [], {}, {}, lambda signals: [], NOW)
    assert (found.value, found.state, found.why) == (None, "calm", "saturation is inf, above 0.9")
    assert numbers(trigger, float("inf"))["value"] is None


def test_a_rule_of_an_objective_is_told_with_both_windows_and_the_budget() -> None:
    rules = slo_rules(Slo.model_validate({"availability": 99.9}), "flights")
    store = SeriesStore(spans(rules))
    for place in range(121):
        for outcome, each in (("succeeded", 98.0), ("failed", 2.0)):
            labels = {"service": "flights", "outcome": outcome}
            store.append(REQUESTS, labels, NOW - 3600 + 30 * place, each * place)
    firing = Alert(rules[0].name, "f", "firing", END, NOW, 0.02)
    held = Verdict(rules[0].name, "notify", "hold", "cooldown", "it rests")
    left = {"availability": -1.5, "latency": 1.0}
    found = explain_objectives(rules, store, {rules[0].name: firing}, {rules[0].name: held}, left, NOW)
    assert [one.trigger for one in found] == [rule.name for rule in rules]
    first, latency = found[0], found[1]
    assert (first.signal, first.action, first.state, first.comparison, first.threshold) == (
        "errors", "notify", "firing", "above", 0.0144,
    )  # fmt: skip
    assert first.value is not None
    assert abs(first.value - 0.02) < 1e-9
    assert (first.since, first.outcome, first.rule) == (END, "hold", "cooldown")
    assert first.why == (
        "the share of requests without an answer is 0.02 over 1 h, above 0.0144, and 0.02 over 5 min; -1.5 of the error budget is left, "
        "since 2013-08-19 12:00 UTC; not now: it rests"
    )
    assert (latency.value, latency.state, latency.outcome) == (None, "unknown", "nothing")
    assert latency.why == "the share of answers in time is not known yet; 1 of the error budget is left"
