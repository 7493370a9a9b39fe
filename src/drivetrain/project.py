"""A user's project on disk: its definition, its state, and the digests of what it is made of."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from drivetrain.definition import check, load
from drivetrain.definition.definition import Definition, find_project
from drivetrain.definition.parts import Target
from drivetrain.definition.values import is_function, matching
from drivetrain.errors import UsageError
from drivetrain.journal import Journal
from drivetrain.records import digest

STATE = ".drivetrain"


@dataclass(frozen=True)
class Project:
    """The project at `root`, seen through one target."""

    root: Path
    definition: Definition
    target_name: str
    parameters: Mapping[str, str]
    candidate: bool = False
    """Whether what is deployed comes up beside the champion, and gets no traffic yet."""

    @property
    def state(self) -> Path:
        """Where everything lies that Drivetrain keeps for the project."""
        return self.root / STATE

    @property
    def target(self) -> Target:
        """The chosen target's part of the definition."""
        return self.definition.target(self.target_name)

    @cached_property
    def journal(self) -> Journal:
        """The project's journal, made at its first use."""
        return Journal(self.state / "journal.db")

    @property
    def objects_url(self) -> str:
        """Absolute directory or `s3://` URI of the target's objects."""
        where = self.target.objects
        return where if where.startswith("s3://") else str((self.root / where).resolve())

    @cached_property
    def dumped(self) -> dict[str, Any]:
        """The definition as JSON-ready values, its defaults filled in: what counts towards digests and keys."""
        return self.definition.model_dump(mode="json")

    @cached_property
    def lock_digest(self) -> str:
        """Digest of the lock file; of the installed distributions' names and versions where the project has none."""
        lock = self.root / self.definition.lock
        if lock.is_file():
            return hashlib.sha256(lock.read_bytes()).hexdigest()
        found = {
            entry.name for place in dict.fromkeys(sys.path) if os.path.isdir(place) for entry in os.scandir(place)
            if entry.name.endswith(".dist-info")
        }  # fmt: skip
        return digest(sorted(found))

    @cached_property
    def commit(self) -> str:
        """The git commit of the project, with `+` when files differ from it; empty outside of git."""
        git = shutil.which("git")
        if git is None:
            return ""
        found = subprocess.run(
            [git, "-C", str(self.root), "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        return found.stdout.strip() if found.returncode == 0 else ""

    def sources(self) -> list[str]:
        """The paths and URIs of data that the definition names, functions left out."""
        tables = [self.definition.data, *self.definition.data.tables.values()]
        return [table.source for table in tables if not is_function(table.source)]

    def source_digests(self) -> dict[str, str]:
        """Digest of each data file that the definition names (`rows.csv`, `raw/*.parquet`); a file is read again only
        when its size, time or inode has changed."""
        found = {path for source in self.sources() if "://" not in source for path in matching(self.root, source)}
        return {os.path.relpath(path, self.root): self._file_digest(path) for path in sorted(found) if path.is_file()}

    def _file_digest(self, path: Path) -> str:
        stat = path.stat()
        identity = (str(path), stat.st_size, stat.st_mtime_ns, stat.st_ino)
        known = self.journal.file_digest(*identity)
        if known is None:
            with path.open("rb") as file:
                known = hashlib.file_digest(file, "sha256").hexdigest()
            self.journal.keep_file_digest(*identity, known)
        return known


def state_of(start: Path) -> Path:
    """The state directory of the project that `start` lies in, its definition unread. Raises `UsageError` if there is none."""
    return find_project(start) / STATE


def open_journal(start: Path) -> Journal:
    """The journal of the project that `start` lies in, its definition unread. Raises `UsageError` if there is none."""
    return Journal(state_of(start) / "journal.db")


def open_project(
    start: Path, *, target: str = "local", parameters: Mapping[str, str] | None = None, checked: bool = True,
    candidate: bool = False,
) -> Project:  # fmt: skip
    """The project that `start` lies in.

    Raises `UsageError` if there is none or it has no such target, `DefinitionError` with every mistake of its definition.
    `checked=False` leaves out the search for what the definition names: enough for looking at past runs.
    """
    root = find_project(start)
    source = load.read(root, parameters, memory=root / STATE / "definition.json")
    if checked:
        check.check(root, source, memory=root / STATE / "checked")
    try:
        source.definition.target(target)
    except KeyError as error:
        known = ", ".join(sorted({"local", *source.definition.targets}))
        raise UsageError(f"the definition has no target {target}", hint=f"it has: {known}") from error
    return Project(root, source.definition, target, dict(parameters or {}), candidate)
