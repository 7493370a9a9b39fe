"""The triggers and objectives of a definition as rules: what each signal is, in terms of the metrics that gateway and monitor give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from drivetrain.backends.serving.gateway.metrics import BOUNDS
from drivetrain.definition.definition import Definition
from drivetrain.definition.loop import Trigger
from drivetrain.definition.serving import Scale, Slo
from drivetrain.engines.expressions import (
    Aggregate,
    Both,
    Compare,
    Divide,
    Expression,
    Quantile,
    Rate,
    Select,
    Share,
    duration,
    number,
)
from drivetrain.engines.rules import Rule
from drivetrain.engines.series import Matcher
from drivetrain.engines.slo import BURN_WINDOWS, BurnWindow, allowed

REQUESTS = "drivetrain_gateway_requests_total"
SECONDS = "drivetrain_gateway_request_seconds"
IN_FLIGHT, READY = "drivetrain_gateway_in_flight", "drivetrain_gateway_replicas_ready"
UNANSWERED = "failed|overloaded|expired"
"""Outcomes that are the service's own fault (docs/metrics.md)."""

SLOW_SHARE = 99.0
"""Percent of the answers that come within `serving.slo.latency`."""

MONITORED: Mapping[str, str] = {
    "drift": "drivetrain_monitor_drift_significant",
    "quality": "drivetrain_monitor_quality",
    "data_quality": "drivetrain_monitor_data_quality",
    "staleness": "drivetrain_monitor_staleness_seconds",
    "new_data": "drivetrain_monitor_new_rows",
}
"""Signal -> the metric that the monitor tells of it, window by window."""
OBJECTIVES: Mapping[str, str] = {"errors": "availability", "latency": "latency"}
"""Signal of an objective's rules -> the objective."""
_BY = ("service",)


@dataclass(frozen=True, slots=True)
class Objective:
    """What should hold of the requests: of those that `every` counts at most the share `allowed` may be bad. `some` counts the bad ones, or
    the good ones."""

    name: str
    allowed: float
    every: Select
    some: Select
    some_are_bad: bool


def rules(definition: Definition) -> list[Rule]:
    """A rule for each trigger, and those that watch the objectives of `serving.slo`, which only notify."""
    scale = definition.serving.scale
    triggers = [trigger_rule(trigger, definition.name, scale) for trigger in definition.triggers]
    return [*triggers, *slo_rules(definition.serving.slo, definition.name)]


def trigger_rule(trigger: Trigger, service: str, scale: Scale | None = None) -> Rule:
    """The condition of a trigger: its signal beyond its level, for as long as it has to hold. `scale` says what a replica can carry."""
    above = trigger.signal == "schedule" or trigger.above is not None
    level = number(trigger.level)
    text = f"{trigger.signal} of {service} is {'above' if above else 'below'} {level}"
    return Rule(
        trigger.name,
        Compare(signal(trigger, service, scale), ">" if above else "<", trigger.level),
        hold=trigger.hold.total_seconds(),
        clear=trigger.clear,
        labels={"signal": trigger.signal, "action": trigger.action},
        annotations=_annotations("a schedule is due" if trigger.signal == "schedule" else text),
        on=_BY,
    )


def signal(trigger: Trigger, service: str, scale: Scale | None = None) -> Expression:
    """What the trigger compares: one value for the service. Of the model's signals only the champion's count, and of several
    series the one that is nearest to the trigger's level."""
    own, window = Matcher("service", "=", service), trigger.window.total_seconds()
    match trigger.signal:
        case "latency":
            return Quantile(0.99, Aggregate("sum", Rate(Select(f"{SECONDS}_bucket", (own,)), window), (*_BY, "le")))
        case "errors":
            return _unanswered(own, window)
        case "traffic":
            return _asked((own,), window)
        case "saturation":
            return _saturation(own, window, scale or Scale())
        case "schedule":
            due = Select("drivetrain_monitor_schedule_due", (own, Matcher("trigger", "=", trigger.name)))
            return Aggregate("max", due, _BY)
    matchers = [own, Matcher("role", "=", "champion")]
    if trigger.signal == "quality":
        matchers.append(Matcher("slice", "=", ""))
    if trigger.feature is not None:
        matchers.append(Matcher("feature", "=", trigger.feature))
    found = Select(MONITORED[trigger.signal], tuple(matchers))
    return Aggregate("max" if trigger.above is not None else "min", found, _BY)


