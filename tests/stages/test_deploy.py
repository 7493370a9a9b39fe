"""Deploy, with real models in a real MLflow registry, served by real Cog servers."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pandas as pd
import pytest
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OrdinalEncoder

from drivetrain import champion, packaging, wiring
from drivetrain.backends.objects.directory import open_directory
from drivetrain.backends.serving import Endpoint, alive
from drivetrain.backends.serving.local import LocalServing
from drivetrain.backends.tracking.mlflow import MLflow, open_tracking
from drivetrain.definition.definition import Definition
from drivetrain.definition.packaging import Sign
from drivetrain.errors import ServingError, StageError, Unavailable, Untrusted
from drivetrain.records import Artifact, DeployOutputs, Reference
from drivetrain.stages import StageContext, deploy
from tests.backends.images.keys import new_key

ROWS = pd.DataFrame(
    {
        "distance": [100.0, 200.0, 3000.0, 2500.0] * 10,
        "carrier": ["AA", "UA", "AA", "UA"] * 10,
        "wind": [1.0, np.nan] * 20,
    }
)
LATE = pd.Series([0, 0, 1, 1] * 10)
RUNNER = """
import json, pickle
from pathlib import Path
import pandas as pd
from cog import BaseRunner, Input
from names import LABELS

class Runner(BaseRunner):
    def setup(self) -> None:
        with Path("model/model.pkl").open("rb") as file:
            self.model = pickle.load(file)

    def run(self, distance: float, carrier: str = Input(choices=["AA", "UA"]), wind: float = 0.0) -> str:
        frame = pd.DataFrame({"distance": [distance], "carrier": [carrier], "wind": [wind]})
        return LABELS[int(self.model.predict(frame)[0])]
"""
OTHER_INPUTS = """
from cog import BaseRunner

class Runner(BaseRunner):
    def run(self, question: str) -> str:
        return question
"""
BROKEN = """
from cog import BaseRunner

class Runner(BaseRunner):
    def setup(self) -> None:
        raise RuntimeError("no weights")

    def run(self, question: str) -> str:
        return question
