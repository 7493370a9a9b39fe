"""A worker process as its parent sees it: started, listened to, limited, ended."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType
from typing import IO, Any, cast

from drivetrain.backends.runner import worker

PATIENCE = 5.0
"""Seconds between asking a worker to end and making it."""
CHUNK = 65536
"""Bytes read at once; also what a pipe holds."""
TURN = 16
"""Chunks read from one worker before the others, the limits and the screen get their turn."""
LONGEST = 2**20
"""Bytes of output without a line's end that are held back; beyond it they are written piece by piece."""
OVERLAP = 4096
"""Characters of such a piece that wait for the next one: a secret may be cut in two by it."""

_context = get_context("forkserver")


def prepare(entries: Iterable[str]) -> None:
    """Names the modules that the fork server loads before its first fork: the steps' own entry modules.

    Also fixes the order of Python's sets and hashes in the workers: two runs of one step have to give the same bytes.
    """
    os.environ.setdefault("PYTHONHASHSEED", "0")
    _context.set_forkserver_preload([worker.__name__, *sorted({entry.partition(":")[0] for entry in entries})])


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """multiprocessing has each new process import the parent's `__main__` again, for functions that were defined there;
    a step's entry is always in a module of its own, and a script's imports would cost every worker the same again."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


class Process:
    """A worker, importing the modules `warm` until it is given its job. Its output goes to `log`, each line passed through
    `clean` first."""

    def __init__(self, name: str, warm: Sequence[str], threads: int, log: Path, clean: Callable[[str], str]) -> None:
        self.started = time.monotonic()
        """When it was given its job; until then when it was started."""
        self._clean = clean
        self._rest = bytearray()
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log: IO[str] = log.open("a", encoding="utf-8")
        self.messages, theirs = _context.Pipe()
        self.output, their_output = _context.Pipe(duplex=False)
        self._process = _context.Process(target=worker.main, args=(theirs, their_output, warm, threads), name=name)
        with _without_main():
            self._process.start()
        theirs.close()
        their_output.close()

    def give(
        self, run_id: str, step: str, entry: str, payload: Mapping[str, Any], inputs: Mapping[str, Any], work: Path
    ) -> None:
        """Has the worker carry the job out. A worker that has died meanwhile is found dead as any other."""
        self.started = time.monotonic()
        with contextlib.suppress(OSError):
            self.messages.send(worker.Job(run_id, step, entry, payload, inputs, work))

    @property
    def pid(self) -> int:
        """The worker's process id, which is also that of its process group."""
        return cast(int, self._process.pid)

    @property
    def sentinel(self) -> int:
        """Becomes readable when the worker has ended."""
        return self._process.sentinel

    def alive(self) -> bool:
        """Whether the worker has not ended yet."""
        return self._process.is_alive()

    def receive(self) -> tuple[Any, ...] | None:
        """The next message, or None when there is none (or never will be)."""
        try:
            return cast("tuple[Any, ...]", self.messages.recv()) if self.messages.poll() else None
        except (EOFError, OSError):
            return None

    def drain(self) -> None:
        """Moves what the worker has printed to its log, without waiting: at most `TURN` chunks, since a worker can print faster
        than they are read."""
        for _ in range(TURN):
            if self.output.closed or not self.output.poll():
                break
            try:
                chunk = os.read(self.output.fileno(), CHUNK)
            except OSError:
                chunk = b""
            if not chunk:
                self.output.close()
                break
            self._write(chunk)
        self._log.flush()

    def _write(self, chunk: bytes) -> None:
        *ended, begun = chunk.split(b"\n")
        for line in ended:
            self._rest += line
            self._log.write(self._clean(self._rest.decode("utf-8", "replace")) + "\n")
            self._rest.clear()
        self._rest += begun
        if len(self._rest) > LONGEST:
            text = self._clean(self._rest.decode("utf-8", "replace"))
            self._log.write(text[:-OVERLAP])
            self._rest = bytearray(text[-OVERLAP:].encode())

    def memory(self) -> int:
        """Resident bytes of the worker and its children; 0 once it has ended."""
        import psutil

        try:
            process = psutil.Process(self.pid)
            return sum(p.memory_info().rss for p in [process, *process.children(recursive=True)])
        except psutil.Error:
            return 0

    def end(self, kill: bool = False) -> None:
        """Ends the worker and its children: asked first, unless `kill`."""
        if not kill:
            self._signal(signal.SIGTERM)
            self._process.join(PATIENCE)
        if self._process.is_alive():
            self._signal(signal.SIGKILL)
        self.close()

    def _signal(self, number: signal.Signals) -> None:
        """Sends the signal to the worker's group; to the worker alone as long as it has not made itself one."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            try:
                os.killpg(self.pid, number)
            except ProcessLookupError:
                os.kill(self.pid, number)

    def close(self) -> int:
        """Waits for the worker, ends what it left running, empties its output, and returns its exit code (negative: the
        signal)."""
        self._process.join()
        code = self._process.exitcode
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self.drain()
        if self._rest:
            self._log.write(self._clean(self._rest.decode("utf-8", "replace")) + "\n")
            self._rest.clear()
        self._log.close()
        self.messages.close()
        self.output.close()
        return 0 if code is None else code
