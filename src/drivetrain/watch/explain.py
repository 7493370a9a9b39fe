"""Each trigger and each rule of an objective in values and words: what it measures, where it stands, what would be done, and why."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from drivetrain.definition.loop import Trigger
from drivetrain.engines.expressions import Both, Compare
from drivetrain.engines.rules import Alert, Rule
from drivetrain.engines.series import SeriesStore
from drivetrain.engines.triggers import Verdict
from drivetrain.records import Scalar
from drivetrain.watch.conditions import MONITORED, OBJECTIVES
from drivetrain.watch.samples import Sample

UNITS: Mapping[str, str] = {"latency": " s", "staleness": " s", "traffic": " requests a second", "new_data": " rows"}


@dataclass(frozen=True, slots=True)
class Explained:
    """One trigger, or one rule of `serving.slo`, whose value is that of its long window. `state` is `calm`, `pending`, `firing`, or
    `unknown` while its signal has no value; `since` when that state began, if that is known. `outcome` is what would be done now:
    `nothing`, `act`, `ask` for approval, or `hold`, by the rule `rule` and until `until`. Times are seconds since 1970; `hold` is in
    seconds."""

    trigger: str
    signal: str
    action: str
    value: float | None
    comparison: str
    threshold: float
    clear: float | None
    hold: float
    state: str
    since: float | None
    outcome: str
    rule: str
    why: str
    until: float | None
    last: float | None = None
    last_at: float | None = None
    """While the signal has no value: what the last windows told of it, and when the newest of them ended."""


def explain(
    triggers: Iterable[Trigger], rules: Mapping[str, Rule], series: SeriesStore, samples: Sequence[Sample],
    alerts: Mapping[str, Alert], verdicts: Mapping[str, Verdict], earlier: Callable[[Collection[str]], Sequence[Sample]],
    now: float,
) -> list[Explained]:  # fmt: skip
    """Every trigger as it is. `alerts` and `verdicts` are by the triggers' names; `samples` are the monitor's, and `earlier` gives those of
    windows that are too long ago to count, as far as they tell of some signals."""
    known = [(trigger, value_of(trigger, rules[trigger.name], series, now)) for trigger in triggers]
    unknown = {trigger.signal for trigger, value in known if value is None and trigger.signal in MONITORED}
    before = earlier(unknown) if unknown else []
    return [
        _explained(trigger, value, samples, before, alerts.get(trigger.name), verdicts.get(trigger.name))
        for trigger, value in known
    ]


def explain_objectives(
    rules: Iterable[Rule], series: SeriesStore, alerts: Mapping[str, Alert], verdicts: Mapping[str, Verdict],
    left: Mapping[str, float], now: float,
) -> list[Explained]:  # fmt: skip
    """The rules of `serving.slo` as they are; `left` is the share of each error budget that is left."""
    return [_objective(rule, series, alerts.get(rule.name), verdicts.get(rule.name), left, now) for rule in rules]


def _objective(
    rule: Rule, series: SeriesStore, alert: Alert | None, verdict: Verdict | None, left: Mapping[str, float], now: float
) -> Explained:
    assert isinstance(rule.expression, Both)
    conditions = (rule.expression.first, rule.expression.second)
    value, short = (_value(condition, series, now) for condition in conditions)
    signal = rule.labels["signal"]
    what = "the share of requests without an answer" if signal == "errors" else "the share of answers in time"
    words = f"{what} is not known yet"
    if value is not None:
        spans = [spelled(max(span for _, span in condition.reads())) for condition in conditions]
        words = f"{what} is {value:.4g} over {spans[0]}, {_limit(conditions[0], value)}"
        words += f", and {'not known' if short is None else f'{short:.4g}'} over {spans[1]}"
    if (share := left.get(OBJECTIVES[signal])) is not None:
        words += f"; {share:.3g} of the error budget is left"
    words, state, since = _standing(words, "unknown" if value is None else "calm", alert)
    words, outcome, by, until = _intended(words, verdict)
    return Explained(
        rule.name, signal, "notify", value, "above" if conditions[0].operator == ">" else "below", rule.level, None, rule.hold,
        state, since, outcome, by, words, until,
    )  # fmt: skip


def _limit(condition: Compare, value: float) -> str:
    side = "above" if condition.operator == ">" else "below"
    return f"{'' if condition.holds(value) else 'not '}{side} {condition.level:.4g}"


def _value(condition: Compare, series: SeriesStore, now: float) -> float | None:
    found = [value for value in condition.expression.value(series, now).values() if not math.isnan(value)]
    if not found:
        return None
    return max(found) if condition.operator == ">" else min(found)


def value_of(trigger: Trigger, rule: Rule, series: SeriesStore, now: float) -> float | None:
    """What the trigger's signal is now; None if it has no value."""
    assert isinstance(rule.expression, Compare)
    return _value(rule.expression, series, now)


