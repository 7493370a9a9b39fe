"""The projects that `drivetrain init` writes."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from drivetrain import templates
from drivetrain.definition.check import check
from drivetrain.definition.definition import Definition
from drivetrain.definition.load import read
from drivetrain.definition.parts import Name
from drivetrain.errors import SystemFault, UsageError

TEMPLATES = ["tabular", "tensorflow", "torch"]


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The written project's own `data` and `train` can be imported, and are forgotten afterwards."""
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in ("data", "train"):
        sys.modules.pop(name, None)


def module(name: str) -> ModuleType:
    return importlib.import_module(name)


def test_there_is_a_template_for_tables_and_for_each_deep_learning_library() -> None:
    assert templates.names() == TEMPLATES


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_written_project_is_a_valid_definition_of_the_given_name(template: str, tmp_path: Path) -> None:
    written = templates.write(template, tmp_path / "new" / "project", "my-model")

    project = tmp_path / "new" / "project"
    source = read(project)
    check(project, source)
    assert isinstance(source.definition, Definition)
    assert source.definition.name == "my-model"
    assert written == sorted(path for path in project.rglob("*") if path.is_file())
    assert {"drivetrain.yaml", "data.py", "train.py", "README.md", ".gitignore"} <= {path.name for path in written}
    assert ".drivetrain/" in (project / ".gitignore").read_text().splitlines()
    assert not any("{{" in path.read_text() for path in written)


@pytest.mark.parametrize("template", TEMPLATES)
def test_every_column_that_a_written_definition_names_is_in_the_rows(
    template: str, tmp_path: Path, modules: None
) -> None:
    templates.write(template, tmp_path, "it")
    definition = read(tmp_path).definition
    rows = module("data").load()
    assert {definition.data.label, *definition.data.key, *definition.evaluate.slices} <= set(rows.columns)
    assert not rows[definition.data.key].duplicated().any()
    assert rows.notna().all(axis=None)


def test_the_tabular_model_passes_its_own_gate(tmp_path: Path, modules: None) -> None:
    from sklearn.metrics import roc_auc_score

    templates.write("tabular", tmp_path, "it")
    definition = read(tmp_path).definition
    rows = module("data").load()
    features, label = rows.drop(columns=["sample", "malignant"]), rows["malignant"]
    model = module("train").train(features[100:], label[100:], **definition.train.parameters)
    score = roc_auc_score(label[:100], model.predict_proba(features[:100])[:, 1])
    assert definition.evaluate.minimum is not None
    assert score > definition.evaluate.minimum + 0.02


def test_the_torch_network_answers_with_probabilities(tmp_path: Path, modules: None) -> None:
    torch = pytest.importorskip("torch")
    templates.write("torch", tmp_path, "it")
    torch.manual_seed(0)
    rows = module("data").load()
    features, label = rows.drop(columns=["image", "digit"]), rows["digit"]
    model = module("train").train(features[400:], label[400:], epochs=10)
    assert isinstance(model, torch.nn.Module)
    with torch.no_grad():
        found = model(torch.from_numpy(features[:400].to_numpy("float32")))
    assert found.shape == (400, 10)
    torch.testing.assert_close(found.sum(1), torch.ones(400))
    assert (found.argmax(1).numpy() == label[:400]).mean() > 0.9


def test_the_keras_network_answers_with_values(tmp_path: Path, modules: None) -> None:
    pytest.importorskip("tensorflow")
    keras = pytest.importorskip("keras")
    templates.write("tensorflow", tmp_path, "it")
    keras.utils.set_random_seed(0)
    rows = module("data").load()
    features, label = rows.drop(columns=["patient", "progression"]), rows["progression"]
    model = module("train").train(features[100:], label[100:])
    found = model.predict(features[:100].to_numpy("float32"), verbose=0)
    assert isinstance(model, keras.Model)
    assert found.shape == (100, 1)
    assert ((found[:, 0] - label[:100]) ** 2).mean() < 0.8 * label[:100].var()


def test_a_directory_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        templates.write("tabular", tmp_path, "it")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_file_in_the_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "it").write_text("mine")
    with pytest.raises(UsageError, match="is a file"):
        templates.write("tabular", tmp_path / "it", "it")
    with pytest.raises(SystemFault, match="cannot be written"):
        templates.write("tabular", tmp_path / "it" / "below", "it")


def test_an_unknown_template_is_refused_with_those_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="jax") as caught:
        templates.write("jax", tmp_path, "it")
    assert caught.value.hint == "there are tabular, tensorflow, torch"


@given(name=st.text(st.sampled_from("aZ09-_. é"), max_size=6) | st.text(max_size=4) | st.from_regex(r"[a-z]{50,54}"))
@example(name="a" * 52)
@example(name="a" * 53)
@example(name="flights\n")
@example(name="null")
def test_a_name_is_taken_just_if_the_definition_takes_it(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    project = tmp_path_factory.mktemp("named")
    try:
        TypeAdapter(Name).validate_python(name)
    except ValidationError:
        with pytest.raises(UsageError, match="name of a lifecycle"):
            templates.write("tabular", project, name)
        assert not any(project.iterdir())
    else:
        templates.write("tabular", project, name)
        assert read(project).definition.name == name


def test_the_templates_module_loads_no_library() -> None:
    code = "import sys, drivetrain.templates; print(*{'pydantic', 'pandas', 'numpy', 'ruamel', 'click'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
