"""From alerts to decisions: what the rules let through, and what they say."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from drivetrain.engines.triggers import (
    FRUITLESS,
    OPEN,
    WEEK,
    Past,
    Policy,
    Served,
    Situation,
    Worth,
    cost_of_staying,
    decide,
    fruitless_retrainings,
    is_worth_it,
    rest,
)

DAY = 86400.0
NOW = 1_400_000_000.0
DRIFT = Policy("drift", "retrain", DAY, 3)
QUALITY = Policy("quality", "retrain", DAY, 3)
SLOW = Policy("slow", "rollback", 3600.0, 3)
BUSY = Policy("busy", "scale", 60.0, 100)
TELL = Policy("tell", "notify", DAY, 7)
CALM = Situation(NOW, (), 3600.0)

STATES = sorted(OPEN | FRUITLESS | {"promoted", "done", "held", "rejected"})


def _past(trigger: str, state: str, ago: float, action: str = "retrain") -> Past:
    return Past(trigger, action, state, NOW - ago, NOW - ago)


def _rules(*firing: Policy, situation: Situation = CALM) -> list[tuple[str, str, str]]:
    return [(verdict.trigger, verdict.outcome, verdict.rule) for verdict in decide(firing, situation)]


def test_a_trigger_that_fires_is_acted_upon() -> None:
    assert _rules(DRIFT) == [("drift", "act", "")]


def test_what_is_urgent_comes_first_and_only_one_of_those_that_change_what_serves() -> None:
    assert _rules(DRIFT, QUALITY, TELL, SLOW, BUSY) == [
        ("slow", "act", ""),
        ("busy", "act", ""),
        ("tell", "act", ""),
        ("drift", "hold", "busy"),
        ("quality", "hold", "busy"),
    ]


def test_a_trigger_whose_decision_is_under_way_is_not_acted_upon_again() -> None:
    for state in OPEN:
        assert _rules(DRIFT, situation=replace(CALM, past=[_past("drift", state, 9 * DAY)])) == [
            ("drift", "hold", "open")
        ]


def test_a_retraining_waits_for_another_and_a_rollback_does_not() -> None:
    situation = replace(CALM, past=[_past("drift", "rollout", 60.0)])
    assert _rules(QUALITY, SLOW, situation=situation) == [("slow", "act", ""), ("quality", "hold", "busy")]
    assert _rules(SLOW, situation=replace(CALM, past=[_past("errors", "acting", 60.0, "rollback")])) == [
        ("slow", "hold", "busy")
    ]


def test_what_waits_for_approval_keeps_nothing_else_from_being_done() -> None:
    situation = replace(CALM, past=[_past("drift", "waiting", 60.0)])
    assert _rules(DRIFT, QUALITY, situation=situation) == [("drift", "hold", "open"), ("quality", "act", "")]
    assert _rules(replace(DRIFT, approval=True), QUALITY) == [("drift", "ask", ""), ("quality", "act", "")]


def test_in_a_maintenance_window_it_only_tells() -> None:
    situation = replace(CALM, maintenance=NOW + 60)
    assert _rules(SLOW, DRIFT, TELL, BUSY, situation=situation) == [
        ("slow", "hold", "maintenance"),
        ("busy", "hold", "maintenance"),
        ("tell", "act", ""),
        ("drift", "hold", "maintenance"),
    ]


def test_what_was_held_or_what_another_trigger_did_does_not_begin_a_cooldown() -> None:
    assert _rules(DRIFT, situation=replace(CALM, past=[_past("drift", "held", 60.0)])) == [("drift", "act", "")]
    assert _rules(DRIFT, situation=replace(CALM, past=[_past("quality", "promoted", 60.0)])) == [("drift", "act", "")]


def test_a_rejected_decision_is_not_asked_for_again_before_the_cooldown_is_over() -> None:
    assert _rules(DRIFT, situation=replace(CALM, past=[_past("drift", "rejected", 60.0)])) == [
        ("drift", "hold", "cooldown")
    ]


def test_an_action_that_needs_approval_is_asked_for() -> None:
    assert _rules(replace(DRIFT, approval=True)) == [("drift", "ask", "")]


def test_the_rest_is_doubled_with_each_retraining_that_comes_to_nothing() -> None:
    free = replace(DRIFT, cooldown=0.0, weekly_cap=100)
    past = [_past("drift", "failed", 3 * 3600.0), _past("quality", "refused", 1.5 * 3600.0)]
    verdict = decide([free], replace(CALM, past=past))[0]
    assert (verdict.rule, verdict.until) == ("backoff", NOW - 1.5 * 3600 + 2 * 3600)
    assert "2 retrainings" in verdict.reason
    assert _rules(free, situation=replace(CALM, past=[*past, _past("drift", "promoted", 600.0)])) == [
        ("drift", "act", "")
    ]


def test_a_retraining_has_to_be_worth_it() -> None:
    rule = replace(CALM, worth=Worth(10.0))
    for staying, expected in ((None, "worth"), (10.0, "worth"), (10.1, "")):
        assert _rules(DRIFT, situation=replace(rule, staying=staying))[0][2] == expected
    assert _rules(SLOW, situation=rule) == [("slow", "act", "")]


def test_staying_costs_what_is_lost_against_the_reference_and_a_good_span_makes_up_for_none() -> None:
    spans = [Served(1000, 0.30), Served(500, 0.20), Served(2000, 0.35)]
    assert abs(cost_of_staying(spans, 0.25, 0.1) - (0.05 * 0.1 * 1000 + 0.10 * 0.1 * 2000)) < 1e-9


past = st.builds(
    Past,
    st.sampled_from(["drift", "quality", "slow"]),
    st.sampled_from(["retrain", "rollback"]),
    st.sampled_from(STATES),
    st.floats(NOW - 10 * DAY, NOW + DAY),
    st.floats(NOW - 10 * DAY, NOW + DAY),
)
policies = st.lists(
    st.builds(
        Policy,
        st.sampled_from(["drift", "quality", "slow", "tell"]),
        st.sampled_from(["retrain", "rollback", "scale", "notify"]),
        st.floats(0, 3 * DAY),
        st.integers(1, 5),
        st.booleans(),
    ),
    max_size=6,
    unique_by=lambda policy: policy.trigger,
)


@given(policies, st.lists(past, max_size=20))
def test_never_two_changes_of_what_serves_and_never_more_than_the_cap(firing: list[Policy], before: list[Past]) -> None:
    situation = replace(CALM, past=before)
    verdicts = decide(firing, situation)
    assert sorted(verdict.trigger for verdict in verdicts) == sorted(policy.trigger for policy in firing)
    passed = [verdict for verdict in verdicts if verdict.outcome != "hold"]
    assert sum(verdict.action in ("retrain", "rollback") for verdict in passed if verdict.outcome == "act") <= 1
    by_name = {policy.trigger: policy for policy in firing}
    for verdict in passed:
        policy = by_name[verdict.trigger]
        own = [entry for entry in before if entry.trigger == verdict.trigger and entry.state != "held"]
        assert all(entry.state not in OPEN for entry in own)
        assert all(NOW - entry.at >= policy.cooldown for entry in own if entry.at <= NOW)
        assert sum(NOW - entry.at < WEEK for entry in own) < policy.weekly_cap
        if verdict.action == "retrain":
            assert not any(entry.state in OPEN - {"waiting"} for entry in before)
        assert (verdict.outcome == "ask") == policy.approval


@given(policies, st.lists(past, max_size=20))
def test_a_hold_that_says_until_when_is_over_then(firing: list[Policy], before: list[Past]) -> None:
    """What has been let off once is not held by the same rule again at that instant, if nothing else has happened."""
    before = [replace(entry, at=min(entry.at, NOW), changed=min(entry.changed, NOW)) for entry in before]
    for verdict in decide(firing, replace(CALM, past=before)):
        if verdict.until is not None:
            again = decide(firing, replace(CALM, past=before, now=verdict.until + 1e-3))
            assert verdict.rule not in {other.rule for other in again if other.trigger == verdict.trigger}


@given(st.integers(0, 10_000), st.floats(1.0, WEEK))
def test_the_rest_never_shrinks_and_is_a_week_at_most(fruitless: int, first: float) -> None:
    assert rest(fruitless, first) <= rest(fruitless + 1, first) <= WEEK


@given(st.lists(past, max_size=20))
def test_only_what_came_to_nothing_since_the_last_promotion_counts(before: list[Past]) -> None:
    count, ended = fruitless_retrainings(before, NOW)
    assert 0 <= count <= sum(entry.state in FRUITLESS and entry.action == "retrain" for entry in before)
    assert 0 <= ended <= NOW
    assert fruitless_retrainings([*before, Past("x", "retrain", "promoted", NOW, NOW + 2 * DAY)], NOW)[0] == 0


@given(st.lists(st.builds(Served, st.integers(0, 10**6), st.floats(0, 1)), max_size=20), st.floats(0, 1))
def test_staying_costs_more_the_longer_it_lasts_and_less_the_worse_the_reference(
    spans: list[Served], reference: float
) -> None:
    cost = cost_of_staying(spans, reference, 0.5)
    assert cost >= cost_of_staying(spans[:-1], reference, 0.5) >= 0
    assert cost >= cost_of_staying(spans, reference + 0.1, 0.5)
    assert is_worth_it(cost, Worth(0.0)) == (cost > 0)
