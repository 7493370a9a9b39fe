"""The process that holds the model: `python -m drivetrain.backends.serving.replica.worker SOCKET CELL PARENT SETTINGS`.

Started by the front, in the bundle's directory, with one end of a socket pair and the shared cell as inherited descriptors.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import asdict

from drivetrain.backends.serving.replica import channel, frames, scope
from drivetrain.backends.serving.replica.calls import ReplicaSettings, Wire
from drivetrain.backends.serving.replica.cell import Cell
from drivetrain.backends.serving.replica.coding import Codecs
from drivetrain.backends.serving.replica.execution import describe, log
from drivetrain.backends.serving.replica.frames import Kind
from drivetrain.backends.serving.replica.runner import Runner
from drivetrain.backends.serving.replica.scope import Scope

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> int:
    """Sets the runner up, says so, and serves until the front stops it or goes."""
    descriptor, cell, parent, settings = int(arguments[0]), int(arguments[1]), int(arguments[2]), arguments[3]
    die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the front's to handle
    connection = socket.socket(fileno=descriptor)
    scope.install()
    told = ReplicaSettings(**json.loads(settings))
    try:
        serve = _set_up(connection, Cell(cell), told)
    except BaseException as error:  # noqa: BLE001 - the user's code is imported and set up here: it may raise anything
        log(error)
        _say(connection, Kind.SETUP_FAILED, describe(error))
        return 1
    try:
        serve()
    except (BrokenPipeError, ConnectionResetError):
        return 0  # the front has gone
    return 0


def _set_up(connection: socket.socket, cell: Cell, settings: ReplicaSettings) -> Callable[[], None]:
    began = time.monotonic()
    sys.path.insert(0, os.getcwd())
    scope.enter(Scope(lambda text: _say(connection, Kind.LOG, text)))
    runner = Runner(settings.runner, settings.name, settings.max_slots)
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    loop.run_until_complete(runner.setup())
    codecs = Codecs(runner.signature)
    for wire in (Wire.COG, Wire.V1, *((Wire.V2,) if runner.infer is not None else ())):
        codecs[wire]  # made now, not with the first call
    serve = _loop_for(connection, cell, runner, codecs, settings, loop)
    scope.enter(None)
    gc.collect()
    gc.freeze()  # what setup made stays: the collector need not look at it again
    ready = {"signature": asdict(runner.signature), "took": time.monotonic() - began, "checks": runner.checks}
    _say(connection, Kind.READY, json.dumps(ready))
    return serve


def _loop_for(
    connection: socket.socket,
    cell: Cell,
    runner: Runner,
    codecs: Codecs,
    settings: ReplicaSettings,
    loop: asyncio.AbstractEventLoop,
) -> Callable[[], None]:
    # Each is imported where it is needed: numpy costs start-up time.
    if runner.signature.is_async:
        from drivetrain.backends.serving.replica.tasks import Tasks

        return Tasks(loop, connection, cell, runner, codecs, settings.timeout).serve
    if runner.signature.batches or runner.signature.infers:
        from drivetrain.backends.serving.replica.batches import Batches

        return Batches(loop, connection, cell, runner, codecs, settings.batch_max, settings.batch_wait).serve
    from drivetrain.backends.serving.replica.serial import Serial

    return Serial(loop, connection, cell, runner, codecs).serve


def die_with(parent: int) -> None:
    """Has the system end this process when its parent ends, where it can do that (Linux); elsewhere the socket's end tells."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it had gone before
            os._exit(1)


def _say(connection: socket.socket, kind: Kind, text: str) -> None:
    channel.send(connection, list(frames.pack_note(kind, 0, text.encode(errors="replace"))))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
