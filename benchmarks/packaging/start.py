"""From the image in a registry to the first answer: fetched by podman, started, asked."""

from __future__ import annotations

import json
import os
import time
import urllib.request
from collections.abc import Callable, Mapping

from benchmarks.measures import Findings, Measurement
from benchmarks.packaging import ours, world
from benchmarks.packaging.bench import NAIVE, Bench
from benchmarks.packaging.containers import Storage, storage
from benchmarks.packaging.naive import Buildah
from benchmarks.packaging.registries import registry
from benchmarks.packaging.world import MIB
from benchmarks.serving.servers import free_port
from benchmarks.setting import OURS

_PATIENCE = 60.0
"""Seconds for the first answer."""


def race(bench: Bench) -> Findings:
    """Each round both images, in a storage that has the base and nothing else."""
    samples: dict[tuple[str, str], list[float]] = {}
    place = bench.scratch / "start"
    with registry(bench.world, place) as running:
        refs = {OURS: f"{running.host}/ours:1", NAIVE: f"{running.host}/naive:1"}
        bundle = world.model(bench.world, place / "bundle", 5, 16 * MIB)
        with storage(bench.scratch) as kept:
            buildah = Buildah(bench.world, kept)
            buildah.pull(running.base)
            buildah.describe(bundle, running.base)
            ours.build(bench.world, bundle, running.base, place / "store", refs[OURS])
            buildah.build(bundle, running.base, refs[NAIVE])
        for number in range(bench.rounds):
            for name, ref in refs.items():
                with storage(bench.scratch) as kept:
                    pulled, first = _start(kept, running.base, ref, bench.world.example)
                bench.say(
                    f"  round {number + 1} of {bench.rounds}, {name}: fetched in {pulled:.2f} s, first answer after {first:.2f} s"
                )
                samples.setdefault((name, "fetched, base there"), []).append(pulled)
                samples.setdefault((name, "start to first answer"), []).append(first)
    measured = [Measurement(name, what, tuple(taken)) for (name, what), taken in samples.items()]
    return Findings([], measured, [f"{entry.name}, {entry.quantity}: {entry.median:.2f} s" for entry in measured])


def _start(kept: Storage, base: str, ref: str, inputs: Mapping[str, object]) -> tuple[float, float]:
    """Seconds to fetch the image where the base is already, and from `podman run` to the first right answer."""
    kept.podman("pull", "--quiet", "--tls-verify=false", base)
    os.sync()
    began = time.monotonic()
    kept.podman("pull", "--quiet", "--tls-verify=false", ref)
    pulled = time.monotonic() - began
    os.sync()
    port, began = free_port(), time.monotonic()
    container = kept.podman("run", "--detach", "--network", "host", "--env", f"PORT={port}", ref).strip()
    _first_answer(f"http://127.0.0.1:{port}/predictions", inputs, lambda: kept.logs(container))
    return pulled, time.monotonic() - began


def _first_answer(url: str, inputs: Mapping[str, object], logs: Callable[[], str]) -> None:
    data = json.dumps({"input": inputs}).encode()
    # This machine is asked, whatever proxies there are for others.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
        try:
            with opener.open(request, timeout=30) as answer:
                if json.load(answer).get("status") == "succeeded":
                    return
        except (OSError, ValueError):
            pass
        time.sleep(0.02)
    raise RuntimeError(f"no answer in {_PATIENCE:.0f} seconds; the container says: {logs()[-500:]}")
