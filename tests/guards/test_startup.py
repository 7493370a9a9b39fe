"""Start-up: what is loaded before anything has to be done."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {
    "pandas", "numpy", "pyarrow", "duckdb", "mlflow", "feast", "great_expectations", "sklearn", "lightgbm", "matplotlib",
    "kfp", "cog", "coglet", "torch", "tensorflow", "keras", "ray", "rich",
}  # fmt: skip


def loaded_by(*arguments: str, directory: Path | None = None) -> list[str]:
    """The modules that a command leaves loaded."""
    code = (
        "import sys, json, atexit\n"
        "atexit.register(lambda: print('\\nMODULES' + json.dumps(sorted(sys.modules))))\n"
        f"sys.argv = ['drivetrain', *{list(arguments)!r}]\n"
        "from drivetrain.cli.main import main\nmain()\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=directory, env=os.environ, check=False
    )
    assert found.returncode == 0, found.stderr
    modules: list[str] = json.loads(found.stdout.rpartition("MODULES")[2])
    return modules


def heavy(modules: list[str]) -> set[str]:
    return {name.partition(".")[0] for name in modules} & HEAVY


def test_help_loads_few_modules_and_nothing_heavy() -> None:
    bare = subprocess.run(
        [sys.executable, "-c", "import sys; print(len(sys.modules))"], capture_output=True, text=True, check=True
    ).stdout
    modules = loaded_by("--help")
    assert not heavy(modules)
    assert "pydantic" not in modules
    assert len(modules) - int(bare) < 150


@pytest.mark.parametrize(
    "command", ["run", "runs", "show", "logs", "lineage", "package", "deploy", "predict", "stage", "doctor", "init"]
)
def test_the_help_of_a_command_loads_nothing_heavy(command: str) -> None:
    assert not heavy(loaded_by(command, "--help"))
