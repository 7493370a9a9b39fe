"""One step at work in a process of its own, forked from a server that has only light modules loaded.

The parent holds the other ends of two pipes: one carries messages (progress, the result), one the step's output. When the
parent dies the message pipe closes, and the worker ends at once with all its children.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from drivetrain.backends.runner import WorkerContext
from drivetrain.backends.runner.cache import load
from drivetrain.errors import DefinitionError, DrivetrainError, StageError
from drivetrain.machine import limit_threads
from drivetrain.records import encode


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker is sent."""

    run_id: str
    step: str
    entry: str
    payload: Mapping[str, Any]
    inputs: Mapping[str, Any]
    work: Path


def main(messages: Connection, output: Connection, warm: Sequence[str], threads: int) -> None:
    """The whole life of a worker process; never returns. Its job comes as the first message, maybe a while after its start:
    until then it imports the modules `warm`."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    output.close()
    # What a library leaves behind (semaphores) is then reported into the step's log, not onto the user's screen: a worker
    # that needs multiprocessing's resource tracker starts one of its own.
    resource_tracker._resource_tracker._fd = None  # type: ignore[attr-defined]
    limit_threads(os.environ, threads)
    # Both were for processes that run no user code; what is started from here shall have them as usual.
    os.environ.pop("PYTHONHASHSEED", None)
    os.environ.pop("PYDANTIC_DISABLE_PLUGINS", None)
    for name in warm:
        with contextlib.suppress(Exception):  # raised again, and told, when the job needs the module
            import_module(name)
    try:
        job: Job = messages.recv()
    except (EOFError, OSError):
        os._exit(0)
    threading.Thread(target=_end_with_parent, args=(messages,), daemon=True).start()
    message = _carry_out(messages, job, threads)
    sys.stdout.flush()
    sys.stderr.flush()
    usage = resource.getrusage(resource.RUSAGE_SELF)
    scale = 1 if sys.platform == "darwin" else 1024
    messages.send((*message, usage.ru_maxrss * scale))
    # Libraries' exit handlers are slow and noisy, and there is nothing left that they should save.
    os._exit(0)


def _carry_out(messages: Connection, job: Job, threads: int) -> tuple[str, Any]:
    def say(text: str) -> None:
        messages.send(("said", text))

    try:
        entry = load(job.entry)
        context = WorkerContext(job.run_id, job.step, job.work, threads, say)
        return "done", encode(entry(context, job.payload, job.inputs))
    except DefinitionError as error:
        # Found in a file that only the stage reads. What it lists has to reach the journal, which keeps one message.
        told = StageError("; ".join(map(str, error.problems)), hint="mend that, then `drivetrain run` goes on")
        told.exit_code = error.exit_code
        return "failed", told
    except DrivetrainError as error:
        if error.__cause__ is not None:
            traceback.print_exception(error)
        return "failed", error
    except MemoryError:
        traceback.print_exc()
        return "failed", StageError("ran out of memory", hint="give the machine or the stage more, or take fewer rows")
    except BaseException as error:  # noqa: BLE001 - the process border: everything must be told to the parent
        traceback.print_exc()
        return "failed", StageError(f"{type(error).__name__}: {error}", hint="`drivetrain logs` shows the traceback")


def _end_with_parent(messages: Connection) -> None:
    try:
        messages.recv()
    except (EOFError, OSError):
        os.killpg(0, signal.SIGKILL)
