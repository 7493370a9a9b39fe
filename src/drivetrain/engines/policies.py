"""Retraining policies beside each other: what each would have cost and gained on a stretch of time that is over.

    world: World = ...                      # answers how a model of any training instant did in any window
    policies = [Never(), Calendar(30 * DAY), EveryAlarm(), Cusum(), CostRule(worth, per_prediction)]
    outcomes = [simulate(policy, world, trained=APRIL_1) for policy in policies]

A policy sees what could be seen at the time: drift at the end of a window, its loss once the labels have come. Times are seconds since
1970, losses are 1 - metric or the metric where lower is better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from drivetrain.engines.triggers import Served, Worth, cost_of_staying, is_worth_it

DAY = 86_400.0


@dataclass(frozen=True, slots=True)
class Span:
    """A window of service: from `start` up to `end`, with so many predictions."""

    start: float
    end: float
    predictions: int


@dataclass(frozen=True, slots=True)
class Loss:
    """A loss with its standard error; NaN where the rows do not define it."""

    value: float
    error: float

    @property
    def defined(self) -> bool:
        return math.isfinite(self.value) and math.isfinite(self.error)


class World(Protocol):
    """What happened, whichever model had served."""

    @property
    def spans(self) -> Sequence[Span]:
        """The windows, in order."""
        ...

    def reference(self, trained: float) -> float:
        """The loss on its hold-out of the model that is trained on what was known at that instant."""
        ...

    def loss(self, trained: float, place: int) -> Loss:
        """The loss of that model in the window at that place."""
        ...

    def alarm(self, trained: float, place: int) -> bool:
        """Whether the window differs from what that model was trained on."""
        ...


@dataclass(frozen=True, slots=True)
class Seen:
    """A window as it is known at some later time. `loss` is None before its labels have come, or where they do not define it."""

    span: Span
    alarm: bool
    loss: Loss | None


@dataclass(frozen=True, slots=True)
class Situation:
    """What a policy decides by: `windows` are those that the present model has served, and `reference` its loss on its hold-out."""

    now: float
    trained: float
    reference: float
    windows: Sequence[Seen]


class Policy(Protocol):
    """When to retrain."""

    @property
    def name(self) -> str: ...

    def is_due(self, situation: Situation) -> bool:
        """Whether to retrain now, at the end of a window."""
        ...


@dataclass(frozen=True, slots=True)
class Never:
    """Keeps the first model."""

    name: str = "never"

    def is_due(self, situation: Situation) -> bool:
        """No."""
        return False


@dataclass(frozen=True, slots=True)
class Calendar:
    """Retrains when the model is of that age, in seconds."""

    age: float
    name: str = "calendar"

    def is_due(self, situation: Situation) -> bool:
        """Whether the age is reached."""
        return situation.now - situation.trained >= self.age


@dataclass(frozen=True, slots=True)
class EveryAlarm:
    """Retrains whenever the newest window has drifted."""

    name: str = "every alarm"

    def is_due(self, situation: Situation) -> bool:
        """Whether the newest window has."""
        return bool(situation.windows) and situation.windows[-1].alarm


@dataclass(frozen=True, slots=True)
class Cusum:
    """Retrains when the cumulated sum of the excess loss, in standard errors, passes `threshold`; an excess of less than `slack`
    standard errors counts against it. Source: Page, "Continuous inspection schemes", Biometrika 41 (1954); 0.5 and 5 are the usual
    values (Montgomery, Introduction to Statistical Quality Control)."""

    slack: float = 0.5
    threshold: float = 5.0
    name: str = "CUSUM"

    def is_due(self, situation: Situation) -> bool:
        """Whether the sum passes."""
        total = 0.0
        for seen in situation.windows:
            if seen.loss is not None and seen.loss.error > 0:
                excess = (seen.loss.value - situation.reference) / seen.loss.error
                total = max(0.0, total + excess - self.slack)
                if total > self.threshold:
                    return True
        return False


@dataclass(frozen=True, slots=True)
class CostRule:
    """Retrains when staying with the model has cost more than a retraining does: the rule of `engines.triggers`."""

    worth: Worth
    per_prediction: float
    name: str = "cost rule"

    def is_due(self, situation: Situation) -> bool:
        """Whether it has."""
        served = [Served(seen.span.predictions, seen.loss.value) for seen in situation.windows if seen.loss is not None]
        staying = cost_of_staying(served, situation.reference, self.per_prediction) if served else None
        return is_worth_it(staying, self.worth)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a policy did. `loss` is the mean over all predictions whose windows define it, `predictions` how many these are."""

    policy: str
    trainings: Sequence[float]
    loss: float
    predictions: int


def simulate(
    policy: Policy, world: World, *, trained: float, label_delay: float = 0.0, rollout: float = 0.0
) -> Outcome:
    """What the policy would have done with a first model of the instant `trained`.

    It is asked at the end of each window, sees the losses of windows that ended `label_delay` ago, and a model that it has trained serves
    from the first window on that begins `rollout` after the training. While one is on its way nothing else is trained.
    """
    trainings: list[float] = []
    serving, coming = trained, None
    total, predictions, first = 0.0, 0, 0
    spans = world.spans
    for place, span in enumerate(spans):
        if coming is not None and span.start >= coming + rollout:
            serving, coming, first = coming, None, place
        loss = world.loss(serving, place)
        if loss.defined:
            total += loss.value * span.predictions
            predictions += span.predictions
        if coming is None:
            windows = _seen(world, serving, range(first, place + 1), span.end - label_delay)
            if policy.is_due(Situation(span.end, serving, world.reference(serving), windows)):
                coming = span.end
                trainings.append(coming)
    return Outcome(policy.name, tuple(trainings), total / predictions if predictions else math.nan, predictions)


def _seen(world: World, trained: float, places: range, known: float) -> list[Seen]:
    found = []
    for place in places:
        span = world.spans[place]
        loss = world.loss(trained, place) if span.end <= known else None
        found.append(Seen(span, world.alarm(trained, place), loss if loss is not None and loss.defined else None))
    return found


@dataclass(frozen=True, slots=True)
class Balance:
    """An outcome in money against that of never retraining: `lost` by predictions, `spent` on trainings and rollouts; `saved` is what
    is left over, negative if it was not worth it."""

    lost: float
    spent: float
    saved: float


def balance(outcome: Outcome, never: Outcome, worth: Worth, per_prediction: float) -> Balance:
    """What the policy cost, and what it saved. Losses count as they are, so only differences between policies mean anything."""
    lost = outcome.loss * outcome.predictions * per_prediction
    spent = len(outcome.trainings) * worth.cost
    return Balance(lost, spent, never.loss * never.predictions * per_prediction - lost - spent)
