"""What the dashboards show: titles, units and queries, whatever draws them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from drivetrain.engines.expressions import Compare, number
from drivetrain.engines.rules import Rule
from drivetrain.engines.series import quoted

_SPAN = "5m"
_UNITS = {
    "latency": "s", "staleness": "s", "errors": "percentunit", "data_quality": "percentunit", "traffic": "reqps",
    "saturation": "percentunit",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Panel:
    """Curves over time. `queries` are (PromQL, legend); `unit` is Grafana's word; `level` is drawn as a line, with the alarm above or
    below it."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    text: str = ""
    level: float | None = None
    above: bool = True


def service(name: str, availability: float) -> list[Panel]:
    """How it answers."""
    own = f"service={quoted(name)}"
    requests, seconds = (
        f"drivetrain_gateway_requests_total{{{own}",
        f"drivetrain_gateway_request_seconds_bucket{{{own}}}",
    )
    failed = f'{requests}, outcome=~"failed|overloaded|expired"}}'

    def share(span: str) -> str:
        return f"sum(rate({failed}[{span}])) / sum(rate({requests}}}[{span}]))"

    def quantile(q: float, buckets: str) -> str:
        return f"histogram_quantile({number(q)}, sum by (le) (rate({buckets}[{_SPAN}])))"

    def gauge(metric: str, how: str = "sum") -> str:
        return f"{how} by (revision) (drivetrain_gateway_{metric}{{{own}}})"

    burns = [(f"({share(span)}) / {number(round(1 - availability / 100, 9))}", span) for span in ("1h", "6h", "3d")]
    hops = f"sum by (hop, le) (rate(drivetrain_replica_hop_seconds_bucket{{{own}}}[{_SPAN}]))"
    return [
        Panel("Requests", "reqps", ((f"sum by (outcome) (rate({requests}}}[{_SPAN}]))", "{{outcome}}"),)),
        Panel("Errors", "percentunit", ((share(_SPAN), "share of requests"),), "Failed, overloaded and expired ones."),
        Panel("Latency", "s", tuple((quantile(q, seconds), f"{number(q * 100)} %") for q in (0.5, 0.95, 0.99))),
        Panel(
            "Latency of each part", "s", ((f"histogram_quantile(0.99, {hops})", "{{hop}}"),
            (quantile(0.99, f"drivetrain_gateway_added_seconds_bucket{{{own}}}"), "gateway")), "99th percentiles.",
        ),
        Panel(
            "Burn rate of the error budget", "none", tuple(burns),
            f"1 uses up in thirty days what {number(availability)} % leave.",
        ),
        Panel(
            "Error budget that is left", "percentunit",
            ((f"max by (objective) (drivetrain_loop_error_budget_left{{{own}}})", "{{objective}}"),),
            "Of thirty days; negative: overdrawn.",
        ),
        Panel("Saturation", "none", (
            (f"{gauge('in_flight')} / {gauge('replicas_ready')}", "in flight for each replica of {{revision}}"),
            (gauge("waiting"), "waiting for {{revision}}"),
        )),
        Panel("Replicas", "none", ((gauge("replicas_ready"), "{{revision}}"), (gauge("replicas_wanted"), "{{revision}} wanted"))),
        Panel("Traffic", "percent", ((gauge("weight", "max"), "{{revision}}"),)),
        Panel("Captured events", "ops", (
            (f"sum by (outcome) (rate(drivetrain_gateway_captured_events_total{{{own}}}[{_SPAN}]))", "{{outcome}}"),
        )),
    ]  # fmt: skip


def drift(name: str) -> list[Panel]:
    """How far what is asked and answered is from what was trained on."""
    own = f'service={quoted(name)}, role="champion"'

    def distance(metric: str, more: str) -> str:
        return f"max by (feature, distance) (drivetrain_monitor_{metric}{{{own}, {more}}})"

    whole = 'distance!~"missing|unseen"'
    return [
        Panel(
            "Drift beyond chance", "none", ((distance("drift_significant", whole), "{{feature}}"),),
            "What triggers go by: 0 as long as chance alone would do.",
        ),
        Panel("Drift", "none", ((distance("drift", f'{whole}, feature!="prediction"'), "{{feature}} ({{distance}})"),)),
        Panel("Drift of the predictions", "none", ((distance("drift", f'{whole}, feature="prediction"'), "{{distance}}"),)),
        Panel("Missing values", "percentunit", ((distance("drift", 'distance="missing"'), "{{feature}}"),)),
        Panel("Values never seen in training", "percentunit", ((distance("drift", 'distance="unseen"'), "{{feature}}"),)),
    ]  # fmt: skip


def quality(name: str) -> list[Panel]:
    """How good its answers are, and what is known of them."""
    own = f"service={quoted(name)}"
    metric = f"drivetrain_monitor_quality{{{own}"

    def of_role(metric: str) -> str:
        return f"max by (role) (drivetrain_monitor_{metric}{{{own}}})"

    def each_second(metric: str, by: str) -> str:
        return f"sum by ({by}) (rate(drivetrain_monitor_{metric}{{{own}}}[{_SPAN}]))"

    estimate = f"drivetrain_monitor_quality_estimate{{{own}}}"
    return [
        Panel("Quality", "none", (
            (f'max by (role, metric) ({metric}, slice=""}})', "{{metric}} of the {{role}}"),
            (f"max by (role, metric) ({estimate})", "{{metric}} of the {{role}}, estimated"),
        ), "Once labels come; before, an estimate from the probabilities alone."),
        Panel("Quality by slice", "none", ((f'max by (slice) ({metric}, slice!="", role="champion"}})', "{{slice}}"),)),
        Panel("Rows that meet every check", "percentunit", ((of_role("data_quality"), "{{role}}"),)),
        Panel("Requests of the last window", "none", (
            (f"sum by (role, outcome) (drivetrain_monitor_window_requests{{{own}}})", "{{outcome}} by the {{role}}"),
        )),
        Panel("Age of the training data", "s", ((of_role("staleness_seconds"), "{{role}}"),)),
        Panel("Labelled rows since training", "none", ((of_role("new_rows"), "{{role}}"),)),
        Panel("Events", "ops", (
            (each_second("events_total", "kind, outcome"), "{{kind}} {{outcome}}"),
            (each_second("late_total", "service"), "late"),
            (each_second("duplicates_total", "service"), "repeated"),
        )),
    ]  # fmt: skip


def loop(name: str, rules: Sequence[Rule]) -> list[Panel]:
    """Every trigger's signal beside its level, which ones fire, what was decided, and the rollout."""
    own = f"service={quoted(name)}"
    decided = f"sum by (action, state) (drivetrain_loop_decisions{{{own}}})"
    return [
        *(_signal(rule) for rule in rules if isinstance(rule.expression, Compare)),
        Panel("Triggers that fire", "none", ((f"max by (trigger) (drivetrain_loop_firing{{{own}}})", "{{trigger}}"),)),
        Panel("Decisions", "none", ((decided, "{{action}} {{state}}"),)),
        Panel("Rollout", "percent", ((f"max(drivetrain_loop_rollout_percent{{{own}}})", "candidate"),)),
    ]


def _signal(rule: Rule) -> Panel:
    condition = rule.expression
    assert isinstance(condition, Compare)
    signal = rule.labels.get("signal", "")
    return Panel(
        rule.name, _UNITS.get(signal, "none"), ((rule.signal.promql, signal),), rule.annotations.get("summary", ""), rule.level,
        condition.operator == ">",
    )  # fmt: skip
