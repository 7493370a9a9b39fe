"""Evaluate: the gate's decision, and the report behind it."""

from __future__ import annotations

import io
import struct

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from drivetrain.engines.watched import Watched
from drivetrain.errors import DataError, StageError
from drivetrain.records import Artifact, EvaluateOutputs, Verdict
from drivetrain.stages import evaluate, train

REGRESSION = """
    from sklearn.linear_model import LinearRegression

    def train(features, label):
        return LinearRegression().fit(features, label)
"""
BLIND = """
    from sklearn.dummy import DummyClassifier

    def train(features, label):
        return DummyClassifier().fit(features, label)
"""


class Gate:
    """Trains and judges on one frame; trained models are kept by their source."""

    def __init__(self, lab, tracker):
        self.lab, self.tracker, self.trained = lab, tracker, {}

    def train(self, frame, source=None, **parts):
        key = (frame.digest, source)
        if key not in self.trained:
            context = self.lab.context(**({"source": source} if source else {}), **parts)
            self.trained[key] = train.run(context, train.Inputs(frame, Verdict(True, "")), tracking=self.tracker)
        return self.trained[key]

    def judge(self, frame, source=None, champion: Artifact | None = None, rule=None, **rules) -> EvaluateOutputs:
        trained = self.train(frame, source, evaluate={k: v for k, v in rules.items() if k == "holdout"})
        context = self.lab.context(evaluate={"metric": "roc_auc", "resamples": 200, "champion": rule or {}} | rules)
        inputs = evaluate.Inputs(frame, trained.model, trained.tracked, champion)
        return evaluate.run(context, inputs, tracking=self.tracker)

    def report(self, outputs: EvaluateOutputs):
        return self.lab.document(outputs.report, "evaluation.json")


@pytest.fixture
def gate(lab, tracker):
    return Gate(lab, tracker)


# the decision


def test_a_model_that_meets_the_minimum_passes_and_the_reason_has_the_numbers(gate, lab, flights):
    outputs = gate.judge(lab.frame(flights()), minimum=0.7)
    assert outputs.verdict.passed
    assert outputs.verdict.exit_code == 0
    metric = gate.report(outputs)["metric"]
    assert outputs.verdict.reason == (
        f"roc_auc {metric['value']:.4g} (95 % interval {metric['low']:.4g} to {metric['high']:.4g}) meets the minimum 0.7"
    )
    assert 0.7 < metric["low"] < metric["value"] < metric["high"] <= 1.0


def test_a_model_below_the_minimum_is_refused_with_exit_code_3_and_still_has_its_report(gate, lab, flights):
    outputs = gate.judge(lab.frame(flights()), minimum=0.9999)
    assert (outputs.verdict.passed, outputs.verdict.exit_code) == (False, 3)
    assert "is below the minimum 0.9999" in outputs.verdict.reason
    assert gate.report(outputs)["passed"] is False


@pytest.mark.parametrize(
    ("most", "passed", "words"), [(0.6, True, "meets the most allowed, 0.6"), (0.01, False, "is above")]
)
def test_of_a_loss_the_minimum_is_the_most_allowed(gate, lab, flights, most, passed, words):
    outputs = gate.judge(lab.frame(flights()), metric="log_loss", minimum=most)
    assert outputs.verdict.passed is passed
    assert words in outputs.verdict.reason


def test_without_a_minimum_and_a_champion_every_model_passes(gate, lab, flights):
    outputs = gate.judge(lab.frame(flights()), BLIND)
    assert outputs.verdict.passed
    assert outputs.verdict.reason.endswith("; no minimum is set and no champion serves")


def test_a_model_worse_than_the_champion_is_refused_and_within_the_tolerance_it_is_not(gate, lab, flights):
    frame = lab.frame(flights())
    champion = gate.train(frame).model
    refused = gate.judge(frame, BLIND, champion)
    assert refused.verdict.exit_code == 3
    assert "worse than the champion's" in refused.verdict.reason
    assert refused.verdict.reason.endswith("more than the 0 allowed")
    tolerated = gate.judge(frame, BLIND, champion, rule={"tolerance": 0.6})
    assert tolerated.verdict.passed
    unasked = gate.judge(frame, BLIND, champion, rule={"compare": False})
    assert unasked.verdict.passed
    assert gate.report(unasked)["champion"] is None


