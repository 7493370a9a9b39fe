"""Drivetrain as an entrant: each build a process of its own."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.packaging.scratch import run
from benchmarks.packaging.world import World


@dataclass(frozen=True, slots=True)
class Took:
    """Seconds to build, and to push (`sent` bytes) the image alone, without what is attached to it; the most memory of any one process in
    bytes; the image by digest."""

    build: float
    pushed: float
    sent: int
    memory: int
    digest: str


def prepare(world: World, base: str, store: Path) -> None:
    """Fetches the base into a new store, as buildah is given it too."""
    _call(world, "-", base, store)


def build(world: World, bundle: Path, base: str, store: Path, ref: str = "") -> Took:
    """One process of it; with a reference the image is published."""
    return Took(**json.loads(_call(world, str(bundle), base, store, *([ref] if ref else []))))


def _call(world: World, bundle: str, base: str, store: Path, *more: str) -> str:
    words = [sys.executable, "-m", "benchmarks.packaging.program", bundle, base, str(store), *more]
    return run(words, variables={**world.variables, "PYTHONPATH": ":".join(filter(None, sys.path))})
