"""Intervals."""

import time

import numpy as np
import pytest

from drivetrain.engines import bootstrap, metrics

MAE, AUC = metrics.metric("mae"), metrics.metric("roc_auc")


def test_the_interval_of_a_mean_is_that_of_the_normal_approximation():
    random = np.random.default_rng(1)
    truth = random.exponential(size=2000)
    values = bootstrap.resampled(MAE, truth, [np.zeros(2000)], resamples=2000)[0]
    found = bootstrap.interval(values)
    half = 1.96 * truth.std() / np.sqrt(2000)
    assert found.low == pytest.approx(truth.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(truth.mean() + half, abs=0.1 * half)


def test_about_95_of_100_intervals_hold_the_true_value():
    random = np.random.default_rng(2)
    held = 0
    for sample in range(100):
        truth = random.normal(3.0, 1.0, 80)
        found = bootstrap.interval(bootstrap.resampled(MAE, truth, [np.zeros(80)], resamples=200, seed=sample)[0])
        held += found.low <= 3.0 <= found.high
    assert 88 <= held <= 99


def test_equal_seeds_give_equal_resamples_and_others_do_not():
    truth, predicted = np.arange(50.0), np.zeros(50)
    one, again, other = (bootstrap.resampled(MAE, truth, [predicted], resamples=20, seed=seed) for seed in (5, 5, 6))
    assert (one == again).all()
    assert (one != other).any()


def test_the_pieces_in_which_resamples_are_drawn_do_not_change_them(monkeypatch):
    truth, predicted = np.arange(50.0), np.zeros(50)
    whole = bootstrap.resampled(MAE, truth, [predicted], resamples=30)
    monkeypatch.setattr(bootstrap, "_CELLS", 120)
    assert (bootstrap.resampled(MAE, truth, [predicted], resamples=30) == whole).all()


def test_candidate_and_champion_see_the_same_resamples():
    random = np.random.default_rng(3)
    truth = random.normal(size=500)
    predicted = truth + random.normal(size=500)
    values = bootstrap.resampled(metrics.metric("rmse"), truth, [predicted, predicted], resamples=50)
    assert (values[0] == values[1]).all()


def test_the_paired_difference_is_narrower_than_either_value():
    random = np.random.default_rng(4)
    truth = random.integers(0, 2, 1000)
    score = np.clip(0.5 + 0.2 * (truth - 0.5) + 0.2 * random.normal(size=1000), 0.01, 0.99)
    near = np.clip(score + 0.02 * random.normal(size=1000), 0.01, 0.99)
    both = [np.column_stack([1 - p, p]) for p in (score, near)]
    values = bootstrap.resampled(AUC, truth, both, resamples=300)
    value, difference = bootstrap.interval(values[0]), bootstrap.interval(values[0] - values[1])
    assert difference.high - difference.low < 0.5 * (value.high - value.low)


def test_resamples_that_do_not_define_the_metric_are_left_out():
    truth = np.array([0, 0, 0, 0, 1])
    scores = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4], [0.3, 0.7]])
    values = bootstrap.resampled(AUC, truth, [scores], resamples=200)[0]
    assert np.isnan(values).any()
    assert bootstrap.interval(values).low == 1.0


def test_without_resamples_there_is_no_interval():
    found = bootstrap.interval(bootstrap.resampled(MAE, np.arange(5.0), [np.zeros(5)], resamples=0)[0])
    assert np.isnan(found.low)
    assert np.isnan(found.high)


def test_500_resamples_of_16_000_rows_take_few_seconds():
    random = np.random.default_rng(5)
    truth, score = random.integers(0, 2, 16_000), random.random(16_000)
    begin = time.process_time()
    bootstrap.resampled(AUC, truth, [np.column_stack([1 - score, score])], resamples=500)
    assert time.process_time() - begin < 6
