"""The flights example, run once: its bundle, its model and a row to ask about."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.environments import HERE
from benchmarks.serving.entrants import Model


@dataclass(frozen=True, slots=True)
class Flights:
    """`bundle` is what the stage deploy brought up, `example` inputs that it answers; `model` is the pipeline with a full row."""

    bundle: Path
    example: dict[str, Any]
    model: Model


def prepare(scratch: Path, drivetrain: str) -> Flights:
    """Runs the example below `scratch`, ends its service, and puts `flights.pkl` into `scratch`."""
    project = scratch / "flights"
    shutil.copytree(HERE.parent / "examples" / "flights", project, ignore=shutil.ignore_patterns(".drivetrain"))
    _call([drivetrain, "-C", str(project), "run", "--json"])
    _call([drivetrain, "-C", str(project), "deploy", "--stop", "--json"])
    bundle = next((project / ".drivetrain" / "serving" / "bundles").iterdir())
    shutil.copyfile(bundle / "model" / "model.pkl", scratch / "flights.pkl")
    row = _full_row(json.loads((bundle / "model" / "input_example.json").read_bytes()))
    return Flights(bundle, json.loads((bundle / "example.json").read_bytes()), Model("flights", row))


def _full_row(example: dict[str, Any]) -> dict[str, Any]:
    """The first row of the model's own example; what is unknown in it counts as 0, since not every server can be sent a null."""
    row = dict(zip(example["columns"], example["data"][0], strict=True))
    return {name: 0.0 if value is None else value for name, value in row.items()}


def _call(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-500:]}")
