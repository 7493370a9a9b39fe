"""The worker's process, from the front's side: started, watched, ended, and its end put in words."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from asyncio import AbstractEventLoop
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from drivetrain.backends.serving.replica.calls import INPUTS, ReplicaSettings
from drivetrain.backends.serving.replica.cell import Cell
from drivetrain.backends.serving.replica.channel import Link

SECRETS = frozenset(("DRIVETRAIN_TOKEN", "WEBHOOK_AUTH_TOKEN"))
"""Variables of the environment that are the front's own, and none of the model's business."""
_MODULE = "drivetrain.backends.serving.replica.worker"
_BUFFER = 4 * 1024 * 1024


class Process:
    """One worker process and the link to it. `ended` is called once, on the loop, when the process is gone and all that it had sent
    has been handed to `received`; it is given the exit code (negative for a signal)."""

    def __init__(
        self,
        loop: AbstractEventLoop,
        settings: ReplicaSettings,
        received: Callable[[memoryview], None],
        ended: Callable[[int], None],
    ) -> None:
        self.cell = Cell.create()
        self.killed = ""
        """Why the front itself ended it, if it did."""
        self._loop = loop
        self._ended = ended
        self._ooms = out_of_memory_kills()
        own, theirs = socket.socketpair()
        for end in (own, theirs):
            with contextlib.suppress(OSError):  # the system gives what it allows
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
        # Made by the worker when it fetches its first file; few do.
        self._files = os.path.join(tempfile.gettempdir(), f"drivetrain-inputs-{secrets.token_hex(8)}")
        with theirs:
            self._child = subprocess.Popen(
                _command(theirs.fileno(), self.cell.descriptor, settings), cwd=settings.bundle, stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), self.cell.descriptor), process_group=0, env=_environment(self._files),
            )  # fmt: skip
        self.pid = self._child.pid
        self.link = Link(loop, own, received, self._hung_up)
        threading.Thread(target=self._wait, name=f"worker {self.pid}", daemon=True).start()

    def interrupt(self, number: int) -> None:
        """Has the running call of that id raise Cog's cancellation; nothing happens if it has ended meanwhile."""
        self.cell.cancel = number
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGUSR1)

    def kill(self, why: str) -> None:
        """Ends it at once, with whatever it has started; `ended` follows."""
        self.killed = self.killed or why
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def reason(self, code: int) -> str:
        """How it ended, in words."""
        if self.killed:
            return self.killed
        if code >= 0:
            return f"it exited with code {code}"
        name = _signal_name(-code)
        if -code == signal.SIGKILL:
            certain = out_of_memory_kills() > self._ooms
            return f"it was killed by {name} ({'out of memory' if certain else 'out of memory, or by hand'})"
        return f"it was killed by {name}"

    def close(self) -> None:
        """Lets link and memory go."""
        self.link.close()
        self.cell.close()

    def _hung_up(self) -> None:
        # It has closed its socket without ending: nothing more can come of it. (An ending process does both, in any order.)
        self._loop.call_later(1.0, self._kill_if_alive)

    def _kill_if_alive(self) -> None:
        if self._child.returncode is None:
            self.kill("it closed its connection without ending")

    def _wait(self) -> None:
        code = self._child.wait()
        shutil.rmtree(self._files, ignore_errors=True)  # what it had fetched, and was killed before it could remove
        with contextlib.suppress(RuntimeError):  # the loop has been closed: nobody is left to be told
            self._loop.call_soon_threadsafe(self._gone, code)

    def _gone(self, code: int) -> None:
        self.link.drain()
        # What the worker had started would otherwise go on without it.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self._ended(code)


def _environment(files: str) -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key not in SECRETS} | {INPUTS: files}


def _command(connection: int, cell: int, settings: ReplicaSettings) -> list[str]:
    # -P: a module of the bundle must not stand for one of the standard library; the worker adds the bundle to the path itself.
    told = json.dumps(asdict(settings))
    return [sys.executable, "-P", "-m", _MODULE, str(connection), str(cell), str(os.getpid()), told]


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def out_of_memory_kills() -> int:
    """How often the kernel has ended a process of this control group for want of memory; 0 where that cannot be told."""
    total = 0
    for path in _memory_events():
        with contextlib.suppress(OSError, ValueError):
            for line in path.read_text().splitlines():
                word, _, count = line.partition(" ")
                if word == "oom_kill":
                    total += int(count)
    return total


def _memory_events() -> list[Path]:
    try:
        groups = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found: list[Path] = []
    for line in groups:
        _, controllers, group = line.split(":", 2)
        inner = group.lstrip("/")
        if not controllers:
            found.append(Path("/sys/fs/cgroup") / inner / "memory.events")
        elif "memory" in controllers.split(","):
            found.append(Path("/sys/fs/cgroup/memory") / inner / "memory.oom_control")
    return found
