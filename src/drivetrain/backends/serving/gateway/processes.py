"""One replica as a process: started as a child that does not outlive the gateway, asked to end, ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from drivetrain.backends.serving.gateway.settings import SERVICE_VARIABLE, Settings
from drivetrain.backends.serving.gateway.state import Source

_TAIL = 15
_WITHHELD = ("DRIVETRAIN_TOKEN", "PORT", "COG_PREDICT_TYPE_STUB")
"""Of the gateway's environment: the token is asked for at the gateway's door, and replicas listen where they are told to."""


@dataclass(frozen=True, slots=True)
class Launch:
    """What the replicas of a revision are started with; their output goes to `log`."""

    settings: Settings
    source: Source
    log: Path

    def command(self, socket: Path) -> list[str]:
        """The command line of a replica that listens on the Unix socket."""
        own = self.settings
        options: dict[str, object] = {
            "bundle": self.source.bundle,
            "runner": self.source.runner,
            "name": own.name,
            "uds": socket,
            "queue": own.queue,
            "batch-max": own.batching.max,
            "batch-wait-ms": f"{own.batching.wait * 1000:g}",
            "setup-timeout": f"{own.ready_within:g}",
            "timeout": f"{own.timeout:g}",
            "body-limit": own.body,
        }
        words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
        return [sys.executable, "-m", "drivetrain.backends.serving.replica", *words, "--die-with-parent"]


class Process:
    """A started replica. It leads a process group of its own, so that nothing of it is left when it is killed."""

    def __init__(self, child: asyncio.subprocess.Process) -> None:
        self._child = child
        self.ended = asyncio.ensure_future(child.wait())
        """Its exit code, when it has one; negative for the signal that killed it."""

    @property
    def pid(self) -> int:
        return self._child.pid

    async def end(self, within: float) -> None:
        """Asks it to end, and kills it with whatever it started if it has not done so in time."""
        with contextlib.suppress(ProcessLookupError):
            self._child.terminate()
        await asyncio.wait([self.ended], timeout=within)
        await self.kill()

    async def kill(self) -> None:
        """Ends it at once, with whatever it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._child.pid, signal.SIGKILL)
        await self.ended


async def start(launch: Launch, socket: Path) -> Process:
    """Starts a replica. Raises `OSError` if the system refuses."""
    socket.unlink(missing_ok=True)
    with launch.log.open("ab") as log:
        child = await asyncio.create_subprocess_exec(
            *launch.command(socket),
            stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            env=_environment(launch.settings),
        )  # fmt: skip
    return Process(child)


def tail(log: Path) -> str:
    """The last lines of a log."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, log.stat().st_size - 8192))
            lines = stream.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join(lines[-_TAIL:])


def _environment(settings: Settings) -> Mapping[str, str]:
    # A model that takes every core for one small prediction makes all others wait: the gateway keeps one, replicas share the rest.
    threads = max(1, ((os.cpu_count() or 1) - 1) // max(1, settings.scaling.max))
    kept = {key: value for key, value in os.environ.items() if key not in _WITHHELD}
    own = {SERVICE_VARIABLE: str(Path(settings.home) / settings.name)}
    return {"OMP_NUM_THREADS": str(threads)} | kept | own
