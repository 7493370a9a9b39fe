"""Which candidates are taken back, which are promoted, and how soon; on simulated answers."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from drivetrain.engines.canary import Comparison, Move, Plan, Standing, decide

PLAN = Plan(
    shadow=60.0, steps=(5, 25, 100), step_time=60.0, step_requests=50, limit=3600.0, alpha=0.05, failures=0.005, slower=1.25,
    quality=0.01,
)  # fmt: skip
RUNNING = Standing(step=1, started=0.0, entered=0.0, answers=10_000)


def answers(
    random: np.random.Generator, count: int, failing: tuple[float, float], *, every: int = 4, slower: float = 1.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Answers of which each `every`-th is the candidate's; shares of failing ones, champion's first; latencies around 10 ms."""
    candidate = np.zeros(count, dtype=bool)
    candidate[::every] = True
    failed = random.random(count) < np.where(candidate, failing[1], failing[0])
    took = random.lognormal(-4.6, 0.4, count) * np.where(candidate, slower, 1.0)
    return candidate, failed, took


def compared(
    failing: tuple[float, float], *, count: int = 20_000, every: int = 4, slower: float = 1.0, seed: int = 0
) -> Comparison:
    comparison = Comparison(PLAN)
    comparison.add(*answers(np.random.default_rng(seed), count, failing, every=every, slower=slower))
    return comparison


@pytest.mark.parametrize("every", [20, 4, 2])
def test_five_times_the_failures_are_shown_within_a_thousand_answers(every: int) -> None:
    evidence = compared((0.01, 0.05), count=1000 * every, every=every).evidence()
    assert evidence.harm is evidence.failures
    move = decide(PLAN, RUNNING, evidence, 1.0)
    assert move.kind == "roll_back"
    assert "of its answers failed" in move.reason


def test_a_slow_candidate_is_taken_back_and_one_that_is_quick_is_not() -> None:
    slow = compared((0.001, 0.001), count=2000, slower=2.0).evidence()
    assert slow.harm is slow.latency
    assert "slower" in decide(PLAN, RUNNING, slow, 1.0).reason
    quick = compared((0.02, 0.001), slower=0.5).evidence()
    assert quick.harm is None
    assert decide(PLAN, RUNNING, quick, 60.0).kind == "promote"


def test_a_candidate_like_the_champion_is_shown_to_be_no_worse_and_promoted() -> None:
    evidence = compared((0.002, 0.002)).evidence()
    assert decide(PLAN, RUNNING, evidence, 60.0).kind == "promote"


def test_a_candidate_at_the_margin_is_neither_taken_back_nor_promoted() -> None:
    evidence = compared((0.01, 0.015), slower=1.25).evidence()
    assert evidence.harm is None
    move = decide(PLAN, RUNNING, evidence, 60.0)
    assert move.kind == "stay"
    assert "not yet shown" in move.reason
    undecided = decide(PLAN, RUNNING, evidence, 3600.0)
    assert undecided.kind == "roll_back"
    assert "undecided after 3600 s" in undecided.reason


def test_what_is_undecided_after_its_most_answers_is_taken_back() -> None:
    evidence = compared((0.01, 0.015), slower=1.25).evidence()
    assert evidence.failures.count == 5_000
    assert decide(replace(PLAN, most_requests=5_001), RUNNING, evidence, 60.0).kind == "stay"
    over = decide(replace(PLAN, most_requests=5_000), RUNNING, evidence, 60.0)
    assert over.kind == "roll_back"
    assert "undecided after 5000 answers of the candidate: not yet shown to be no worse" in over.reason
    fine = compared((0.002, 0.002)).evidence()
    assert decide(replace(PLAN, most_requests=5_000), RUNNING, fine, 60.0).kind == "promote"


def test_what_befalls_both_arms_is_no_harm() -> None:
    random = np.random.default_rng(1)
    comparison = Comparison(PLAN)
    # At night little fails, and 5 % go to the candidate; by day much does, at three times the latency, and it gets the half.
    for every, share, pace in ((20, 0.002, 1.0), (2, 0.1, 3.0)):
        candidate, failed, took = answers(random, 8000, (share, share), every=every)
        comparison.add(candidate, failed, took * pace)
    assert comparison.evidence().harm is None


