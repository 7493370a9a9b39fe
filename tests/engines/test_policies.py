"""Retraining policies on worlds whose course is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivetrain.engines.policies import (
    DAY,
    Calendar,
    CostRule,
    Cusum,
    EveryAlarm,
    Loss,
    Never,
    Span,
    balance,
    simulate,
)
from drivetrain.engines.triggers import Worth


@dataclass
class Ageing:
    """A model loses `decay` a day; a season changes at `shift`, and is an alarm for every model from before."""

    days: int
    decay: float = 0.002
    shift: float = math.inf
    asked: list[tuple[float, int]] = field(default_factory=list)

    @property
    def spans(self) -> Sequence[Span]:
        return [Span(day * DAY, (day + 1) * DAY, 1000) for day in range(self.days)]

    def reference(self, trained: float) -> float:
        return 0.2

    def loss(self, trained: float, place: int) -> Loss:
        self.asked.append((trained, place))
        start = place * DAY
        assert trained <= start
        late = 0.1 if trained < self.shift <= start else 0.0
        return Loss(0.2 + late + self.decay * (start - trained) / DAY, 0.01)

    def alarm(self, trained: float, place: int) -> bool:
        return trained < self.shift <= place * DAY


WORTH = Worth(50.0)


def test_never_keeps_the_first_model_and_loses_what_it_loses() -> None:
    found = simulate(Never(), Ageing(10), trained=0.0)
    assert found.trainings == ()
    assert found.predictions == 10_000
    assert found.loss == pytest.approx(0.2 + 0.002 * 4.5)


def test_a_calendar_retrains_at_its_age_and_the_new_model_serves_from_the_next_window_on() -> None:
    world = Ageing(10)
    found = simulate(Calendar(3 * DAY), world, trained=0.0)
    assert found.trainings == (3 * DAY, 6 * DAY, 9 * DAY)
    assert (3 * DAY, 3) in world.asked
    assert (0.0, 3) not in world.asked


def test_a_model_on_its_way_does_not_serve_yet_and_nothing_else_is_trained_meanwhile() -> None:
    world = Ageing(10)
    found = simulate(Calendar(3 * DAY), world, trained=0.0, rollout=2 * DAY)
    assert found.trainings == (3 * DAY, 6 * DAY, 9 * DAY)
    assert (0.0, 4) in world.asked
    assert (3 * DAY, 5) in world.asked


def test_every_alarm_retrains_once_for_a_shift_that_the_new_model_knows() -> None:
    assert simulate(EveryAlarm(), Ageing(10, shift=4 * DAY), trained=0.0).trainings == (5 * DAY,)


def test_cusum_sees_a_loss_only_once_its_labels_have_come() -> None:
    world = Ageing(12, decay=0.0, shift=4 * DAY)
    at_once = simulate(Cusum(), world, trained=0.0)
    later = simulate(Cusum(), world, trained=0.0, label_delay=2 * DAY)
    # Ten standard errors a window: the first one is enough.
    assert at_once.trainings == (5 * DAY,)
    assert later.trainings == (7 * DAY,)


def test_cusum_is_silent_while_nothing_changes() -> None:
    assert simulate(Cusum(), Ageing(100, decay=0.0), trained=0.0).trainings == ()


def test_the_cost_rule_waits_until_staying_has_cost_more_than_a_retraining() -> None:
    # 0.002 a day and 1000 predictions at 1: 2 on the second day, 4 on the third, ...; 50 is passed by 2 + 4 + .. + 14 = 56.
    found = simulate(CostRule(WORTH, 1.0), Ageing(10), trained=0.0)
    assert found.trainings == (8 * DAY,)


def test_what_is_saved_is_what_never_retraining_loses_more_less_what_was_spent() -> None:
    world = Ageing(20, decay=0.01)
    never, monthly = simulate(Never(), world, trained=0.0), simulate(Calendar(5 * DAY), world, trained=0.0)
    money = balance(monthly, never, WORTH, 1.0)
    assert money.spent == 4 * 50.0  # the last one at the very end, when it cannot help any more
    assert money.saved == pytest.approx((never.loss - monthly.loss) * 20_000 - 200.0)
    assert balance(never, never, WORTH, 1.0).saved == 0.0


def test_windows_that_do_not_define_the_loss_count_for_nothing() -> None:
    class Silent(Ageing):
        def loss(self, trained: float, place: int) -> Loss:
            return Loss(math.nan, math.nan) if place % 2 else super().loss(trained, place)

    found = simulate(Cusum(), Silent(10, decay=0.0), trained=0.0)
    assert found.predictions == 5_000
    assert found.loss == pytest.approx(0.2)

    class Empty(Ageing):
        def loss(self, trained: float, place: int) -> Loss:
            return Loss(math.nan, math.nan)

    assert math.isnan(simulate(Never(), Empty(3), trained=0.0).loss)


@given(
    st.integers(1, 40),
    st.floats(0.0, 0.01),
    st.floats(0.0, 40.0),
    st.floats(0.0, 5.0),
    st.floats(0.0, 5.0),
)
def test_no_policy_retrains_before_it_could_know_or_while_a_model_is_on_its_way(
    days: int, decay: float, shift: float, delay: float, rollout: float
) -> None:
    world = Ageing(days, decay=decay, shift=shift * DAY)
    for policy in (Calendar(2.5 * DAY), EveryAlarm(), Cusum(), CostRule(WORTH, 1.0)):
        found = simulate(policy, world, trained=0.0, label_delay=delay * DAY, rollout=rollout * DAY)
        assert list(found.trainings) == sorted(set(found.trainings))
        assert all(later - earlier > rollout * DAY - 1e-6 for earlier, later in pairwise(found.trainings))
        if isinstance(policy, Cusum | CostRule) and found.trainings:
            assert found.trainings[0] >= (1 + math.floor(delay)) * DAY