"""


def classifier(seed: int) -> Any:
    encode = make_column_transformer(
        (OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=np.nan), ["carrier"]), remainder="passthrough"
    )
    model = HistGradientBoostingClassifier(max_iter=3, min_samples_leaf=2, random_state=seed, max_depth=1 + seed)
    return make_pipeline(encode, model).fit(ROWS, LATE)


@dataclass(frozen=True)
class Registered:
    """A stored model with its version."""

    model: Artifact
    version: Reference


@dataclass
class World:
    """One project, with everything a stage is given."""

    root: Path
    tracking: MLflow
    told: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.project = self.root / "project"
        self.project.mkdir()
        (self.project / "train.py").write_text("from cells import train_late\n\ndef train(features, label): ...\n")
        (self.project / "cells.py").write_text("def train_late(): ...\n")
        self.state = self.root / "state"
        self.objects = open_directory(self.root / "objects")
        self.serving = LocalServing(self.state, ready_within=60)
        definitions = self.root / "definitions"
        definitions.mkdir()
        (definitions / "definitions.json").write_text("{}")
        self.definitions = self.objects.put("definitions", definitions)

    def store(
        self,
        name: str,
        model: Any,
        example: pd.DataFrame,
        labels: list[int] | None,
        code: dict[str, Path] | None = None,
    ) -> tuple[Artifact, str]:
        """The model as an artifact, and its MLflow run."""
        directory = self.root / f"model-{len(list(self.root.glob('model-*')))}"
        with self.tracking.train(name, "run", {}, {}) as run:
            run.save_model(model, example, directory, labels=labels, code=code or {})
        return self.objects.put("model", directory), run.id

    def register(self, name: str, model: Any) -> Registered:
        """A classifier as a version, the challenger."""
        stored, run_id = self.store(name, model, ROWS.head(4), [0, 1])
        found = self.tracking.register(name, run_id, {}, "")
        self.tracking.set_alias(name, "challenger", found.version)
        return Registered(stored, Reference("version", f"{name}/{found.version}", {"run_id": run_id}))

    def deploy(
        self, registered: Registered, tracking: Any = None, candidate: bool = False, sign: dict[str, str] | None = None,
        signature: Artifact | None = None, **serving: Any,
    ) -> DeployOutputs:  # fmt: skip
        name = registered.version.id.rpartition("/")[0]
        work = self.root / f"work-{len(list(self.root.glob('work-*')))}"
        work.mkdir()
        definition = Definition.model_validate(
            {
                "name": name,
                "data": {"source": "rows.parquet", "label": "late"},
                "train": {"function": "train.py:train"},
                "evaluate": {"metric": "roc_auc"},
                "serving": {"port": 0, **serving},
                **({"package": {"sign": sign}} if sign else {}),
            }
        )
        context = StageContext(
            "run-1", self.project, self.state, work, self.objects, definition, {}, self.told.append, candidate
        )
        inputs = deploy.Inputs(registered.model, self.definitions, registered.version, signature=signature)
        part = definition.package
        trust = wiring.trust(self.state, self.project, part.sign if part else None)
        return deploy.run(context, inputs, serving=self.serving, tracking=tracking or self.tracking, trust=trust)

    def sign(self, model: Artifact, key: Path) -> Artifact:
        """The model's signature by a key, as the stage package keeps it."""
        scratch = self.root / f"signing-{len(list(self.root.glob('signing-*')))}"
        folder = self.objects.get(model, scratch / "model")
        trust = wiring.trust(self.state, key.parent, Sign(key=key.name))
        signature = trust.sign_model(folder, scratch / packaging.SIGNATURE)
        assert signature is not None
        return self.objects.put("signature", signature)

    def runner(self, file: str, source: str) -> str:
        """A runner of the user's, as the definition names it."""
        (self.project / file).write_text(source)
        return f"{file}:Runner"

    def ask(self, name: str, **inputs: Any) -> Any:
        endpoint = self.serving.find(name)
        assert isinstance(endpoint, Endpoint)
        return self.serving.predict(endpoint, inputs, "p1", 30)["output"]

    def end(self) -> None:
        for path in (self.state / "serving").glob("*.json"):
            server = alive.read(path)
            with suppress(ProcessLookupError, AttributeError):
                os.killpg(server.group, signal.SIGKILL)  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> MLflow:
    place = tmp_path_factory.mktemp("mlflow")
    return open_tracking(f"sqlite:///{place}/mlflow.db", str(place / "artifacts"))


@pytest.fixture(scope="module")
def world(tracking: MLflow, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("world"), tracking)
    yield made
    made.end()


@pytest.fixture(scope="module")
def late(world: World) -> Registered:
    return world.register("late", classifier(1))


@pytest.fixture(scope="module")
def deployed(world: World, late: Registered) -> DeployOutputs:
    return world.deploy(late)


def test_a_deployed_model_answers_rows_with_label_and_probabilities(world: World, deployed: DeployOutputs) -> None:
    rows = ROWS.head(4).astype(object).where(ROWS.head(4).notna(), None).to_dict("records")
    answer = world.ask("late", rows=rows)
    expected = classifier(1).predict_proba(ROWS.head(4))
    assert [row["prediction"] for row in answer] == list(expected.argmax(axis=1))
    assert np.allclose([[row["probabilities"]["0"], row["probabilities"]["1"]] for row in answer], expected)
    assert world.ask("late", rows=[]) == []


def test_rows_with_unknown_values_and_unknown_columns_are_answered(world: World, deployed: DeployOutputs) -> None:
    row = {"distance": None, "carrier": None, "wind": None, "flight": 7}
    assert 0.0 <= world.ask("late", rows=[row])[0]["probabilities"]["1"] <= 1.0


def test_a_row_without_a_feature_is_an_error_that_names_it(world: World, deployed: DeployOutputs) -> None:
    with pytest.raises(ServingError, match="row 1 lacks carrier, wind"):
        world.ask("late", rows=[{"distance": 1, "carrier": "AA", "wind": 2}, {"distance": 1}])
    with pytest.raises(ServingError, match="distance has to be a number"):
        world.ask("late", rows=[{"distance": "far", "carrier": "AA", "wind": 2}])
    with pytest.raises(ServingError, match="rows: Field required"):
        world.ask("late")


