"""One item run: the user's code is called, and whatever comes of it becomes an `Outcome`."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from types import GeneratorType
from typing import Any

from drivetrain.backends.serving.replica import scope
from drivetrain.backends.serving.replica.calls import Outcome, Progress
from drivetrain.backends.serving.replica.outputs import jsonable
from drivetrain.backends.serving.replica.runner import Canceled, Runner
from drivetrain.backends.serving.replica.scope import Scope

Report = Callable[[Progress], None]


def succeeded(output: Any, own: Scope, started: float) -> Outcome:
    """The outcome of a prediction that gave `output`, JSON-ready."""
    if own.untouched:
        return Outcome("succeeded", output, "", "", started, time.time())
    return Outcome("succeeded", output, "", own.logs, started, time.time(), own.recorded)


def failed(error: BaseException, own: Scope, started: float) -> Outcome:
    """The outcome of a prediction that raised."""
    if isinstance(error, Canceled):
        kind, words = "canceled", ""
    elif isinstance(error, Unfit):
        kind, words = "refused", words_of(error)
    else:
        kind, words = "failed", describe(error)
        log(error)
    return Outcome(kind, None, words, own.logs, started, time.time(), own.recorded)


def canceled(started: float) -> Outcome:
    """The outcome of a prediction that was canceled before it could begin."""
    return Outcome("canceled", started=started, completed=started)


def log(error: BaseException) -> None:
    """Writes to the replica's log where an exception came from; callers are told its words alone."""
    if error.__traceback__ is not None:
        with contextlib.suppress(Exception):  # the user's own exceptions are the user's code, too
            traceback.print_exception(error, file=sys.__stderr__)


def describe(error: BaseException) -> str:
    """ "ValueError: no such carrier", as Cog's server writes it."""
    kind = type(error).__name__
    words = words_of(error)
    return f"{kind}: {words}"


def words_of(error: BaseException) -> str:
    """The exception's own words, in characters that can be sent."""
    try:
        return scope.sendable(str(error))
    except Exception:  # noqa: BLE001 - the user's own exceptions are the user's code, too
        return "(its words cannot be had)"


class Unfit(Exception):
    """The runner's `infer` does not take the tensors that it was given."""


def follower(report: Report | None) -> Callable[[str], None] | None:
    """Takes the lines of a prediction that is followed."""
    return None if report is None else lambda text: report(Progress("log", text.encode(errors="replace")))


def finish(runner: Runner, result: Any, report: Report | None) -> Any:
    """The JSON-ready output of what `run` returned; the items of a generator are reported one by one."""
    if isinstance(result, GeneratorType):
        return [item_of(runner, item, report) for item in result]
    return encoded(runner, result)


def item_of(runner: Runner, item: Any, report: Report | None) -> Any:
    """One item of a stream, JSON-ready, and reported."""
    ready = encoded(runner, item)
    if report is not None:
        report(Progress("output", json.dumps(ready, allow_nan=False).encode()))
    return ready


def encoded(runner: Runner, value: Any) -> Any:
    """The value JSON-ready, by the runner's own coder where its output type has one."""
    coder = runner.coder
    if coder is None:
        return jsonable(value)
    return [coder.encode(item) for item in value] if isinstance(value, list | tuple) else coder.encode(value)


def remove(made: list[str]) -> None:
    """Removes the temporary files of a call."""
    for path in made:
        with contextlib.suppress(OSError):
            os.unlink(path)
