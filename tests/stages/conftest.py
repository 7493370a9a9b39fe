"""What the tests of train, evaluate and register share: a small frame, a project around it, and one tracker."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from drivetrain.backends.objects.directory import open_directory
from drivetrain.definition.definition import Definition
from drivetrain.records import Artifact
from drivetrain.stages import StageContext

TRAIN = """
    from sklearn.linear_model import LogisticRegression

    def train(features, label, C=1.0):
        return LogisticRegression(C=C).fit(features, label)
"""
FINGERPRINTS = {"definition": "d" * 64, "code": "c" * 64, "lock": "e" * 64, "commit": "abc123"}


@dataclass
class Laboratory:
    """A project in a temporary directory, with an object store and all that its stages have said."""

    root: Path
    said: list[str] = field(default_factory=list)
    works: int = 0

    def __post_init__(self) -> None:
        self.objects = open_directory(self.root / "objects")

    def frame(self, rows: pd.DataFrame, label: str = "late", timestamp: str | None = "time") -> Artifact:
        """The rows as the stage features would have stored them."""
        directory = self.root / f"frame{len(list(self.root.glob('frame*')))}"
        directory.mkdir()
        rows.to_parquet(directory / "frame.parquet", index=False)
        features = [name for name in rows.columns if name not in (label, timestamp, "group")]
        description = {
            "label": label,
            "timestamp": timestamp,
            "keys": [],
            "features": features,
            "types": {},
            "others": ["group"],
        }
        (directory / "frame.json").write_text(json.dumps(description))
        return self.objects.put("frame", directory, {"rows": len(rows)})

    def context(self, source: str = TRAIN, **parts: dict[str, Any]) -> StageContext:
        """A context with the training function's source in `train.py`, and parts of the definition changed."""
        self.works += 1
        project, work = self.root / f"project{self.works}", self.root / f"work{self.works}"
        project.mkdir()
        work.mkdir()
        module = f"train_{abs(hash(self.root)) % 10**6}_{self.works}"
        (project / f"{module}.py").write_text(textwrap.dedent(source))
        definition = {
            "name": "delays",
            "data": {"source": "data.py:load", "label": "late", "timestamp": "time"} | parts.get("data", {}),
            "train": {"function": f"{module}.py:train"} | parts.get("train", {}),
            "evaluate": {"metric": "roc_auc"} | parts.get("evaluate", {}),
        }
        return StageContext(
            "20130101-run", project, self.root, work, self.objects, Definition.model_validate(definition), FINGERPRINTS,
            self.said.append,
        )  # fmt: skip

    def document(self, artifact: Artifact, name: str) -> Any:
        """A JSON file of an artifact."""
        return json.loads(self.objects.read(artifact, name))


@pytest.fixture
def lab(tmp_path: Path) -> Laboratory:
    return Laboratory(tmp_path)


@pytest.fixture(scope="session")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One tracker for all tests: a new database costs seconds."""
    from drivetrain.backends.tracking.mlflow import open_tracking

    root = tmp_path_factory.mktemp("mlflow")
    return open_tracking(f"sqlite:///{root / 'mlflow.db'}", str(root / "artifacts"))


@pytest.fixture(scope="session")
def flights() -> Callable[..., pd.DataFrame]:
    """Rows a minute apart, of which `noise` decides how well `late` can be told from `distance` and `hour`."""

    def make(rows: int = 400, noise: float = 0.5, seed: int = 0) -> pd.DataFrame:
        random = np.random.default_rng(seed)
        frame = pd.DataFrame(
            {
                "time": pd.date_range("2013-01-01", periods=rows, freq="1min", tz="UTC"),
                "distance": random.normal(size=rows),
                "hour": random.integers(0, 24, rows),
                "group": random.choice(["EWR", "JFK", "LGA"], rows),
            }
        )
        frame["late"] = frame["distance"] + (frame["hour"] - 12) / 12 + noise * random.normal(size=rows) > 0
        return frame

    return make
