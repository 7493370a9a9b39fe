"""The commands as a user types them, on projects that need no stage to run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from drivetrain.backends.serving import alive
from drivetrain.backends.serving.alive import Server
from drivetrain.cli.main import COMMANDS
from drivetrain.journal import Journal

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "drivetrain.yaml").write_text(
        "name: wine\ndata: {source: rows.csv, label: target}\ntrain: {function: 'train.py:train'}\nevaluate: {metric: accuracy}\n"
    )
    (tmp_path / "rows.csv").write_text("a,target\n1,0\n")
    (tmp_path / "train.py").write_text("def train(features, label): ...\n")
    return tmp_path


def test_help_lists_every_command_and_each_has_help_of_its_own(drivetrain: Command, tmp_path: Path) -> None:
    shown = drivetrain("--help", directory=tmp_path).stdout
    for name in COMMANDS:
        assert f"  {name} " in shown
        found = drivetrain(name, "--help", directory=tmp_path)
        assert found.returncode == 0, found.stderr
        assert found.stdout.startswith("Usage: ")


def test_every_command_with_a_table_also_gives_json(drivetrain: Command, tmp_path: Path) -> None:
    for name in (
        "run",
        "runs",
        "show",
        "logs",
        "lineage",
        "deploy",
        "predict",
        "feedback",
        "traffic",
        "rollback",
        "stage",
        "doctor",
    ):
        assert "--json" in drivetrain(name, "--help", directory=tmp_path).stdout, name


def test_a_mistyped_command_is_met_with_a_suggestion(drivetrain: Command, tmp_path: Path) -> None:
    found = drivetrain("rnu", directory=tmp_path)
    assert (found.returncode, found.stdout) == (2, "")
    assert "Did you mean 'run'?" in found.stderr


def test_outside_of_a_project_the_hint_is_init(drivetrain: Command, tmp_path: Path) -> None:
    found = drivetrain("run", directory=tmp_path)
    assert found.returncode == 2
    assert "no drivetrain.yaml in" in found.stderr
    assert "drivetrain init" in found.stderr
    assert "Traceback" not in found.stderr


def test_all_mistakes_of_a_definition_are_printed_and_the_exit_code_is_2(drivetrain: Command, project: Path) -> None:
    (project / "drivetrain.yaml").write_text("name: wine\ndata: {source: row.csv, label: target, x: 1}\ntrain: {}\n")
    found = drivetrain("run", directory=project)
    assert found.returncode == 2
    assert "drivetrain.yaml:2: data.x: unknown key" in found.stderr
    assert "drivetrain.yaml:3: train.function: is missing" in found.stderr
    as_json = json.loads(drivetrain("run", "--json", directory=project).stderr)
    assert {problem["key"] for problem in as_json["problems"]} == {"data.x", "train.function", "evaluate"}


def test_the_project_is_found_from_a_directory_below_and_by_option(drivetrain: Command, project: Path) -> None:
    (project / "deep" / "deeper").mkdir(parents=True)
    assert json.loads(drivetrain("runs", "--json", directory=project / "deep" / "deeper").stdout) == []
    assert json.loads(drivetrain("-C", str(project), "runs", "--json", directory=Path("/")).stdout) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show"], "nothing has run yet"),
        (["show", "nope"], "there is no run nope"),
        (["logs"], "nothing has run yet"),
        (["lineage", "7"], "is no model version, run or prediction"),
        (["run", "--resume"], "there is nothing to resume"),
        (["run", "--resume", "nope"], "there is no run nope"),
        (["run", "--resume", "--param", "a=b"], "goes on with its own parameters"),
        (["run", "--param", "depth"], "not of the form KEY=VALUE"),
        (["run", "--param", "train.parameters.depth=[1"], "'[1' is not YAML"),
        (["run", "--resume", "--target", "moon"], "at its own target"),
        (["run", "--from", "evaluate", "--until", "train"], "a run until train does not come to evaluate"),
        (["run", "--target", "moon"], "no target moon"),
        (["deploy"], "no model has been promoted yet"),
        (["predict", "a=1"], "no endpoint answers"),
        (["predict"], "there are no inputs"),
        (["render", "kubeflow"], "names no image"),
        (["stage", "train"], "no outputs of features"),
        (["stage", "ingest", "--parameters", "[1]"], "--parameters is no JSON object"),
        (["init", "7"], "gives no name"),
        (["package", "--stages"], "there is no requirements.lock"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line_with_exit_code_1_or_2(
    drivetrain: Command, project: Path, arguments: list[str], message: str
) -> None:
    found = drivetrain(*arguments, directory=project)
    assert found.returncode in (1, 2)
    assert message in found.stderr
    assert "Traceback" not in found.stderr


def test_debug_shows_the_traceback(drivetrain: Command, project: Path) -> None:
    assert "Traceback" in drivetrain("--debug", "show", directory=project).stderr


def test_doctor_tells_what_is_bad_and_ends_with_1(drivetrain: Command, project: Path) -> None:
    found = drivetrain("doctor", "--json", directory=project)
    states = {entry["what"]: entry["state"] for entry in json.loads(found.stdout)}
    assert found.returncode == 0, found.stdout
    assert states["definition"] == states["journal"] == states["objects"] == states["mlflow"] == "ok"
    (project / "train.py").unlink()
    found = drivetrain("doctor", directory=project)
    assert found.returncode == 1
    assert "train.py does not exist" in found.stdout


def test_completion_scripts_for_three_shells(drivetrain: Command, tmp_path: Path) -> None:
    for shell in ("bash", "zsh", "fish"):
        assert "_DRIVETRAIN_COMPLETE" in drivetrain("completion", shell, directory=tmp_path).stdout


def test_the_schema_is_that_of_the_definition(drivetrain: Command, tmp_path: Path) -> None:
    schema = json.loads(drivetrain("render", "schema", directory=tmp_path).stdout)
    assert schema["required"] == ["name", "data", "train", "evaluate"]
    assert "validate" in schema["properties"]


def test_an_unwritable_project_is_told(drivetrain: Command, project: Path) -> None:
    (project / ".drivetrain").write_text("a file where the directory should be")
    found = drivetrain("run", directory=project)
    assert found.returncode == 1
    assert str(project / ".drivetrain") in found.stderr
    assert "hint: " in found.stderr
    assert "Traceback" not in found.stderr


def test_an_editors_lock_file_in_a_feature_repository_is_passed_over(drivetrain: Command, project: Path) -> None:
    (project / "repo").mkdir()
    (project / "repo" / ".#features.py").symlink_to("someone@host.1234")
    (project / "drivetrain.yaml").write_text(
        "name: wine\ndata: {source: rows.csv, label: target, timestamp: t}\nfeatures: {repo: repo, service: s}\n"
        "train: {function: 'train.py:train'}\nevaluate: {metric: accuracy}\n"
    )
    found = drivetrain("run", directory=project)
    assert found.returncode == 2
    assert "repo has no feature service s" in found.stderr


def test_a_resumed_run_goes_on_at_its_target_with_its_parameters_up_to_where_it_was_to_go(
    drivetrain: Command, project: Path
) -> None:
    with (project / "drivetrain.yaml").open("a") as file:
        file.write("targets: {other: {objects: elsewhere}}\n")
    (project / "rows.csv").write_text("a,wrong\n1,0\n")
    arguments = ["run", "--json", "--until", "ingest", "--target", "other", "--param", "train.seed=7"]
    first = json.loads(drivetrain(*arguments, directory=project).stdout)
    assert first["state"] == "failed"
    (project / "rows.csv").write_text("a,target\n1,0\n2,1\n")
    again = json.loads(drivetrain("run", "--resume", "--json", directory=project).stdout)
    assert (again["run"], again["state"]) == (first["run"], "done")
    assert [stage["stage"] for stage in again["stages"]] == ["ingest"]
    facts = json.loads(drivetrain("show", "--json", directory=project).stdout)["facts"]
    assert (facts["target"], facts["until"], facts["param.train.seed"]) == ("other", "ingest", "7")


def test_the_json_of_a_stage_is_alone_on_standard_output_and_the_users_code_works_in_the_project(
    drivetrain: Command, project: Path
) -> None:
    (project / "data.py").write_text(
        "import os, pandas as pd\n"
        "def load():\n    print('loading with', os.environ['OMP_NUM_THREADS'])\n"
        "    os.system('echo from a child')\n    return pd.read_csv('rows.csv')\n"
    )
    text = (project / "drivetrain.yaml").read_text().replace("source: rows.csv", "source: 'data.py:load'")
    (project / "drivetrain.yaml").write_text(text)
    found = drivetrain("-C", str(project), "stage", "ingest", "--json", directory=Path("/"))
    assert json.loads(found.stdout)["state"] == "done", found.stderr
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert f"loading with {cores}\n" in found.stderr
    assert "from a child\n" in found.stderr


def test_a_file_where_a_directory_has_to_be_is_told_without_a_traceback(drivetrain: Command, project: Path) -> None:
    (project / ".drivetrain").mkdir()
    (project / ".drivetrain" / "logs").write_text("")
    found = drivetrain("run", directory=project)
    assert found.returncode == 1
    assert "error: " in found.stderr
    assert str(project / ".drivetrain" / "logs") in found.stderr
    assert "Traceback" not in found.stderr


def test_a_run_whose_process_is_gone_is_shown_as_killed(drivetrain: Command, project: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    journal = Journal(project / ".drivetrain" / "journal.db")
    journal.start_run("r1", "wine", {}, gone.pid, 10.0)
    journal.start_run("r2", "wine", {}, os.getpid(), 11.0)
    shown = json.loads(drivetrain("runs", "--json", directory=project).stdout)
    assert [(row["run"], row["state"]) for row in shown] == [("r2", "running"), ("r1", "killed")]


def test_a_service_can_be_stopped_though_its_definition_cannot_be_read(drivetrain: Command, project: Path) -> None:
    (project / "drivetrain.yaml").write_text("name: [wine\n")
    assert json.loads(drivetrain("deploy", "--stop", "--json", directory=project).stdout) == {"stopped": False}
    home = project / ".drivetrain" / "serving"
    home.mkdir(parents=True)
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as service:
        record = Server("wine", "127.0.0.1", 1, None, service.pid, service.pid, alive.start_time(service.pid))
        alive.write(home / "wine.json", record)
        alive.write(home / "beer.json", replace(record, name="beer"))
        several = drivetrain("deploy", "--stop", directory=project)
        assert (several.returncode, "several services run: beer, wine" in several.stderr) == (2, True)
        (home / "beer.json").unlink()
        stopped = drivetrain("deploy", "--stop", "--json", directory=project)
        assert json.loads(stopped.stdout) == {"stopped": True}
        assert service.wait(10) == -signal.SIGTERM
    assert not (home / "wine.json").exists()
