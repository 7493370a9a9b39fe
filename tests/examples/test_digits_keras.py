"""examples/digits_keras, from scikit-learn's images to an endpoint."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sklearn.datasets import load_digits

if importlib.util.find_spec("tensorflow") is None:
    pytest.skip("the extra tensorflow is not installed", allow_module_level=True)

HERE = Path(__file__).parents[2] / "examples" / "digits_keras"
Command = Callable[..., subprocess.CompletedProcess[str]]
Digits = tuple[Path, dict[str, Any]]
IMAGES = load_digits().data
SHOWN = load_digits().target

SAME = """
import json, sys
import numpy as np
import run

runner = run.Runner()
runner.setup()
images = np.array(json.load(sys.stdin))
inputs = [{"pixels": image.tolist()} for image in images]
together, alone = runner.batch(inputs), [runner.run(**one) for one in inputs]
tensors = runner.infer({"pixels": images.reshape(-1, 8, 8)})
assert np.allclose([a.probability for a in together], [a.probability for a in alone], atol=1e-5)
assert [a.digit for a in together] == [a.digit for a in alone] == tensors["digit"].tolist()
assert tensors["probabilities"].shape == (len(images), 10)
for wrong in ([0.0] * 63, [17.0] * 64):
    try:
        runner.run(wrong)
    except ValueError:
        continue
    raise AssertionError("that was no image")
print(json.dumps(tensors["digit"].tolist()))
"""


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory, drivetrain: Command) -> Iterator[Digits]:
    """The project, run once from nothing to its endpoint, and the run as JSON."""
    project = tmp_path_factory.mktemp("digits_keras") / "digits_keras"
    shutil.copytree(HERE, project, ignore=shutil.ignore_patterns(".drivetrain", "__pycache__"))
    found = drivetrain("run", "--json", directory=project)
    assert found.returncode == 0, found.stderr
    yield project, json.loads(found.stdout)
    drivetrain("deploy", "--stop", directory=project)


def test_the_network_passes_its_gate_and_answers_its_first_request(digits: Digits, drivetrain: Command) -> None:
    project, run = digits
    stages = {entry["stage"]: entry for entry in run["stages"]}
    assert {entry["state"] for entry in run["stages"]} == {"done"}
    assert stages["evaluate"]["outputs"]["report"]["metadata"]["value"] >= 0.97
    assert stages["train"]["outputs"]["model"]["metadata"]["flavor"] == "keras"
    found = drivetrain("predict", "--example", "--json", directory=project)
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["output"]["digit"] in range(10)
    pixels = json.dumps(IMAGES[3].tolist())
    found = drivetrain("predict", f"pixels={pixels}", "--json", directory=project)
    assert json.loads(found.stdout)["output"]["digit"] == SHOWN[3]


def test_rows_batches_and_tensors_are_answered_alike(digits: Digits, drivetrain: Command, tmp_path: Path) -> None:
    """In a process of its own: TensorFlow would stay in this one."""
    assert drivetrain("show", "--files", "train", "-o", str(tmp_path), directory=digits[0]).returncode == 0
    shutil.copy(HERE / "run.py", tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", SAME], input=json.dumps(IMAGES[:40].tolist()), capture_output=True, text=True,
        cwd=tmp_path, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert sum(a == b for a, b in zip(found, SHOWN[:40].tolist(), strict=True)) >= 38


def test_the_models_requirements_name_the_library_that_keras_computes_with(
    digits: Digits, drivetrain: Command, tmp_path: Path
) -> None:
    assert drivetrain("show", "--files", "train", "-o", str(tmp_path), directory=digits[0]).returncode == 0
    assert "tensorflow==" in (tmp_path / "model" / "requirements.txt").read_text()