def test_the_revision_says_where_it_answers(world: World, deployed: DeployOutputs) -> None:
    endpoint = world.serving.find("late")
    assert endpoint is not None
    assert deployed.revision.id == endpoint.revision == f"late-1-{deployed.bundle.digest[:8]}"
    assert deployed.revision.detail == {"url": endpoint.url, "version": "1", "pid": endpoint.pid}


def test_the_bundle_is_a_complete_cog_project(world: World, deployed: DeployOutputs, tmp_path: Path) -> None:
    place = world.objects.get(deployed.bundle, tmp_path / "bundle")
    cog = (place / "cog.yaml").read_text()
    assert 'run: "run.py:Runner"' in cog
    assert "python_requirements: requirements.txt" in cog
    assert "scikit-learn==" in (place / "requirements.txt").read_text()
    assert "drivetrain" not in [
        line.split()[1] for line in (place / "run.py").read_text().splitlines() if "import" in line[:6]
    ]
    schema = json.loads((place / ".cog/openapi_schema.json").read_text())
    assert schema["components"]["schemas"]["Input"]["required"] == ["rows"]
    assert (place / ".drivetrain/definitions/definitions.json").is_file()
    assert not list(place.rglob("*.pyc"))


def test_the_version_is_champion_and_no_longer_challenger(
    world: World, late: Registered, deployed: DeployOutputs
) -> None:
    found = world.tracking.version("late", "champion")
    assert found is not None
    assert found.version == "1"
    assert world.tracking.version("late", "challenger") is None
    record = champion.read(world.objects, "late")
    assert record == champion.Champion(late.model, late.version, "run-1", None)


def test_deploying_the_same_again_changes_nothing(world: World, late: Registered, deployed: DeployOutputs) -> None:
    before = champion.read(world.objects, "late")
    assert world.deploy(late) == deployed, "also the bundle: it was built anew, with equal bytes"
    assert champion.read(world.objects, "late") == before


def test_a_deployment_cut_off_before_the_alias_is_completed_by_doing_it_again(world: World) -> None:
    class Gone(MLflow):
        def set_alias(self, name: str, alias: str, version: str) -> None:
            raise Unavailable("MLflow did not answer")

    cut = world.register("cut", classifier(1))
    runner = world.runner("other.py", OTHER_INPUTS)
    with pytest.raises(Unavailable):
        world.deploy(cut, tracking=Gone(world.tracking._uri, None), runner=runner)
    assert champion.read(world.objects, "cut") is None
    running = world.serving.find("cut")
    assert running is not None
    outputs = world.deploy(cut, runner=runner)
    assert outputs.revision.detail["pid"] == running.pid
    assert champion.read(world.objects, "cut") is not None


def test_a_model_that_is_unsigned_or_signed_by_another_is_refused_and_the_former_serves_on(
    world: World, tmp_path: Path
) -> None:
    mine, other = new_key(world.project / "mine.key"), new_key(tmp_path / "other.key")
    serving, next_one = world.register("signed", classifier(1)), world.register("signed", classifier(2))
    first = world.deploy(serving, sign={"public_key": "mine.pub"}, signature=world.sign(serving.model, mine))
    for signature, why in ((None, "is not signed"), (world.sign(next_one.model, other), "signed with another key"),
                           (world.sign(serving.model, mine), "is not what was signed: .*was changed")):  # fmt: skip
        with pytest.raises(Untrusted, match=why) as refused:
            world.deploy(next_one, sign={"key": "mine.key"}, signature=signature)
        assert refused.value.digest == next_one.model.digest
        assert next_one.model.digest in str(refused.value)
        endpoint = world.serving.find("signed")
        assert endpoint is not None
        assert endpoint.revision == first.revision.id
    world.deploy(next_one, sign={"key": "mine.key", "check": "nothing"})
    world.serving.stop("signed")


