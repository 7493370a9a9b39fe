"""Each race with its targets."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from benchmarks.measures import Findings, Measurement, Target
from benchmarks.packaging import ours, world
from benchmarks.packaging.naive import Buildah
from benchmarks.packaging.world import MIB, Registry, World, run
from benchmarks.serving.flights import prepare
from benchmarks.serving.servers import free_port
from benchmarks.setting import OURS, Setting

NAIVE = "Dockerfile"
CASES = ("first build", "code change", "new weights", "new dependency")
_LARGE = 2 << 30
_GB = 1e9


@dataclass
class Bench:
    """One run of the benchmarks: what races share, made once."""

    scratch: Path
    rounds: int
    say: Callable[[str], None]

    @cached_property
    def world(self) -> World:
        """The base, the wheels and the flights model."""
        world.needed()
        self.say("  running examples/flights for its model")
        flights = prepare(self.scratch, Setting(self.scratch, 1, self.say).drivetrain)
        self.say("  making a base and fetching wheels")
        return world.make(self.scratch, flights.bundle, flights.example)


@dataclass
class Samples:
    """What one entrant took, a sample a round for each case: seconds and bytes that came into the registry."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: {case: [] for case in CASES})
    moved: dict[str, list[int]] = field(default_factory=lambda: {case: [] for case in CASES})

    def median(self, case: str) -> float:
        """Of the seconds."""
        return statistics.median(self.seconds[case])

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


def publish(bench: Bench) -> Findings:
    """The four cases, ours and the Dockerfile's in turns, into one registry."""
    mine, naive = Samples(), Samples()
    pushes: list[float] = []
    raw: list[float] = []
    attached: list[int] = []
    for number in range(bench.rounds):
        bench.say(f"  round {number + 1} of {bench.rounds}")
        with world.registry(bench.world, bench.scratch / f"round{number}") as registry:
            _round(bench, registry, number, mine, naive, pushes, attached)
            raw.append(_raw(bench, registry, number))
    total = Target("publish", "all four together: 40 % less time", mine.together, naive.together, NAIVE, 1 / 0.6)
    change = statistics.median(mine.seconds["code change"])
    moved = statistics.median(mine.moved["code change"]) / 1e6
    targets = [
        total,
        Target("publish", "code change, built and published: under 2 s", change, 2.0, "limit"),
        Target("publish", "code change: under 1 MB moved", moved, 1.0, "limit", unit=" MB"),
        Target(
            "publish", "new weights: push within 1.3x of a raw upload of them", statistics.median(pushes),
            1.3 * statistics.median(raw), "1.3x curl",
        ),
    ]  # fmt: skip
    notes = [
        f"{case}: {mine.median(case):.1f} s and {statistics.median(mine.moved[case]) / 1e6:,.1f} MB, "
        f"the Dockerfile {naive.median(case):.1f} s and {statistics.median(naive.moved[case]) / 1e6:,.1f} MB"
        for case in CASES
    ]
    notes += [
        f"weights of {world.WEIGHTS // MIB} MiB; a raw upload of them takes {statistics.median(raw):.2f} s",
        f"ours has SBOM and provenance attached: {statistics.median(attached):,.0f} bytes of the code change are theirs",
    ]
    measured = [*mine.measurements(OURS), *naive.measurements(NAIVE), Measurement("curl", "weights, raw", tuple(raw))]
    return Findings(targets, measured, notes)


def _round(
    bench: Bench,
    registry: Registry,
    number: int,
    mine: Samples,
    naive: Samples,
    pushes: list[float],
    attached: list[int],
) -> None:
    place, base = bench.scratch / f"round{number}", f"{registry.host}/base:1"
    bundle = world.model(bench.world, place / "bundle", number)
    store, buildah = place / "store", Buildah(bench.world, place / "buildah")
    ours.prepare(bench.world, base, store)
    buildah.pull(base)
    changes: Mapping[str, Callable[[], object]] = {
        "first build": lambda: None,
        "code change": lambda: world.change_code(bundle, number),
        "new weights": lambda: world.weights(bundle, 1000 + number),
        "new dependency": lambda: world.add_dependency(bundle),
    }
    for step, (case, change) in enumerate(changes.items()):
        change()
        # The Dockerfile lies in the bundle: written before either builds, it is nobody's change.
        buildah.describe(bundle, base)
        os.sync()
        took = _timed(
            registry,
            mine,
            case,
            lambda: ours.build(bench.world, bundle, base, store, f"{registry.host}/ours:{step}"),  # noqa: B023
        )
        if case == "new weights":
            pushes.append(took.pushed)
        if case == "code change":
            attached.append(mine.moved[case][-1] - took.sent)
        os.sync()
        _timed(registry, naive, case, lambda: buildah.build(bundle, base, f"{registry.host}/naive:{step}"))  # noqa: B023
    world.clear(bench.world, buildah.home)
    for left in (store, bundle):
        shutil.rmtree(left)


def _timed(registry: Registry, samples: Samples, case: str, build: Callable[[], ours.Took]) -> ours.Took:
    before, began = registry.bytes(), time.monotonic()
    took = build()
    samples.seconds[case].append(time.monotonic() - began)
    samples.moved[case].append(registry.bytes() - before)
    return took


