"""Train: which rows the user's function is given, how it is called, and what becomes of its failures."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from drivetrain.errors import DataError, StageError
from drivetrain.records import Verdict
from drivetrain.stages import train

PASSED = Verdict(True, "")


def run(lab, tracker, frame, source=None, **parts):
    context = lab.context(**({"source": source} if source else {}), **parts)
    return train.run(context, train.Inputs(frame, PASSED), tracking=tracker)


def client(tracker):
    return tracker._client()


# what the function is given


RECORDING = """
    from sklearn.linear_model import LogisticRegression

    def train(features, label, folder):
        features.to_parquet(folder + "/features.parquet")
        label.to_frame().to_parquet(folder + "/label.parquet")
        return LogisticRegression().fit(features, label)
"""


def test_the_function_is_given_the_rows_before_the_hold_out_whose_labels_were_known_at_its_start(
    lab, tracker, flights, tmp_path
):
    rows = flights(100)
    frame = lab.frame(rows.sample(frac=1, random_state=1))
    run(lab, tracker, frame, RECORDING, data={"label_delay": "10m"}, train={"parameters": {"folder": str(tmp_path)}})
    features, label = pd.read_parquet(tmp_path / "features.parquet"), pd.read_parquet(tmp_path / "label.parquet")
    # Of 100 rows a minute apart 80 are before the hold-out, and the labels of the first 71 are known when it begins.
    assert list(features.columns) == ["distance", "hour"]
    assert sorted(features["distance"]) == sorted(rows["distance"][:71])
    assert features["hour"].dtype == rows["hour"].dtype
    assert label["late"].dtype == bool
    assert label.index.tolist() == features.index.tolist() == list(range(71))
    assert any("9 rows left out" in text for text in lab.said)


def test_features_of_text_and_truth_are_handed_over_as_they_are(lab, tracker, flights, tmp_path):
    source = RECORDING.replace(
        "return LogisticRegression().fit(features, label)",
        "return make_pipeline(OneHotEncoder(), LogisticRegression()).fit(features, label)",
    ).replace("from sklearn", "from sklearn.preprocessing import OneHotEncoder\n    from sklearn.pipeline import make_pipeline\n"
              "    from sklearn", 1)  # fmt: skip
    rows = flights(60)[["time", "late"]].assign(tail=["N1", "N2"] * 30, wet=[True, False, False] * 20)
    run(lab, tracker, lab.frame(rows), source, train={"parameters": {"folder": str(tmp_path)}})
    features = pd.read_parquet(tmp_path / "features.parquet")
    assert features.dtypes.to_dict() == {"tail": np.dtype(object), "wet": np.dtype(bool)}


SEEDED = """
    import random
    import numpy
    from sklearn.linear_model import LogisticRegression

    def train(features, label, folder, seed=-1):
        with open(folder + "/drawn", "w") as file:
            print(seed, random.random(), numpy.random.random(), file=file)
        return LogisticRegression().fit(features, label)
"""


def test_the_seed_is_set_and_given_to_a_function_that_takes_one(lab, tracker, flights, tmp_path):
    frame = lab.frame(flights(60))

    def drawn(seed: int) -> str:
        run(lab, tracker, frame, SEEDED, train={"parameters": {"folder": str(tmp_path)}, "seed": seed})
        return (tmp_path / "drawn").read_text()

    first = drawn(7)
    assert first.startswith("7 ")
    assert drawn(7) == first
    assert drawn(8).split()[1:] != first.split()[1:]


# what comes of it


def test_the_model_artifact_says_what_it_is_and_the_tracked_run_where_it_came_from(lab, tracker, flights):
    import mlflow

    frame = lab.frame(flights(100))
    outputs = run(lab, tracker, frame, train={"parameters": {"C": 0.5}})
    assert outputs.model.kind == "model"
    assert outputs.model.metadata == {
        "flavor": "sklearn", "task": "classification", "classes": 2, "rows": 80, "features": 2,
    }  # fmt: skip
    tracked = client(tracker).get_run(outputs.tracked.id)
    tags = {name.removeprefix("drivetrain."): value for name, value in tracked.data.tags.items()}
    assert (tags["run"], tags["frame"], tags["commit"], tags["lock"]) == (
        "20130101-run",
        frame.digest,
        "abc123",
        "e" * 64,
    )
    assert tracked.data.params["train.C"] == tracked.data.params["C"] == "0.5"
    (entry,) = tracked.inputs.dataset_inputs
    assert entry.dataset.digest == frame.digest[:36]
    stored = mlflow.sklearn.load_model(str(lab.objects.get(outputs.model, lab.root / "model")))
    assert stored.C == 0.5


REGRESSION = """
    from sklearn.linear_model import LinearRegression

    def train(features, label):
        return LinearRegression().fit(features, label)
