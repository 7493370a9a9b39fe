"""A version brought up beside the champion: it gets no traffic and moves nothing until it is promoted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drivetrain import champion, deployment, project, service, wiring
from drivetrain.backends.serving import alive
from drivetrain.records import DeployOutputs, decode
from drivetrain.watch.rollout import open_rollout
from drivetrain.watch.sources import Log

pytestmark = pytest.mark.slow

Command = Callable[..., subprocess.CompletedProcess[str]]
CHANGED = ["--param", "train.parameters.C=0.7", "--param", "evaluate.champion.tolerance=0.2"]


def told(drivetrain: Command, project: Path, *arguments: str) -> Any:
    found = drivetrain(*arguments, "--json", directory=project)
    assert found.returncode == 0, found.stderr + found.stdout
    return json.loads(found.stdout)


def revision(run: Any) -> str:
    found: str = run["stages"][-1]["outputs"]["revision"]["id"]
    return found


@pytest.fixture(scope="module")
def beside(drivetrain: Command, wine: Path) -> tuple[Path, str, Any]:
    """The project, the champion's revision, and the run of a candidate."""
    none_yet = drivetrain("run", "--candidate", directory=wine)
    assert (none_yet.returncode, "no champion yet" in none_yet.stderr) == (2, True)
    first = revision(told(drivetrain, wine, "run"))
    return wine, first, told(drivetrain, wine, "run", "--candidate", "--id", "retrain-1", *CHANGED)


def test_a_candidate_comes_up_without_traffic_and_the_champion_stays(
    drivetrain: Command, beside: tuple[Path, str, Any]
) -> None:
    wine, first, run = beside
    assert (run["run"], run["state"]) == ("retrain-1", "done")
    shown = told(drivetrain, wine, "traffic")
    candidate = next(entry for entry in shown["revisions"] if entry["revision"] == revision(run))
    assert (shown["endpoint"]["revision"], candidate["weight"], candidate["ready"]) == (first, 0, 1)
    opened = project.open_project(wine)
    leading = champion.read(wiring.project_objects(opened), "wine")
    assert leading is not None
    assert leading.version.id == "wine/1"
    tracking = wiring.tracking(opened.state, opened.target)
    assert [tracking.version("wine", alias).version for alias in ("champion", "challenger")] == ["1", "2"]
    for _ in range(3):
        assert told(drivetrain, wine, "predict", "--example")["revision"] == first


def test_a_candidate_that_is_still_up_is_not_made_again_and_one_that_has_gone_is(
    drivetrain: Command, beside: tuple[Path, str, Any]
) -> None:
    wine, _, run = beside
    assert told(drivetrain, wine, "run", "--candidate", *CHANGED)["stages"][-1]["state"] == "cached"
    opened = project.open_project(wine)
    wiring.serving(opened.state).withdraw("wine", revision(run))
    wiring.serving(opened.state).withdraw("wine", revision(run))
    outputs = decode(DeployOutputs, run["stages"][-1]["outputs"])
    payload = {"state": str(opened.state), "name": "wine", "candidate": True}
    assert not alive.still_holds(payload, outputs)
    again = told(drivetrain, wine, "run", "--candidate", *CHANGED)
    assert [stage["state"] for stage in again["stages"]][-2:] == ["cached", "done"]
    assert alive.still_holds(payload, outputs)


def test_a_run_of_that_name_is_made_once_and_a_resumed_candidate_stays_one(
    drivetrain: Command, beside: tuple[Path, str, Any]
) -> None:
    wine, first, run = beside
    taken = drivetrain("run", "--candidate", "--id", "retrain-1", directory=wine)
    assert (taken.returncode, "there is a run retrain-1 already" in taken.stderr) == (2, True)
    assert drivetrain("run", "--id", "../x", directory=wine).returncode == 2
    resumed = told(drivetrain, wine, "run", "--resume", "retrain-1")
    assert (resumed["run"], revision(resumed)) == ("retrain-1", revision(run))
    assert told(drivetrain, wine, "traffic")["endpoint"]["revision"] == first


def test_a_candidate_that_is_taken_back_is_ended_and_no_challenger_any_more(
    drivetrain: Command, beside: tuple[Path, str, Any]
) -> None:
    wine, first, run = beside
    opened = project.open_project(wine, parameters={"serving.canary.steps": "[50, 100]"})
    source = Log(service.capture_directory(opened.state, "wine"), "gateway")
    rollout = open_rollout(opened, revision(run), source, opened.journal)
    assert (rollout.advance(1.0).percent, rollout.advance(2.0).state) == (50, "step")
    weights = {entry["revision"]: entry["weight"] for entry in told(drivetrain, wine, "traffic")["revisions"]}
    assert weights == {first: 50, revision(run): 50}
    assert rollout.take_back("latency fired", 3.0).state == "rolled_back"
    shown = told(drivetrain, wine, "traffic")
    assert [(entry["revision"], entry["weight"]) for entry in shown["revisions"]] == [(first, 100)]
    assert wiring.tracking(opened.state, opened.target).version("wine", "challenger") is None
    assert deployment.leading(opened).revision == first
    # Its gateway killed, the service comes back as it was.
    os.kill(shown["endpoint"]["pid"], signal.SIGKILL)
    assert deployment.revive(opened).revision == first
    assert told(drivetrain, wine, "predict", "--example")["revision"] == first


def test_a_promoted_candidate_serves_and_the_way_back_leads_to_the_former_champion(
    drivetrain: Command, beside: tuple[Path, str, Any]
) -> None:
    wine, first, run = beside
    opened = project.open_project(wine)
    candidate = deployment.of_revision(opened, revision(run))
    assert candidate is not None
    for _ in range(2):  # doing it again completes what was cut off, and changes nothing else
        assert deployment.promote(opened, candidate).revision == revision(run)
        assert deployment.leading(opened).revision == revision(run)
    tracking = wiring.tracking(opened.state, opened.target)
    assert tracking.version("wine", "champion").version == "2"
    assert tracking.version("wine", "challenger") is None
    assert told(drivetrain, wine, "predict", "--example")["revision"] == revision(run)
    assert told(drivetrain, wine, "rollback")["revision"] == first
