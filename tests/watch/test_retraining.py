"""A retraining's process: begun once, seen by whoever looks, resumed if it dies. The process is a stand-in that writes the journal."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from drivetrain.backends.runner.local import lock
from drivetrain.project import Project
from drivetrain.watch import retraining
from drivetrain.watch.retraining import ATTEMPTS, Retrainings, Trained
from tests.watch import projects

STANDIN = """
import os, sys, time
from pathlib import Path
from drivetrain.journal import Journal
arguments = sys.argv[1:]
root = Path(arguments[arguments.index("-C") + 1])
run_id = arguments[arguments.index("--resume" if "--resume" in arguments else "--id") + 1]
with (root / "asked").open("a") as file:
    print(os.getpid(), *arguments[3:], file=file)
if (root / "broken").exists():
    problem = '{"file": "drivetrain.yaml", "line": 3, "message": "no"}'
    print('{"error": "1 mistake in the definition", "problems": [' + problem + ']}', file=sys.stderr)
    sys.exit(2)
journal = Journal(root / ".drivetrain" / "journal.db")
journal.start_run(run_id, "wine", {}, os.getpid(), 10.0)
while not (root / "end").exists():
    time.sleep(0.01)
state = (root / "end").read_text()
attempt = journal.start_attempt(run_id, "train", "k", 11.0)
journal.end_attempt(run_id, "train", attempt, state, 12.0, message="ValueError: no such column")
journal.end_run(run_id, state, 0, 13.0)
"""


@pytest.fixture
def wine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.setattr(retraining, "_COMMAND", STANDIN)
    return projects.watched(tmp_path / "wine")


def asked(wine: Project) -> list[list[str]]:
    """What each process that was begun was asked for, its id first."""
    try:
        return [line.split() for line in (wine.root / "asked").read_text().splitlines()]
    except FileNotFoundError:
        return []


def eventually(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def _were_begun(wine: Project, count: int) -> bool:
    return len(asked(wine)) == count


def ends(runs: Retrainings, wine: Project, state: str) -> Trained | None:
    (wine.root / "end").write_text(state)
    runs.wait("r1")
    return runs.advance("r1", 0.0)


def test_it_is_begun_once_also_by_two_controllers_and_ends_as_its_run_does(wine: Project) -> None:
    one, other = Retrainings(wine), Retrainings(wine)
    for runs in (one, other, one, other):
        assert runs.advance("r1", 1_400_000_000.0) is None
    assert ends(other, wine, "done") == Trained("done", "")
    assert one.advance("r1", 0.0) == Trained("done", "")
    assert [entry[1:] for entry in asked(wine)] == [["--candidate", "--id", "r1", "--json", "--quiet"]]


@pytest.mark.parametrize("state", ["failed", "refused"])
def test_why_it_came_to_nothing_is_said(wine: Project, state: str) -> None:
    runs = Retrainings(wine)
    runs.advance("r1", 0.0)
    assert ends(runs, wine, state) == Trained(state, "train: ValueError: no such column")  # type: ignore[arg-type]


def test_one_that_was_killed_is_resumed_and_one_that_always_is_is_given_up(wine: Project) -> None:
    for number in range(ATTEMPTS):
        runs = Retrainings(wine)
        assert runs.advance("r1", 0.0) is None
        eventually(partial(_were_begun, wine, number + 1))
        eventually(lambda: wine.journal.run("r1"))
        os.kill(int(asked(wine)[-1][0]), signal.SIGKILL)
        runs.wait("r1")
    assert [entry[1] for entry in asked(wine)] == ["--candidate", *["--resume"] * (ATTEMPTS - 1)]
    found = Retrainings(wine).advance("r1", 0.0)
    assert found is not None
    assert (found.state, f"{ATTEMPTS} times" in found.reason) == ("failed", True)


def test_a_wrong_definition_is_not_tried_again(wine: Project) -> None:
    (wine.root / "broken").touch()
    runs = Retrainings(wine)
    runs.advance("r1", 0.0)
    runs.wait("r1")
    assert runs.advance("r1", 0.0) == Trained("failed", "1 mistake in the definition: drivetrain.yaml:3: no")
    assert len(asked(wine)) == 1


def test_it_waits_for_another_run_that_is_at_work(wine: Project) -> None:
    runs = Retrainings(wine)
    with lock(wine.state):
        assert runs.advance("r1", 0.0) is None
        assert runs.begun("r1") == 0
    assert runs.advance("r1", 0.0) is None
    assert runs.begun("r1") == 1
    ends(runs, wine, "done")


def test_it_does_not_wait_for_a_run_that_was_cut_off_and_whose_pid_is_somebody_elses_now(wine: Project) -> None:
    wine.journal.start_run("cut-off", "wine", {}, os.getpid(), 10.0)
    runs = Retrainings(wine)
    runs.advance("r1", 0.0)
    assert runs.begun("r1") == 1
    ends(runs, wine, "done")


def test_rows_with_times_are_trained_on_up_to_the_decision_and_parameters_go_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retraining, "_COMMAND", STANDIN)
    root = projects.write(tmp_path / "wine")
    definition = root / "drivetrain.yaml"
    definition.write_text(definition.read_text().replace("label: target", "label: target, timestamp: at"))
    wine = projects.opened(root, **{"train.seed": "3", "data.window.end": "2013-04-01"})
    runs = Retrainings(wine)
    (root / "end").write_text("done")
    runs.advance("r1", 1_400_000_000.0)
    runs.wait("r1")
    (found,) = asked(wine)
    assert found[1:8] == [
        "--candidate",
        "--id",
        "r1",
        "--as-of",
        "2014-05-13T16:53:20+00:00",
        "--param",
        "train.seed=3",
    ]
    assert "data.window.end=2013-04-01" not in found