def test_a_better_model_replaces_the_champion_and_a_broken_one_does_not(world: World) -> None:
    first = world.register("two", classifier(1))
    second = world.register("two", classifier(2))
    runner = world.runner("other.py", OTHER_INPUTS)  # it starts without the libraries of the model
    old = world.deploy(first, runner=runner)
    new = world.deploy(second, runner=runner)
    endpoint = world.serving.find("two")
    assert endpoint is not None
    assert endpoint.revision == new.revision.id != old.revision.id
    assert new.revision.id.startswith("two-2-")
    record = champion.read(world.objects, "two")
    assert record is not None
    assert (record.model, record.replaces) == (second.model, first.model)
    world.deploy(second, runner=runner)
    assert champion.read(world.objects, "two") == record, "a repetition keeps what was replaced"

    with pytest.raises(ServingError, match="no weights"):
        world.deploy(first, runner=world.runner("broken.py", BROKEN))
    assert world.serving.find("two") == endpoint
    assert champion.read(world.objects, "two") == record
    found = world.tracking.version("two", "champion")
    assert found is not None
    assert found.version == "2"


def test_a_candidate_stands_beside_the_champion_which_it_needs(world: World) -> None:
    first, second = (world.register("beside", classifier(depth)) for depth in (1, 2))
    with pytest.raises(ServingError, match="no champion serves"):
        world.deploy(first, candidate=True)
    world.deploy(first)
    found = world.deploy(second, candidate=True)
    assert found.revision.detail["candidate"] is True
    status = world.serving.status("beside")
    assert [entry.weight for entry in status.revisions if entry.revision == found.revision.id] == [0]
    leading = champion.read(world.objects, "beside")
    assert leading is not None
    assert leading.version == first.version
    challenger = world.tracking.version("beside", "challenger")
    assert challenger is not None
    assert f"beside/{challenger.version}" == second.version.id


def test_a_users_runner_gets_its_code_and_a_first_request_filled_by_name(world: World, tmp_path: Path) -> None:
    runner = world.runner("serve.py", RUNNER)
    (world.project / "names.py").write_text('LABELS = ["on time", "late"]\n')
    mine = world.register("mine", classifier(1))
    outputs = world.deploy(mine, runner=runner)
    assert world.ask("mine", distance=3000, carrier="AA", wind=1) == "late"
    assert "answered its first request" in world.told[-1]
    with pytest.raises(ServingError, match=r"carrier: .*is not one of"):
        world.ask("mine", distance=3000, carrier="DL")
    first = {"distance": 100.0, "carrier": "AA", "wind": 1.0}
    assert json.loads(world.objects.read(outputs.bundle, "example.json")) == first
    names = world.objects.files(outputs.bundle)
    assert {"serve.py", "names.py", "train.py", "cells.py", "cog.yaml", "requirements.txt"} <= set(names)
    assert "run.py" not in names


def test_a_runner_with_inputs_of_its_own_is_deployed_on_its_health_alone_and_says_so(world: World) -> None:
    runner = world.runner("other.py", OTHER_INPUTS)
    (world.project / "cog.yaml").write_text('build:\n  python_requirements: deps.txt\nrun: "other.py:Runner"\n')
    (world.project / "deps.txt").write_text("requests==2.32.5\n")
    other = world.register("other", classifier(1))
    outputs = world.deploy(other, runner=runner, cog="cog.yaml")
    assert world.ask("other", question="why") == "why"
    assert "no first request" in world.told[-1]
    assert "example.json" not in world.objects.files(outputs.bundle)
    assert world.objects.read(outputs.bundle, "deps.txt") == b"requests==2.32.5\n"
    assert world.objects.read(outputs.bundle, "cog.yaml") == (world.project / "cog.yaml").read_bytes()


def test_code_in_the_place_of_the_models_own_files_is_refused(world: World, late: Registered) -> None:
    (world.project / "model").mkdir()
    with pytest.raises(StageError, match=r"model/net\.py cannot go into the bundle"):
        world.deploy(late, runner=world.runner("model/net.py", OTHER_INPUTS))


def test_code_from_outside_the_project_is_refused(world: World, late: Registered) -> None:
    (world.root / "outside.py").write_text("SECRET = 1\n")
    linked = world.project / "linked.py"
    linked.symlink_to(world.root / "outside.py")
    runner = world.runner("linking.py", f"import linked\n{OTHER_INPUTS}")
    with pytest.raises(StageError, match=r"linked\.py cannot go into the bundle: a link leads out of the project"):
        world.deploy(late, runner=runner)
    linked.unlink()
    with pytest.raises(StageError, match=r"\.\./outside\.py cannot go into the bundle: it lies outside the project"):
        world.deploy(late, runner="../outside.py:Runner")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("build: [", "no YAML"),
        ("build:\n  python_requirements: ../outside.txt\n", "lies outside the project"),
        ("build:\n  python_requirements: /etc/hostname\n", "lies outside the project"),
        ("build:\n  python_requirements: gone.txt\n", "names gone.txt, which is not in the project"),
    ],
)
def test_a_cog_yaml_that_cannot_be_used_is_an_error(world: World, late: Registered, text: str, message: str) -> None:
    (world.project / "bad.yaml").write_text(text)
    (world.root / "outside.txt").write_text("")
    with pytest.raises(StageError, match=message) as caught:
        world.deploy(late, cog="bad.yaml")
    assert caught.value.where == "bad.yaml"


