from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from drivetrain.errors import StageError
from drivetrain.tables.functions import Loader, loader


@pytest.fixture(autouse=True)
def own_imports(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("data", None)


def load(project: Path, code: str, **parameters: object) -> Loader:
    (project / "data.py").write_text(f"import pandas as pd, pyarrow as pa\n\n{code}\n")
    sys.modules.pop("data", None)
    return loader(project, "data.py:load", parameters)


def refused(entry: Loader) -> StageError:
    with pytest.raises(StageError) as caught:
        list(entry.chunks())
    return caught.value


def test_a_function_gets_the_parameters_that_it_names(tmp_path: Path) -> None:
    entry = load(tmp_path, "def load(a, *, b=2): return pa.table({'a': [a], 'b': [b]})", a=1, c=3)
    assert entry.parameters == {"a": 1}
    assert [chunk.to_pylist() for chunk in entry.chunks()] == [[{"a": 1, "b": 2}]]
    assert load(tmp_path, "def load(a, **more): ...", a=1, c=3).parameters == {"a": 1, "c": 3}


def test_a_function_gets_the_bounds_that_it_names(tmp_path: Path) -> None:
    entry = load(tmp_path, "def load(start, end): return pd.DataFrame({'x': [start, end]})")
    assert entry.takes_window
    assert next(entry.chunks(start=1, end=2))["x"].tolist() == [1, 2]
    assert not load(tmp_path, "def load(start): ...").takes_window
    assert not load(tmp_path, "def load(**more): ...").takes_window


def test_a_parameter_that_is_not_given_is_named(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="the function needs 'region', which"):
        load(tmp_path, "def load(start, region, size=1): ...", size=3)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return [pd.DataFrame({'x': [1]}), pa.table({'x': [2]})]", 2),
        ("yield pa.record_batch({'x': [1]})", 1),
        ("return pa.table({'x': [1, 2]}).to_reader()", 1),
        ("return iter(())", 0),
    ],
)
def test_frames_tables_and_iterators_of_them_are_taken(tmp_path: Path, body: str, expected: int) -> None:
    assert len(list(load(tmp_path, f"def load(): {body}").chunks())) == expected


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return None", "the function returned None"),
        ("return {'x': [1]}", "the function returned a dict"),
        ("return 'x.csv'", "the function returned a str"),
        ("return pd.Series([1])", "the function gave a int in a pandas.Series"),
        ("return [{'x': 1}]", "the function gave a dict in a list"),
    ],
)
def test_anything_else_is_refused_by_its_type(tmp_path: Path, body: str, said: str) -> None:
    error = refused(load(tmp_path, f"def load(): {body}"))
    assert str(error) == f"data.py:load: {said}"
    assert "return a DataFrame" in error.hint


def test_what_the_function_raises_comes_with_the_line_of_the_users_code(tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("def divide():\n    return 1 / 0\n")
    entry = load(tmp_path, "import helper\ndef load(): return helper.divide()")
    assert str(refused(entry)) == (
        "data.py:load: the function raised ZeroDivisionError at helper.py:2: division by zero"
    )
    late = load(tmp_path, "def load():\n    yield pd.DataFrame()\n    pd.DataFrame({'a': 3})\n")
    assert "raised ValueError at data.py:5: If using all scalar values" in str(refused(late))
    sys.modules.pop("helper", None)
