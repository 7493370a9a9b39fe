"""A whole lifecycle whose artifacts, cache and champion lie in a bucket of a real S3 server."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = pytest.mark.slow


def write_project(project: Path, endpoint: str) -> Path:
    project.mkdir()
    draw = random.Random(7)
    rows = [(x := draw.gauss(0, 1), y := draw.gauss(0, 1), int(x + y + draw.gauss(0, 0.5) > 0)) for _ in range(400)]
    (project / "rows.csv").write_text("x,y,late\n" + "".join(f"{x},{y},{late}\n" for x, y, late in rows))
    (project / "train.py").write_text(
        "from sklearn.linear_model import LogisticRegression\n"
        "def train(features, label):\n    return LogisticRegression().fit(features, label)\n"
    )
    (project / "drivetrain.yaml").write_text(
        "name: far\ndata: {source: rows.csv, label: late}\ntrain: {function: 'train.py:train'}\n"
        "evaluate: {metric: roc_auc, minimum: 0.8}\nserving: {port: 0}\n"
        f"targets: {{local: {{objects: 's3://objects/far', s3_endpoint: '{endpoint}'}}}}\n"
    )
    return project


def test_a_run_keeps_everything_in_the_bucket_and_another_machine_finds_it_there(
    own_s3_server: Any, drivetrain: Command, tmp_path: Path
) -> None:
    server = own_s3_server
    keys = {"AWS_ACCESS_KEY_ID": server.key, "AWS_SECRET_ACCESS_KEY": server.secret, "AWS_REGION": "us-east-1"}
    here = write_project(tmp_path / "here", server.endpoint)
    first = drivetrain("run", "--json", directory=here, env=keys)
    try:
        assert first.returncode == 0, first.stderr
        again = drivetrain("run", "--json", directory=here, env=keys)
        assert [entry["state"] for entry in json.loads(again.stdout)["stages"]] == ["cached"] * 8
        assert not (here / ".drivetrain" / "objects").exists()
        there = tmp_path / "there"
        shutil.copytree(here, there, ignore=shutil.ignore_patterns(".drivetrain"))
        other = drivetrain("run", "--json", "--until", "validate", directory=there, env=keys)
        assert [entry["state"] for entry in json.loads(other.stdout)["stages"]] == ["cached"] * 3
        for path in (here / ".drivetrain").rglob("*"):
            assert not path.is_file() or server.secret.encode() not in path.read_bytes(), path
        server.stop()
        gone = drivetrain("run", directory=here, env=keys)
        assert gone.returncode == 1
        assert "does not answer" in gone.stderr
        assert server.secret not in gone.stderr
    finally:
        drivetrain("deploy", "--stop", directory=here)
