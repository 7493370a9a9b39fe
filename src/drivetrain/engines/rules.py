"""Rules: a condition on series, for how long it has to hold, and when it is over. Evaluated here as Prometheus evaluates them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from drivetrain.engines.expressions import Both, Compare, Expression
from drivetrain.engines.series import Labels, SeriesStore, ordered, quoted

State = Literal["pending", "firing", "resolved"]


@dataclass(frozen=True, slots=True)
class Alert:
    """What a rule says about one set of labels at an instant. Times are seconds since the epoch."""

    trigger: str
    """Name of the rule."""
    fingerprint: str
    """Of the labels, the rule's name among them: what Alertmanager calls the same alert has the same one."""
    state: State
    since: float
    """Pending: since when the condition holds. Firing, resolved: since when it fires, or fired."""
    at: float
    """When this was found; of a resolved alert, when it ended."""
    value: float
    """The value that was compared; of a resolved alert the last one for which it fired."""
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rule:
    """A condition that becomes an alert."""

    name: str
    expression: Compare | Both
    hold: float = 0.0
    """Seconds that the condition has to hold before the alert fires."""
    clear: float | None = None
    """Once it fires, it does so until the value is back beyond this. None: the condition's own level. Only with a `Compare`."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Added to those of the value."""
    annotations: Mapping[str, str] = field(default_factory=dict)
    on: tuple[str, ...] = ("service",)
    """The labels by which a value is known again: those of the expression."""

    @property
    def signal(self) -> Expression:
        """What is compared."""
        return self._first.expression

    @property
    def level(self) -> float:
        """What it is compared with."""
        return self._first.level

    @property
    def promql(self) -> str:
        """The condition for Prometheus. That an alert fires on until it is clear is read from Prometheus' own series `ALERTS`."""
        if self.clear is None or not isinstance(self.expression, Compare):
            return self.expression.promql
        calm = Compare(self.expression.expression, self.expression.operator, self.clear)
        fired = f'ALERTS{{alertname={quoted(self.name)}, alertstate="firing"}}'
        return f"({self.expression.promql}) or (({calm.promql}) and on ({', '.join(self.on)}) {fired})"

    def fails(self, value: float, firing: bool) -> bool:
        """Whether the condition holds of a value, where the alert fires already or not."""
        first = self._first
        return first.holds(value) or (firing and self.clear is not None and first.holds(value, self.clear))

    @property
    def _first(self) -> Compare:
        return self.expression if isinstance(self.expression, Compare) else self.expression.first


class Evaluator:
    """Evaluates rules again and again, and knows which alerts are pending or firing."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.rules = tuple(rules)
        self._active: dict[str, dict[str, Alert]] = {rule.name: {} for rule in rules}

    def evaluate(self, series: SeriesStore, at: float) -> list[Alert]:
        """The alerts at `at`: those that are pending, that fire, and, once, those that have fired until now."""
        return [alert for rule in self.rules for alert in self._evaluate(rule, series, at)]

    def to_json(self) -> dict[str, Any]:
        """Its state, for `from_json`."""
        return {
            name: [{**asdict(alert), "labels": dict(alert.labels)} for alert in alerts.values()]
            for name, alerts in self._active.items()
        }

    @classmethod
    def from_json(cls, rules: Sequence[Rule], state: Mapping[str, Any]) -> Evaluator:
        """The evaluator that was in this state. The state of rules that are no more is dropped."""
        made = cls(rules)
        for name, alerts in state.items():
            if name in made._active:
                made._active[name] = {alert["fingerprint"]: Alert(**alert) for alert in alerts}
        return made

    def _evaluate(self, rule: Rule, series: SeriesStore, at: float) -> Iterator[Alert]:
        active = self._active[rule.name]
        now: dict[str, Alert] = {}
        for labels, value in self._values(rule, series, at):
            known = alert_labels(rule, labels)
            mark = fingerprint(known)
            before = active.get(mark)
            if rule.fails(value, firing=before is not None and before.state == "firing"):
                now[mark] = _next(rule, before, Alert(rule.name, mark, "pending", at, at, value, known))
        ended = [alert for mark, alert in active.items() if mark not in now and alert.state == "firing"]
        self._active[rule.name] = now
        yield from now.values()
        for alert in ended:
            yield replace(alert, state="resolved", at=at)

    def _values(self, rule: Rule, series: SeriesStore, at: float) -> Iterable[tuple[Labels, float]]:
        """With hysteresis, what does not hold of itself may still do so of an alert that fires."""
        expression = rule.expression if rule.clear is None else rule.signal
        return expression.value(series, at).items()


def _next(rule: Rule, before: Alert | None, found: Alert) -> Alert:
    if before is None:
        return replace(found, state="firing") if rule.hold <= 0 else found
    # A clock that was set back must not make an alert wait until the clock has caught up.
    since = min(before.since, found.at)
    if before.state == "pending" and found.at - since >= rule.hold:
        return replace(found, state="firing")
    return replace(found, state=before.state, since=since)


def spans(rules: Iterable[Rule]) -> dict[str, float]:
    """How far back the rules read each metric, in seconds: what a `SeriesStore` has to keep."""
    found: dict[str, float] = {}
    for rule in rules:
        for metric, span in rule.expression.reads():
            found[metric] = max(span, found.get(metric, 0.0))
    return found


def alert_labels(rule: Rule, labels: Labels) -> dict[str, str]:
    """The labels of an alert, as Prometheus puts them together: the rule's come before those of the value."""
    return dict(ordered({**dict(labels), **rule.labels, "alertname": rule.name}))


def fingerprint(labels: Mapping[str, str]) -> str:
    """What Alertmanager tells alerts apart by: FNV-1a, 64 bit, of names and values in order of the names, as hexadecimal digits."""
    digest = 14695981039346656037
    for pair in sorted(labels.items()):
        for word in pair:
            for byte in (*word.encode(), 255):
                digest = (digest ^ byte) * 1099511628211 % 2**64
    return f"{digest:016x}"