"""


def test_a_regression_has_no_classes_and_without_a_timestamp_a_draw_is_held_out(lab, tracker, flights):
    rows = flights(200).drop(columns=["time", "late"])
    outputs = run(lab, tracker, lab.frame(rows, "distance", None), REGRESSION)
    assert (outputs.model.metadata["task"], outputs.model.metadata["classes"]) == ("regression", 0)
    assert 140 <= outputs.model.metadata["rows"] <= 180


USING_HELPERS = """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer
    from {helpers}.scaling import half

    def train(features, label):
        return make_pipeline(FunctionTransformer(half), LogisticRegression()).fit(features, label)
"""


def test_the_users_modules_are_stored_with_the_model_and_it_loads_without_the_project(lab, tracker, flights):
    helpers = f"helpers_{abs(hash(lab.root)) % 10**6}"
    context = lab.context(USING_HELPERS.format(helpers=helpers))
    (context.project / helpers).mkdir()
    (context.project / helpers / "scaling.py").write_text("def half(rows):\n    return rows / 2\n")
    outputs = train.run(context, train.Inputs(lab.frame(flights(60)), PASSED), tracking=tracker)
    assert f"code/{helpers}/scaling.py" in lab.objects.files(outputs.model)
    directory = lab.objects.get(outputs.model, lab.root / "elsewhere")
    source = f"import mlflow.sklearn; print(len(mlflow.sklearn.load_model({str(directory)!r})))"
    told = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", source], cwd="/", capture_output=True, check=False, text=True
    )
    assert told.stdout.strip() == "2", told.stderr


PROCESS = """
import sys
from pathlib import Path
import drivetrain.records as records
from drivetrain.backends.objects.directory import open_directory
from drivetrain.backends.tracking.mlflow import open_tracking
from drivetrain.definition.definition import Definition
from drivetrain.stages import StageContext, evaluate, train

root, project, digest, uri = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4]
frame = records.Artifact("frame", digest, 0)
definition = Definition.model_validate({
    "name": "delays", "data": {"source": "data.py:load", "label": "late", "timestamp": "time"},
    "train": {"function": next(project.glob("train_*.py")).name + ":train"},
    "evaluate": {"metric": "roc_auc", "slices": ["group"]},
})
def context(name):
    (root / sys.argv[5] / name).mkdir(parents=True)
    return StageContext(sys.argv[5], project, root, root / sys.argv[5] / name, open_directory(root / "objects"), definition,
                        {"commit": sys.argv[5]}, lambda text: None)
