"""The breaker of a replica, and the load of a revision: both take their time from outside."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivetrain.backends.serving.gateway.breaker import Breaker, State
from drivetrain.backends.serving.gateway.load import Load


def opened(now: float = 0.0) -> Breaker:
    breaker = Breaker(failures=3, pause=1.0, longest=4.0)
    for _ in range(3):
        breaker.sent()
        breaker.failed(now)
    return breaker


def test_a_breaker_opens_after_failures_in_a_row_only() -> None:
    breaker = Breaker(failures=3)
    for _ in range(2):
        breaker.failed(0.0)
    breaker.succeeded()
    for _ in range(2):
        breaker.failed(0.0)
    assert breaker.state is State.CLOSED
    breaker.failed(0.0)
    assert breaker.state is State.OPEN
    assert not breaker.allows(0.1)


def test_after_its_pause_an_open_breaker_lets_one_request_try() -> None:
    breaker = opened()
    assert breaker.opens_at(0.5) == 1.0
    assert not breaker.allows(0.99)
    assert breaker.allows(1.0)
    breaker.sent()
    assert breaker.state is State.HALF_OPEN
    assert not breaker.allows(1.1)
    breaker.succeeded()
    assert breaker.state is State.CLOSED
    assert breaker.allows(1.1)


def test_asking_alone_does_not_use_up_the_trial() -> None:
    breaker = opened()
    assert breaker.allows(1.0)
    assert breaker.allows(1.0)


def test_each_failed_trial_doubles_the_pause_up_to_the_longest() -> None:
    breaker, now, pauses = opened(), 0.0, []
    for _ in range(4):
        opens = breaker.opens_at(now)
        pauses.append(opens - now)
        now = opens
        assert breaker.allows(now)
        breaker.sent()
        breaker.failed(now)
    assert pauses == [1.0, 2.0, 4.0, 4.0]


def test_a_trial_whose_client_went_tells_nothing_and_the_next_request_tries() -> None:
    breaker = opened()
    assert breaker.allows(1.0)
    breaker.sent()
    breaker.abandoned()
    assert breaker.allows(1.0)


def test_late_failures_of_requests_that_were_out_already_do_not_prolong_the_pause() -> None:
    breaker = opened()
    breaker.failed(0.9)
    assert breaker.opens_at(0.9) == 1.0


@given(st.lists(st.tuples(st.floats(0.001, 10), st.booleans()), min_size=1, max_size=60))
def test_load_is_the_area_under_the_requests_in_flight(steps: list[tuple[float, bool]]) -> None:
    load, now, area, flying, came = Load(0.0), 0.0, 0.0, 0, 0
    for wait, enters in steps:
        now += wait
        area += flying * wait
        if enters:
            load.enter(now)
            flying, came = flying + 1, came + 1
        elif flying:
            load.leave(now)
            flying -= 1
    mean, rate = load.sample(now)
    assert mean == pytest.approx(area / now)
    assert rate == pytest.approx(came / now)
    assert load.now == flying


def test_a_sample_covers_the_time_since_the_last_one_only() -> None:
    load = Load(0.0)
    load.enter(0.0)
    load.sample(1.0)
    assert load.sample(3.0) == (1.0, 0.0)
    load.leave(3.0)
    assert load.sample(4.0) == (0.0, 0.0)
    assert load.sample(4.0) == (0.0, 0.0)
