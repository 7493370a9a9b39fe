"""A small project of the user's own: scikit-learn's wine data as a CSV file, a training function, eleven lines of definition."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

DEFINITION = """\
name: wine
data:
  source: wine.csv
  label: target
train:
  function: train.py:train
  parameters: {C: 1.0}
  timeout: 2m
evaluate:
  metric: accuracy
  minimum: 0.8
serving: {port: 0}
"""
TRAIN = """\
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


def train(features, label, C=1.0):
    return make_pipeline(StandardScaler(), LogisticRegression(C=C)).fit(features, label)
"""


def write_wine(project: Path) -> Path:
    from sklearn.datasets import load_wine

    project.mkdir(parents=True, exist_ok=True)
    load_wine(as_frame=True).frame.to_csv(project / "wine.csv", index=False)
    (project / "drivetrain.yaml").write_text(DEFINITION)
    (project / "train.py").write_text(TRAIN)
    return project


@pytest.fixture
def make_wine(tmp_path: Path, drivetrain: Callable[..., object]) -> Iterator[Callable[[str], Path]]:
    """Makes wine projects by name; their endpoints end with the test."""
    made: list[Path] = []

    def make(name: str) -> Path:
        made.append(write_wine(tmp_path / name))
        return made[-1]

    yield make
    for project in made:
        drivetrain("deploy", "--stop", directory=project)


@pytest.fixture(scope="module")
def wine(tmp_path_factory: pytest.TempPathFactory, drivetrain: Callable[..., object]) -> Iterator[Path]:
    """One wine project for a whole module."""
    project = write_wine(tmp_path_factory.mktemp("wine") / "wine")
    yield project
    drivetrain("deploy", "--stop", directory=project)