def test_a_step_needs_its_time_and_its_answers() -> None:
    nothing = Comparison(PLAN).evidence()
    shadow = Standing(-1, 0.0, 0.0, 50)
    assert decide(PLAN, shadow, nothing, 59.0).kind == "stay"
    assert decide(PLAN, replace(shadow, answers=49), nothing, 60.0).reason.startswith("49 of 50 answers")
    assert decide(PLAN, shadow, nothing, 60.0) == Move("step", "nothing says that it is worse")
    assert PLAN.percent(-1) == 0
    assert decide(PLAN, replace(shadow, step=0), nothing, 60.0).kind == "step"
    assert decide(PLAN, replace(shadow, step=1), nothing, 60.0).kind == "stay"
    # Where only the shadow is compared, there are no latencies to wait for.
    comparison = Comparison(PLAN)
    candidate, failed, _ = answers(np.random.default_rng(0), 4000, (0.0, 0.0), every=2)
    comparison.add(candidate, failed, np.full(4000, np.nan))
    only_shadow = replace(PLAN, steps=(100,))
    assert decide(only_shadow, shadow, comparison.evidence(), 60.0).kind == "promote"
    assert decide(PLAN, replace(shadow, step=1), comparison.evidence(), 60.0).kind == "stay"
    at_once = replace(PLAN, shadow=0.0, steps=(100,))
    assert at_once.first == 0
    assert decide(at_once, Standing(0, 0.0, 0.0, 0), nothing, 0.0).kind == "promote"


def test_a_worse_loss_is_harm_once_labels_come() -> None:
    random = np.random.default_rng(2)
    comparison = Comparison(PLAN)
    champion = random.beta(2, 8, 1500)
    comparison.add_losses(champion + random.normal(0.0, 0.05, 1500), champion)
    assert comparison.evidence().harm is None
    comparison.add_losses(champion + random.normal(0.06, 0.05, 1500), champion)
    evidence = comparison.evidence()
    assert evidence.harm is evidence.quality
    assert "loss" in decide(PLAN, RUNNING, evidence, 1.0).reason


def test_what_is_kept_as_json_goes_on_as_if_it_had_never_been_put_away() -> None:
    random = np.random.default_rng(3)
    whole, pieces = Comparison(PLAN), Comparison(PLAN)
    for size in (1, 7, 300, 2, 900):
        batch = answers(random, size, (0.02, 0.04))
        losses = random.random(size), random.random(size)
        for comparison in (whole, pieces):
            comparison.add(*batch)
            comparison.add_losses(*losses)
        text = json.dumps(pieces.to_json())
        assert len(text) < 20_000
        pieces = Comparison.from_json(PLAN, json.loads(text))
    for one, other in zip(
        (whole.evidence().failures, whole.evidence().latency, whole.evidence().quality),
        (pieces.evidence().failures, pieces.evidence().latency, pieces.evidence().quality),
        strict=True,
    ):
        assert one.p_harm == pytest.approx(other.p_harm, rel=1e-9)
        assert one.p_worse == pytest.approx(other.p_worse, rel=1e-9)
        assert (one.candidate, one.champion, one.count) == (other.candidate, other.champion, other.count)
    assert whole.tails() == pieces.tails()


def test_of_candidates_that_are_no_worse_few_are_taken_back_though_each_answer_is_looked_at() -> None:
    taken_back = 0
    for seed in range(100):
        random = np.random.default_rng(seed)
        comparison = Comparison(PLAN)
        for _ in range(20):
            comparison.add(*answers(random, 400, (0.01, 0.01)))
            if comparison.evidence().harm is not None:
                taken_back += 1
                break
    assert taken_back <= 13  # 1 in 1,000, where the chance is alpha


def test_a_candidate_that_is_worse_by_the_margin_is_seldom_promoted() -> None:
    promoted = sum(compared((0.002, 0.007), count=8000, seed=seed).evidence().failures.no_worse for seed in range(200))
    assert promoted <= 22
