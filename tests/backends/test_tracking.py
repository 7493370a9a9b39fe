"""MLflow: what is logged, what is stored, what is registered."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import textwrap
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightgbm
import mlflow
import numpy as np
import pandas as pd
import pytest
import sqlalchemy
import yaml
from mlflow.entities import Dataset, DatasetInput
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder
from sklearn.svm import LinearSVC

from drivetrain.backends.tracking import SavedModel, Tracking, flavors, stored
from drivetrain.backends.tracking.mlflow import open_tracking
from drivetrain.errors import StageError, SystemFault, Unavailable


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tracking")


@pytest.fixture(scope="module")
def tracking(place: Path) -> Tracking:
    return open_tracking(f"sqlite:///{place / 'mlflow.db'}", str(place / "artifacts"))


@pytest.fixture(scope="module")
def client(tracking: Tracking, place: Path) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(tracking_uri=f"sqlite:///{place / 'mlflow.db'}")


def rows(count: int = 60) -> pd.DataFrame:
    random = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "temp": random.normal(size=count),
            "hour": random.integers(0, 24, count),
            "origin": random.choice(["EWR", "JFK"], count),
            "wet": random.random(count) > 0.5,
        }
    )


def late(count: int = 60) -> pd.Series:
    frame = rows(count)
    return (frame["temp"] + (frame["hour"] > 12) > 0.5).rename("late")


NUMBERS = ["temp", "hour"]


def save(
    tracking: Tracking, model: Any, directory: Path, features: pd.DataFrame | None = None, labels: Any = (False, True),
    code: dict[str, Path] | None = None,
) -> tuple[str, SavedModel]:  # fmt: skip
    with tracking.train("saving", "run", {}, {}) as run:
        example = (rows()[NUMBERS] if features is None else features).head(5)
        return run.id, run.save_model(model, example, directory, labels=labels, code=code or {})


def logistic() -> LogisticRegression:
    return LogisticRegression().fit(rows()[NUMBERS], late())


# experiments


def test_a_run_holds_tags_parameters_autologged_parameters_and_metrics_and_system_metrics(tracking, client):
    with tracking.train("delays", "20130101", {"drivetrain.run": "r1"}, {"C": 0.5, "max_iter": 7}) as run:
        LogisticRegression(C=2.0).fit(rows()[NUMBERS], late())
    found = client.get_run(run.id)
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "20130101"
    assert found.data.tags["drivetrain.run"] == "r1"
    # The user's parameter and the estimator's have one name and two values.
    assert (found.data.params["train.C"], found.data.params["C"]) == ("0.5", "2.0")
    assert "training_accuracy_score" in found.data.metrics
    assert "system/cpu_utilization_percentage" in found.data.metrics


def test_autologging_draws_no_plots_and_stores_no_model_of_its_own(tracking, client):
    with tracking.train("delays", "run", {}, {}) as run:
        LogisticRegression().fit(rows()[NUMBERS], late())
    assert not [file.path for file in client.list_artifacts(run.id) if file.path.endswith(".png")]
    assert not client.get_run(run.id).outputs.model_outputs


def test_a_run_whose_block_raises_is_marked_as_failed_and_the_error_goes_on(tracking, client):
    with pytest.raises(ZeroDivisionError), tracking.train("delays", "run", {}, {}) as run:
        1 / 0  # noqa: B018
    assert client.get_run(run.id).info.status == "FAILED"
    with pytest.raises(KeyboardInterrupt), tracking.train("delays", "run", {}, {}) as run:
        raise KeyboardInterrupt
    assert client.get_run(run.id).info.status == "KILLED"


def test_a_run_needs_no_scikit_learn(tracking, client, monkeypatch):
    monkeypatch.delitem(sys.modules, "sklearn")
    with tracking.train("delays", "run", {}, {}) as run:
        mlflow.log_metric("own", 1.0)
    assert client.get_run(run.id).data.metrics["own"] == 1.0


def test_after_a_run_fitting_logs_nothing_more(tracking, client):
    with tracking.train("after", "run", {}, {}):
        pass
    experiment = client.get_experiment_by_name("after").experiment_id
    LogisticRegression().fit(rows()[NUMBERS], late())
    assert len(client.search_runs([experiment])) == 1
    assert mlflow.active_run() is None


def test_a_new_experiment_keeps_its_files_where_it_is_told(tracking, client, place):
    with tracking.train("placed", "run", {}, {}):
        pass
    assert client.get_experiment_by_name("placed").artifact_location == f"{place}/artifacts/placed"


def test_an_experiment_that_was_deleted_is_used_again(tracking, client):
    with tracking.train("deleted", "run", {}, {}):
        pass
    identity = client.get_experiment_by_name("deleted").experiment_id
    client.delete_experiment(identity)
    with tracking.train("deleted", "run", {}, {}) as run:
        pass
    assert client.get_run(run.id).info.experiment_id == identity


@pytest.mark.parametrize("uri", ["file:///objects/manifests/abc", "s3://bucket/prefix/abc"])
def test_the_data_set_is_an_input_of_the_run_with_the_whole_digest_and_its_address(tracking, client, uri):
    digest = hashlib.sha256(uri.encode()).hexdigest()
    with tracking.train("delays", "run", {}, {}) as run:
        run.log_dataset("frame", digest, uri, 60, NUMBERS, "late")
    (entry,) = client.get_run(run.id).inputs.dataset_inputs
    tags = {tag.key: tag.value for tag in entry.tags}
    assert entry.dataset.digest == digest[:36]
    assert json.loads(entry.dataset.source)["uri"] == uri
    assert tags["digest"] == digest
    assert (tags["mlflow.data.context"], tags["rows"], tags["features"]) == ("training", "60", "temp,hour")


def test_a_data_set_that_another_run_logs_at_the_same_instant_is_an_input_of_both(tracking, client):
    """Another run logs it after MLflow has looked for it, and before it makes it."""
    others: list[Any] = []

    def come_between(connection, cursor, statement, parameters, context, executemany):
        if statement.startswith("INSERT INTO datasets") and not others:
            others.append(client.create_run(experiment.experiment_id))
            client.log_inputs(others[0].info.run_id, [DatasetInput(Dataset("frame", "a" * 36, "local", "{}"))])

    with tracking.train("at once", "run", {}, {}) as run:
        experiment = client.get_experiment_by_name("at once")
        sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", come_between)
        try:
            run.log_dataset("frame", "a" * 64, "/data/frame", 9, ["temp"], "late")
        finally:
            sqlalchemy.event.remove(sqlalchemy.Engine, "before_cursor_execute", come_between)
    inputs = [client.get_run(key).inputs.dataset_inputs for key in (run.id, others[0].info.run_id)]
    assert [[found.dataset.digest for found in one] for one in inputs] == [["a" * 36]] * 2


def test_values_too_long_for_mlflow_are_cut(tracking, client):
    with tracking.train("delays", "run", {"note": "n" * 20_000}, {"words": "w" * 20_000}) as run:
        pass
    found = client.get_run(run.id).data
    assert len(found.tags["note"]) == len(found.params["train.words"]) == 5000


# models


def test_the_stored_model_has_neither_ids_nor_times_and_mlflow_itself_loads_it(tracking, tmp_path):
    _, saved = save(tracking, logistic(), tmp_path / "model")
    assert saved == SavedModel("sklearn", [False, True])
    text = (tmp_path / "model" / "MLmodel").read_text()
    assert not {"run_id", "model_id", "model_uuid", "utc_time_created"} & set(yaml.safe_load(text))
    own = mlflow.sklearn.load_model(str(tmp_path / "model")).predict_proba(rows()[NUMBERS])
    assert tracking.load(tmp_path / "model").predict(rows()) == pytest.approx(own)
    served = mlflow.pyfunc.load_model(str(tmp_path / "model")).predict(rows()[NUMBERS].astype(float))
    assert (served == own.argmax(axis=1)).all()


def test_whole_numbers_are_floating_in_the_signature_so_that_a_null_can_be_served(tracking, tmp_path):
    frame = rows()[NUMBERS]
    save(tracking, HistGradientBoostingClassifier(max_iter=2).fit(frame, late()), tmp_path / "model")
    signature = yaml.safe_load((tmp_path / "model" / "MLmodel").read_text())["signature"]
    assert [column["type"] for column in json.loads(signature["inputs"])] == ["double", "double"]
    served = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    assert len(served.predict(pd.DataFrame({"temp": [0.1], "hour": [np.nan]}))) == 1


def test_requirements_are_those_of_the_flavour_as_installed(tracking, tmp_path):
    save(tracking, logistic(), tmp_path / "model")
    lines = (tmp_path / "model" / "requirements.txt").read_text().split()
    names = {line.partition("==")[0] for line in lines}
    assert names == {"mlflow", "scikit-learn", "scipy", "numpy", "pandas", "cloudpickle"}
    assert f"numpy=={np.__version__}" in lines


def test_requirements_name_the_package_of_an_estimator_within_a_pipeline(tracking, tmp_path):
    model = make_pipeline("passthrough", lightgbm.LGBMClassifier(n_estimators=2, verbose=-1)).fit(
        rows()[NUMBERS], late()
    )
    assert save(tracking, model, tmp_path / "model")[1].flavor == "sklearn"
    assert f"lightgbm=={lightgbm.__version__}" in (tmp_path / "model" / "requirements.txt").read_text()


def pipeline() -> Any:
    frame = rows()
    encode = make_column_transformer((OneHotEncoder(), ["origin"]), remainder="passthrough")
    return make_pipeline(encode, LogisticRegression(max_iter=500)).fit(frame, late())


def booster(objective: str, labels: Any, **more: Any) -> lightgbm.Booster:
    data = lightgbm.Dataset(rows()[NUMBERS], labels)
    return lightgbm.train({"objective": objective, "verbose": -1, **more}, data, num_boost_round=3)


MODELS: dict[str, tuple[Callable[[], Any], str, Any]] = {
    "logistic regression": (logistic, "sklearn", [False, True]),
    "pipeline with text": (pipeline, "sklearn", [False, True]),
    "grid search": (
        lambda: GridSearchCV(LogisticRegression(), {"C": [0.1, 1]}, cv=2).fit(rows()[NUMBERS], late()), "sklearn", [False, True]
    ),
    "three named classes": (
        lambda: RandomForestClassifier(5).fit(rows()[NUMBERS], np.array(["a", "b", "c"] * 20)), "sklearn", ["a", "b", "c"]
    ),
    "linear regression": (lambda: LinearRegression().fit(rows()[NUMBERS], rows()["temp"]), "sklearn", None),
    "LightGBM classifier": (
        lambda: lightgbm.LGBMClassifier(n_estimators=3, verbose=-1).fit(rows()[NUMBERS], late()), "lightgbm", [False, True]
    ),
    "LightGBM regressor": (
        lambda: lightgbm.LGBMRegressor(n_estimators=3, verbose=-1).fit(rows()[NUMBERS], rows()["temp"]), "lightgbm", None
    ),
    "binary Booster": (lambda: booster("binary", late()), "lightgbm", [False, True]),
    "multiclass Booster": (
        lambda: booster("multiclass", np.arange(60) % 3, num_class=3), "lightgbm", [0, 1, 2]
    ),
    "regression Booster": (lambda: booster("regression", rows()["temp"]), "lightgbm", None),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_model_comes_back_with_its_classes_and_features_and_predicts(tracking, tmp_path, name):
    make, flavor, classes = MODELS[name]
    features = rows() if "text" in name else rows()[NUMBERS]
    _, saved = save(tracking, make(), tmp_path / "model", features, classes)
    loaded = tracking.load(tmp_path / "model")
    assert saved == SavedModel(flavor, classes)
    assert loaded.classes == classes
    assert loaded.features == list(features.columns)
    predicted = loaded.predict(rows())
    assert predicted.dtype == np.float64
    if classes is None:
        assert predicted.shape == (60,)
    else:
        assert predicted.shape == (60, len(classes))
        assert predicted.sum(axis=1) == pytest.approx(np.ones(60))


def test_the_second_column_of_a_binary_booster_is_the_probability_of_the_second_class(tracking, tmp_path):
    save(tracking, booster("binary", late()), tmp_path / "model")
    predicted = tracking.load(tmp_path / "model").predict(rows())
    assert predicted[late(), 1].mean() > predicted[~late(), 1].mean()


@pytest.mark.parametrize(
    "thing", [None, {"a": 1}, lambda rows: rows, np.ones(3)], ids=["None", "dict", "function", "array"]
)
def test_what_is_no_model_is_named_with_what_is_accepted(tracking, tmp_path, thing):
    with pytest.raises(StageError, match="the training function returned") as caught:
        save(tracking, thing, tmp_path / "model")
    assert "LightGBM" in caught.value.hint


def test_a_classifier_without_probabilities_is_refused_with_a_way_out(tracking, tmp_path):
    with pytest.raises(StageError, match="LinearSVC, which has no predict_proba") as caught:
        save(tracking, LinearSVC().fit(rows()[NUMBERS], late()), tmp_path / "model")
    assert "CalibratedClassifierCV" in caught.value.hint


def test_an_unfitted_model_is_refused_when_it_is_stored(tracking, tmp_path):
    with pytest.raises(StageError, match="the model raised NotFittedError"):
        save(tracking, LinearRegression(), tmp_path / "model")


def test_a_model_that_cannot_be_pickled_is_a_stage_error(tracking, tmp_path):
    model = logistic()
    model.lock = threading.Lock()
    with pytest.raises(StageError, match=r"LogisticRegression .* cannot be stored: TypeError"):
        save(tracking, model, tmp_path / "model")


def test_a_missing_column_is_named(tracking, tmp_path):
    save(tracking, logistic(), tmp_path / "model")
    with pytest.raises(StageError, match="columns that are not there: hour"):
        tracking.load(tmp_path / "model").predict(rows()[["temp"]])


def test_a_directory_that_is_no_model_is_a_stage_error(tracking, tmp_path):
    with pytest.raises(StageError, match="does not load: FileNotFoundError"):
        tracking.load(tmp_path)


def user_module(directory: Path, add: int) -> Any:
    """A fitted pipeline with a function of a user's module that adds a number."""
    directory.mkdir()
    (directory / "helpers_of_user.py").write_text(f"def shift(rows):\n    return rows + {add}\n")
    source = f"""
        import sys; sys.path.insert(0, {str(directory)!r})
        sys.modules.pop("helpers_of_user", None)
        import helpers_of_user
    """
    exec(textwrap.dedent(source), {})
    from sklearn.preprocessing import FunctionTransformer

    shift = sys.modules["helpers_of_user"].shift
    return make_pipeline(FunctionTransformer(shift), LinearRegression()).fit(rows()[NUMBERS] * 0, np.arange(60) % 2)