def test_a_model_better_than_the_champion_passes_with_the_paired_interval_of_the_gain(gate, lab, flights):
    frame = lab.frame(flights())
    outputs = gate.judge(frame, None, gate.train(frame, BLIND).model)
    assert outputs.verdict.passed
    part = gate.report(outputs)["champion"]
    assert part["value"] == 0.5
    assert part["gain"]["low"] > 0
    assert part["gain"]["value"] == pytest.approx(outputs.report.metadata["value"] - 0.5)
    assert outputs.report.metadata["champion"] == 0.5
    assert "better than the champion's 0.5 (95 % interval of the gain" in outputs.verdict.reason


def test_an_equal_champion_is_equalled(gate, lab, flights):
    frame = lab.frame(flights())
    outputs = gate.judge(frame, None, gate.train(frame).model)
    assert outputs.verdict.passed
    assert "equals the champion's" in outputs.verdict.reason
    assert gate.report(outputs)["champion"]["gain"] == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_a_champion_whose_columns_are_gone_leaves_the_decision_to_the_minimum_and_is_said(gate, lab, flights):
    other = gate.train(lab.frame(flights().rename(columns={"distance": "miles"}))).model
    outputs = gate.judge(lab.frame(flights()), None, other, minimum=0.6)
    assert outputs.verdict.passed
    assert (
        "cannot be compared with the champion's (the model takes columns that are not there: miles)"
        in outputs.verdict.reason
    )
    assert gate.report(outputs)["champion"]["compared"] is False


def test_a_champion_of_other_classes_is_not_compared_with(gate, lab, flights):
    renamed = flights()
    renamed["late"] = renamed["late"].map({False: "no", True: "yes"})
    outputs = gate.judge(lab.frame(flights()), None, gate.train(lab.frame(renamed)).model)
    assert outputs.verdict.passed
    assert "never trained on" in gate.report(outputs)["champion"]["why"]


def test_a_champion_that_orders_its_columns_otherwise_is_given_its_own_order(gate, lab, flights):
    rows = flights()
    turned = rows[["time", "hour", "distance", "group", "late"]]
    outputs = gate.judge(lab.frame(rows), None, gate.train(lab.frame(turned)).model)
    assert abs(gate.report(outputs)["champion"]["gain"]["value"]) < 0.01


# the report


def test_the_report_holds_every_metric_of_the_task_the_plots_and_the_predictions(gate, lab, flights):
    rows = flights()
    outputs = gate.judge(lab.frame(rows))
    assert set(lab.objects.files(outputs.report)) == {
        "evaluation.json", "reference.json", "roc.png", "calibration.png", "confusion.png", "predictions.parquet",
    }  # fmt: skip
    report = gate.report(outputs)
    assert set(report["metrics"]) == {
        "roc_auc", "average_precision", "accuracy", "balanced_accuracy", "f1", "log_loss", "brier",
    }  # fmt: skip
    predictions = pd.read_parquet(io.BytesIO(lab.objects.read(outputs.report, "predictions.parquet")))
    assert predictions.columns.tolist() == ["row", "timestamp", "label", "prediction", "probability"]
    assert predictions["row"].tolist() == list(range(320, 400))
    assert predictions["timestamp"].tolist() == rows["time"][320:].tolist()
    assert roc_auc_score(predictions["label"], predictions["probability"]) == pytest.approx(report["metric"]["value"])
    assert (predictions["prediction"] == (predictions["probability"] >= 0.5)).all()
    assert report["holdout"] == {
        "rows": 80, "training_rows": 320, "embargoed_rows": 0,
        "first": "2013-01-01T05:20:00+00:00", "last": "2013-01-01T06:39:00+00:00",
    }  # fmt: skip
    assert outputs.report.metadata["rows"] == 80


def test_plots_have_size_and_neither_time_nor_library_in_them(gate, lab, flights):
    outputs = gate.judge(lab.frame(flights()))
    for name in ("roc.png", "calibration.png", "confusion.png"):
        content = lab.objects.read(outputs.report, name)
        assert content.startswith(b"\x89PNG")
        assert min(struct.unpack(">II", content[16:24])) > 300
        assert b"tEXt" not in content
        assert b"tIME" not in content