def _saturation(own: Matcher, window: float, scale: Scale) -> Expression:
    """What is asked of the replicas that answer, as a share of what these can carry by `serving.scale.target`."""
    load: Expression = Aggregate("sum", Select(IN_FLIGHT, (own,)), _BY)
    if scale.metric == "rps":
        load = _asked((own,), window)
    return Share(Divide(load, Aggregate("sum", Select(READY, (own,)), _BY)), scale.target)


def objectives(slo: Slo, service: str) -> list[Objective]:
    """What `serving.slo` asks for: that requests are answered, and that answers come in time."""
    own = Matcher("service", "=", service)
    asked = Select(REQUESTS, (own,))
    failed = Select(REQUESTS, (own, Matcher("outcome", "=~", UNANSWERED)))
    found = [Objective("availability", allowed(slo.availability), asked, failed, some_are_bad=True)]
    bound = _bound(slo)
    if bound is not None:
        quick, every = _timed(own, bound)
        found.append(Objective("latency", allowed(SLOW_SHARE), every, quick, some_are_bad=False))
    return found


def _bound(slo: Slo) -> float | None:
    """Where answers in time are counted: the next bound of the histogram above what is asked for; None if there is none."""
    return next((bound for bound in BOUNDS if bound >= slo.latency.total_seconds()), None)


def _timed(own: Matcher, bound: float) -> tuple[Select, Select]:
    """Answers in time, and all of them."""
    return (
        Select(f"{SECONDS}_bucket", (own, Matcher("le", "=", repr(bound)))),
        Select(f"{SECONDS}_count", (own,)),
    )


def slo_rules(slo: Slo, service: str) -> list[Rule]:
    """How fast the error budget burns: the pairs of windows of the Site Reliability Workbook, for answers and for latency.

    A pair that even a service that answers nothing would not set off is left out.
    """
    return [
        rule
        for window in BURN_WINDOWS
        for rule in (_availability(slo, service, window), _latency(slo, service, window))
        if rule is not None
    ]


def _availability(slo: Slo, service: str, window: BurnWindow) -> Rule | None:
    own, level = Matcher("service", "=", service), round(window.factor * allowed(slo.availability), 9)
    if level >= 1:
        return None
    long, short = (Compare(_unanswered(own, span), ">", level) for span in (window.long, window.short))
    objective = f"{number(slo.availability)} % of the requests of {service} should be answered"
    return _burning("availability", "errors", window, Both(long, short), objective)


def _latency(slo: Slo, service: str, window: BurnWindow) -> Rule | None:
    bound = _bound(slo)
    level = round(1 - window.factor * allowed(SLOW_SHARE), 9)
    if bound is None or level <= 0:
        return None
    quick, every = _timed(Matcher("service", "=", service), bound)

    def in_time(span: float) -> Expression:
        return Divide(Aggregate("sum", Rate(quick, span), _BY), Aggregate("sum", Rate(every, span), _BY))

    long, short = (Compare(in_time(span), "<", level) for span in (window.long, window.short))
    objective = f"{number(SLOW_SHARE)} % of the answers of {service} should come within {duration(bound)}"
    return _burning("latency", "latency", window, Both(long, short), objective)


def _burning(objective: str, signal: str, window: BurnWindow, condition: Both, text: str) -> Rule:
    return Rule(
        f"slo-{objective}-{duration(window.long)}",
        condition,
        labels={"signal": signal, "action": "notify", "severity": window.severity},
        annotations=_annotations(
            f"{text}; the error budget burns more than {number(window.factor)} times as fast as it may"
        ),
        on=_BY,
    )


def _asked(matchers: tuple[Matcher, ...], window: float) -> Expression:
    return Aggregate("sum", Rate(Select(REQUESTS, matchers), window), _BY)


def _unanswered(own: Matcher, window: float) -> Expression:
    failed = _asked((own, Matcher("outcome", "=~", UNANSWERED)), window)
    return Divide(failed, _asked((own,), window))


def _annotations(summary: str) -> dict[str, str]:
    return {"summary": summary, "value": "{{ $value }}"}