def _raw(bench: Bench, registry: Registry, number: int) -> float:
    place = bench.scratch / f"raw{number}"
    (place / "model").mkdir(parents=True)
    path = world.weights(place, 2000 + number)
    os.sync()
    taken = world.raw_upload(path, registry)
    shutil.rmtree(place)
    return taken


def large(bench: Bench) -> Findings:
    """A weights file of 2 GB: memory of the builder, and how fast it goes beside tools that only read or copy."""
    place = bench.scratch / "large"
    bundle = world.model(bench.world, place / "bundle", 1, _LARGE)
    path = bundle / "model" / "weights.bin"
    base = str(bench.world.base)
    os.sync()
    took = [ours.build(bench.world, bundle, base, place / f"store{number}") for number in (0, 1)]
    shutil.rmtree(place / "store0")
    copied = _seconds(["cp", str(path), str(place / "copy")])
    (place / "copy").unlink()
    digested = _seconds(["sha256sum", str(path)])
    # The first has the packages' layers to write as well; the second is built in a store that has them.
    again = _rebuilt(bench, bundle, base, place / "store1")
    shutil.rmtree(place)
    highest = max(entry.memory for entry in [*took, again]) / 1e6
    targets = [
        Target("large", "weights of 2 GB: the builder's memory under 200 MB", highest, 200.0, "limit", unit=" MB")
    ]
    notes = [
        f"throughput for weights of 2 GB: ours {_LARGE / again.build / _GB:.2f} GB/s (read, written, digested), "
        f"cp {_LARGE / copied / _GB:.2f} GB/s, sha256sum {_LARGE / digested / _GB:.2f} GB/s"
    ]
    measured = [
        Measurement(OURS, "2 GB, layer written", (again.build,)),
        Measurement("cp", "2 GB", (copied,)),
        Measurement("sha256sum", "2 GB", (digested,)),
    ]
    return Findings(targets, measured, notes)


def _rebuilt(bench: Bench, bundle: Path, base: str, store: Path) -> ours.Took:
    world.weights(bundle, 2, _LARGE)
    os.sync()
    return ours.build(bench.world, bundle, base, store)


def _seconds(words: Sequence[str]) -> float:
    began = time.monotonic()
    run(words)
    return time.monotonic() - began


def start(bench: Bench) -> Findings:
    """From the image in a registry to the first answer: fetched by podman, started, asked."""
    samples: dict[tuple[str, str], list[float]] = {}
    with world.registry(bench.world, bench.scratch / "start") as registry:
        base, place = f"{registry.host}/base:1", bench.scratch / "start"
        bundle = world.model(bench.world, place / "bundle", 5, 16 * MIB)
        buildah = Buildah(bench.world, place / "buildah")
        buildah.pull(base)
        buildah.describe(bundle, base)
        refs = {OURS: f"{registry.host}/ours:1", NAIVE: f"{registry.host}/naive:1"}
        ours.build(bench.world, bundle, base, place / "store", refs[OURS])
        buildah.build(bundle, base, refs[NAIVE])
        world.clear(bench.world, buildah.home)
        for number in range(bench.rounds):
            bench.say(f"  round {number + 1} of {bench.rounds}")
            for name, ref in refs.items():
                pulled, first = _start(bench, place / f"podman{number}{name}", base, ref)
                samples.setdefault((name, "fetched, base there"), []).append(pulled)
                samples.setdefault((name, "start to first answer"), []).append(first)
    measured = [Measurement(name, what, tuple(taken)) for (name, what), taken in samples.items()]
    return Findings([], measured, [f"{entry.name}, {entry.quantity}: {entry.median:.2f} s" for entry in measured])


def _start(bench: Bench, home: Path, base: str, ref: str) -> tuple[float, float]:
    """Seconds to fetch the image where the base is already, and from `podman run` to the first right answer."""
    podman = ["podman", *world.storage(home)]
    variables, port, name = (
        bench.world.containers,
        free_port(),
        f"{ref.rpartition('/')[2].partition(':')[0]}-{uuid.uuid4().hex[:8]}",
    )
    run([*podman, "pull", "--quiet", "--tls-verify=false", base], variables=variables)
    os.sync()
    began = time.monotonic()
    run([*podman, "pull", "--quiet", "--tls-verify=false", ref], variables=variables)
    pulled, began = time.monotonic() - began, time.monotonic()
    options = ["--detach", "--name", name, "--network", "host", "--env", f"PORT={port}"]
    run([*podman, "run", *options, ref], variables=variables)
    try:
        _first_answer(f"http://127.0.0.1:{port}/predictions", bench.world.example, [*podman, "logs", name], variables)
        first = time.monotonic() - began
    finally:
        world.clear(bench.world, home)
    return pulled, first


def _first_answer(url: str, inputs: Mapping[str, object], logs: Sequence[str], variables: Mapping[str, str]) -> None:
    data = json.dumps({"input": inputs}).encode()
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                if json.load(answer).get("status") == "succeeded":
                    return
        except (OSError, urllib.error.URLError, ValueError):
            pass
        time.sleep(0.02)
    raise RuntimeError(f"no answer in two minutes from {logs[-1]}: {run(logs, variables=variables)[-500:]}")
