"""A chain of N steps that do nothing, run by Drivetrain's runner, each in a process of its own, with journal and cache.

`drivetrain_chain.py N` carries every step out; `drivetrain_chain.py N cached` takes them from the cache where it can.
State is kept in `.drivetrain` of the working directory.
"""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path

from drivetrain.backends.objects.directory import open_directory
from drivetrain.backends.runner import Plan, Step, StepResult
from drivetrain.backends.runner.local import LocalRunner
from drivetrain.journal import Journal


class Silent:
    """A progress that nobody watches."""

    def run_started(self, run_id: str, steps: Sequence[str]) -> None: ...

    def step_started(self, step: str, attempt: int) -> None: ...

    def step_said(self, step: str, text: str) -> None: ...

    def step_ended(self, result: StepResult) -> None: ...

    def tick(self) -> None: ...


def chain(length: int) -> Plan:
    """Steps of which each takes the number of the one before."""
    names = [f"step-{number}" for number in range(1, length + 1)]
    before = [None, *names[:-1]]
    steps = [
        Step(
            name, "noop:step", "noop:Number", fingerprint="noop-1", inputs={"number": f"{last}.number"} if last else {}
        )
        for name, last in zip(names, before, strict=True)
    ]
    return Plan("chain", steps, externals={})


def main(length: int, cached: bool) -> int:
    """The runner's exit code, or 1 if the last step did not come to `length`."""
    state = Path.cwd() / ".drivetrain"
    runner = LocalRunner(
        journal=Journal(state / "journal.db"),
        objects=open_directory(state / "objects"),
        state=state,
        progress=Silent(),
        clean=str,
        new_id=lambda: uuid.uuid4().hex,
        cores=os.cpu_count() or 1,
    )
    plan = chain(length)
    result = runner.run(plan, fresh=() if cached else [step.name for step in plan.steps])
    print(result.state, result.steps[-1].outputs, {step.state for step in result.steps})
    return result.exit_code or int(result.steps[-1].outputs.number != length)


if __name__ == "__main__":
    raise SystemExit(main(int(sys.argv[1]), "cached" in sys.argv[2:]))
