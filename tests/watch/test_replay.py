"""A replay of rows whose world changes half-way, played to a real service while the real loop watches."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from drivetrain import service
from drivetrain.backends.serving.gateway import captured
from drivetrain.backends.serving.gateway.events import FEEDBACK, REQUEST
from drivetrain.project import open_project
from drivetrain.stages.frame import Frame
from drivetrain.watch.replay import Clock, Plan, Replay, Totals
from drivetrain.watch.replay_rows import Rows, Shape

pytestmark = pytest.mark.slow

Command = Callable[..., subprocess.CompletedProcess[str]]
BEGIN = pd.Timestamp("2024-03-01", tz="UTC")
DEFINITION = """\
name: shifting
data:
  source: rows.csv
  timestamp: at
  label: y
  label_delay: 12h
  window: {start: 2024-03-01, end: 2024-03-11, length: 3d}
train:
  function: train.py:train
evaluate:
  metric: roc_auc
  minimum: 0.6
  holdout: {fraction: 0.2}
  champion: {tolerance: 0.05}
serving:
  port: 0
  canary: {shadow: 6h, steps: [50, 100], step_time: 6h, step_requests: 10, limit: 5d, failures: 0.2, slower: 5, quality: 1}
monitoring:
  window: 1d
  least_labels: 50
triggers:
  - {name: shift, signal: drift, feature: a, above: 0.25, hold: 3d, cooldown: 10d}
"""
TRAIN = """\
from sklearn.linear_model import LogisticRegression


def train(features, label):
    return LogisticRegression().fit(features, label)
