"""Weights of 2 GB: the builder's memory, and how fast it goes beside tools that only read or copy."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass, field

from benchmarks.measures import Findings, Measurement, Target
from benchmarks.packaging import ours, world
from benchmarks.packaging.bench import Bench
from benchmarks.packaging.registries import registry
from benchmarks.packaging.scratch import run
from benchmarks.setting import OURS

_SIZE = 2 << 30
_GB = 1e9


@dataclass(frozen=True, slots=True)
class Samples:
    """Seconds for the same 2 GB, a sample a round."""

    built: list[float] = field(default_factory=list)
    copied: list[float] = field(default_factory=list)
    digested: list[float] = field(default_factory=list)


def race(bench: Bench) -> Findings:
    """The first build writes the packages' layers as well, and is pushed: it counts for memory alone. Each further one has new weights."""
    place, samples = bench.scratch / "large", Samples()
    bundle, store = world.model(bench.world, place / "bundle", 0, _SIZE), place / "store"
    with registry(bench.world, place) as running:
        bench.say("  built and pushed")
        took = [ours.build(bench.world, bundle, running.base, store, f"{running.host}/large:1")]
        for number in range(bench.rounds):
            bench.say(f"  round {number + 1} of {bench.rounds}")
            path = world.weights(bundle, number + 1, _SIZE)
            os.sync()
            took.append(ours.build(bench.world, bundle, running.base, store))
            samples.built.append(took[-1].build)
            os.sync()
            samples.copied.append(_seconds("cp", "--reflink=never", str(path), str(place / "copy")))
            (place / "copy").unlink()
            samples.digested.append(_seconds("sha256sum", str(path)))
    shutil.rmtree(place)
    return _findings(max(entry.memory for entry in took) / 1e6, samples)


def _findings(memory: float, samples: Samples) -> Findings:
    target = Target("large", "weights of 2 GB: the builder's memory under 200 MB", memory, 200.0, "limit", unit=" MB")
    measured = [
        Measurement(OURS, "2 GB, image built", tuple(samples.built)),
        Measurement("cp", "2 GB", tuple(samples.copied)),
        Measurement("sha256sum", "2 GB", tuple(samples.digested)),
        Measurement(OURS, "most memory of a process", (memory,), " MB"),
    ]
    fast = {entry.name: _SIZE / (entry.median or 1.0) / _GB for entry in measured[:3]}
    told = f"ours {fast[OURS]:.2f} GB/s (read, digested and written), cp {fast['cp']:.2f} GB/s, sha256sum {fast['sha256sum']:.2f} GB/s"
    return Findings([target], measured, [f"throughput for weights of 2 GB: {told}"])


def _seconds(*words: str) -> float:
    began = time.monotonic()
    run(words)
    return time.monotonic() - began
