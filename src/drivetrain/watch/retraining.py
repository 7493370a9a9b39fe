"""A retraining: a candidate run as a process of its own, begun once, observed, and resumed if it died; also by another controller."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from drivetrain.backends.runner import local
from drivetrain.errors import SystemFault
from drivetrain.journal import RunRow
from drivetrain.project import Project

ATTEMPTS = 5
"""How often a run is begun or resumed before it is given up."""
_LOOK = 0.1
_COMMAND = "from drivetrain.cli.main import main; main()"


@dataclass(frozen=True, slots=True)
class Trained:
    """How a retraining ended: `done`, `refused` by gate or data checks, or `failed`; `reason` says why, in a line."""

    state: Literal["done", "refused", "failed"]
    reason: str


class Retrainings:
    """The candidate runs of a project. What it knows is in the journal, and in a lock that each run's own process holds while it lives."""

    def __init__(self, project: Project) -> None:
        self._project = project
        self._home = project.state / "loop"
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def advance(self, run_id: str, as_of: float) -> Trained | None:
        """Begins or resumes the run where that is to be done; None while it is at work, or cannot begin because another run is.

        `as_of`, in seconds since 1970, is up to when rows are trained on. Raises `SystemFault` if no process can be started.
        """
        with self._held(run_id) as lock:
            if lock is None:
                return None
            row = self._row(run_id)
            if row is not None and (ended := self._ended(row)) is not None:
                self._children.pop(run_id, None)
                return ended
            if row is None and self._wrong_definition(run_id):
                return Trained("failed", self._last_words(run_id))
            if local.is_held(self._project.state):
                return None  # another is at work; of one that begins in this instant the run itself finds out
            begun = self.begun(run_id)
            if begun >= ATTEMPTS:
                return Trained("failed", f"it was begun {begun} times and did not end; {self._last_words(run_id)}")
            self._begin(run_id, lock, as_of, resumed=row is not None, begun=begun)
            return None

    def wait(self, run_id: str) -> None:
        """Returns when no process of the run lives, whoever began it."""
        child = self._children.get(run_id)
        if child is not None:
            child.wait()
        while True:
            with self._held(run_id) as lock:
                if lock is not None:
                    return
            time.sleep(_LOOK)

    def begun(self, run_id: str) -> int:
        """How often a process of the run was begun."""
        try:
            return int(self._file(run_id, "begun").read_text() or 0)
        except (OSError, ValueError):
            return 0

    @contextmanager
    def _held(self, run_id: str) -> Iterator[int | None]:
        """The lock of the run, None while a process of it lives. One that is begun meanwhile inherits it, and has it until it ends."""
        child = self._children.get(run_id)
        if child is not None:
            child.poll()
        try:
            self._home.mkdir(parents=True, exist_ok=True)
            lock = os.open(self._home / f"{run_id}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise SystemFault(f"{self._home} cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = True
        except BlockingIOError:
            free = False
        try:
            yield lock if free else None
        finally:
            os.close(lock)  # unlocking it would take it from who has inherited it

    def _begin(self, run_id: str, lock: int, as_of: float, *, resumed: bool, begun: int) -> None:
        arguments = ["--resume", run_id] if resumed else ["--candidate", "--id", run_id, *self._asked(as_of)]
        command = [
            sys.executable,
            "-c",
            _COMMAND,
            "-C",
            str(self._project.root),
            "run",
            *arguments,
            "--json",
            "--quiet",
        ]
        self._file(run_id, "begun").write_text(str(begun + 1))
        try:
            with self._file(run_id, "out").open("ab") as out, self._file(run_id, "log").open("wb") as log:
                # A session of its own: Ctrl-C for the controller is none for the run.
                self._children[run_id] = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=out, stderr=log, start_new_session=True,
                    pass_fds=[lock],
                )  # fmt: skip
        except OSError as error:
            raise SystemFault(f"no process can be started: {error.strerror}") from error

    def _asked(self, as_of: float) -> list[str]:
        project, asked = self._project, []
        if project.definition.data.timestamp is not None:
            asked += ["--as-of", datetime.fromtimestamp(as_of, UTC).isoformat()]
        if project.target_name != "local":
            asked += ["--target", project.target_name]
        for name, value in project.parameters.items():
            if not (name == "data.window.end" and "--as-of" in asked):
                asked += ["--param", f"{name}={value}"]
        return asked

    def _row(self, run_id: str) -> RunRow | None:
        row = self._project.journal.run(run_id)
        return row if row is not None and row.id == run_id else None

    def _ended(self, row: RunRow) -> Trained | None:
        """What came of a run whose process has ended; None if it is to be resumed: it was killed, or interrupted."""
        if row.state == "done":
            return Trained("done", "")
        if row.state not in ("failed", "refused"):
            return None
        attempts = self._project.journal.attempts(row.id)
        said = next((f"{a.stage}: {a.message}" for a in reversed(attempts) if a.state == row.state and a.message), "")
        return Trained("refused" if row.state == "refused" else "failed", said or self._last_words(row.id))

    def _wrong_definition(self, run_id: str) -> bool:
        """Whether the process has ended before there was a run, for a reason that another attempt meets too."""
        child = self._children.get(run_id)
        return child is not None and child.returncode == 2

    def _last_words(self, run_id: str) -> str:
        try:
            lines = self._file(run_id, "log").read_text(errors="replace").strip().splitlines()
        except OSError:
            lines = []
        if not lines:
            return "it printed nothing"
        try:
            said = json.loads(lines[-1])
            problems = "; ".join(f"{p['file']}:{p['line']}: {p['message']}" for p in said.get("problems", []))
            return str(said["error"]) + (f": {problems}" if problems else "")
        except (ValueError, KeyError, TypeError):
            return lines[-1][:500]

    def _file(self, run_id: str, what: str) -> Path:
        return self._home / f"{run_id}.{what}"
