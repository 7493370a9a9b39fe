"""Two versions of one project, the traffic between them, and the way back."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., subprocess.CompletedProcess[str]]
SECOND = ["--param", "train.parameters.C=0.7", "--param", "evaluate.champion.tolerance=0.2"]


def told(drivetrain: Command, project: Path, *arguments: str) -> Any:
    found = drivetrain(*arguments, "--json", directory=project)
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)


def asked(url: str, body: object) -> tuple[Any, dict[str, str]]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer), {name.lower(): value for name, value in answer.headers.items()}


def eventually(condition: Callable[[], object], within: float = 60.0) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def versions(drivetrain: Command, wine: Path) -> tuple[Path, str, str]:
    """The project with two deployed versions, and their revisions; before the second there was no way back."""
    assert "no other revision" in drivetrain("rollback", directory=wine).stderr
    first = told(drivetrain, wine, "run")["stages"][-1]["outputs"]["revision"]["id"]
    refused = drivetrain("rollback", directory=wine)
    assert (refused.returncode, "no other revision" in refused.stderr) == (2, True)
    second = told(drivetrain, wine, "run", *SECOND)["stages"][-1]["outputs"]["revision"]["id"]
    assert first != second
    return wine, first, second


def test_the_way_back_and_forth_between_two_versions(drivetrain: Command, versions: tuple[Path, str, str]) -> None:
    project, first, second = versions
    shown = told(drivetrain, project, "traffic")
    assert (shown["endpoint"]["revision"], shown["former"]) == (second, first)
    assert [entry["revision"] for entry in shown["revisions"] if entry["weight"]] == [second]

    assert told(drivetrain, project, "rollback")["revision"] == first
    assert told(drivetrain, project, "predict", "--example")["revision"] == first
    assert told(drivetrain, project, "rollback")["revision"] == second
    assert told(drivetrain, project, "rollback", "--to", "wine/1")["revision"] == first
    assert told(drivetrain, project, "rollback", "--to", second)["revision"] == second
    nothing = drivetrain("rollback", "--to", "wine/9", directory=project)
    assert nothing.returncode == 2
    assert "wine/9" in nothing.stderr

    # A stopped service comes back with what was promoted last, and still knows what came before.
    drivetrain("deploy", "--stop", directory=project)
    assert told(drivetrain, project, "deploy")["revision"] == second
    told(drivetrain, project, "deploy")
    assert told(drivetrain, project, "rollback")["revision"] == first


def test_a_prediction_asked_over_http_is_traced_to_its_snapshot(
    drivetrain: Command, versions: tuple[Path, str, str]
) -> None:
    wine = versions[0]
    url = told(drivetrain, wine, "deploy")["url"]
    shown = told(drivetrain, wine, "predict", "--example")
    rows = json.loads(next((wine / ".drivetrain/serving/bundles").glob("*/example.json")).read_text())["rows"]
    answer, headers = asked(f"{url}/v1/models/wine:predict", {"instances": rows})
    assert answer["predictions"] == shown["output"]
    assert headers["x-drivetrain-revision"] == shown["revision"]
    walk = told(drivetrain, wine, "lineage", headers["x-request-id"])
    assert {"prediction", "revision", "model_version", "snapshot"} <= {node["kind"] for node in walk["nodes"]}
    assert drivetrain("feedback", headers["x-request-id"], "1", directory=wine).returncode == 0
    unknown = drivetrain("lineage", "0" * 32, directory=wine)
    assert unknown.returncode == 2


def test_serve_prints_requests_that_are_answered_and_ends_with_ctrl_c(
    drivetrain: Command, versions: tuple[Path, str, str]
) -> None:
    wine = versions[0]
    drivetrain("deploy", "--stop", directory=wine)
    command = [sys.executable, "-c", "from drivetrain.cli.main import main; main()", "serve", str(wine)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=wine.parent) as serving:
        assert serving.stdout is not None
        lines = [serving.stdout.readline() for _ in range(7)]
        curls = [line.strip() for line in lines if line.startswith("curl ")]
        assert len(curls) == 3
        for curl in curls:
            done = subprocess.run(curl, shell=True, capture_output=True, text=True, timeout=30, check=True)
            assert "error" not in json.loads(done.stdout), done.stdout
        serving.send_signal(signal.SIGINT)
        assert serving.wait(60) == 130
    assert drivetrain("predict", "--example", directory=wine).returncode == 1