def _explained(
    trigger: Trigger, value: float | None, samples: Sequence[Sample], before: Sequence[Sample], alert: Alert | None,
    verdict: Verdict | None,
) -> Explained:  # fmt: skip
    state = "unknown" if value is None else "calm"
    words = measured(trigger, value, samples)
    last, last_at = (_last(trigger, before) if value is None else None) or (None, None)
    if last is not None and last_at is not None:
        ended = f"of the last window, which ended {instant(last_at)}: {measured(trigger, last, before)}"
        words = f"{trigger.signal} is not known now; {ended}"
    words, state, since = _standing(words, state, alert)
    if state == "pending":
        words += f"; it has to hold for {spelled(trigger.hold.total_seconds())}"
    words, outcome, rule, until = _intended(words, verdict)
    return Explained(
        trigger.name, trigger.signal, trigger.action, _finite(value), "above" if _is_above(trigger) else "below", trigger.level,
        trigger.clear, trigger.hold.total_seconds(), state, since, outcome, rule, words, until, last, last_at,
    )  # fmt: skip


def _standing(words: str, state: str, alert: Alert | None) -> tuple[str, str, float | None]:
    """Words, state and since when it is so."""
    if alert is None or alert.state == "resolved":
        return words, state, None
    return f"{words}, since {instant(alert.since)}", alert.state, alert.since


def _intended(words: str, verdict: Verdict | None) -> tuple[str, str, str, float | None]:
    """Words, outcome, and the rule that objects, until when."""
    if verdict is None:
        return words, "nothing", "", None
    if verdict.reason:
        words += f"; not now: {verdict.reason}"
        words += f", until {instant(verdict.until)}" if verdict.until is not None else ""
    elif verdict.outcome == "ask":
        words += "; somebody has to approve it"
    return words, verdict.outcome, verdict.rule, verdict.until


def _last(trigger: Trigger, samples: Sequence[Sample]) -> tuple[float, float] | None:
    """What the champion's windows told last of the trigger's signal, and when the newest of them ended; None if none did."""
    found = [
        sample.value for sample in samples
        if sample.name == MONITORED.get(trigger.signal) and sample.labels.get("role") == "champion"
        and trigger.feature in (None, sample.labels.get("feature")) and not sample.labels.get("slice")
    ]  # fmt: skip
    ends = [
        sample.value for sample in samples
        if sample.name == "drivetrain_monitor_window_end_seconds" and sample.labels.get("role") == "champion"
    ]  # fmt: skip
    return (max(found) if _is_above(trigger) else min(found), ends[0]) if found and ends else None


def measured(trigger: Trigger, value: float | None, samples: Sequence[Sample]) -> str:
    """`drift of temp is 0.31, above 0.25`, or what it is else."""
    if trigger.signal == "schedule":
        return f"{trigger.cron} ({trigger.timezone}) is {'due' if value else 'not due'}"
    if value is None:
        return f"{trigger.signal} is not known yet"
    side = "above" if _is_above(trigger) else "below"
    beyond = value > trigger.level if _is_above(trigger) else value < trigger.level
    limit = f"{side if beyond else 'not ' + side} {trigger.level:.4g}"
    if trigger.signal != "drift":
        return f"{trigger.signal} is {value:.4g}{UNITS.get(trigger.signal, '')}, {limit}"
    moved = _moved(
        trigger, "drivetrain_monitor_drift_significant" if value > 0 else "drivetrain_monitor_drift", samples
    )
    if moved is None:
        return f"drift is {value:.4g}, {limit}"
    where = f"{moved.labels['feature']} ({moved.labels['distance']})"
    if value > 0:
        return f"drift of {where} is {value:.4g}, {limit}"
    return f"no drift is beyond chance; the largest is that of {where}, {moved.value:.4g}"


def numbers(trigger: Trigger, value: float | None) -> dict[str, Scalar]:
    """A decision's numbers."""
    return {"signal": trigger.signal, "value": _finite(value), "threshold": trigger.level}


def _finite(value: float | None) -> float | None:
    """A value for JSON, which has no word for that of a service without any replica, which something waits for."""
    return value if value is not None and math.isfinite(value) else None


def _moved(trigger: Trigger, metric: str, samples: Sequence[Sample]) -> Sample | None:
    """The feature of the champion that has moved most, of those that the trigger looks at."""
    found = [
        one for one in samples
        if one.name == metric and one.labels.get("role") == "champion"
        and trigger.feature in (None, one.labels.get("feature"))
    ]  # fmt: skip
    return max(found, key=lambda one: one.value, default=None)


def _is_above(trigger: Trigger) -> bool:
    return trigger.signal == "schedule" or trigger.above is not None


def instant(at: float) -> str:
    """`2013-06-01 04:00 UTC`."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC")


def spelled(seconds: float) -> str:
    """A span in words: `45 s`, `10 min`, `2 h`, `3 d`."""
    for unit, length in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} s"
