"""From alerts to decisions: which trigger that fires is acted upon now, and which rule says not yet. Pure: time is passed in.

The rules are asked in this order, and the first that objects speaks: something of the same trigger is under way, a maintenance window,
another change of the service is under way (at most one retraining or rollback at a time), the trigger's cooldown, its cap per week, the
rest after a retraining that came to nothing, and what retraining is worth. What passes is acted upon, or waits for approval.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

WEEK = 7 * 86400.0
"""Seconds. The span of a cap, and the longest rest."""

OPEN = frozenset(("waiting", "acting", "training", "rollout", "scaled"))
"""States of a decision that has not ended."""
FRUITLESS = frozenset(("failed", "refused", "unchanged", "rolled_back"))
"""States in which a retraining ends that left the champion where it was."""

Action = Literal["retrain", "rollback", "scale", "notify"]
Rule = Literal["", "open", "maintenance", "busy", "cooldown", "weekly_cap", "backoff", "worth"]

_URGENCY: dict[str, int] = {"rollback": 0, "scale": 1, "notify": 2, "retrain": 3}
_EXCLUSIVE = ("retrain", "rollback")


@dataclass(frozen=True, slots=True)
class Policy:
    """Within which bounds a trigger is acted upon; `cooldown` in seconds."""

    trigger: str
    action: Action
    cooldown: float
    weekly_cap: int
    approval: bool = False


@dataclass(frozen=True, slots=True)
class Worth:
    """What a retraining costs, `training` and `rollout` together."""

    cost: float


@dataclass(frozen=True, slots=True)
class Past:
    """A decision of before: when it was made, its state, and when that came to be. Times in seconds."""

    trigger: str
    action: str
    state: str
    at: float
    changed: float


@dataclass(frozen=True, slots=True)
class Situation:
    """All that a decision depends on, beside the triggers that fire.

    `staying` is what staying with the champion has cost since the last retraining, None while nothing is known of its quality;
    `maintenance` is when the window ends that is open, None if none is; `backoff` the first rest after a fruitless retraining, in seconds.
    """

    now: float
    past: Sequence[Past]
    backoff: float
    maintenance: float | None = None
    worth: Worth | None = None
    staying: float | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to be done about a trigger that fires: `act`, `ask` for approval, or `hold`: by which rule, and until when if known."""

    trigger: str
    action: Action
    outcome: Literal["act", "ask", "hold"]
    rule: Rule = ""
    reason: str = ""
    until: float | None = None


def decide(firing: Iterable[Policy], situation: Situation) -> list[Verdict]:
    """A verdict for each trigger that fires, the most urgent first: rollback, scale, notify, retrain.

    Of several that would retrain or roll back the first is let through, and the others wait for it. What waits for approval keeps nothing
    else from being done.
    """
    busy = under_way(situation.past)
    taken: str | None = None
    verdicts: list[Verdict] = []
    for policy in sorted(firing, key=lambda policy: (_URGENCY[policy.action], policy.trigger)):
        verdict = _judge(policy, situation, busy, taken)
        if verdict.outcome == "act" and policy.action in _EXCLUSIVE:
            taken = policy.trigger
        verdicts.append(verdict)
    return verdicts


