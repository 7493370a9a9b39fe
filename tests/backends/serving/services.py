"""Services on this machine for tests: bundles, settings, and which processes they are made of."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from drivetrain.backends.serving import alive
from drivetrain.backends.serving.alive import Server
from drivetrain.backends.serving.gateway.settings import Capturing, Settings

RUNNER = "run.py:Runner"
HOST = "127.0.0.1"
CONSTANT = """
import subprocess
from cog import BaseRunner

class Runner(BaseRunner):
    def setup(self) -> None:
        self.child = subprocess.Popen(["sleep", "600"])

    def run(self, distance: float) -> int:
        return NUMBER
"""


def constant(number: int) -> str:
    return CONSTANT.replace("NUMBER", str(number))


def bundle(place: Path, source: str) -> Path:
    """A bundle with that runner."""
    place.mkdir(parents=True)
    (place / "run.py").write_text(source)
    return place


def settings(state: Path, name: str, port: int = 0, host: str = HOST, **more: Any) -> Settings:
    home = state / "serving"
    home.mkdir(parents=True, exist_ok=True)
    (home / f"{name}.token").write_text("a-token")
    return Settings(
        name=name, home=str(home), host=host, port=port, token_file=str(home / f"{name}.token"),
        **{"ready_within": 60.0, "capturing": Capturing(directory=str(home / f"{name}.capture")), **more},
    )  # fmt: skip


def eventually(condition: Callable[[], object], within: float = 60.0) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def children(pid: int) -> list[int]:
    """Every process below that one which still runs."""
    listing = subprocess.run(["ps", "-eo", "pid=,ppid=,stat="], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in listing.splitlines()]
    below = [int(child) for child, parent, state in rows if int(parent) == pid and not state.startswith("Z")]
    return below + [deeper for child in below for deeper in children(child)]


def runs(pid: int) -> bool:
    return alive.start_time(pid) != ""


def started(state: Path) -> list[Server]:
    """Every gateway that the state directory has a record of."""
    return [server for path in (state / "serving").glob("*.json") if (server := alive.read(path))]


def end_everything(state: Path) -> None:
    for server in started(state):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(server.group, signal.SIGKILL)
