"""The floors of the house hold, and a module that stands on none is refused."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def house(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "src" / "drivetrain", tmp_path / "drivetrain", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / ".importlinter", tmp_path)
    return tmp_path


def lint(house: Path) -> subprocess.CompletedProcess[str]:
    code = "from importlinter.cli import lint_imports; import sys; sys.exit(lint_imports(no_cache=True))"
    return subprocess.run(
        [sys.executable, "-c", code], cwd=house, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(house)},
    )  # fmt: skip


def test_every_contract_is_kept(house: Path) -> None:
    found = lint(house)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("utils.py", ""),
        ("errors.py", "import drivetrain.journal\n"),
        ("stages/train.py", "import drivetrain.backends.tracking.mlflow\n"),
        ("backends/checks/page.py", "import drivetrain.backends.features\n"),
        ("backends/tracking/flavors.py", "import mlflow\n"),
        ("backends/serving/local.py", "from drivetrain.definition import parts\n"),
    ],
    ids=["stray", "upwards", "answer", "other-need", "second-file", "definition"],
)
def test_a_module_in_the_wrong_place_is_refused(house: Path, file: str, text: str) -> None:
    path = house / "drivetrain" / file
    path.write_text((path.read_text() if path.exists() else "") + text)
    assert lint(house).returncode == 1
