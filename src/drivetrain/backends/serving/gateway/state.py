"""What a gateway must know to come back as it was: `NAME.routes.json` in its home, replaced whole and synced at each change."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from drivetrain.errors import SystemFault


@dataclass(frozen=True, slots=True)
class Source:
    """What a revision's replicas are started from. Both are empty for a revision that something else runs."""

    bundle: str = ""
    runner: str = ""


@dataclass(frozen=True, slots=True)
class State:
    """The routes, the revision that was primary before, what each revision is made of, and the directory of the replicas' sockets."""

    weights: Mapping[str, int] = field(default_factory=dict)
    shadow: str | None = None
    sticky: str | None = None
    former: str | None = None
    revisions: Mapping[str, Source] = field(default_factory=dict)
    sockets: str | None = None


def path(home: Path, name: str) -> Path:
    """Where the state of the gateway of that name is."""
    return home / f"{name}.routes.json"


def read(file: Path) -> State:
    """The state, or an empty one if there is none yet. Raises `SystemFault` if the file is not what `write` writes."""
    try:
        found: dict[str, Any] = json.loads(file.read_bytes())
    except FileNotFoundError:
        return State()
    except ValueError as error:
        raise _unreadable(file, error) from error
    try:
        revisions = {name: Source(**source) for name, source in found.pop("revisions").items()}
        return State(revisions=revisions, **found)
    except (KeyError, TypeError, AttributeError) as error:
        raise _unreadable(file, error) from error


def write(file: Path, state: State) -> None:
    """Replaces the state. Whoever reads it sees the old one or this one, also after a power cut."""
    scratch = file.with_name(f".{file.name}.{os.getpid()}")
    with scratch.open("w") as stream:
        json.dump(asdict(state), stream, sort_keys=True, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    scratch.replace(file)
    directory = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _unreadable(file: Path, error: Exception) -> SystemFault:
    return SystemFault(f"{file} is not a gateway's state: {error}", hint="move it away and deploy again")
