"""`--help`: how long a command line lets its user wait before it has done anything."""

from __future__ import annotations

from benchmarks.environments import MLFLOW, ZENML
from benchmarks.measures import Findings, at_most, faster_than
from benchmarks.setting import Setting
from benchmarks.timing import in_turns

NAME = "help"
LIMIT = 0.2
FACTOR = 5.0


def run_race(setting: Setting) -> Findings:
    """`--help` of Drivetrain, ZenML and MLflow."""
    entrants = [
        setting.ours("--help", [setting.drivetrain, "--help"], f"{NAME}-drivetrain"),
        setting.peer(ZENML, "--help", "zenml", ["--help"], f"{NAME}-zenml"),
        setting.peer(MLFLOW, "--help", "mlflow", ["--help"], f"{NAME}-mlflow"),
    ]
    ours, *peers = in_turns(entrants, setting.rounds)
    targets = [at_most(NAME, "drivetrain --help within 0.2 s", ours, LIMIT)]
    targets += [
        faster_than(NAME, f"{FACTOR:.0f}x as fast as {peer.name.lower()} --help", ours, peer, FACTOR) for peer in peers
    ]
    return Findings(targets, [ours, *peers])