def test_metrics_and_plots_are_added_to_the_run_that_trained_the_model(gate, lab, tracker, flights):
    frame = lab.frame(flights())
    outputs = gate.judge(frame)
    run = tracker._client().get_run(gate.train(frame).tracked.id)
    assert run.data.metrics["holdout/roc_auc"] == outputs.report.metadata["value"]
    assert run.data.metrics["holdout/roc_auc_low"] == outputs.report.metadata["low"]
    names = [file.path for file in tracker._client().list_artifacts(run.info.run_id, "evaluation")]
    assert "evaluation/roc.png" in names
    assert "evaluation/predictions.parquet" not in names


def test_judging_twice_gives_the_same_report(gate, lab, flights):
    frame = lab.frame(flights())
    assert gate.judge(frame, slices=["group"]).report == gate.judge(frame, slices=["group"]).report


def test_slices_are_given_by_their_rows_and_small_ones_are_marked(gate, lab, flights):
    rows = flights()
    rows.loc[rows.index[-100:], "group"] = ["EWR"] * 60 + ["JFK"] * 39 + [None]
    rows["late"] = rows["late"].where(rows.index != 399, other=True)
    slices = gate.report(gate.judge(lab.frame(rows), slices=["group", "hour"], metric="accuracy"))["slices"]
    of_group = [(entry["value"], entry["rows"], entry["few_rows"]) for entry in slices if entry["column"] == "group"]
    assert of_group == [("EWR", 40, False), ("JFK", 39, False), (None, 1, True)]
    of_hour = [entry for entry in slices if entry["column"] == "hour"]
    assert sum(entry["rows"] for entry in of_hour) == 80
    assert isinstance(of_hour[0]["value"], int)


def test_a_slice_that_does_not_define_the_metric_has_none(gate, lab, flights):
    rows = flights()
    rows["group"] = np.where(rows["late"], "late", "early")
    slices = gate.report(gate.judge(lab.frame(rows), slices=["group"]))["slices"]
    assert [entry["metric"] for entry in slices] == [None, None]


def test_an_unknown_slice_column_is_a_data_error(gate, lab, flights):
    with pytest.raises(DataError, match="no column airline") as caught:
        gate.judge(lab.frame(flights()), slices=["airline"])
    assert "distance" in caught.value.hint


def test_a_regression_has_its_own_metrics_plots_and_predictions(gate, lab, flights):
    rows = flights().rename(columns={"late": "was_late"})
    rows["delay"] = rows["distance"] * 3 + rows["hour"] + np.random.default_rng(3).normal(size=len(rows))
    frame = lab.frame(rows, "delay")
    outputs = gate.judge(frame, REGRESSION, gate.train(frame, REGRESSION).model, metric="rmse", minimum=2.0)
    assert outputs.verdict.passed
    report = gate.report(outputs)
    assert set(report["metrics"]) == {"rmse", "mae", "r2"}
    assert 0.7 < report["metric"]["value"] < 1.3
    assert {"predicted.png", "residuals.png"} < set(lab.objects.files(outputs.report))
    predictions = pd.read_parquet(io.BytesIO(lab.objects.read(outputs.report, "predictions.parquet")))
    assert predictions.columns.tolist() == ["row", "timestamp", "label", "prediction"]


def test_three_classes_have_a_probability_column_each(gate, lab, flights):
    rows = flights(300)
    rows["late"] = np.digitize(rows["distance"] + 0.3 * rows["hour"] / 24, [-0.5, 0.5]).astype(str)
    outputs = gate.judge(lab.frame(rows), metric="f1", minimum=0.5)
    assert outputs.verdict.passed
    predictions = pd.read_parquet(io.BytesIO(lab.objects.read(outputs.report, "predictions.parquet")))
    assert predictions.columns.tolist()[-3:] == ["probability_0", "probability_1", "probability_2"]
    assert set(predictions["prediction"]) <= {"0", "1", "2"}


