"""Copies of `examples/flights` to measure with, and what their journals say."""

from __future__ import annotations

import json
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from benchmarks.processes import Family, Watched, watch
from benchmarks.setting import Setting
from drivetrain.journal import Journal

DEFINITION = "drivetrain.yaml"


class RunFailed(Exception):
    """A run did not end with 0; the message holds the end of what it said."""


@dataclass(frozen=True, slots=True)
class StageTime:
    """One stage of a run: seconds from its start to its end, bytes of its process at their most."""

    name: str
    state: str
    seconds: float
    peak: int


def copy_flights(setting: Setting, folder: str, edit: Callable[[dict[str, Any]], None] | None = None) -> Path:
    """A copy of the example without any state, serving on a free port; `edit` may change its definition further."""
    project = setting.scratch / folder / "flights"
    hidden = shutil.ignore_patterns(".drivetrain", "__pycache__", ".venv")
    shutil.copytree(setting.repository / "examples" / "flights", project, ignore=hidden)
    definition = read(project)
    definition.setdefault("serving", {})["port"] = 0
    if edit is not None:
        edit(definition)
    with (project / DEFINITION).open("w") as file:
        YAML().dump(definition, file)
    return project


def read(project: Path) -> dict[str, Any]:
    """The project's definition as it is written."""
    definition: dict[str, Any] = YAML().load((project / DEFINITION).read_text())
    return definition


def run(setting: Setting, kin: Family, project: Path, *more: str) -> Watched:
    """`drivetrain run` in the project, watched. Raises `RunFailed` unless it ends with 0."""
    done = watch(kin, [setting.drivetrain, "run", "--json", *more], project, project.parent / "home")
    if done.code:
        command = " ".join(["drivetrain run", *more])
        raise RunFailed(f"{command} ended with {done.code}: {_reason(done)}")
    return done


def _reason(done: Watched) -> str:
    """What the first stage that did not end well says; the end of the error output if there is none."""
    try:
        told = json.loads(done.output)["stages"]
        return next(f"{row['stage']} {row['state']}: {row['message']}" for row in told if row["message"])
    except (ValueError, KeyError, TypeError, StopIteration):
        return " ".join(done.errors.split())[-500:]


def stages(project: Path) -> list[StageTime]:
    """The stages of the project's newest run, in the order in which they ended."""
    journal = Journal(project / ".drivetrain" / "journal.db")
    try:
        rows = journal.latest(journal.runs(1)[0].id).values()
    finally:
        journal.close()
    ended = [(row, row.ended) for row in rows if row.ended is not None]
    return [
        StageTime(row.stage, row.state, end - row.started, row.peak_memory)
        for row, end in sorted(ended, key=lambda pair: pair[1])
    ]


def endpoint_answers(project: Path) -> str:
    """The URL of the deployed endpoint after it has said that it is ready. Raises `RunFailed` if it does not."""
    journal = Journal(project / ".drivetrain" / "journal.db")
    try:
        deploy = journal.latest(journal.runs(1)[0].id).get("deploy")
    finally:
        journal.close()
    if deploy is None or deploy.outputs is None:
        raise RunFailed("the run has deployed nothing")
    url = str(deploy.outputs["revision"]["detail"]["url"]).rstrip("/")
    try:
        with urllib.request.urlopen(f"{url}/health-check", timeout=10) as reply:
            status = json.load(reply).get("status")
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise RunFailed(f"{url} does not answer: {error}") from error
    if status not in ("READY", "BUSY"):
        raise RunFailed(f"{url} answers {status}, not READY")
    return url
