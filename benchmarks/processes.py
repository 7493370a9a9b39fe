"""A command with all processes it starts, watched for their memory, and ended with them."""

from __future__ import annotations

import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.timing import environment

MARK = "DRIVETRAIN_BENCHMARK"
"""A variable that every process below a watched command inherits, also one that has left its process group."""

TIMEOUT = 600.0
"""Seconds after which a watched command is killed."""
INTERVAL = 0.2
"""Seconds between two looks, which cost some milliseconds each. The kernel keeps each process' peak, so that only what
one grows in its last moments is missed."""


@dataclass(frozen=True, slots=True)
class Watched:
    """How a watched command went. `peak` is in bytes: the most that any one process had resident at once."""

    seconds: float
    code: int
    output: str
    errors: str
    peak: int
    peak_command: str


@dataclass(slots=True)
class Family:
    """The processes that carry one mark, seen so far."""

    mark: str
    peaks: dict[tuple[int, float], tuple[int, str]] = field(default_factory=dict)
    """(process id, start) -> (peak in bytes, command line)"""
    strangers: set[tuple[int, float]] = field(default_factory=set)

    def look(self) -> None:
        """Takes in new processes and new peaks."""
        for process in self.members():
            try:
                key = (process.pid, process.create_time())
                before = self.peaks.get(key, (0, ""))
                command = before[1] or " ".join(process.cmdline())[:200]
                self.peaks[key] = (max(before[0], peak_of(process)), command)
            except (psutil.Error, OSError):
                continue

    def members(self) -> Iterator[psutil.Process]:
        """Processes of this mark that run now."""
        for process in psutil.process_iter():
            try:
                key = (process.pid, process.create_time())
                if key in self.strangers:
                    continue
                if key in self.peaks or process.environ().get(MARK) == self.mark:
                    yield process
                elif time.time() - key[1] > 1.0:
                    # A young process may not have reached its own program yet.
                    self.strangers.add(key)
            except (psutil.Error, OSError):
                continue

    def end(self, patience: float = 10.0) -> None:
        """Ends those still running, kindly at first."""
        left = list(self.members())
        for act in ("terminate", "kill"):
            for process in left:
                try:
                    getattr(process, act)()
                except psutil.Error:
                    continue
            _, left = psutil.wait_procs(left, timeout=patience)

    @property
    def highest(self) -> tuple[int, str]:
        """The largest peak, and whose."""
        return max(self.peaks.values(), default=(0, ""))


def peak_of(process: psutil.Process) -> int:
    """The most bytes that the process has had resident; where the kernel does not keep it, what it has now."""
    try:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    except OSError:
        return int(process.memory_info().rss)
    kilobytes = next((line.split()[1] for line in lines if line.startswith("VmHWM:")), "0")
    return int(kilobytes) * 1024


@contextmanager
def family(name: str) -> Iterator[Family]:
    """A family to watch commands in; whatever of it still runs at the end of the block is ended."""
    found = Family(f"{name}-{time.monotonic_ns()}")
    try:
        yield found
    finally:
        found.end()


def watch(
    kin: Family, command: Sequence[str], directory: Path, home: Path, variables: Mapping[str, str] | None = None
) -> Watched:
    """Carries the command out and watches it, and every process that it starts, until it ends."""
    home.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    # Files and not pipes: an endpoint that outlives the command may hold a pipe open for ever.
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command,
            cwd=directory,
            env=environment(home, {**(variables or {}), MARK: kin.mark}),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
        )
        stop = threading.Event()
        watcher = threading.Thread(target=_look_until, args=(kin, stop), daemon=True)
        watcher.start()
        try:
            code = process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        seconds = time.perf_counter() - started
        stop.set()
        watcher.join()
        output.seek(0)
        errors.seek(0)
        return Watched(seconds, code, output.read(), errors.read(), *kin.highest)


def _look_until(kin: Family, stop: threading.Event) -> None:
    while not stop.is_set():
        kin.look()
        stop.wait(INTERVAL)