def test_the_reference_is_of_the_rows_that_were_trained_on_and_of_what_the_model_answers_on_the_hold_out(
    gate, lab, flights
):
    rows = flights()
    rows["carrier"] = pd.Categorical(["DL", "UA"] * 200)
    rows["temp"] = pd.array([1, 2, None, 4] * 100, dtype="Int64")
    source = """
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.compose import make_column_transformer

        def train(features, label):
            columns = make_column_transformer(("passthrough", ["distance", "hour"]))
            return make_pipeline(columns, LogisticRegression()).fit(features, label)
    """
    outputs = gate.judge(lab.frame(rows), source, slices=["group"])
    found = Watched.from_json(lab.document(outputs.report, "reference.json"))
    trained = rows[:320]
    assert list(found.features) == ["distance", "hour", "carrier", "temp"]
    assert found.reference.rows == 320
    distance = found.reference.features["distance"]
    assert (distance.size, distance.missing) == (320, 0)
    assert distance.edges[0] == np.float32(trained["distance"].min())
    assert found.reference.features["temp"].missing == 80
    assert found.reference.features["carrier"].values == ("DL", "UA")
    assert found.reference.features["prediction"].size == 80
    assert (found.kind, found.classes, found.metric, found.slices) == ("binary", [False, True], "roc_auc", ("group",))
    assert found.calibration.rows == 80
    assert found.until == rows["time"].max().timestamp()


def test_the_reference_of_a_regression_has_no_calibration_and_that_of_many_classes_has_their_names(gate, lab, flights):
    rows = flights(300)
    rows["late"] = np.digitize(rows["distance"], [-0.5, 0.5]).astype(str)
    found = Watched.from_json(lab.document(gate.judge(lab.frame(rows), metric="f1").report, "reference.json"))
    assert found.kind == "multiclass"
    assert set(found.reference.features["prediction"].values) <= {"0", "1", "2"}
    rows["late"] = rows["distance"] * 3
    found = Watched.from_json(
        lab.document(gate.judge(lab.frame(rows), REGRESSION, metric="rmse").report, "reference.json")
    )
    assert (found.kind, found.classes, found.calibration) == ("regression", None, None)


def test_what_is_no_reference_is_a_data_error():
    with pytest.raises(DataError, match="this is no reference of an evaluation"):
        Watched.from_json({"features": []})


def test_without_resamples_there_is_no_interval(gate, lab, flights):
    outputs = gate.judge(lab.frame(flights()), minimum=0.5, resamples=0)
    assert "interval" not in outputs.verdict.reason
    assert outputs.report.metadata["low"] is None


# what can go wrong


def test_a_hold_out_of_one_class_is_a_data_error(gate, lab, flights):
    rows = flights()
    rows.loc[rows.index[-100:], "late"] = True
    with pytest.raises(DataError, match="the hold-out has only one class"):
        gate.judge(lab.frame(rows))


def test_a_label_that_was_never_trained_on_is_a_data_error(gate, lab, flights):
    rows = flights()
    rows["late"] = rows["late"].astype(str).where(rows.index < 390, other="perhaps")
    with pytest.raises(DataError, match="never trained on: 'perhaps'"):
        gate.judge(lab.frame(rows))


def test_a_metric_of_another_task_is_a_stage_error_that_names_those_that_suit(gate, lab, flights):
    with pytest.raises(StageError, match="rmse judges a regression, and the model is a classification") as caught:
        gate.judge(lab.frame(flights()), metric="rmse")
    assert "roc_auc" in caught.value.hint


def test_a_model_that_fails_on_the_hold_out_is_a_stage_error(gate, lab, flights):
    rows = flights()
    rows.loc[rows.index[-5:], "distance"] = np.nan
    with pytest.raises(StageError, match="the model raised ValueError on 80 rows: Input X contains NaN"):
        gate.judge(lab.frame(rows))


def test_the_stage_reads_no_part_of_the_definition_that_its_row_in_the_table_does_not_name(gate, lab, tracker, flights):
    from drivetrain.lifecycle import stage
    from drivetrain.wiring import only

    frame = lab.frame(flights())
    trained, context = gate.train(frame), lab.context()
    object.__setattr__(context, "definition", only(context.definition, stage("evaluate").parts))
    assert evaluate.run(
        context, evaluate.Inputs(frame, trained.model, trained.tracked, None), tracking=tracker
    ).verdict.passed
