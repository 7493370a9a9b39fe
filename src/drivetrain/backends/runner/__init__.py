"""Runner: steps carried out in the order of their inputs, each in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from drivetrain.records import Scalar


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a plan, in values that travel to another process.

    `entry` is "module:function", called as `entry(context, payload, inputs)` and returning the record `outputs` (another
    "module:class"). `inputs` maps an input's name to "step.output" or to an external value in the plan. `fingerprint` digests
    everything but the inputs that the step depends on.
    """

    name: str
    entry: str
    outputs: str
    fingerprint: str
    inputs: Mapping[str, str] = field(default_factory=dict)
    payload: Mapping[str, Any] = field(default_factory=dict)
    attempts: int = 3
    """How often the step is tried when it fails with `Unavailable`."""
    timeout: float | None = None
    """Seconds."""
    memory: int | None = None
    """Bytes of resident memory."""
    cpu: float | None = None
    """Cores; None takes a fair share."""
    warm: Sequence[str] = ()
    """Modules that take long to import: a worker may begin with them while the steps before are still at work."""
    still_holds: str | None = None
    """ "module:function" called with (payload, outputs) before a cached result is used: whether the world is still so."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps with what the run is about. `externals` gives the value of inputs that no step makes."""

    lifecycle: str
    steps: Sequence[Step]
    externals: Mapping[str, Callable[[Mapping[str, Any]], Any]]
    """Called with the step's other inputs, at the time when the step is about to start."""
    facts: Mapping[str, Scalar] = field(default_factory=dict)
    """Recorded with the run: digests of definition, code and lock file, parameters, target."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What became of one step: `state` is done, cached, failed, refused or skipped. Times in seconds, memory in bytes."""

    name: str
    state: str
    key: str
    outputs: Any
    seconds: float
    peak_memory: int
    message: str = ""
    hint: str = ""


@dataclass(frozen=True, slots=True)
class RunResult:
    """`state` is done, failed, refused or interrupted; `exit_code` what the command ends with."""

    run_id: str
    state: str
    exit_code: int
    steps: Sequence[StepResult]
    seconds: float


@dataclass(frozen=True, slots=True)
class WorkerContext:
    """What an entry function is given beside its payload and its inputs."""

    run_id: str
    step: str
    work: Path
    """An empty directory that is deleted afterwards."""
    threads: int
    say: Callable[[str], None]


class Progress(Protocol):
    """Told what happens while a plan is carried out; called from the runner's own thread."""

    def run_started(self, run_id: str, steps: Sequence[str]) -> None: ...

    def step_started(self, step: str, attempt: int) -> None: ...

    def step_said(self, step: str, text: str) -> None: ...

    def step_ended(self, result: StepResult) -> None: ...

    def tick(self) -> None:
        """Called several times a second while steps are at work."""
        ...


class Runner(Protocol):
    """Carries out plans."""

    def run(
        self,
        plan: Plan,
        *,
        resume: str | None = None,
        only: Sequence[str] | None = None,
        fresh: Sequence[str] = (),
    ) -> RunResult:
        """Carries the plan out: `only` names the steps to reach, `fresh` those that must not come from the cache,
        `resume` the run to go on with."""
        ...
