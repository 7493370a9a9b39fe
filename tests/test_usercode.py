"""The user's files: which count, and how they are loaded."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from drivetrain.errors import MissingLibrary, StageError
from drivetrain.usercode import closure, code_digest, load_function


@pytest.fixture
def project(tmp_path: Path) -> Path:
    files = {
        "train.py": "import json\nimport helpers\nfrom lib.parts import wheel\ndef train(): return helpers.DEPTH\nBROKEN = 3\n",
        "helpers.py": "DEPTH = 4\n",
        "lib/__init__.py": "",
        "lib/parts.py": "from . import axle\nwheel = 1\n",
        "lib/axle.py": "",
        "other.py": "",
        "raises.py": "1 / 0\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_the_closure_follows_imports_within_the_project(project: Path) -> None:
    found = {path.as_posix() for path in closure(project, ["train.py"])}
    assert found == {"train.py", "helpers.py", "lib/__init__.py", "lib/parts.py", "lib/axle.py"}


def test_the_digest_changes_with_what_is_imported_and_with_nothing_else(project: Path) -> None:
    before = code_digest(project, ["train.py"])
    (project / "other.py").write_text("x = 1\n")
    assert code_digest(project, ["train.py"]) == before
    (project / "lib" / "axle.py").write_text("x = 1\n")
    assert code_digest(project, ["train.py"]) != before


def test_a_function_is_loaded_with_the_projects_own_imports(project: Path) -> None:
    assert load_function(project, "train.py:train")() == 4


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raises.py:f", "raised ZeroDivisionError"),
        ("other.py:f", "has no function f"),
        ("gone.py:f", "cannot be imported"),
        ("train.py:BROKEN", "has no function BROKEN"),
    ],
)
def test_what_cannot_be_loaded_is_told(project: Path, name: str, message: str) -> None:
    with pytest.raises(StageError, match=message):
        load_function(project, name)


def test_a_framework_that_is_not_installed_is_met_with_the_command_that_installs_it(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "keras", None)  # as if it were not installed
    (project / "net.py").write_text("import keras\n")
    with pytest.raises(MissingLibrary, match="keras is not installed") as caught:
        load_function(project, "net.py:train")
    assert caught.value.hint == "pip install 'drivetrain[tensorflow]'"


def test_imports_of_a_package_above_and_from_the_entry_files_directory_are_followed(tmp_path: Path) -> None:
    files = {
        "src/train.py": "import lib.deep.part\n",
        "src/lib/deep/part.py": "from ..near import x\nfrom .. import beside\nimport util\n",
        "src/lib/near.py": "x = 1\n",
        "src/lib/beside.py": "",
        "src/util.py": "",
        "near.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(text)
    assert {path.as_posix() for path in closure(tmp_path, ["src/train.py"])} == files.keys() - {"near.py"}
