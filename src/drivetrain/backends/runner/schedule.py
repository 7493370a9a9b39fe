"""One run under way: which steps are ready, at work, done; the cache, retries, limits, and damaged artifacts mended."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drivetrain.backends.objects import Objects
from drivetrain.backends.runner import Plan, Progress, Step, StepResult, cache
from drivetrain.engines import graph
from drivetrain.errors import CorruptArtifact, DrivetrainError, StageError, Unavailable
from drivetrain.journal import Journal
from drivetrain.records import decode, encode

if TYPE_CHECKING:
    from drivetrain.backends.runner.process import Process

TICK = 0.1
"""Seconds between looks at limits and redraws."""
FIRST_WAIT = 1.0
"""Seconds before the first retry; each further one waits twice as long, give or take a quarter."""


class Interrupted(BaseException):
    """The run is to end now."""


class Schedule:
    """The steps of one run and what has become of them."""

    def __init__(
        self, run_id: str, plan: Plan, wanted: set[str], fresh: set[str], journal: Journal, objects: Objects,
        state: Path, progress: Progress, clean: Callable[[str], str], cores: int,
    ) -> None:  # fmt: skip
        self._run_id, self._plan, self._fresh, self._cores = run_id, plan, fresh, cores
        self._journal, self._objects, self._state = journal, objects, state
        self._progress, self._clean = progress, clean
        self._edges = {step.name: step.inputs for step in plan.steps}
        by_name = {step.name: step for step in plan.steps}
        self._steps = {name: by_name[name] for name in graph.order(self._edges) if name in wanted}
        self._before = journal.latest(run_id)
        self._outputs: dict[str, Any] = {}
        self._results: dict[str, StepResult] = {}
        self._at_work: dict[str, Process] = {}
        self._spare: dict[str, Process] = {}
        self._attempt: dict[str, int] = {}
        self._cached: list[tuple[str, str, str, Mapping[str, Any], str]] = []
        self._keys: dict[str, str] = {}
        self._tries: dict[str, int] = {}
        self._codes: dict[str, int] = {}
        self._not_before: dict[str, float] = {}
        self._peak: dict[str, int] = {}
        self._mended: dict[str, float] = {}
        self.interrupted = False
        """Set when the run is to end: looked at where nothing is half done."""

    # what the runner asks for

    def carry_out(self) -> None:
        """Runs until every step has its result, or one has failed or refused and those at work have ended. Raises
        `Interrupted` once it is so."""
        while True:
            self._start_ready()
            self._start_spare()
            if self.interrupted:
                raise Interrupted
            if not self._at_work and not self._waiting():
                break
            self._listen()
        self._write_cached()
        self._end_spare()
        self.skip_rest()

    def skip_rest(self) -> None:
        """Closes the steps that were not begun."""
        for name in self._steps:
            if name not in self._results:
                self._close(name, "skipped", 0.0)

    def results(self) -> list[StepResult]:
        """What became of each step, in order."""
        return [self._results[name] for name in self._steps if name in self._results]

    def verdict(self) -> tuple[str, int]:
        """The run's state and exit code."""
        for result in self.results():
            if result.state == "failed":
                return "failed", self._codes.get(result.name, 1)
            if result.state == "refused":
                return "refused", cache.verdict(result.outputs).exit_code  # type: ignore[union-attr]
        return "done", 0

    def abandon(self, state: str, hint: str) -> None:
        """Ends the steps at work; their attempts are journaled as `state`."""
        self._end_spare()
        ended = list(self._at_work.items())
        for name, process in ended:  # all of them first: the journal may be what has failed
            process.end()
            self._forget(name)
        self._write_cached()
        for name, process in ended:
            self._end_attempt(name, state, hint=hint)
            self._close(name, state, time.monotonic() - process.started, hint=hint)

    # starting

    def _stopping(self) -> bool:
        return any(result.state in ("failed", "refused") for result in self._results.values())

    def _waiting(self) -> bool:
        return not self._stopping() and any(name not in self._results for name in self._not_before)

    def _start_ready(self) -> None:
        progress = True
        while progress and not self._stopping():
            progress = False
            ready = [name for name in self._steps if self._is_ready(name)]
            share = max(1, self._cores // max(1, len(ready) + len(self._at_work)))
            for name in ready:
                if len(self._at_work) < max(1, self._cores) and not self.interrupted:
                    progress |= self._begin(name, share)

    def _is_ready(self, name: str) -> bool:
        return (
            name not in self._results
            and name not in self._at_work
            and self._not_before.get(name, 0.0) <= time.monotonic()
            and graph.parents(self._edges[name]) <= set(self._outputs)
        )

    def _begin(self, name: str, share: int) -> bool:
        """Takes the step's result from the cache, or starts it. True if that made its outputs known."""
        step = self._steps[name]
        inputs = self._inputs(step)
        key = self._keys[name] = graph.cache_key(step.fingerprint, inputs)
        outputs = self._known(step, key)
        if outputs is not None:
            self._finish(name, "cached", outputs, 0.0)
            return True
        self._write_cached()
        self._attempt[name] = self._journal.start_attempt(self._run_id, name, key, time.time())
        self._tries[name] = self._tries.get(name, 0) + 1
        self._progress.step_started(name, self._attempt[name])
        work = self._state / "work" / f"{self._run_id}-{name}"
        work.mkdir(parents=True, exist_ok=True)
        process = self._spare.pop(name, None)
        if process is not None and not process.alive():  # ended while it waited: no fault of the step's
            process.close()
            process = None
        process = process or self._start(step, share)
        process.give(self._run_id, name, step.entry, step.payload, inputs, work)
        self._at_work[name] = process
        return False

    def _start(self, step: Step, share: int) -> Process:
        # Imported now: a run that finds everything cached needs no processes, nor the modules that start them.
        from drivetrain.backends.runner.process import Process, prepare

        prepare(other.entry for other in self._steps.values())
        threads = share if step.cpu is None else max(1, round(step.cpu))
        log = self._state / "logs" / self._run_id / f"{step.name}.log"
        return Process(step.name, step.warm, threads, log, self._clean)

    def _start_spare(self) -> None:
        """Has workers of the steps that come next import their libraries, on cores that would be idle."""
        if not self._at_work or self._stopping():
            return
        coming = set(self._outputs) | set(self._at_work)
        taken = self._results.keys() | self._at_work.keys() | self._spare.keys() | self._not_before.keys()
        for name, step in self._steps.items():
            if len(self._at_work) + len(self._spare) >= self._cores:
                return
            if step.warm and name not in taken and graph.parents(self._edges[name]) <= coming:
                self._spare[name] = self._start(step, self._cores)

    def _end_spare(self) -> None:
        for process in self._spare.values():
            process.end(kill=True)
        self._spare.clear()

    def _inputs(self, step: Step) -> dict[str, Any]:
        inputs: dict[str, Any] = {}
        for name, source in step.inputs.items():
            if "." in source:
                maker, _, field = source.partition(".")
                inputs[name] = getattr(self._outputs[maker], field)
        for name, source in step.inputs.items():
            if "." not in source:
                inputs[name] = self._plan.externals[source](inputs)
        return inputs

    def _known(self, step: Step, key: str) -> Any:
        """Outputs from this run before it was killed, or from the cache; None where there are none or they are damaged."""
        before = self._before.get(step.name)
        if before is not None and before.key == key and before.outputs is not None:
            outputs = cache.whole(self._objects, before.outputs, step.outputs)
        elif step.name in self._fresh:
            return None
        else:
            outputs = cache.find(self._objects, key, step.outputs)
        if outputs is not None and step.still_holds and not cache.load(step.still_holds)(step.payload, outputs):
            return None
        return outputs

    # listening

    def _listen(self) -> None:
        """Waits a moment for messages, output or ends, and deals with them."""
        connections: list[Any] = []
        for process in self._at_work.values():
            connections += [process.messages, process.sentinel] + ([] if process.output.closed else [process.output])
        connections += [process.output for process in self._spare.values() if not process.output.closed]
        if connections:
            from multiprocessing.connection import wait

            wait(connections, TICK)
        else:
            wake = min(self._not_before.values(), default=0.0)
            time.sleep(min(TICK, max(0.0, wake - time.monotonic())))
        for process in self._spare.values():
            process.drain()
        for name, process in list(self._at_work.items()):
            process.drain()
            self._deal_with(name, process)
        self._progress.tick()

    def _deal_with(self, name: str, process: Process) -> None:
        ended = not process.alive()
        while (message := process.receive()) is not None:
            match message:
                case ("said", text):
                    self._say(name, text)
                case ("done", outputs, peak):
                    self._peak[name] = peak
                    self._leave(name, process)
                    self._succeed(name, outputs, time.monotonic() - process.started)
                    return
                case ("failed", error, peak):
                    self._peak[name] = peak
                    self._leave(name, process)
                    self._fail(name, error, process)
                    return
        if ended:
            code = self._leave(name, process)
            self._fail(name, _death(name, code), process)
        elif (broken := self._over_limit(name, process)) is not None:
            process.end(kill=True)
            self._forget(name)
            self._fail(name, broken, process)

    def _say(self, name: str, text: str) -> None:
        text = self._shown(text)
        self._journal.say(self._run_id, name, text, time.time())
        self._progress.step_said(name, text)

    def _shown(self, text: str) -> str:
        """Secrets masked; bytes that are no text (in a file's name, say) as escapes, since no database takes them."""
        return self._clean(text).encode("utf-8", "backslashreplace").decode()

    def _over_limit(self, name: str, process: Process) -> StageError | None:
        step = self._steps[name]
        if step.timeout is not None and time.monotonic() - process.started > step.timeout:
            return StageError(
                f"took longer than {step.timeout:g} s and was ended", hint=f"raise {name}.timeout, or do less"
            )
        if step.memory is not None and (used := process.memory()) > step.memory:
            self._peak[name] = used
            return StageError(
                f"used {used / 2**20:,.0f} MiB of memory, over its limit of {step.memory / 2**20:,.0f} MiB, and was ended",
                hint=f"raise {name}.resources.memory, or take fewer rows",
            )
        return None

    def _leave(self, name: str, process: Process) -> int:
        code = process.close()
        self._forget(name)
        return code

    def _forget(self, name: str) -> None:
        del self._at_work[name]
        shutil.rmtree(self._state / "work" / f"{self._run_id}-{name}", ignore_errors=True)

    # ending

    def _succeed(self, name: str, encoded: Mapping[str, Any], seconds: float) -> None:
        step = self._steps[name]
        # The cache first: killed between the two, the step is found there and not repeated.
        try:
            cache.keep(self._objects, self._keys[name], name, self._run_id, encoded)
        except DrivetrainError:  # a store that does not answer ends the run; resumed, it need not repeat the step
            self._end_attempt(name, "done", outputs=encoded)
            raise
        self._finish(name, "done", decode(cache.load(step.outputs), encoded), seconds)

    def _finish(self, name: str, state: str, outputs: Any, seconds: float) -> None:
        verdict = cache.verdict(outputs)
        message = verdict.reason if verdict else ""
        if verdict and not verdict.passed:
            state = "refused"
        self._outputs[name] = outputs
        if name in self._attempt:
            self._end_attempt(name, state, outputs=encode(outputs), message=message)
        else:
            self._cached.append((name, state, self._keys[name], encode(outputs), message))
        self._close(name, state, seconds, outputs=outputs, message=message)

    def _fail(self, name: str, error: DrivetrainError, process: Process) -> None:
        message, hint = self._shown(str(error)), self._shown(error.hint)
        seconds = time.monotonic() - process.started
        if isinstance(error, CorruptArtifact) and self._mend(error.digest, process.started):
            self._end_attempt(name, "damaged", message=message)
            self._say(name, f"{message}; made again")
            return
        tries = self._tries[name]
        if isinstance(error, Unavailable) and tries < self._steps[name].attempts:
            self._end_attempt(name, "retried", message=message, hint=hint)
            pause = FIRST_WAIT * 2 ** (tries - 1) * random.uniform(0.75, 1.25)
            self._not_before[name] = time.monotonic() + pause
            self._say(name, f"{message}; trying again in {pause:.1f} s")
            return
        self._codes[name] = error.exit_code
        self._end_attempt(name, "failed", message=message, hint=hint)
        self._close(name, "failed", seconds, message=message, hint=hint)

    def _mend(self, digest: str, began: float) -> bool:
        """Has the damaged artifact made again by the step it came from. False if no step makes it, or that did not help the
        step that found it and began at `began`."""
        if digest in self._mended:
            return began < self._mended[digest]
        for name, outputs in list(self._outputs.items()):
            for artifact in cache.artifacts(outputs):
                if artifact.digest == digest:
                    self._mended[digest] = time.monotonic()
                    self._objects.discard(artifact)
                    self._fresh.add(name)
                    self._before.pop(name, None)
                    del self._outputs[name], self._results[name]
                    self._attempt.pop(name, None)
                    return True
        return False

    def _write_cached(self) -> None:
        """Journals what came from the cache, all at once: each transaction waits for the disk."""
        if self._cached:
            self._journal.keep_cached(self._run_id, self._cached, time.time())
            self._cached.clear()

    def _end_attempt(
        self, name: str, state: str, *, outputs: Mapping[str, Any] | None = None, message: str = "", hint: str = ""
    ) -> None:
        self._journal.end_attempt(
            self._run_id, name, self._attempt[name], state, time.time(),
            outputs=outputs, peak_memory=self._peak.get(name, 0), message=message, hint=hint,
        )  # fmt: skip

    def _close(
        self, name: str, state: str, seconds: float, *, outputs: Any = None, message: str = "", hint: str = ""
    ) -> None:
        result = StepResult(
            name, state, self._keys.get(name, ""), outputs, seconds, self._peak.get(name, 0), message, hint
        )
        self._results[name] = result
        self._not_before.pop(name, None)
        self._progress.step_ended(result)


def _death(name: str, code: int) -> StageError:
    if code == -9:
        return StageError(
            f"the process of {name} was killed, most likely because the machine ran out of memory",
            hint="take fewer rows, or set resources.memory to be told earlier",
        )
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return StageError(f"the process of {name} died ({how}) without a word", hint="`drivetrain logs` shows its output")