tracking = open_tracking(uri, str(root / "artifacts"))
trained = train.run(context("train"), train.Inputs(frame, records.Verdict(True, "")), tracking=tracking)
judged = evaluate.run(context("evaluate"), evaluate.Inputs(frame, trained.model, trained.tracked, None), tracking=tracking)
print(trained.model.digest, judged.report.digest)
"""


def test_two_processes_with_equal_inputs_make_models_and_reports_of_equal_digests(lab, tracker, flights):
    source = """
        from sklearn.compose import make_column_transformer
        from sklearn.ensemble import HistGradientBoostingClassifier
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import OrdinalEncoder

        def train(features, label, seed):
            encode = make_column_transformer((OrdinalEncoder(), ["hour"]), remainder="passthrough")
            return make_pipeline(encode, HistGradientBoostingClassifier(max_iter=5, random_state=seed)).fit(features, label)
    """
    frame, project = lab.frame(flights(300)), lab.context(source).project
    with tracker.train("delays", "first", {}, {}):
        pass  # the database is there before two processes would make it
    children = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", PROCESS, str(lab.root), str(project), frame.digest, tracker._uri, name],
            env={**os.environ, "PYTHONHASHSEED": seed}, stdout=subprocess.PIPE, text=True,
        )
        for name, seed in (("one", "1"), ("two", "2"))
    ]  # fmt: skip
    told = [child.communicate(timeout=200)[0].split() for child in children]
    assert len(told[0]) == 2
    assert told[0] == told[1]


# what can go wrong


@pytest.mark.parametrize(
    ("parameters", "message", "hint"),
    [
        ({"max_itr": 5}, "takes no parameter max_itr", "did you mean max_iter?"),
        ({"wholly_other": 5}, "takes no parameter wholly_other", "it takes max_iter, depth"),
        ({}, "needs depth", "give it under train.parameters"),
    ],
)
def test_parameters_that_do_not_fit_the_function_are_found_before_it_runs(
    lab, tracker, flights, parameters, message, hint
):
    source = "def train(features, label, max_iter=3, *, depth): raise RuntimeError"
    with pytest.raises(StageError, match=message) as caught:
        run(lab, tracker, lab.frame(flights(20)), source, train={"parameters": parameters})
    assert caught.value.hint == hint
    assert caught.value.where.endswith(".py:train")


def test_a_function_with_keywords_of_any_name_takes_any_parameter():
    def function(features, label, **more):
        return more

    assert train.call_arguments(function, {"depth": 3}, 0, "train.py:train") == {"depth": 3}


def test_a_given_seed_is_not_overruled():
    assert train.call_arguments(lambda features, label, seed: None, {"seed": 3}, 9, "") == {"seed": 3}


def test_a_function_that_takes_no_label_is_refused():
    with pytest.raises(StageError, match="features and label first"):
        train.call_arguments(lambda features: None, {}, 0, "train.py:train")


def test_an_error_of_the_user_is_told_with_its_place_in_the_project_and_logged_whole(lab, tracker, flights, capsys):
    source = """
        import pandas

        def prepare(features):
            return features["no such column"]

        def train(features, label):
            return prepare(features)
    """
    with pytest.raises(StageError, match="raised KeyError: 'no such column'") as caught:
        run(lab, tracker, lab.frame(flights(20)), source)
    assert "train_" in caught.value.hint
    assert ".py:5;" in caught.value.hint
    assert "pandas/core" in capsys.readouterr().err
    experiment = client(tracker).get_experiment_by_name("delays").experiment_id
    latest = client(tracker).search_runs([experiment], max_results=1)[0]
    assert latest.info.status == "FAILED"


@pytest.mark.parametrize(
    ("body", "message", "hint"),
    [
        ("raise MemoryError", "ran out of memory", "train.resources.memory"),
        ("import sys; sys.exit(3)", "raised SystemExit: 3", "the whole traceback"),
        ("return None", r"returned nothing \(None\)", "scikit-learn"),
        ("return features", "returned a pandas", "scikit-learn"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_function_that_ends_otherwise_than_with_a_model_is_a_stage_error(lab, tracker, flights, body, message, hint):
    with pytest.raises(StageError, match=message) as caught:
        run(lab, tracker, lab.frame(flights(20)), f"def train(features, label):\n    {body}")
    assert hint in caught.value.hint


def test_a_training_part_of_one_label_is_a_data_error(lab, tracker, flights):
    rows = flights(50)
    rows["late"] = rows.index > 45
    with pytest.raises(DataError, match="all 40 training rows have the same late: "):
        run(lab, tracker, lab.frame(rows))


@pytest.mark.parametrize("column", ["late", "time"])
def test_a_null_label_or_time_is_a_data_error(lab, tracker, flights, column):
    rows = flights(50)
    rows[column] = rows[column].astype(object if column == "late" else rows[column].dtype).where(rows.index != 3)
    with pytest.raises(DataError, match=f"1 of 50 rows have no {column}"):
        run(lab, tracker, lab.frame(rows))


@pytest.mark.parametrize(
    ("data", "holdout", "message"),
    [
        ({}, {"start": "2030-01-01"}, "no row falls into the hold-out"),
        ({}, {"start": "2013-01-01"}, "no row is left to train on"),
        ({"label_delay": "1d"}, {}, r"no row is left to train on before the hold-out \(40 rows are earlier"),
    ],
)
def test_a_hold_out_that_leaves_nothing_on_one_side_is_a_data_error(lab, tracker, flights, data, holdout, message):
    with pytest.raises(DataError, match=message):
        run(lab, tracker, lab.frame(flights(50)), data=data, evaluate={"holdout": holdout})


def test_no_rows_at_all_are_a_data_error(lab, tracker, flights):
    with pytest.raises(DataError, match="no row falls into the hold-out"):
        run(lab, tracker, lab.frame(flights(50)[:0]))


def test_the_stage_reads_no_part_of_the_definition_that_its_row_in_the_table_does_not_name(lab, tracker, flights):
    from drivetrain.lifecycle import stage
    from drivetrain.wiring import only

    context = lab.context()
    object.__setattr__(context, "definition", only(context.definition, stage("train").parts))
    assert train.run(context, train.Inputs(lab.frame(flights(30)), PASSED), tracking=tracker).model.size > 0


def test_a_project_file_is_told_from_a_library_within_the_project():
    project = Path("/p")
    assert train._is_users(project, Path("/p/a/b.py"))
    assert not train._is_users(project, Path("/p/.venv/lib/site-packages/x.py"))
    assert not train._is_users(project, Path("/q/b.py"))
