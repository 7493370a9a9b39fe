"""Room to work in of which nothing is left, and commands that end when the benchmarks do."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.processes import MARK, Family

_PATIENCE = 15.0
"""Seconds that a command has to put its own house in order: buildah takes down what runs in its container."""


@contextlib.contextmanager
def room() -> Iterator[Path]:
    """An empty directory that goes with all that was started meanwhile, and all that is mounted below it."""
    place, kin = Path(tempfile.mkdtemp(prefix="bench-")).resolve(), Family(f"packaging-{time.monotonic_ns()}")
    os.environ[MARK] = kin.mark
    try:
        yield place
    finally:
        with _undisturbed():
            kin.end()
            remove(place)
        del os.environ[MARK]


def run(words: Sequence[str], *, variables: Mapping[str, str] | None = None) -> str:
    """What a command prints. Raises `RuntimeError` with what it said last if it fails; ends it if it is waited for no longer."""
    process = subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | dict(variables or {}),
    )  # fmt: skip
    try:
        output, errors = process.communicate()
    except BaseException:
        with _undisturbed():
            _end(process)
        raise
    if process.returncode:
        said = (errors.strip() or output.strip())[-800:]
        raise RuntimeError(f"{' '.join(words[:4])} ... ended with {process.returncode}: {said}")
    return output


def _end(process: subprocess.Popen[str]) -> None:
    for end in (process.terminate, process.kill):
        end()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=_PATIENCE)


def remove(place: Path) -> None:
    """Takes a directory away: what runs in a root file system below it, what is mounted below it, and its files."""
    for process in _inside(place):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    for mount in reversed(_mounted(place)):
        subprocess.run(["umount", "--lazy", mount], capture_output=True, check=False)
    if _mounted(place):
        # Files of somebody else's may be seen through a mount that stays.
        raise RuntimeError(f"{place} cannot be removed: {_mounted(place)[0]} is mounted and stays so")
    shutil.rmtree(place, ignore_errors=True)


def _inside(place: Path) -> list[int]:
    """Processes in containers whose root file system is kept below the directory."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            roots = [line for line in (entry / "mountinfo").read_text().splitlines() if line.split()[4] == "/"]
            if any(f"={place}/" in line for line in roots):
                found.append(int(entry.name))
    return found


def _mounted(place: Path) -> list[str]:
    """Where something is mounted at or below the directory, in the order of mounting."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [point for point in points if Path(point).is_relative_to(place)]


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Whoever interrupts twice does not interrupt the cleaning up."""
    before = {
        number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
