"""A chain of steps that make small artifacts, as a script that can be killed: `python chain.py STATE LENGTH SECONDS [RUN]`.

Each step appends its name to STATE/../made.txt just before it returns.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drivetrain.backends.objects.directory import open_directory
from drivetrain.backends.runner import Plan, Step, WorkerContext
from drivetrain.backends.runner.local import LocalRunner
from drivetrain.cli.progress import Lines
from drivetrain.journal import Journal
from drivetrain.records import Artifact, digest


@dataclass(frozen=True, slots=True)
class Made:
    piece: Artifact


def make(context: WorkerContext, payload: dict[str, Any], inputs: dict[str, Any]) -> Made:
    objects = open_directory(Path(payload["objects"]))
    before = [objects.read(piece, "piece.txt") for piece in inputs.values()]
    (context.work / "piece.txt").write_bytes(digest([text.hex() for text in before] + [context.step]).encode() * 1000)
    time.sleep(payload["seconds"])
    return Made(objects.put("piece", context.work / "piece.txt"))


def plan(state: Path, length: int, seconds: float) -> Plan:
    payload = {"objects": str(state / "objects"), "seconds": seconds}
    steps = [
        Step(f"s{n}", "chain:make", "chain:Made", f"f{n}", {"before": f"s{n - 1}.piece"} if n else {}, payload)
        for n in range(length)
    ]
    return Plan("chain", steps, {})


def main() -> None:
    state, length, seconds = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    runner = LocalRunner(
        Journal(state / "journal.db"),
        open_directory(state / "objects"),
        state,
        Lines(quiet=True),
        str,
        lambda: "run",
        2,
    )
    result = runner.run(plan(state, length, seconds), resume=sys.argv[4] if len(sys.argv) > 4 else None)
    for step in result.steps:
        print(step.name, step.state, step.outputs.piece.digest if step.outputs else "")
    sys.exit(result.exit_code)


if __name__ == "__main__":
    main()
