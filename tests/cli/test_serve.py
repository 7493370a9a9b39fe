"""`predict`, `feedback` and `traffic` on a service of two revisions, and the requests that `serve` prints."""

from __future__ import annotations

import json
import shlex
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from drivetrain import project as projects
from drivetrain import service
from drivetrain.backends.serving import Endpoint
from drivetrain.backends.serving.local import open_serving
from drivetrain.cli import examples
from drivetrain.project import Project

Command = Callable[..., subprocess.CompletedProcess[str]]

DEFINITION = """\
name: echo
data: {source: rows.csv, label: target}
train: {function: 'train.py:train'}
evaluate: {metric: accuracy}
serving: {port: 0, limits: {timeout: 60s}}
"""
RUNNER = """\
import time

from cog import BaseRunner


class Runner(BaseRunner):
    def run(self, x: float, wait: float = 0.0) -> float:
        time.sleep(wait)
        return VALUE * x
"""


def write_project(place: Path) -> Path:
    place.mkdir(parents=True, exist_ok=True)
    (place / "drivetrain.yaml").write_text(DEFINITION)
    (place / "rows.csv").write_text("a,target\n1,0\n")
    (place / "train.py").write_text("def train(features, label): ...\n")
    return place


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project whose service has two revisions: `echo-1-a` doubles and had the traffic, `echo-2-b` triples and has it."""
    place = write_project(tmp_path_factory.mktemp("echo") / "echo")
    opened = projects.open_project(place)
    serving, settings = open_serving(opened.state), service.settings(opened.definition, opened.root, opened.state)
    try:
        for revision, value in (("echo-1-a", "2"), ("echo-2-b", "3")):
            bundle = place / f"bundle-{value}"
            bundle.mkdir()
            (bundle / "run.py").write_text(RUNNER.replace("VALUE", value))
            serving.deploy(settings, revision, bundle, "run.py:Runner")
        yield place
    finally:
        serving.stop("echo")


def told(drivetrain: Command, project: Path, *arguments: str) -> Any:
    found = drivetrain(*arguments, "--json", directory=project)
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)


def test_a_prediction_says_its_id_and_revision(drivetrain: Command, served: Path) -> None:
    answer = told(drivetrain, served, "predict", "x=2")
    assert (answer["output"], answer["status"], answer["revision"]) == (6.0, "succeeded", "echo-2-b")
    found = drivetrain("predict", "x=2", directory=served)
    assert json.loads(found.stdout) == 6.0
    assert found.stderr.startswith("prediction ")
    assert "revision echo-2-b" in found.stderr
    (served / "inputs.json").write_text('{"x": 5}')
    assert told(drivetrain, served, "predict", "--file", "inputs.json")["output"] == 15.0
    assert told(drivetrain, served, "predict", "--file", "inputs.json", "x=1")["output"] == 3.0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["predict", "y=1"], 1, "the inputs were refused: x: Field required"),
        (["predict", "x=NaN"], 1, "the inputs were refused: x: "),
        (["predict", "=1"], 2, "'=1' is not of the form NAME=VALUE"),
        (["predict", "x=1", "--timeout", "0"], 2, "0.0 is not in the range x>0"),
        # the gateway says so, or if it does not come to that in time, the command itself
        (["predict", "x=1", "wait=5", "--timeout", "0.2"], 1, "no answer "),
        (["predict", "--file", "list.json"], 2, "list.json is no JSON object"),
        (["predict", "--file", "nan.json"], 2, "NaN is no JSON"),
        (["predict", "--example"], 2, "no model has been promoted yet"),
        (["traffic", "echo-2-b"], 2, "is not of the form REVISION=PERCENT"),
        (["traffic", "echo-2-b=90"], 2, "the percents add up to 90, not to 100"),
        (["traffic", "echo-2-b=50", "echo-2-b=100"], 2, "echo-2-b is named twice"),
        (["traffic", "--shadow", "echo-1-a"], 2, "the weights are missing"),
        (["traffic", "echo-2-b=100", "--sticky", "X User"], 2, "'X User' is no name of a header"),
        (["traffic", "echo-9-z=100"], 1, "there is no revision echo-9-z"),
    ],
)
def test_what_cannot_be_asked_is_said_in_one_line(
    drivetrain: Command, served: Path, arguments: list[str], code: int, message: str
) -> None:
    (served / "list.json").write_text("[1]")
    (served / "nan.json").write_text('{"x": NaN}')
    found = drivetrain(*arguments, directory=served)
    assert (found.returncode, found.stdout) == (code, "")
    assert message in found.stderr
    assert "Traceback" not in found.stderr


def test_a_label_is_kept_with_the_id_of_its_prediction(drivetrain: Command, served: Path) -> None:
    asked = told(drivetrain, served, "predict", "x=2")["id"]
    assert told(drivetrain, served, "feedback", asked, "7.5") == {"id": asked, "label": 7.5}
    assert drivetrain("feedback", asked, "on time", directory=served).stdout == f'kept: {asked} was "on time"\n'


def test_traffic_is_split_shadowed_and_given_back(drivetrain: Command, served: Path) -> None:
    shown = drivetrain("traffic", directory=served)
    assert "echo-2-b  100 %" in shown.stdout
    assert "`drivetrain rollback` goes back to echo-1-a" in shown.stderr

    split = told(drivetrain, served, "traffic", "echo-1-a=100", "echo-2-b=0%", "--sticky", "X-User")
    assert (split["endpoint"]["revision"], split["sticky"]) == ("echo-1-a", "X-User")
    assert told(drivetrain, served, "predict", "x=2")["output"] == 4.0

    shadowed = drivetrain("traffic", "echo-2-b=100", "--shadow", "echo-1-a", directory=served)
    assert "0 % + shadow" in shadowed.stdout
    assert "sticky" not in shadowed.stdout
    back = told(drivetrain, served, "traffic", "echo-2-b=100")
    assert (back["shadow"], back["sticky"]) == (None, None)


def test_predict_waits_for_a_replica_that_is_being_started_again(drivetrain: Command, served: Path) -> None:
    state = json.loads((served / ".drivetrain/serving/echo.json").read_text())
    for replica in psutil.Process(state["pid"]).children():
        replica.kill()
    assert told(drivetrain, served, "predict", "x=2", "--timeout", "60")["output"] == 6.0


@pytest.fixture
def opened(tmp_path: Path) -> Project:
    return projects.open_project(write_project(tmp_path / "wine, of course"))


def test_printed_requests_hold_one_row_without_nulls(opened: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"a": None, "b": 1.0}, {"a": 2.0, "b": 3.0}, {"a": 4.0, "b": 5.0}]
    monkeypatch.setattr(examples, "of_champion", lambda _: {"rows": rows})
    lines = list(examples.curl(opened, Endpoint("echo", "echo-1-a", "http://127.0.0.1:5000", 1)))
    assert lines[0::2] == ["# Cog", "# KServe V1", "# Open Inference"]
    bodies = [json.loads(shlex.split(line)[-1]) for line in lines[1::2]]
    assert bodies[:2] == [{"input": {"rows": rows[1:2]}}, {"instances": rows[1:2]}]
    assert [(tensor["name"], tensor["data"]) for tensor in bodies[2]["inputs"]] == [("a", [2.0]), ("b", [3.0])]


def test_printed_requests_bring_certificate_and_token_but_do_not_show_it(
    opened: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = DEFINITION.replace("port: 0", "port: 0, auth: {predictions: true}, tls: {certificate: c.pem, key: k.pem}")
    (opened.root / "drivetrain.yaml").write_text(text)
    guarded = projects.open_project(opened.root, checked=False)
    service.settings(guarded.definition, guarded.root, guarded.state)
    token = (guarded.state / "serving" / "echo.token").read_text()
    monkeypatch.setattr(examples, "of_champion", lambda _: {"x": 1.0})
    line = list(examples.curl(guarded, Endpoint("echo", "echo-1-a", "https://127.0.0.1:5000", 1)))[1]
    assert token not in line
    words = subprocess.run(
        ["/bin/sh", "-c", line.replace("curl", "printf '%s\\n'", 1)], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert words[words.index("--cacert") + 1] == str(guarded.root / "c.pem")
    assert f"Authorization: Bearer {token}" in words


def test_doctor_tells_of_a_port_that_another_program_has(drivetrain: Command, opened: Project) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        (opened.root / "drivetrain.yaml").write_text(DEFINITION.replace("port: 0", f"port: {port}"))
        findings = {f["what"]: f for f in json.loads(drivetrain("doctor", "--json", directory=opened.root).stdout)}
        assert findings[f"port {port}"]["state"] == "bad"
        assert "is taken" in findings[f"port {port}"]["text"]
