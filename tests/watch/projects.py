"""A project that looks as if it had been run: a champion on record, and the run that made it. Nothing serves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from drivetrain import champion, project, wiring
from drivetrain.champion import Champion
from drivetrain.journal import Journal
from drivetrain.project import Project
from drivetrain.records import (
    Artifact,
    DeployOutputs,
    EvaluateOutputs,
    Reference,
    RegisterOutputs,
    TrainOutputs,
    Verdict,
    encode,
)

DEFINITION = """\
name: wine
data: {{source: wine.csv, label: target}}
train: {{function: train.py:train}}
evaluate: {{metric: accuracy, minimum: 0.8}}
serving: {{port: 0}}
{more}
"""


def write(root: Path, more: str = "") -> Path:
    """The project's files."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "drivetrain.yaml").write_text(DEFINITION.format(more=more))
    (root / "wine.csv").write_text("alcohol,target\n12.1,0\n13.4,1\n")
    (root / "train.py").write_text("def train(features, label):\n    return None\n")
    return root


def opened(root: Path, **parameters: str) -> Project:
    return project.open_project(root, checked=False, parameters=parameters)


def journal_run(
    journal: Journal, run_id: str, number: int, *, model: str = "", state: str = "done", accuracy: float = 0.9
) -> str:
    """A run that made version `number`, as the journal tells it; the revision."""
    revision = f"wine-{number}-{number:08x}"
    made: dict[str, Any] = {
        "train": TrainOutputs(Artifact("model", model or f"model-{number}", 1), Reference("run", "m")),
        "evaluate": EvaluateOutputs(
            Verdict(True, "good"), Artifact("report", f"report-{number}", 1, {"metric": "accuracy", "value": accuracy})
        ),
        "register": RegisterOutputs(Reference("version", f"wine/{number}")),
        "deploy": DeployOutputs(
            Reference("revision", revision), Artifact("bundle", f"bundle-{number}", 1, {"runner": "r"})
        ),
    }
    journal.start_run(run_id, "wine", {}, 1, 10.0)
    for stage, outputs in made.items():
        attempt = journal.start_attempt(run_id, stage, f"key-{stage}-{number}", 11.0)
        journal.end_attempt(run_id, stage, attempt, "done", 12.0, outputs=encode(outputs))
    journal.end_run(run_id, state, 0 if state == "done" else 1, 13.0)
    return revision


def crown(found: Project, run_id: str, number: int) -> None:
    """Makes that version the champion on record."""
    store = wiring.project_objects(found)
    model = Artifact("model", f"model-{number}", 1)
    champion.write(store, Champion(model, Reference("version", f"wine/{number}"), run_id, None))


def watched(root: Path, more: str = "") -> Project:
    """The project with a champion, `wine-1-00000001`."""
    found = opened(write(root, more))
    journal_run(found.journal, "first", 1)
    crown(found, "first", 1)
    return found
