"""Races in which ours is measured against limits: the gateway's cost, waking from nothing, half load, a long time under load."""

from __future__ import annotations

import json
import random
import re
import statistics
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.serving import load
from benchmarks.serving.entrants import OURS, Model, bundle, cog_input, replica
from benchmarks.serving.flights import Flights
from benchmarks.serving.races import Plan, Result, measure
from benchmarks.serving.servers import Address, Running, ask
from benchmarks.serving.services import service
from drivetrain.backends.serving.gateway.settings import Scaling

_MINUTE = 60.0
_HOPS = {
    "gateway": r"^drivetrain_gateway_added_seconds_{kind}\{{",
    "feature look-up": r"^drivetrain_gateway_lookup_seconds_{kind}",
    **{
        hop.replace("_", " "): rf'^drivetrain_replica_hop_seconds_{{kind}}\{{{{.*hop="{hop}"'
        for hop in ("queue", "decode", "batch_wait", "compute", "encode")
    },
}
"""Hop -> how its sum and its count begin on the page of metrics."""


def gateway(plan: Plan, model: Model) -> Result:
    """Two revisions with a replica each behind the gateway, traffic split evenly, everything captured."""
    bundles = [bundle(model, plan.scratch / f"split-{number}") for number in (1, 2)]
    return measure(
        plan, f"{OURS} gateway",
        lambda: service(plan.scratch / "gateway", bundles, cog_input(model), Scaling(), plan.files), (1, 8, 64),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Half:
    """Latencies at half of the rate at which the server saturates: seconds."""

    saturation: float
    p50: float
    p99: float
    bad: int


def half_load(plan: Plan, model: Model, saturation: float, seconds: float = 8.0) -> Half:
    """Requests at random instants, half as many as the replica can answer, counted from when they were due; medians over the rounds."""
    halves = []
    with replica(model, plan.files, plan.scratch) as server:
        load.open_loop(server.address, saturation / 2, 2.0)
        for number in range(plan.rounds):
            samples = load.open_loop(server.address, saturation / 2, seconds, seed=number)
            latencies = sorted(latency for _, latency, _ in samples)
            bad = sum(1 for _, _, status in samples if status != 200)
            halves.append((quantile(latencies, 0.5), quantile(latencies, 0.99), bad))
    return Half(
        saturation, statistics.median(p50 for p50, _, _ in halves), statistics.median(p99 for _, p99, _ in halves),
        sum(bad for _, _, bad in halves),
    )  # fmt: skip


def quantile(ordered: Sequence[float], share: float) -> float:
    """The value below which that share of the ordered values lies."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def hops(plan: Plan, model: Model, rate: float, seconds: float = 10.0) -> list[str]:
    """Where the time of a request goes on its way through gateway and replica: a line a hop, means in milliseconds."""
    with service(
        plan.scratch / f"hops-{model.name}", [bundle(model, plan.scratch)], cog_input(model), Scaling(), plan.files
    ) as server:
        load.open_loop(server.address, rate, seconds)
        return _hops(server, f"{model.name} at {rate:,.0f} requests/s")


def _hops(server: Running, text: str) -> list[str]:
    place = urlsplit(server.address.url)
    with urllib.request.urlopen(f"http://{place.netloc}/metrics", timeout=10) as answer:
        exposed = answer.read().decode()
    found = []
    for name, pattern in _HOPS.items():
        sums, counts = (
            sum(
                float(value)
                for value in re.findall(pattern.format(kind=kind) + r".*? ([\d.e+-]+)$", exposed, re.MULTILINE)
            )
            for kind in ("sum", "count")
        )
        if counts:
            found.append(f"{name} {sums / counts * 1e3:.3f} ms")
    return [f"{text}, mean time in each hop: {', '.join(found)}"]


def on_gpu(plan: Plan, images: int = 8, rate: float = 60.0) -> tuple[Half, list[str]]:
    """ResNet-50 behind the gateway, asked with binary tensors of so many images at random instants."""
    head = json.dumps({"inputs": [{"name": "images", "shape": [images, 224, 224, 3], "datatype": "UINT8",
                                   "parameters": {"binary_data_size": images * 224 * 224 * 3}}]}).encode()  # fmt: skip
    body = head + random.Random(7).randbytes(images * 224 * 224 * 3)
    model = Model("resnet50", {})
    with service(plan.scratch / "gpu", [bundle(model, plan.scratch)], None, Scaling(), plan.files) as server:
        place = urlsplit(server.address.url)
        headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
        asked = Running(Address(f"http://{place.netloc}/v2/models/model/infer", body, headers), server.pid)
        load.open_loop(asked.address, rate, 5.0)
        samples = load.open_loop(asked.address, rate, 20.0)
        lines = _hops(asked, f"ResNet-50, {images} images a request, {rate:g} requests/s")
    latencies = sorted(latency for _, latency, _ in samples)
    bad = sum(1 for _, _, status in samples if status != 200)
    return Half(rate, quantile(latencies, 0.5), quantile(latencies, 0.99), bad), lines


@dataclass(frozen=True, slots=True)
class Wake:
    """Seconds from the request that found no replica to its answer; what the sleeping service holds (bytes) and uses (CPU seconds a
    minute); what it holds awake."""

    samples: tuple[float, ...]
    asleep: int
    awake: int
    idle_cpu: float


def wake(plan: Plan, flights: Flights) -> Wake:
    """The flights service, asleep and woken, `rounds` times."""
    scaling = Scaling(min=0, max=1, window=6.0, grace=1.0)
    with service(plan.scratch / "wake", [flights.bundle], flights.example, scaling, plan.files) as server:
        awake = server.memory()
        samples = []
        for _ in range(plan.rounds):
            _until_asleep(server)
            began = time.perf_counter()
            status, answer = ask(server.address)
            if status != 200:
                raise RuntimeError(f"woken, it answered {status}: {answer[:200]!r}")
            samples.append(time.perf_counter() - began)
        _until_asleep(server)
        before, began = server.cpu(), time.perf_counter()
        time.sleep(10)
        used = (server.cpu() - before) / (time.perf_counter() - began) * _MINUTE
        return Wake(tuple(samples), server.memory(), awake, used)


def _until_asleep(server: Running, within: float = 60.0) -> None:
    deadline = time.monotonic() + within
    while len(server.processes) > 1:
        if time.monotonic() > deadline:
            raise RuntimeError("the service does not fall asleep")
        time.sleep(0.2)


@dataclass(frozen=True, slots=True)
class Minute:
    """One minute of the soak: memory in bytes at its end, latencies in seconds."""

    rate: float
    p50: float
    p99: float
    bad: int
    memory: int


def soak(plan: Plan, flights: Flights, minutes: float, saturation: float) -> list[Minute]:
    """The flights service behind its gateway at 70 % of the rate at which it saturates."""
    found = []
    with service(plan.scratch / "soak", [flights.bundle], flights.example, Scaling(), plan.files) as server:
        load.open_loop(server.address, saturation * 0.7, 5.0)
        for number in range(max(1, round(minutes))):
            length = min(minutes, 1.0) * _MINUTE
            samples = load.open_loop(server.address, saturation * 0.7, length, seed=number)
            latencies = sorted(latency for _, latency, _ in samples)
            bad = sum(1 for _, _, status in samples if status != 200)
            minute = Minute(
                len(samples) / length, quantile(latencies, 0.5), quantile(latencies, 0.99), bad, server.resident()
            )
            found.append(minute)
            plan.say(
                f"  minute {number + 1}: {minute.rate:,.0f} requests/s, p99 {minute.p99 * 1e3:.2f} ms, "
                f"{minute.memory / 1e6:,.0f} MB, {bad} not 2xx"
            )
    return found


def slope(minutes: Sequence[Minute], warm: int = 3) -> float:
    """Growth of the memory in bytes an hour, by least squares over the minutes after the first `warm`."""
    values = [minute.memory for minute in minutes[warm:]]
    if len(values) < 3:
        return 0.0
    return statistics.linear_regression(range(len(values)), values).slope * _MINUTE


def saturation_of(plan: Plan, place: Path, flights: Flights) -> float:
    """Requests a second that the flights service answers at most, through its gateway."""
    with service(place, [flights.bundle], flights.example, Scaling(), plan.files) as server:
        load.closed(server.address, 64, 1)
        return load.closed(server.address, 64, plan.seconds).rate
