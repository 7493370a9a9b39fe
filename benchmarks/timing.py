"""Wall times of whole processes, taken in turns so that a noisy machine disturbs every entrant alike."""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.measures import Measurement

TIMEOUT = 300.0
"""Seconds after which a command counts as failed: the slowest peer needs 20 to 60."""


@dataclass(frozen=True, slots=True)
class Entrant:
    """A command that is timed from its start to its exit."""

    name: str
    quantity: str
    command: Sequence[str]
    directory: Path
    variables: Mapping[str, str] = field(default_factory=dict)
    home: Path | None = None
    """Its home directory; None: `home` in its working directory."""
    error: str = ""
    """Why it cannot start, if its environment could not be made."""


class CommandFailed(Exception):
    """A timed command did not end with 0; the message holds the end of what it wrote."""


def environment(home: Path, variables: Mapping[str, str]) -> dict[str, str]:
    """The variables a benchmarked process sees: a home of its own, no telemetry, and nothing of this process' Python."""
    kept = {name: os.environ[name] for name in ("LANG", "LC_ALL", "TZ", "TMPDIR") if name in os.environ}
    return {
        **kept,
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(home),
        "USER": "bench",
        "DO_NOT_TRACK": "1",
        "COLUMNS": "120",
        **variables,
    }


def run_once(entrant: Entrant) -> float:
    """Seconds from start to exit. Raises `CommandFailed`."""
    home = entrant.home or entrant.directory / "home"
    home.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    # A file and not a pipe: what a command leaves running may hold a pipe open for ever.
    with tempfile.TemporaryFile() as said:
        try:
            done = subprocess.run(
                entrant.command,
                cwd=entrant.directory,
                env=environment(home, entrant.variables),
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                timeout=TIMEOUT,
            )
        except OSError as error:
            raise CommandFailed(f"{shlex.join(entrant.command)}: {error}") from error
        except subprocess.TimeoutExpired as error:
            raise CommandFailed(f"{shlex.join(entrant.command)}: not done after {TIMEOUT:.0f} s") from error
        seconds = time.perf_counter() - started
        if done.returncode:
            said.seek(0)
            raise CommandFailed(f"{shlex.join(entrant.command)} ended with {done.returncode}: {_end_of(said.read())}")
    return seconds


def _end_of(output: bytes) -> str:
    lines = [line.strip() for line in output.decode(errors="replace").splitlines() if line.strip()]
    return " | ".join(lines[-3:])[-500:]


def in_turns(entrants: Sequence[Entrant], rounds: int, warm_ups: int = 1) -> list[Measurement]:
    """A measurement an entrant, in their order: `rounds` samples each after `warm_ups` that do not count.

    Round after round every entrant runs once. One that fails is measured no further and carries its error.
    """
    samples: dict[int, list[float]] = {number: [] for number in range(len(entrants))}
    errors = {number: entrant.error for number, entrant in enumerate(entrants) if entrant.error}
    for turn in range(warm_ups + rounds):
        for number, entrant in enumerate(entrants):
            if number in errors:
                continue
            try:
                seconds = run_once(entrant)
            except CommandFailed as error:
                errors[number] = str(error)
                continue
            if turn >= warm_ups:
                samples[number].append(seconds)
    return [
        Measurement(
            entrant.name,
            entrant.quantity,
            () if number in errors else tuple(samples[number]),
            error=errors.get(number, ""),
        )
        for number, entrant in enumerate(entrants)
    ]