"""
RANGE = ["--from", "2024-03-11", "--to", "2024-03-25", "--seed", "3", "--step", "6h"]


def write(project: Path) -> Path:
    """150 rows a day for four weeks; on the 14th day `a` moves by three, and `b` begins to mean the opposite."""
    rng = np.random.default_rng(1)
    count = 28 * 150
    at = np.sort(rng.uniform(0, 28 * 86_400, count))
    moved = at >= 13 * 86_400
    a, b = rng.normal(size=count) + 3 * moved, rng.normal(size=count)
    y = (rng.uniform(size=count) < 1 / (1 + np.exp(-2 * np.where(moved, -b, b)))).astype(int)
    stamps = BEGIN + pd.to_timedelta(np.round(at, 3), unit="s")
    project.mkdir()
    pd.DataFrame({"at": stamps, "a": a.round(4), "b": b.round(4), "y": y}).to_csv(project / "rows.csv", index=False)
    (project / "drivetrain.yaml").write_text(DEFINITION)
    (project / "train.py").write_text(TRAIN)
    return project


@pytest.fixture(scope="module")
def shifting(tmp_path_factory: pytest.TempPathFactory, drivetrain: Command) -> Iterator[Path]:
    project = write(tmp_path_factory.mktemp("replay") / "shifting")
    assert drivetrain("run", directory=project).returncode == 0
    yield project
    drivetrain("deploy", "--stop", directory=project)


@pytest.fixture(scope="module")
def played(shifting: Path, drivetrain: Command) -> dict[str, Any]:
    found = drivetrain("replay", *RANGE, "--json", "--plot", "plot.svg", directory=shifting)
    assert found.returncode == 0, found.stderr
    document: dict[str, Any] = json.loads(found.stdout)
    return document


def test_drift_is_seen_a_model_retrained_and_promoted_and_it_is_better_than_the_first_one(
    played: dict[str, Any], shifting: Path
) -> None:
    assert played["asked"] == played["rows"] > 1800
    assert (played["failed"], played["lost"]) == (0, 0)
    (promoted,) = [found for found in played["decisions"] if found["state"] == "promoted"]
    assert promoted["trigger"] == "shift"
    fired = pd.Timestamp(promoted["at"], unit="s", tz="UTC")
    assert pd.Timestamp("2024-03-17", tz="UTC") < fired < pd.Timestamp("2024-03-19", tz="UTC")
    last = played["periods"][-1]
    assert last["loop"]["value"] > 0.8 > 0.5 > last["never"]["value"]
    assert set(last["revisions"]) == {promoted["revision"]}
    first = played["periods"][0]
    assert first["loop"] == first["never"]
    assert "<svg" in (shifting / "plot.svg").read_text()
    assert Path(played["plot"]).is_file()


def test_every_row_is_captured_at_its_own_time_and_every_label_when_it_is_known(
    played: dict[str, Any], shifting: Path
) -> None:
    events = [event for _, event in captured.read(service.capture_directory(shifting / ".drivetrain", "shifting"))]
    asked = {event.id: event.at for event in events if event.type == REQUEST}
    assert len(asked) == played["asked"]
    assert min(asked.values()) >= pd.Timestamp("2024-03-11", tz="UTC").timestamp()
    told = {event.id: event.at for event in events if event.type == FEEDBACK}
    assert len(told) == played["labels"] > 0.9 * len(asked)
    assert all(at == pytest.approx(asked[name] + 12 * 3600, abs=1e-3) for name, at in told.items())


def test_what_has_been_played_cannot_be_played_again_in_the_same_project(
    played: dict[str, Any], shifting: Path, drivetrain: Command
) -> None:
    found = drivetrain("replay", *RANGE, directory=shifting)
    assert found.returncode == 2
    assert "time does not run backwards" in found.stderr
    assert "--from 2024-03-2" in found.stderr


def test_policies_are_compared_by_models_that_are_really_trained(shifting: Path, drivetrain: Command) -> None:
    arguments = ["replay", "--policies", "--from", "2024-03-11", "--to", "2024-03-28", "--step", "1d"]
    worth = ["--param", "loop.worth={per_prediction: 1, training: 5}"]
    found = drivetrain(*arguments, *worth, "--json", directory=shifting)
    assert found.returncode == 0, found.stderr
    rows = {row["policy"]: row for row in json.loads(found.stdout)}
    assert list(rows) == ["never", "every 4 weeks", "every alarm", "CUSUM", "cost rule"]
    assert rows["never"]["trainings"] == []
    assert rows["never"]["saved"] == 0
    assert rows["every 4 weeks"]["gain"] == 0
    for name in ("every alarm", "CUSUM", "cost rule"):
        assert rows[name]["trainings"][0] > "2024-03-14", name
        assert rows[name]["gain"] > 0, name
    assert rows["every alarm"]["gain"] > 0.1
    assert rows["cost rule"]["saved"] > 0
    models = len(list((shifting / ".drivetrain" / "replay" / "models").iterdir()))
    again = drivetrain(*arguments, directory=shifting)
    assert "cost rule" not in again.stdout.splitlines()[0]
    assert "training as of" not in again.stderr
    assert len(list((shifting / ".drivetrain" / "replay" / "models").iterdir())) == models


class Nothing:
    """Looks, and decides nothing."""

    def tick(self) -> list[Any]:
        return []

    def stepped(self, now: float, totals: Totals) -> None:
        self.totals = totals

    def decided(self, decision: Any) -> None:
        raise AssertionError


def test_the_same_seed_asks_the_same_in_the_same_order_and_another_does_not(
    shifting: Path, tmp_path: Path, drivetrain: Command
) -> None:
    project = tmp_path / "copy"
    shutil.copytree(shifting, project, ignore=shutil.ignore_patterns(".drivetrain"))
    assert drivetrain("run", directory=project).returncode == 0
    try:
        opened = open_project(project)
        rows = pd.read_csv(project / "rows.csv")
        stamps = pd.to_datetime(rows["at"], format="ISO8601", utc=True).dt.tz_localize(None)
        micro = stamps.to_numpy(dtype="datetime64[us]").astype(np.int64)
        frame = Frame(rows, "y", "at", ("a", "b"), micro)
        log = service.capture_directory(opened.state, "shifting")
        start, seen = pd.Timestamp("2024-03-11", tz="UTC").timestamp(), []
        for seed, day in ((3, 0), (3, 0), (4, 0)):
            begin, shown = start + day * 86_400, Nothing()
            part = Rows(frame, Shape("rows", ()), delay=43_200.0, share=0.5, seed=seed)
            shutil.rmtree(log, ignore_errors=True)
            drivetrain("deploy", "--stop", directory=project)
            assert drivetrain("deploy", directory=project).returncode == 0
            replay = Replay(opened, part, Plan(begin, begin + 86_400, 21_600, connections=1), Clock(begin), shown)
            replay.run(shown)
            kept = [(event.type, event.id, event.at, event.body) for _, event in captured.read(log)]
            seen.append([entry for entry in kept if entry[0] in (REQUEST, FEEDBACK)])
            assert shown.totals.asked == len(replay.answers.places) == Counter(e[0] for e in kept)[REQUEST]
        assert seen[0] == seen[1]
        assert seen[0] != seen[2]
    finally:
        drivetrain("deploy", "--stop", directory=project)


def test_ctrl_c_says_where_to_go_on_and_the_service_stays(tmp_path: Path, drivetrain: Command) -> None:
    project = write(tmp_path / "shifting")
    assert drivetrain("run", directory=project).returncode == 0
    try:
        command = [
            sys.executable,
            "-c",
            "from drivetrain.cli.main import main; main()",
            "replay",
            *RANGE,
            "--speed",
            "43200",
        ]
        with subprocess.Popen(
            command, cwd=project, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        ) as playing:
            assert playing.stderr is not None
            for line in playing.stderr:
                if "rows asked" in line:
                    break
            playing.send_signal(signal.SIGINT)
            rest = playing.stderr.read()
            assert playing.wait(60) == 130, rest
        said = next(line for line in rest.splitlines() if "go on with" in line)
        assert "Traceback" not in rest
        assert drivetrain("predict", "--example", directory=project).returncode == 0
        assert said.split("--from ")[1].startswith("2024-03-1")
    finally:
        drivetrain("deploy", "--stop", directory=project)
