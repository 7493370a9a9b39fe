"""A model's way to a registry: built and published for the first time, and after each kind of change."""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.measures import Findings, Measurement, Target
from benchmarks.packaging import ours, pictures, world
from benchmarks.packaging.bench import NAIVE, Bench
from benchmarks.packaging.containers import storage
from benchmarks.packaging.naive import Buildah
from benchmarks.packaging.registries import Registry, raw_upload, registry
from benchmarks.packaging.scratch import run
from benchmarks.packaging.world import MIB
from benchmarks.setting import OURS

CASES = ("first build", "code change", "new weights", "new dependency")


@dataclass
class Samples:
    """What one entrant took, a sample a round for each case: seconds and bytes that came into the registry."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: {case: [] for case in CASES})
    moved: dict[str, list[int]] = field(default_factory=lambda: {case: [] for case in CASES})

    def median(self, case: str) -> float:
        """Of the seconds."""
        return statistics.median(self.seconds[case])

    def megabytes(self, case: str) -> float:
        """The median of what was moved."""
        return statistics.median(self.moved[case]) / 1e6

    @property
    def together(self) -> float:
        """The medians of all four cases, added."""
        return sum(self.median(case) for case in CASES)

    def measurements(self, name: str) -> list[Measurement]:
        """As the report shows them."""
        return [
            entry
            for case in CASES
            for entry in (
                Measurement(name, case, tuple(self.seconds[case])),
                Measurement(name, f"{case}, moved", tuple(size / 1e6 for size in self.moved[case]), " MB"),
            )
        ]


@dataclass
class Race:
    """All samples. `pushes` are the seconds that ours pushes new weights, `raw` those of curl for as many bytes; `attached` are bytes of
    SBOM and provenance."""

    mine: Samples = field(default_factory=Samples)
    naive: Samples = field(default_factory=Samples)
    pushes: list[float] = field(default_factory=list)
    raw: list[float] = field(default_factory=list)
    attached: list[int] = field(default_factory=list)

    def findings(self, programs: str = "") -> Findings:
        """The targets, and what the reader has to know of them; `programs` says with what it was measured."""
        mine, naive, raw = self.mine, self.naive, statistics.median(self.raw)
        targets = [
            Target("publish", "all four together: 40 % less time", mine.together, naive.together, NAIVE, 1 / 0.6),
            Target("publish", "code change, built and published: under 2 s", mine.median("code change"), 2.0, "limit"),
            Target(
                "publish", "code change: under 1 MB moved", mine.megabytes("code change"), 1.0, "limit", unit=" MB"
            ),
            Target(
                "publish", "new weights: push within 1.3x of a raw upload of them", statistics.median(self.pushes),
                1.3 * raw, "1.3x curl",
            ),
        ]  # fmt: skip
        notes = [
            f"{case}: {mine.median(case):.1f} s and {mine.megabytes(case):,.1f} MB, "
            f"the Dockerfile {naive.median(case):.1f} s and {naive.megabytes(case):,.1f} MB"
            for case in CASES
        ]
        notes += [
            f"all four together: {mine.together:.1f} s, the Dockerfile {naive.together:.1f} s: "
            f"{1 - mine.together / naive.together:.0%} less",
            f"weights of {world.WEIGHTS // MIB} MiB; a raw upload of them takes {raw:.2f} s",
            f"ours has SBOM and provenance attached: {statistics.median(self.attached):,.0f} bytes of the code change are theirs",
            "the Dockerfile's layers are compressed, ours are not; the registry is on this machine, where bytes cost next to nothing",
            *([programs] if programs else []),
        ]
        measured = [
            *mine.measurements(OURS),
            *naive.measurements(NAIVE),
            Measurement(OURS, "new weights, the push alone", tuple(self.pushes)),
            Measurement("curl", "new weights, raw", tuple(self.raw)),
        ]
        return Findings(targets, measured, notes)


@dataclass(frozen=True, slots=True)
class Round:
    """One model's way: both entrants, each with what it keeps from case to case."""

    bench: Bench
    found: Race
    registry: Registry
    bundle: Path
    store: Path
    buildah: Buildah

    def case(self, case: str, ours_first: bool) -> None:
        """One case, for both in turn."""
        # The Dockerfile lies in the bundle: written before either builds, it is nobody's change.
        self.buildah.describe(self.bundle, self.registry.base)
        turns = (self._ours, self._naive) if ours_first else (self._naive, self._ours)
        for turn in turns:
            turn(case)
        mine, naive = (each.seconds[case][-1] for each in (self.found.mine, self.found.naive))
        self.bench.say(f"    {case}: {mine:.1f} s, the Dockerfile {naive:.1f} s")

    def _ours(self, case: str) -> None:
        with self._timed(self.found.mine, case):
            took = ours.build(self.bench.world, self.bundle, self.registry.base, self.store, self._ref("ours", case))
        if case == "new weights":
            self.found.pushes.append(took.pushed)
        if case == "code change":
            self.found.attached.append(self.found.mine.moved[case][-1] - took.sent)

    def _naive(self, case: str) -> None:
        with self._timed(self.found.naive, case):
            self.buildah.build(self.bundle, self.registry.base, self._ref("naive", case))

    def _ref(self, name: str, case: str) -> str:
        return f"{self.registry.host}/{name}:{case.replace(' ', '-')}"

    @contextlib.contextmanager
    def _timed(self, samples: Samples, case: str) -> Iterator[None]:
        # What others have written is on the disk, and not on its way there.
        os.sync()
        before, began = self.registry.bytes(), time.monotonic()
        yield
        samples.seconds[case].append(time.monotonic() - began)
        samples.moved[case].append(self.registry.bytes() - before)


def race(bench: Bench) -> Findings:
    """The four cases, ours and the Dockerfile's in turns, into one registry."""
    found = Race()
    for number in range(bench.rounds):
        bench.say(f"  round {number + 1} of {bench.rounds}")
        place = bench.scratch / f"round{number}"
        with registry(bench.world, place) as running, storage(bench.scratch) as kept:
            bundle = world.model(bench.world, place / "bundle", number)
            entry = Round(bench, found, running, bundle, place / "store", Buildah(bench.world, kept))
            ours.prepare(bench.world, running.base, entry.store)
            entry.buildah.pull(running.base)
            _cases(entry, number)
        shutil.rmtree(place)
    findings = found.findings(_versions())
    pictures.published(bench.pictures / "bench-packaging.png", findings.measurements, CASES)
    return findings


def _cases(entry: Round, number: int) -> None:
    changes: Mapping[str, Callable[[], object]] = {
        "first build": lambda: None,
        "code change": lambda: world.change_code(entry.bundle, number),
        "new weights": lambda: world.weights(entry.bundle, 1000 + number),
        "new dependency": lambda: world.add_dependency(entry.bundle),
    }
    for case in CASES:
        changes[case]()
        entry.case(case, ours_first=number % 2 == 0)
        if case == "new weights":
            weights = world.weights(entry.bundle.parent / "raw", 2000 + number)
            os.sync()
            entry.found.raw.append(raw_upload(weights, entry.registry))


def _versions() -> str:
    return "; ".join(
        run([name, "--version"]).strip().splitlines()[0] for name in ("buildah", "docker-registry", "curl")
    )