def _judge(policy: Policy, situation: Situation, busy: Sequence[Past], taken: str | None) -> Verdict:
    now = situation.now

    def hold(rule: Rule, reason: str, until: float | None = None) -> Verdict:
        return Verdict(policy.trigger, policy.action, "hold", rule, reason, until)

    own = [entry for entry in situation.past if entry.trigger == policy.trigger and entry.state != "held"]
    unfinished = next((entry for entry in own if entry.state in OPEN), None)
    if unfinished is not None:
        return hold("open", f"its own decision is {unfinished.state}")
    if situation.maintenance is not None and policy.action != "notify":
        return hold("maintenance", "a maintenance window is open", situation.maintenance)
    if (reason := blocking(policy.action, busy, taken)) is not None:
        return hold("busy", reason)
    acted = sorted((min(entry.at, now) for entry in own), reverse=True)
    if acted and now - acted[0] < policy.cooldown:
        return hold("cooldown", "it was acted upon a short while ago", acted[0] + policy.cooldown)
    recent = [at for at in acted if now - at < WEEK]
    if len(recent) >= policy.weekly_cap:
        reason = f"it was acted upon {len(recent)} times in seven days, and may be {policy.weekly_cap} times"
        return hold("weekly_cap", reason, recent[policy.weekly_cap - 1] + WEEK)
    if policy.action == "retrain":
        fruitless, ended = fruitless_retrainings(situation.past, now)
        until = ended + rest(fruitless, situation.backoff)
        if fruitless and now < until:
            times = "retraining has" if fruitless == 1 else f"the last {fruitless} retrainings have"
            return hold("backoff", f"{times} come to nothing", until)
        if situation.worth is not None and not is_worth_it(situation.staying, situation.worth):
            return hold("worth", _not_worth(situation.staying, situation.worth))
    return Verdict(policy.trigger, policy.action, "ask" if policy.approval else "act")


def under_way(past: Iterable[Past]) -> list[Past]:
    """The retrainings and rollbacks that have begun and not ended."""
    return [entry for entry in past if entry.action in _EXCLUSIVE and entry.state in OPEN and entry.state != "waiting"]


def blocking(action: str, busy: Iterable[Past], taken: str | None = None) -> str | None:
    """What stands in the way of another change of what serves; `taken` is a trigger that was let through just before. A rollback waits
    for no retraining: it ends that one's rollout."""
    if action not in _EXCLUSIVE:
        return None
    if taken is not None:
        return f"{taken} is acted upon first"
    for entry in busy:
        if action == "retrain" or entry.action == "rollback":
            return f"the {entry.action} of {entry.trigger} is {entry.state}"
    return None


def fruitless_retrainings(past: Iterable[Past], now: float) -> tuple[int, float]:
    """How many retrainings have come to nothing since the last that was promoted, and when the latest of them ended (never later than
    `now`; 0 if there is none)."""
    ended = sorted(
        (entry for entry in past if entry.action == "retrain" and entry.state in FRUITLESS | {"promoted"}),
        key=lambda entry: (min(entry.at, now), entry.changed),
        reverse=True,
    )
    count = next((place for place, entry in enumerate(ended) if entry.state == "promoted"), len(ended))
    return count, max((min(entry.changed, now) for entry in ended[:count]), default=0.0)


def rest(fruitless: int, first: float) -> float:
    """Seconds of rest after so many retrainings that came to nothing: `first`, doubled each time, a week at most."""
    return 0.0 if fruitless < 1 else min(WEEK, first * 2.0 ** min(fruitless - 1, 60))


@dataclass(frozen=True, slots=True)
class Served:
    """A span of service: how many predictions, and the loss (1 - metric, or the metric where lower is better) of those whose labels
    are known."""

    predictions: int
    loss: float


def cost_of_staying(spans: Iterable[Served], reference: float, per_prediction: float) -> float:
    """What predictions have lost against the champion's own evaluation: the sum of max(0, loss - reference) * per_prediction *
    predictions. A span that is better than the reference does not make up for one that is worse."""
    return sum(max(0.0, span.loss - reference) * per_prediction * span.predictions for span in spans)


def is_worth_it(staying: float | None, worth: Worth) -> bool:
    """Whether staying has cost more than a retraining does. While nothing is known of the quality it has cost nothing.

    Source: the cumulative threshold of Mahadevan & Mathioudakis, "Cost-aware retraining for machine learning" (CARA), 2024.
    """
    return staying is not None and staying > worth.cost


def _not_worth(staying: float | None, worth: Worth) -> str:
    if staying is None:
        return f"nothing is known yet of the live quality, and a retraining costs {worth.cost:g}"
    return f"staying has cost {staying:.4g} since the last retraining, and a retraining costs {worth.cost:g}"
