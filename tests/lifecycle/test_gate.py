"""What the gate lets through: one project, run again and again with better and worse models."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., subprocess.CompletedProcess[str]]


def run(drivetrain: Command, project: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    found = drivetrain("run", "--json", *arguments, directory=project)
    assert found.stdout, found.stderr
    return found.returncode, json.loads(found.stdout)


def states(document: dict[str, Any]) -> list[str]:
    return [entry["state"] for entry in document["stages"]]


def serving(drivetrain: Command, project: Path) -> str:
    answer = drivetrain("predict", "--example", "--json", directory=project)
    assert answer.returncode == 0, answer.stderr
    revision: str = json.loads(answer.stdout)["revision"]
    return revision


def test_only_models_that_are_good_enough_and_no_worse_than_the_champion_come_to_serve(
    drivetrain: Command, wine: Path
) -> None:
    code, first = run(drivetrain, wine)
    assert (code, states(first)) == (0, ["done"] * 8)
    assert first["stages"][5]["outputs"]["version"]["id"] == "wine/1"
    champion = serving(drivetrain, wine)

    code, second = run(drivetrain, wine)
    assert (code, states(second)) == (0, ["cached"] * 8)

    code, worse = run(drivetrain, wine, "--param", "train.parameters.C=0.00001", "--param", "evaluate.minimum=0.1")
    assert (code, states(worse)[4:]) == (3, ["refused", *["skipped"] * 3])
    assert "champion" in worse["stages"][4]["message"]
    assert serving(drivetrain, wine) == champion

    code, short = run(drivetrain, wine, "--param", "train.parameters.C=0.5", "--param", "evaluate.minimum=1.01")
    assert (code, states(short)[4]) == (3, "refused")
    assert "1.01" in short["stages"][4]["message"]

    code, other = run(
        drivetrain, wine, "--param", "train.parameters.C=0.7", "--param", "evaluate.champion.tolerance=0.2"
    )
    assert (code, states(other)[4:]) == (0, ["done"] * 4)
    assert other["stages"][5]["outputs"]["version"]["id"] == "wine/2"
    assert serving(drivetrain, wine) != champion

    shown = drivetrain("runs", "--json", directory=wine)
    assert [row["state"] for row in json.loads(shown.stdout)] == ["done", "refused", "refused", "done", "done"]


def test_data_that_break_the_suite_end_the_run_with_4_and_a_table(
    drivetrain: Command, make_wine: Callable[[str], Path]
) -> None:
    project = make_wine("bad")
    suite = {
        "name": "wine",
        "expectations": [
            {
                "type": "expect_column_values_to_be_between",
                "kwargs": {"column": "alcohol", "min_value": 12, "max_value": 20},
            },
            {"type": "expect_column_values_to_not_be_null", "kwargs": {"column": "hue"}},
        ],
    }
    (project / "suite.json").write_text(json.dumps(suite))
    (project / "drivetrain.yaml").write_text(
        (project / "drivetrain.yaml").read_text() + "validate: {suite: suite.json}\n"
    )
    code, refused = run(drivetrain, project)
    assert code == 4
    assert states(refused) == ["done", "done", "refused", *["skipped"] * 5]
    assert "alcohol" in refused["stages"][2]["message"]
    assert refused["stages"][2]["outputs"]["result"]["metadata"]["offending"] == 19
    shown = drivetrain("show", directory=project)
    assert "19 of 178 outside 12 to 20" in shown.stdout
    assert "✗" in shown.stdout
    assert run(drivetrain, project)[0] == 4


@pytest.mark.slow
def test_from_until_and_no_cache_choose_what_is_carried_out(
    drivetrain: Command, make_wine: Callable[[str], Path]
) -> None:
    project = make_wine("parts")
    assert states(run(drivetrain, project, "--until", "train")[1]) == ["done"] * 4
    assert states(run(drivetrain, project, "--until", "evaluate", "--from", "train")[1]) == [
        "cached",
        "cached",
        "cached",
        "done",
        "done",
    ]
    first = run(drivetrain, project, "--until", "evaluate")[1]
    again = run(drivetrain, project, "--until", "evaluate", "--no-cache")[1]
    assert states(first) == ["cached"] * 5
    assert states(again) == ["done"] * 5
    shutil.rmtree(project / ".drivetrain" / "mlflow")
    assert states(run(drivetrain, project, "--until", "train")[1]) == ["cached"] * 3 + ["done"], (
        "MLflow's runs are gone"
    )
    for before, after in zip(first["stages"], again["stages"], strict=True):
        made = {name: value.get("digest") for name, value in before["outputs"].items()}
        assert made == {name: value.get("digest") for name, value in after["outputs"].items()}, before["stage"]


@pytest.mark.slow
def test_a_stage_carried_out_by_itself_gives_what_the_run_gave(
    drivetrain: Command, make_wine: Callable[[str], Path]
) -> None:
    project = make_wine("single")
    whole = run(drivetrain, project, "--until", "train")[1]
    for entry in whole["stages"]:
        found = drivetrain("stage", entry["stage"], "--run", whole["run"], "--no-cache", "--json", directory=project)
        assert found.returncode == 0, found.stderr
        alone = json.loads(found.stdout)
        assert (alone["state"], alone["key"]) == ("done", entry["key"])
        made = {name: value.get("digest") for name, value in entry["outputs"].items()}
        assert {name: value.get("digest") for name, value in alone["outputs"].items()} == made, entry["stage"]
