"""The estimate before labels, against what the labels then say."""

import json
import subprocess
import sys

import numpy as np
import pytest

from drivetrain.engines import metrics
from drivetrain.engines.estimate import Calibration, Estimated, estimate
from drivetrain.engines.quality import Scores
from drivetrain.errors import CorruptArtifact, DataError

CLASSIFIED = [row.name for row in metrics.of_task("classification")]


def overconfident(random, rows, a=2, b=5):
    """Scores that are further from one half than the chances behind them."""
    chances = random.beta(a, b, rows)
    scores = chances**2 / (chances**2 + (1 - chances) ** 2)
    return scores, (random.random(rows) < chances).astype(int)


def both(scores):
    return np.stack([1 - scores, scores], axis=1)


def many(random, rows, weights=(3.0, 2.0, 1.0)):
    chances = random.dirichlet(weights, rows)
    scores = chances**1.5 / (chances**1.5).sum(axis=1, keepdims=True)
    return scores, (chances.cumsum(axis=1) > random.random(rows)[:, None]).argmax(axis=1)


@pytest.fixture(scope="module")
def calibration():
    return Calibration.of(*overconfident(np.random.default_rng(0), 20_000))


@pytest.fixture(scope="module")
def calibration_of_three():
    return Calibration.of(*many(np.random.default_rng(0), 20_000))


def realised(metric, scores, labels):
    found = Scores(metric, "binary")
    found.add(scores, labels)
    return found.value().value


def test_calibrated_shares_are_the_chances_behind_the_scores(calibration):
    chances = np.array([0.1, 0.2, 0.3, 0.5])
    scores = chances**2 / (chances**2 + (1 - chances) ** 2)
    assert calibration.shares(both(scores))[:, 1] == pytest.approx(chances, abs=0.04)


def test_calibrated_shares_never_fall_as_scores_rise(calibration):
    shares = calibration.shares(both(np.linspace(0, 1, 1000)))[:, 1]
    assert (np.diff(shares) >= 0).all()
    assert 0 <= shares[0] < shares[-1] <= 1


def test_a_calibration_on_few_rows_makes_no_model_look_good():
    random = np.random.default_rng(7)
    coins = [Calibration.of(random.random(400), random.integers(0, 2, 400)) for _ in range(30)]
    areas = [estimate("roc_auc", random.random(2000), coin).value for coin in coins]
    assert np.mean(areas) < 0.54
    assert estimate("accuracy", np.full(10, 0.9), Calibration.of(np.array([0.9, 0.8]), np.array([1, 0]))).value == 0.5


def test_a_calibration_comes_back_from_json(calibration, calibration_of_three):
    for each in (calibration, calibration_of_three):
        text = json.dumps(each.to_json())
        assert Calibration.from_json(json.loads(text)) == each
        assert len(text) < 40_000


def test_shares_of_more_classes_add_up_to_one(calibration_of_three):
    scores, _ = many(np.random.default_rng(1), 500)
    assert calibration_of_three.shares(scores).sum(axis=1) == pytest.approx(1.0)


@pytest.mark.parametrize("metric", CLASSIFIED)
def test_the_estimate_follows_the_metric_when_the_inputs_change(calibration, metric):
    # More flights that are hard to tell, and more that are easy: the chances behind the scores stay what they are.
    random = np.random.default_rng(5)
    for shape in ((2, 5), (4, 6), (1.5, 4.5)):
        scores, labels = overconfident(random, 100_000, *shape)
        found = estimate(metric, scores, calibration)
        assert found.value == pytest.approx(realised(metric, scores, labels), abs=0.015)


@pytest.mark.parametrize("metric", CLASSIFIED)
def test_of_three_classes_too(calibration_of_three, metric):
    scores, labels = many(np.random.default_rng(5), 50_000, (2.0, 2.0, 1.5))
    found, truth = estimate(metric, scores, calibration_of_three), Scores(metric, "multiclass", 3)
    truth.add(scores, labels)
    # Class by class is not quite the whole: another mix of classes moves it a little.
    assert found.value == pytest.approx(truth.value().value, abs=0.025)


@pytest.mark.parametrize("metric", CLASSIFIED)
def test_the_interval_holds_the_labels_value_as_often_as_it_says(metric):
    random = np.random.default_rng(2)
    inside = []
    for _ in range(25):
        calibration = Calibration.of(*overconfident(random, 2000))
        for _ in range(8):
            scores, labels = overconfident(random, 500)
            found = estimate(metric, scores, calibration)
            inside.append(found.low <= realised(metric, scores, labels) <= found.high)
    assert np.mean(inside) >= 0.92


def test_what_changes_behind_the_inputs_is_not_seen_before_labels_come(calibration):
    random = np.random.default_rng(3)
    scores, _ = overconfident(random, 20_000)
    coin = random.integers(0, 2, 20_000)
    assert estimate("roc_auc", scores, calibration).low > 0.65
    assert realised("roc_auc", scores, coin) < 0.52


def test_merged_and_stored_parts_are_as_good_as_the_whole(calibration):
    scores, _ = overconfident(np.random.default_rng(4), 3000)
    whole, merged = Estimated("roc_auc", calibration), Estimated("roc_auc", calibration)
    whole.add(scores)
    for part in np.split(scores, [10, 2000]):
        one = Estimated("roc_auc", calibration)
        one.add(part)
        merged.merge(Estimated.from_bytes(calibration, one.to_bytes()))
    assert merged.rows == 3000
    assert merged.value().value == pytest.approx(whole.value().value, rel=1e-9)
    with pytest.raises(CorruptArtifact):
        Estimated.from_bytes(calibration, b"something else")


def test_rows_that_are_no_probabilities_are_left_out_and_counted(calibration):
    found = Estimated("brier", calibration)
    found.add(np.array([0.2, None, "x", float("nan"), 7.0, 0.4], dtype=object))
    assert (found.rows, found.unusable) == (2, 4)
    assert found.value().defined


def test_regressions_and_empty_hold_outs_are_refused(calibration):
    with pytest.raises(DataError, match="rmse"):
        Estimated("rmse", calibration)
    with pytest.raises(DataError, match="needs rows"):
        Calibration.of(np.array([]), np.array([]))
    assert not Estimated("roc_auc", calibration).value().defined


def test_applying_a_calibration_does_not_import_scikit_learn():
    code = (
        "import sys, numpy as np\n"
        "from drivetrain.engines.estimate import Calibration, estimate\n"
        "line = {'rows': 9, 'knots': [{'scores': [0.1, 0.9], 'shares': [0.2, 0.6]}]}\n"
        "assert estimate('accuracy', np.array([0.1, 0.9]), Calibration.from_json(line)).value == (0.8 + 0.6) / 2\n"
        "assert 'sklearn' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
