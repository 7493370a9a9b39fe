"""`drivetrain watch` and `drivetrain decisions` as commands."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from drivetrain.journal import Decision
from tests.watch import projects

Command = Callable[..., subprocess.CompletedProcess[str]]
MORE = """\
loop: {every: 200ms}
triggers:
  - {name: drifted, signal: drift, above: 0.25, hold: 1h}
  - {name: minutely, signal: schedule, cron: "* * * * *", action: notify, cooldown: 1s}
"""


@pytest.fixture
def wine(tmp_path: Path) -> Path:
    projects.watched(tmp_path / "wine", MORE)
    return tmp_path / "wine"


def waiting(wine: Path) -> str:
    decision = Decision(
        "20130601-drifted", 1.4e9, "drifted", "retrain", "waiting", "0.3", {"value": 0.3}, "r", None, 1.4e9
    )
    projects.opened(wine).journal.open_decision(decision)
    return decision.id


def test_a_dry_run_explains_each_trigger_and_decides_nothing(drivetrain: Command, wine: Path) -> None:
    found = drivetrain("watch", "--once", "--dry-run", "--json", directory=wine)
    assert found.returncode == 0, found.stderr
    document = json.loads(found.stdout)
    rows = [(one["trigger"], one["state"], one["outcome"]) for one in document["triggers"]]
    assert rows[:2] == [("drifted", "unknown", "nothing"), ("minutely", "calm", "nothing")]
    assert {row[0].rpartition("-")[0] for row in rows[2:]} == {"slo-availability", "slo-latency"}
    assert document["champion"] == "wine-1-00000001"
    text = drivetrain("watch", "--dry-run", directory=wine).stdout
    assert "drift is not known yet" in text
    assert "the share of requests without an answer is not known yet" in text
    assert projects.opened(wine).journal.decisions() == []


def test_while_somebody_watches_others_are_told_what_was_found_and_who_watches(drivetrain: Command, wine: Path) -> None:
    command = [sys.executable, "-c", "from drivetrain.cli.main import main; main()", "watch", "--json"]
    with subprocess.Popen(command, cwd=wine, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watching:
        record, deadline = wine / ".drivetrain" / "loop" / "door.json", time.monotonic() + 60
        while not record.exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        url = json.loads(record.read_text())["url"]
        while b"looked_timestamp" not in urllib.request.urlopen(f"{url}/metrics", timeout=30).read():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        again = drivetrain("watch", "--once", directory=wine)
        assert (again.returncode, f"watched already (process {watching.pid})" in again.stderr) == (1, True)
        told = json.loads(drivetrain("watch", "--dry-run", "--json", directory=wine).stdout)
        assert [one["trigger"] for one in told["triggers"]][:3] == ["drifted", "minutely", "slo-availability-1h"]
        watching.send_signal(signal.SIGTERM)
        _, errors = watching.communicate(timeout=60)
    assert (watching.returncode, errors.count("cannot be watched")) == (0, 1), "the made-up report, said once"
    assert not record.exists()


@pytest.mark.parametrize(("canary", "at_once"), [("", True), (", canary: {steps: [5, 100]}", False)])
def test_that_a_retrained_version_gets_the_whole_traffic_at_once_is_said(
    wine: Path, canary: str, at_once: bool
) -> None:
    definition = wine / "drivetrain.yaml"
    definition.write_text(definition.read_text().replace("{port: 0}", f"{{port: 0{canary}}}"))
    command = [sys.executable, "-c", "from drivetrain.cli.main import main; main()", "watch"]
    with subprocess.Popen(command, cwd=wine, stderr=subprocess.PIPE, text=True) as watching:
        assert watching.stderr is not None
        said = watching.stderr.readline()
        while not said.startswith("watching wine; door at"):
            assert said, "it ended"
            said = watching.stderr.readline()
        watching.send_signal(signal.SIGTERM)
        rest = watching.stderr.read()
    assert ("serving.canary.steps has it get some first" in rest) == at_once


def test_a_decision_that_waits_is_approved_or_rejected_and_others_are_not(drivetrain: Command, wine: Path) -> None:
    name = waiting(wine)
    assert json.loads(drivetrain("watch", "--approve", name[:12], "--json", directory=wine).stdout)["approved"] is True
    journal = projects.opened(wine).journal
    assert journal.approval(name) is True
    assert drivetrain("watch", "--reject", name, directory=wine).returncode == 0
    assert journal.approval(name) is False
    unknown = drivetrain("watch", "--approve", "x", directory=wine)
    assert (unknown.returncode, "there is no decision x" in unknown.stderr) == (2, True)
    assert drivetrain("watch", "--approve", name, "--once", directory=wine).returncode == 2


def test_decisions_are_listed_and_one_is_told_with_its_history(drivetrain: Command, wine: Path) -> None:
    assert "nothing has been decided" in drivetrain("decisions", directory=wine).stdout
    name = waiting(wine)
    assert [row["state"] for row in json.loads(drivetrain("decisions", "--json", directory=wine).stdout)] == ["waiting"]
    told = json.loads(drivetrain("decisions", name, "--json", directory=wine).stdout)
    assert (told["numbers"], told["steps"][0]["state"]) == ({"value": 0.3}, "waiting")
    assert "drifted: retrain waiting: 0.3" in drivetrain("decisions", name, directory=wine).stdout
    assert drivetrain("decisions", "x", directory=wine).returncode == 2
