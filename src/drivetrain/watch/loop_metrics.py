"""What the loop tells of itself at its door, beside what the monitor measures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from drivetrain.engines.rules import Alert
from drivetrain.journal import Decision
from drivetrain.watch.samples import Described, Sample

METRICS: Mapping[str, Described] = {
    "drivetrain_monitor_schedule_due": Described("gauge", "1 while a schedule is due, 0 otherwise", ("trigger",)),
    "drivetrain_loop_firing": Described("gauge", "1 while the trigger fires, 0 otherwise", ("trigger",)),
    "drivetrain_loop_decisions": Described(
        "gauge", "Decisions by the state in which they are", ("trigger", "action", "state")
    ),
    "drivetrain_loop_rollout_percent": Described(
        "gauge", "Share of the traffic that the candidate of a rollout gets, in percent; 0 without a rollout"
    ),
    "drivetrain_loop_error_budget_left": Described(
        "gauge", "Share of the error budget of thirty days that is left; negative: overdrawn", ("objective",)
    ),
    "drivetrain_loop_looked_timestamp_seconds": Described("gauge", "When the loop looked last, in seconds since 1970"),
}


def loop_samples(
    service: str,
    triggers: Iterable[str],
    alerts: Iterable[Alert],
    decisions: Iterable[Decision],
    percent: int,
    budgets: Mapping[str, float],
    looked: float,
) -> list[Sample]:
    """The loop as it is: `triggers` are all there are by name, `percent` is the share of the candidate that is rolled out, `budgets` the
    share of each objective's error budget that is left."""
    firing = {alert.trigger for alert in alerts if alert.state == "firing"}
    counted = Counter((decision.trigger, decision.action, decision.state) for decision in decisions)
    return [
        *(
            Sample("drivetrain_loop_firing", {"service": service, "trigger": trigger}, float(trigger in firing))
            for trigger in triggers
        ),
        *(
            Sample(
                "drivetrain_loop_decisions",
                {"service": service, "trigger": trigger, "action": action, "state": state},
                float(count),
            )
            for (trigger, action, state), count in sorted(counted.items())
        ),
        Sample("drivetrain_loop_rollout_percent", {"service": service}, float(percent)),
        *(
            Sample("drivetrain_loop_error_budget_left", {"service": service, "objective": objective}, left)
            for objective, left in budgets.items()
        ),
        Sample("drivetrain_loop_looked_timestamp_seconds", {"service": service}, looked),
    ]