def test_two_models_with_two_versions_of_one_user_module_each_run_their_own(tracking, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    for number in (1, 5):
        model = user_module(tmp_path / f"project{number}", number)
        # A slope of one for each feature makes the shift show.
        model[-1].coef_, model[-1].intercept_ = np.array([1.0, 1.0]), 0.0
        code = {"helpers_of_user": tmp_path / f"project{number}" / "helpers_of_user.py"}
        save(tracking, model, tmp_path / f"model{number}", labels=None, code=code)
    nought = rows()[NUMBERS] * 0
    assert tracking.load(tmp_path / "model1").predict(nought)[0] == pytest.approx(2.0)
    assert tracking.load(tmp_path / "model5").predict(nought)[0] == pytest.approx(10.0)
    assert tracking.load(tmp_path / "model1").predict(nought)[0] == pytest.approx(2.0)
    sys.modules.pop("helpers_of_user", None)


EQUAL_TRAINING = """
import sys
from pathlib import Path
import numpy as np, pandas as pd
from sklearn.ensemble import HistGradientBoostingClassifier
from drivetrain.backends.tracking.mlflow import open_tracking

random = np.random.default_rng(0)
features = pd.DataFrame(random.normal(size=(500, 3)), columns=["a", "b", "c"])
with open_tracking(sys.argv[1], sys.argv[2]).train("equal", "run", {}, {}) as run:
    model = HistGradientBoostingClassifier(max_iter=20, random_state=0).fit(features, features.sum(axis=1) > 0)
    run.save_model(model, features.head(), Path(sys.argv[3]), labels=[False, True], code={})
"""


def test_equal_training_in_two_processes_gives_equal_bytes_and_prints_nothing(tracking, place, tmp_path):
    def process(name: str, hash_seed: str) -> subprocess.Popen[bytes]:
        arguments = [f"sqlite:///{place / 'mlflow.db'}", str(place / "artifacts"), str(tmp_path / name)]
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        return subprocess.Popen(
            [sys.executable, "-c", EQUAL_TRAINING, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )  # fmt: skip

    with tracking.train("equal", "run", {}, {}):
        pass
    for child in [process("one", "1"), process("two", "2")]:
        assert child.communicate(timeout=120)[0].decode() == ""
        assert child.returncode == 0
    files = sorted(file.relative_to(tmp_path / "one") for file in (tmp_path / "one").rglob("*") if file.is_file())
    assert Path("model.pkl") in files
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file


MACHINES = [
    {"python": "3.11.7", "build": ["pip==23.2.1", "setuptools==84.2.1", "wheel"], "pip": "pip<=23.2.1", "size": 171559},
    {"python": "3.11.15", "build": ["pip", "setuptools==66", "wheel==0.40"], "pip": "pip", "size": 171560},
]
"""What MLflow writes of two machines; the second has no pip in its environment."""


def test_a_stored_model_does_not_depend_on_which_python_pip_and_setuptools_a_machine_has(tmp_path):
    contents = []
    for number, machine in enumerate(MACHINES):
        directory = tmp_path / str(number)
        directory.mkdir()
        python, packages = machine["python"], {"pip": ["numpy==2.4.6", "wheelhouse==1.0"]}
        flavors_of = {"python_function": {"python_version": python, "code": "code"}}
        documents = {
            "MLmodel": {"flavors": flavors_of, "model_size_bytes": machine["size"], "mlflow_version": "3.17.2"},
            "conda.yaml": {"dependencies": [f"python={python}", machine["pip"], packages], "name": "mlflow-env"},
            "python_env.yaml": {
                "python": python, "build_dependencies": machine["build"], "dependencies": ["-r requirements.txt"],
            },
        }  # fmt: skip
        for name, document in documents.items():
            (directory / name).write_text(yaml.safe_dump(document))
        stored.make_stable(directory)
        contents.append({name: yaml.safe_load((directory / name).read_text()) for name in documents})
    assert contents[0] == contents[1] == {
        "MLmodel": {"flavors": {"python_function": {"python_version": "3.11", "code": "code"}}, "mlflow_version": "3.17.2"},
        "conda.yaml": {
            "dependencies": ["python=3.11", "pip", {"pip": ["numpy==2.4.6", "wheelhouse==1.0"]}], "name": "mlflow-env",
        },
        "python_env.yaml": {
            "python": "3.11", "build_dependencies": ["pip", "setuptools", "wheel"], "dependencies": ["-r requirements.txt"],
        },
    }  # fmt: skip


def test_a_keras_archive_loses_its_times_and_its_memory_addresses_and_nothing_else(tmp_path):
    contents = []
    for address, time in ((140596138568720, (2013, 1, 1, 0, 0, 0)), (77, (2026, 5, 5, 5, 5, 4))):
        file = tmp_path / f"{address}.keras"
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(zipfile.ZipInfo("model.weights.h5", time), b"\x00weights")
            archive.writestr("metadata.json", json.dumps({"keras_version": "3", "date_saved": str(time)}))
            names = {
                "a": {"shared_object_id": address},
                "b": {"shared_object_id": 5},
                "c": {"shared_object_id": address},
            }
            archive.writestr("config.json", json.dumps(names))
        stored.make_archive_stable(file)
        contents.append(file.read_bytes())
    assert contents[0] == contents[1]
    with zipfile.ZipFile(file) as archive:
        assert archive.read("model.weights.h5") == b"\x00weights"
        assert json.loads(archive.read("metadata.json")) == {"keras_version": "3"}
        config = json.loads(archive.read("config.json"))
    assert [config[name]["shared_object_id"] for name in "abc"] == [1, 2, 1]


@pytest.mark.parametrize(
    ("output", "classes", "shape"),
    [((4,), [0, 1], (4, 2)), ((4, 1), ["a", "b"], (4, 2)), ((4, 2), [0, 1], (4, 2)), ((4, 3), ["a", "b", "c"], (4, 3))],
)
def test_outputs_of_every_shape_become_one_column_a_class(output, classes, shape):
    assert flavors.probabilities(np.full(output, 0.25), classes).shape == shape


def test_a_single_output_is_the_probability_of_the_second_class():
    assert flavors.probabilities(np.array([0.2]), ["no", "yes"]).tolist() == [[0.8, 0.2]]


def test_outputs_that_are_no_probabilities_are_refused_with_what_a_network_lacks():
    with pytest.raises(StageError, match=r"from -1 to 2 where probabilities are due") as caught:
        flavors.probabilities(np.array([-1.0, 2.0]), [0, 1])
    assert "sigmoid" in caught.value.hint
    with pytest.raises(StageError, match=r"shape \(4, 2\) for 3 classes"):
        flavors.probabilities(np.full((4, 2), 0.5), [0, 1, 2])


def test_a_network_is_not_given_text():
    with pytest.raises(StageError, match="takes numbers alone"):
        flavors.matrix(rows())


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch", reason="the extra torch is not installed")


@pytest.mark.parametrize(("outputs", "labels"), [(1, [False, True]), (3, ["a", "b", "c"]), (1, None)])
def test_a_torch_module_is_stored_and_gives_probabilities_or_values(tracking, tmp_path, torch, outputs, labels):
    ends = torch.nn.Softmax(dim=1) if outputs > 1 else torch.nn.Sigmoid() if labels else torch.nn.Identity()
    model = torch.nn.Sequential(torch.nn.Linear(2, outputs), ends)
    _, saved = save(tracking, model, tmp_path / "model", labels=labels)
    assert saved == SavedModel("pytorch", labels)
    assert tracking.load(tmp_path / "model").predict(rows()).shape == ((60, len(labels)) if labels else (60,))
    assert mlflow.pyfunc.load_model(str(tmp_path / "model")).predict(np.zeros((3, 2), np.float32)).shape == (3, outputs)


# evaluation and registry


def test_an_evaluation_is_added_to_the_finished_run_and_to_its_model(tracking, client, tmp_path):
    run_id, _ = save(tracking, logistic(), tmp_path / "model")
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "evaluation.json").write_text("{}")
    for _ in range(2):
        tracking.log_evaluation(run_id, {"holdout/roc_auc": 0.75}, tmp_path / "report")
    run = client.get_run(run_id)
    assert run.data.metrics["holdout/roc_auc"] == 0.75
    assert run.info.status == "FINISHED"
    assert [file.path for file in client.list_artifacts(run_id, "evaluation")] == ["evaluation/evaluation.json"]
    model = client.get_logged_model(run.outputs.model_outputs[0].model_id)
    assert [(metric.key, metric.value) for metric in model.metrics or []] == [("holdout/roc_auc", 0.75)]


def test_a_registered_model_is_the_one_of_the_run_and_loads_by_its_alias(tracking, tmp_path):
    run_id, _ = save(tracking, logistic(), tmp_path / "model")
    made = tracking.register("delays", run_id, {"drivetrain.model": "abc"}, "good enough")
    tracking.set_alias("delays", "challenger", made.version)
    found = tracking.version("delays", "challenger")
    assert (found.version, found.run_id, list(found.aliases)) == (made.version, run_id, ["challenger"])
    assert found.tags["drivetrain.model"] == "abc"
    assert tracking.version("delays", made.version) == found
    loaded = mlflow.sklearn.load_model("models:/delays@challenger")
    assert (loaded.coef_ == logistic().coef_).all()


def test_one_run_registered_twice_is_one_version_and_another_run_the_next(tracking, tmp_path):
    first, _ = save(tracking, logistic(), tmp_path / "one")
    second, _ = save(tracking, logistic(), tmp_path / "two")
    versions = [tracking.register("twice", run, {"n": str(n)}, "") for n, run in enumerate((first, first, second))]
    assert [version.version for version in versions] == ["1", "1", "2"]
    assert versions[1].tags["n"] == "1"


def test_an_alias_moves_and_goes_away(tracking, tmp_path):
    for name in ("one", "two"):
        run_id, _ = save(tracking, logistic(), tmp_path / name)
        version = tracking.register("aliased", run_id, {}, "")
        tracking.set_alias("aliased", "champion", version.version)
    assert tracking.version("aliased", "champion").version == "2"
    assert tracking.version("aliased", "1").aliases == ()
    tracking.drop_alias("aliased", "champion")
    tracking.drop_alias("aliased", "champion")
    tracking.drop_alias("no such model", "champion")
    assert tracking.version("aliased", "champion") is None


def test_a_version_can_be_tagged_later(tracking, tmp_path):
    run_id, _ = save(tracking, logistic(), tmp_path / "model")
    version = tracking.register("tagged", run_id, {}, "").version
    tracking.tag_version("tagged", version, {"drivetrain.image": "sha256:1"})
    assert tracking.version("tagged", version).tags["drivetrain.image"] == "sha256:1"


@pytest.mark.parametrize("selector", ["champion", "7"])
@pytest.mark.parametrize("name", ["delays", "no such model"])
def test_what_is_not_registered_is_none(tracking, name, selector):
    assert tracking.version(name, selector) is None


def test_a_run_without_a_model_cannot_be_registered(tracking):
    with tracking.train("delays", "run", {}, {}) as run:
        pass
    with pytest.raises(StageError, match="has no model"):
        tracking.register("delays", run.id, {}, "")


# faults


def test_a_server_that_does_not_answer_is_unavailable_and_its_password_is_not_shown(tracking, place):
    dead = open_tracking("http://someone:topsecret@127.0.0.1:9", None)
    try:
        with pytest.raises(Unavailable, match="MLflow did not answer") as caught:
            dead.version("delays", "champion")
        assert "topsecret" not in str(caught.value)
        with pytest.raises(Unavailable), dead.train("delays", "run", {}, {}):
            pytest.fail("the block must not be entered")
    finally:
        open_tracking(f"sqlite:///{place / 'mlflow.db'}", None).version("delays", "champion")


def test_a_run_that_is_gone_is_a_system_fault(tracking, tmp_path):
    with pytest.raises(SystemFault, match=r"logging the evaluation.*not found"):
        tracking.log_evaluation("0" * 32, {}, tmp_path)


def test_a_process_killed_while_it_makes_the_database_leaves_no_half_of_one(tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    code = (
        "import os, drivetrain.backends.tracking.mlflow as tracking\n"
        "os.link = lambda *places: os._exit(9)\n"
        f"tracking.open_tracking('sqlite:///{database}', {str(tmp_path / 'artifacts')!r})"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert not database.exists()
    tracking = open_tracking(f"sqlite:///{database}", str(tmp_path / "artifacts"))
    assert tracking.version("wine", "champion") is None
    assert database.exists()
