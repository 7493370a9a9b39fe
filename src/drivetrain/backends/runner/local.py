"""The runner on this machine: one run at a time in a project, cached, journaled, resumable."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Any

from drivetrain.backends.objects import Objects
from drivetrain.backends.runner import Plan, Progress, RunResult
from drivetrain.backends.runner.schedule import Interrupted, Schedule
from drivetrain.engines import graph
from drivetrain.errors import SystemFault, UsageError
from drivetrain.journal import Journal

INTERRUPTED = 130
"""Exit code of a run ended by Ctrl-C, as shells have it."""
_GLANCE = 0.2
"""Seconds for which the lock is tried again: who only looks whether it is held has it for an instant."""


@dataclass(frozen=True, slots=True)
class LocalRunner:
    """Carries plans out in worker processes. `state` is the project's `.drivetrain`."""

    journal: Journal
    objects: Objects
    state: Path
    progress: Progress
    clean: Callable[[str], str]
    """Masks secrets in whatever is written down."""
    new_id: Callable[[], str]
    cores: int

    def run(
        self,
        plan: Plan,
        *,
        resume: str | None = None,
        only: Sequence[str] | None = None,
        fresh: Sequence[str] = (),
    ) -> RunResult:
        """Carries the plan out; see `Runner`. Raises `SystemFault` if another run holds the project."""
        edges = {step.name: step.inputs for step in plan.steps}
        wanted = graph.upstream(edges, only) if only else set(edges)
        with lock(self.state):
            run_id = self._open(plan, resume)
            self.progress.run_started(run_id, [step.name for step in plan.steps if step.name in wanted])
            schedule = Schedule(
                run_id,
                plan,
                wanted,
                set(fresh),
                self.journal,
                self.objects,
                self.state,
                self.progress,
                self.clean,
                self.cores,
            )
            started = time.monotonic()
            try:
                with _interruptible(schedule):
                    schedule.carry_out()
                state, code = schedule.verdict()
            except Interrupted:
                with _deaf():
                    schedule.abandon("interrupted", "`drivetrain run --resume` goes on from here")
                    schedule.skip_rest()
                    state, code = "interrupted", INTERRUPTED
            except BaseException:
                schedule.abandon("failed", "")
                self.journal.end_run(run_id, "failed", 1, time.time())
                raise
            self.journal.end_run(run_id, state, code, time.time())
        return RunResult(run_id, state, code, schedule.results(), time.monotonic() - started)

    def _open(self, plan: Plan, resume: str | None) -> str:
        run_id = resume or self.new_id()
        known = self.journal.run(run_id)
        if resume and known is None:
            raise UsageError(f"there is no run {resume}", hint="`drivetrain runs` lists them")
        if not resume and known is not None and known.id == run_id:
            raise UsageError(
                f"there is a run {run_id} already", hint=f"`drivetrain run --resume {run_id}` goes on with it"
            )
        self.journal.start_run(run_id, plan.lifecycle, plan.facts, os.getpid(), time.time())
        # Under the lock nobody else is at work: what a killed run left behind can go.
        shutil.rmtree(self.state / "work", ignore_errors=True)
        return run_id


@contextmanager
def lock(state: Path) -> Iterator[None]:
    """Holds the project for one run; the kernel lets go of it when the process ends, however it ends."""
    path = state / "lock"
    try:
        state.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        raise SystemFault(
            f"{state} cannot be written: {error.strerror}", hint="the project's state lives there; make it writable"
        ) from error
    with file:
        try:
            _take(file)
        except OSError as error:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise SystemFault(
                f"another run is at work in this project (process {holder})", hint="wait for it, or end it with Ctrl-C"
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def is_held(state: Path) -> bool:
    """Whether a run holds the project."""
    try:
        with (state / "lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _take(file: IO[str]) -> None:
    until = time.monotonic() + _GLANCE
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError:
            if time.monotonic() >= until:
                raise
        time.sleep(_GLANCE / 20)


@contextmanager
def _interruptible(schedule: Schedule) -> Iterator[None]:
    """Ctrl-C or SIGTERM ends the run where nothing is half done; a second one ends it at once."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        if schedule.interrupted:
            raise Interrupted
        schedule.interrupted = True

    with _handlers({signal.SIGINT: interrupt, signal.SIGTERM: interrupt}):
        yield


@contextmanager
def _deaf() -> Iterator[None]:
    """While the run is being put away a second Ctrl-C must not leave it half done."""
    with _handlers({signal.SIGINT: signal.SIG_IGN, signal.SIGTERM: signal.SIG_IGN}):
        yield


@contextmanager
def _handlers(handlers: Mapping[signal.Signals, Any]) -> Iterator[None]:
    import threading

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers; elsewhere the caller keeps its own
        return
    former = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