# The default runner by itself: every kind of model that is installed here


@pytest.fixture
def default_runner(world: World, tmp_path: Path) -> Callable[[Artifact], Any]:
    """The runner beside a model, set up in this process."""

    def make(model: Artifact) -> Any:
        source = Path(str(files("drivetrain.backends.serving").joinpath("default_runner.py")))
        (tmp_path / "run.py").write_bytes(source.read_bytes())
        world.objects.get(model, tmp_path / "model")
        spec = importlib.util.spec_from_file_location("deployed_runner", tmp_path / "run.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        runner = module.Runner()
        runner.setup()
        return runner

    return make


NUMBERS = ROWS[["distance", "wind"]]
RECORDS = [{"wind": 1.0, "distance": 100.0, "carrier": "AA"}, {"wind": None, "distance": 3000.0, "carrier": "AA"}]
FRAME = pd.DataFrame({"distance": [100.0, 3000.0], "wind": [1.0, np.nan]})
SETTINGS = {"min_child_samples": 2, "verbose": -1, "n_estimators": 3}


def test_the_default_runner_serves_a_regression(world: World, default_runner: Callable[[Artifact], Any]) -> None:
    model = lightgbm.LGBMRegressor(**SETTINGS).fit(NUMBERS, LATE * 1.5)
    found = default_runner(world.store("kinds", model, NUMBERS.head(4), None)[0]).run(RECORDS)
    assert found == [{"prediction": value} for value in model.predict(FRAME)]


def test_the_default_runner_serves_a_booster_that_gives_one_probability(
    world: World, default_runner: Callable[[Artifact], Any]
) -> None:
    parameters = {"objective": "binary", "min_data_in_leaf": 2, "verbose": -1}
    model = lightgbm.train(parameters, lightgbm.Dataset(NUMBERS, LATE), num_boost_round=3)
    found = default_runner(world.store("kinds", model, NUMBERS.head(4), [0, 1])[0]).run(RECORDS)
    assert np.allclose([row["probabilities"]["1"] for row in found], model.predict(FRAME))
    assert [row["prediction"] for row in found] == [0, 1]
    assert all(sum(row["probabilities"].values()) == pytest.approx(1) for row in found)


CELLS = """
from sklearn.base import BaseEstimator, ClassifierMixin
import numpy as np

class Threshold(ClassifierMixin, BaseEstimator):
    def fit(self, features, label):
        self.classes_ = np.array([0, 1])
        self.at_ = float(features["distance"].mean())
        return self

    def predict_proba(self, features):
        late = (features["distance"] > self.at_).to_numpy(float)
        return np.column_stack([1 - late, late])

    def predict(self, features):
        return self.predict_proba(features).argmax(axis=1)
"""


def test_the_default_runner_finds_the_users_classes_beside_the_model(
    world: World, default_runner: Callable[[Artifact], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_cells.py").write_text(CELLS)
    with monkeypatch.context() as here:
        here.syspath_prepend(tmp_path)
        model = importlib.import_module("own_cells").Threshold().fit(NUMBERS, LATE)
        stored, _ = world.store("kinds", model, NUMBERS.head(4), [0, 1], {"own_cells": tmp_path / "own_cells.py"})
    del sys.modules["own_cells"]
    (tmp_path / "own_cells.py").unlink()
    monkeypatch.setattr(sys, "path", list(sys.path))
    found = default_runner(stored).run(RECORDS)
    assert [row["prediction"] for row in found] == [0, 1]
    assert Path(sys.modules["own_cells"].__file__ or "").is_relative_to(tmp_path / "model" / "code")
    del sys.modules["own_cells"]
