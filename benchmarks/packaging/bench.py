"""What the races share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from benchmarks.packaging import world
from benchmarks.packaging.world import World
from benchmarks.serving.flights import prepare
from benchmarks.setting import Setting

NAIVE = "Dockerfile"


@dataclass
class Bench:
    """One run of the benchmarks."""

    scratch: Path
    rounds: int
    pictures: Path
    say: Callable[[str], None]

    @cached_property
    def world(self) -> World:
        """The base, the wheels and the flights model, made once."""
        world.needed(self.scratch)
        self.say("  running examples/flights for its model")
        flights = prepare(self.scratch, Setting(self.scratch, 1, self.say).drivetrain)
        self.say("  making a base and fetching wheels")
        return world.make(self.scratch, flights.bundle, flights.example)
