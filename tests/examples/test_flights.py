"""examples/flights, from nothing to an endpoint, and everything that can be asked of it afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from tests.examples import compiled

Command = Callable[..., subprocess.CompletedProcess[str]]
Flights = tuple[Path, dict[str, Any]]


def by_stage(run: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {entry["stage"]: entry for entry in run["stages"]}


def test_the_run_ends_with_a_champion_that_answers(flights: Flights, drivetrain: Command) -> None:
    project, run = flights
    stages = by_stage(run)
    assert [entry["state"] for entry in run["stages"]] == ["done"] * 8
    about = stages["evaluate"]["outputs"]["report"]["metadata"]
    assert about["low"] < about["value"] < about["high"]
    assert about["value"] > 0.70
    assert stages["register"]["outputs"]["version"]["id"] == "flights/1"
    url = stages["deploy"]["outputs"]["revision"]["detail"]["url"]
    with urllib.request.urlopen(f"{url}/health-check", timeout=10) as answer:
        assert json.load(answer)["status"] in ("READY", "BUSY")
    found = drivetrain("predict", "--example", "--json", directory=project)
    assert found.returncode == 0, found.stderr
    assert 0.0 <= json.loads(found.stdout)["output"]["probability"] <= 1.0


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="another process's environment is read in /proc")
def test_replicas_have_the_threads_that_the_gateway_gives_them_not_those_of_the_stage_that_started_it(
    flights: Flights,
) -> None:
    project, _ = flights
    mark = f"{project}/.drivetrain/serving/bundles".encode()
    threads = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (process / "cmdline").read_bytes():
                variables = (process / "environ").read_bytes().split(b"\0")
                threads |= {entry for entry in variables if b"_NUM_THREADS=" in entry}
    expected = max(1, ((os.cpu_count() or 1) - 1) // 4)
    assert threads == {f"OMP_NUM_THREADS={expected}".encode()}


def test_no_process_of_the_run_used_much_memory(flights: Flights) -> None:
    for entry in flights[1]["stages"]:
        assert 0 < entry["peak_memory"] < 1.5 * 2**30, entry["stage"]


def test_a_second_run_is_cached_and_loads_no_heavy_library(flights: Flights) -> None:
    project, first = flights
    code = (
        "import sys, json, atexit\n"
        "atexit.register(lambda: print('MODULES' + json.dumps(sorted(sys.modules))))\n"
        "sys.argv = ['drivetrain', 'run', '--json']\n"
        "from drivetrain.cli.main import main\nmain()\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=project, check=False)
    assert found.returncode == 0, found.stderr
    document, _, modules = found.stdout.rpartition("MODULES")
    second = json.loads(document)
    assert [entry["state"] for entry in second["stages"]] == ["cached"] * 8
    assert [entry["outputs"] for entry in second["stages"]] == [entry["outputs"] for entry in first["stages"]]
    heavy = {
        "pandas",
        "numpy",
        "pyarrow",
        "duckdb",
        "mlflow",
        "feast",
        "great_expectations",
        "sklearn",
        "cog",
        "kfp",
        "rich",
    }
    assert not heavy & {name.partition(".")[0] for name in json.loads(modules)}


def test_lineage_leads_from_a_prediction_back_to_the_data(
    flights: Flights, drivetrain: Command, tmp_path: Path
) -> None:
    project, run = flights
    prediction = json.loads(drivetrain("predict", "--example", "--json", directory=project).stdout)["id"]
    found = drivetrain("lineage", prediction, "--json", "-o", str(tmp_path / "lineage.svg"), directory=project)
    assert found.returncode == 0, found.stderr
    nodes = {node["id"]: node for node in json.loads(found.stdout)["nodes"]}
    stages = by_stage(run)
    for stage, name in [
        ("ingest", "snapshot"),
        ("features", "definitions"),
        ("validate", "result"),
        ("train", "model"),
    ]:
        assert f"artifact:{stages[stage]['outputs'][name]['digest']}" in nodes
    ran = next(node for node in nodes.values() if node["kind"] == "run")
    assert {"definition", "code", "lock"} <= set(ran["detail"])
    assert (tmp_path / "lineage.svg").read_text().startswith("<svg")
    for subject in ("flights/1", "1", run["run"]):
        again = json.loads(drivetrain("lineage", subject, "--json", directory=project).stdout)
        assert f"artifact:{stages['ingest']['outputs']['snapshot']['digest']}" in {
            node["id"] for node in again["nodes"]
        }


def test_show_and_logs_tell_what_happened(flights: Flights, drivetrain: Command) -> None:
    project, run = flights
    shown = drivetrain("show", run["run"], "--timings", directory=project)
    assert shown.returncode == 0, shown.stderr
    for entry in run["stages"]:
        assert entry["stage"] in shown.stdout
    attempts = json.loads(drivetrain("show", run["run"], "--json", directory=project).stdout)["attempts"]
    assert [attempt["key"] for attempt in attempts] == [entry["key"] for entry in run["stages"]]
    assert drivetrain("logs", "train", "--run", run["run"], directory=project).returncode == 0


@pytest.fixture(scope="module")
def pipeline(flights: Flights, drivetrain: Command, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The compiled pipeline of a target that shares the local objects."""
    project, _ = flights
    out = tmp_path_factory.mktemp("out")
    compiled.add_target(project)
    found = compiled.render(drivetrain, project, out)
    from kfp import components

    assert components.load_component_from_file(str(out / "pipeline.yaml")).name == "flights"
    return found


def test_the_pipelines_graph_is_that_of_the_local_run(pipeline: dict[str, Any]) -> None:
    from drivetrain import lifecycle
    from drivetrain.engines import graph

    tasks = pipeline["root"]["dag"]["tasks"]
    assert set(tasks) == set(lifecycle.names())
    for row in lifecycle.STAGES:
        assert set(tasks[row.name].get("dependentTasks", [])) == graph.parents(row.inputs), row.name
        wired = {
            name: f"{given['taskOutputParameter']['producerTask']}.{given['taskOutputParameter']['outputParameterKey'][:-4]}"
            for name, given in tasks[row.name]["inputs"]["parameters"].items()
            if "taskOutputParameter" in given
        }
        assert wired == {name: source for name, source in row.inputs.items() if "." in source}


def test_the_pipelines_steps_have_the_keys_and_outputs_of_the_local_run(
    flights: Flights, pipeline: dict[str, Any], drivetrain: Command, tmp_path: Path
) -> None:
    """Carries out each container's own command line, with what KFP would put into its placeholders."""
    project, run = flights
    local = by_stage(run)
    for container in compiled.containers(pipeline, list(local), tmp_path, PurePosixPath(tmp_path)):
        stage = container.stage
        assert container.command[:2] == ["drivetrain", "stage"]
        found = drivetrain(*container.command[1:], "--json", directory=project)
        assert found.returncode == 0, found.stderr
        document = json.loads(found.stdout)
        assert document["key"] == local[stage]["key"], stage
        assert document["state"] == "cached"
        assert document["outputs"] == local[stage]["outputs"]
