"""Each race with its targets."""

from __future__ import annotations

import random
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from benchmarks.measures import Findings, Measurement, Target
from benchmarks.serving import own, pictures, races
from benchmarks.serving.entrants import OURS, Model
from benchmarks.serving.flights import Flights, prepare
from benchmarks.serving.races import Plan, Result, best
from benchmarks.setting import Setting

ECHO = Model("echo", {"x": 2, "y": 1})
_DRAW = random.Random(7)
DIGITS = Model("digits", {"pixels": [float(_DRAW.randint(0, 16)) for _ in range(64)]})
_MS = 1e3


@dataclass
class Bench:
    """One run of the benchmarks: what races share, made once."""

    plan: Plan
    soak_minutes: float
    pictures: Path

    @cached_property
    def flights(self) -> Flights:
        """The flights example, run."""
        self.plan.say("  running examples/flights for its model")
        return prepare(self.plan.scratch, Setting(self.plan.scratch, 1, self.plan.say).drivetrain)

    @cached_property
    def echo(self) -> list[Result]:
        """Every server with the model that has nothing to compute."""
        return races.model_race(self.plan, ECHO, (1, 8, 64))


def echo(bench: Bench) -> Findings:
    """The replica alone against every peer."""
    results = bench.echo
    ours = results[0]
    targets = [
        *(
            _no_slower(ours, results, 1, what, f"echo, c=1: {what} no worse than the fastest peer")
            for what in ("p50", "p99")
        ),
        *(_rate(ours, results, c, 1.5, f"echo, c={c}: 1.5x the fastest peer that answers everything") for c in (8, 64)),
        *(_all_answered("echo", ours, c) for c in (1, 8, 64)),
    ]
    pictures.bars(bench.pictures / "bench-serving-echo.png", "An echo model, one worker", results, (1, 8, 64))
    return Findings(targets, _measured(results, "echo"), _refusals(results))


def gateway(bench: Bench) -> Findings:
    """What the gateway adds to the replica, and what it carries with two replicas."""
    alone, through = bench.echo[0], own.gateway(bench.plan, ECHO)
    targets = [
        *(_added(alone, through, what, limit) for what, limit in (("p50", 0.5), ("p99", 1.5))),
        _rate(through, bench.echo, 64, 1.0, "gateway, 2 replicas, c=64: above the fastest peer without a gateway"),
        *(_all_answered("gateway", through, c) for c in (1, 8, 64)),
    ]
    return Findings(targets, through.measurements("gateway"))


def models(bench: Bench) -> Findings:
    """A scikit-learn and a PyTorch model, batched where the server can."""
    targets: list[Target] = []
    measured: list[Measurement] = []
    notes: list[str] = []
    for model in (bench.flights.model, DIGITS):
        results = races.model_race(bench.plan, model, (1, 64))
        targets.append(
            _rate(results[0], results, 64, 2.0, f"{model.name}, c=64: 2x every peer that answers everything")
        )
        targets.append(_all_answered(model.name, results[0], 64))
        measured += _measured(results, model.name)
        notes += _refusals(results)
        pictures.bars(bench.pictures / f"bench-serving-{model.name}.png", f"The model {model.name}", results, (1, 64))
        if model.name == "flights":
            half = own.half_load(bench.plan, model, results[0].median(64, "rate") or 0.0)
            targets.append(
                _at_most("models", "flights, half of the saturation rate: p99 under 15 ms", half.p99 * _MS, 15.0, "ms")
            )
            notes.append(f"flights at {half.saturation / 2:,.0f} requests/s, half of what saturates it: "
                         f"p50 {half.p50 * _MS:.2f} ms, p99 {half.p99 * _MS:.2f} ms, {half.bad} not 2xx")  # fmt: skip
        notes += own.hops(bench.plan, model, (results[0].median(64, "rate") or 0.0) / 2)
    return Findings(targets, measured, notes)


def batching(bench: Bench) -> Findings:
    """What micro-batches cost where there is nothing to batch."""
    targets: list[Target] = []
    measured: list[Measurement] = []
    for model in (bench.flights.model, DIGITS):
        batched, single = races.with_and_without(bench.plan, model)
        for what, needed in (("p50", 0.95), ("p99", 0.9)):
            value, other = batched.median(1, what), single.median(1, what)
            text = f"{model.name}, c=1: {what} with micro-batches at most {1 / needed:.2f}x that without"
            targets.append(
                Target(
                    "batching",
                    text,
                    value and value * _MS,
                    other and other * _MS,
                    "without",
                    needed,
                    "ms",
                    batched.error,
                )
            )
        measured += [*batched.measurements(f"batching, {model.name}"), *single.measurements(f"batching, {model.name}")]
    return Findings(targets, measured)


def lookup(bench: Bench) -> Findings:
    """Online features from Redis, beside Feast's own call."""
    from benchmarks.serving.lookup import measure

    found = measure()
    if "error" in found:
        return Findings([Target("lookup", "look-up from Redis", None, None, "", error=found["error"])])
    one, text = found["1"], "look-up of 1 entity, 10 features, Redis"
    ours, feast = one["ours"], one["feast"]
    targets = [
        _at_most("lookup", f"{text}: p99 at most 2 ms", ours["p99"] * _MS, 2.0, "ms"),
        *(
            Target(
                "lookup",
                f"{text}: {what} 3x as fast as get_online_features",
                ours[what] * _MS,
                feast[what] * _MS,
                "Feast",
                3.0,
                "ms",
            )
            for what in ("p50", "p99")
        ),
        _at_most("lookup", f"{text}: values that differ from Feast's", 0.0 if found["equal"] else 1.0, 0.0, ""),
    ]
    notes = [
        f"{count} {'entity' if count == '1' else 'entities'}, {name}: p50 {found[count][name]['p50'] * _MS:.3f} ms, "
        f"p99 {found[count][name]['p99'] * _MS:.3f} ms"
        for count in ("1", "100")
        for name in ("ours", "sqlite", "feast")
    ]
    return Findings(targets, notes=notes)


def gpu(bench: Bench) -> Findings:
    """A network of ResNet-50's size on the GPU, through the gateway, images as binary tensors; nothing where there is no GPU."""
    if shutil.which("nvidia-smi") is None:
        return Findings(notes=["no GPU here: not measured"])
    half, hops = own.on_gpu(bench.plan)
    target = _at_most(
        "gpu", "ResNet-50 at the gateway, 8 images a request: p99 under 15 ms", half.p99 * _MS, 15.0, "ms"
    )
    return Findings([target, _at_most("gpu", "gpu: not one answer but 2xx", float(half.bad), 0.0, "")], notes=hops)


def wake(bench: Bench) -> Findings:
    """From no replica to the first answer."""
    found = own.wake(bench.plan, bench.flights)
    target = _at_most(
        "wake", "wake from zero to the first answer, flights: under 2.5 s", statistics.median(found.samples), 2.5, "s"
    )
    notes = [
        f"asleep the process tree holds {found.asleep / 1e6:.0f} MB and uses {found.idle_cpu:.2f} s of CPU a minute; "
        f"awake {found.awake / 1e6:.0f} MB"
    ]
    return Findings([target], [Measurement(OURS, "wake", found.samples)], notes)


def soak(bench: Bench) -> Findings:
    """A long time at 70 % load: memory, errors, latencies."""
    saturation = own.saturation_of(bench.plan, bench.plan.scratch / "saturation", bench.flights)
    minutes = own.soak(bench.plan, bench.flights, bench.soak_minutes, saturation)
    pictures.soak(bench.pictures / "bench-serving-soak.png", minutes)
    third = max(1, len(minutes) // 3)
    early, late = (statistics.median(m.p99 for m in part) for part in (minutes[:third], minutes[-third:]))
    total = sum(round(minute.rate * 60) for minute in minutes)
    targets = [
        _at_most("soak", "soak: no answer that is not 2xx", float(sum(m.bad for m in minutes)), 0.0, ""),
        _at_most(
            "soak",
            "soak: memory grows by at most 5 % an hour",
            own.slope(minutes) / minutes[-1].memory * 100,
            5.0,
            "%",
        ),
        _at_most("soak", "soak: p99 of the last third at most 1.3x that of the first", late / early, 1.3, "x"),
    ]
    notes = [
        f"{len(minutes)} min at {saturation * 0.7:,.0f} requests/s (70 % of {saturation:,.0f}), {total:,} requests"
    ]
    return Findings(targets, notes=notes)


# targets


def _no_slower(ours: Result, results: Sequence[Result], connections: int, what: str, text: str) -> Target:
    value, peer = ours.median(connections, what), best(results, connections, what)
    error = ours.error or ("" if peer else "no peer answered everything")
    return Target(
        "echo", text, value and value * _MS, peer and peer[0] * _MS, peer[1] if peer else "", 1.0, "ms", error
    )


def _rate(ours: Result, results: Sequence[Result], connections: int, needed: float, text: str) -> Target:
    """Written as the time a request takes, since a target is a time or a size that has to be small enough."""
    value, peer = ours.median(connections, "rate"), best(results, connections, "rate")
    error = ours.error or ("" if peer else "no peer answered everything")
    return Target(
        "rate",
        text,
        value and 1e6 / value,
        peer and 1e6 / peer[0],
        peer[1] if peer else "",
        needed,
        " us/request",
        error,
    )


def _added(alone: Result, through: Result, what: str, limit: float) -> Target:
    one, other = alone.median(1, what), through.median(1, what)
    value = None if one is None or other is None else (other - one) * _MS
    return Target("gateway", f"the gateway adds at most {limit} ms to {what} at c=1", value, limit, "limit", 1.0, "ms",
                  alone.error or through.error)  # fmt: skip


def _all_answered(race: str, ours: Result, connections: int) -> Target:
    return Target(race, f"{race}, c={connections}: not one answer but 2xx", float(ours.bad(connections)), 0.0, "limit",
                  1.0, "", ours.error)  # fmt: skip


def _at_most(race: str, text: str, value: float, limit: float, unit: str) -> Target:
    return Target(race, text, value, limit, "limit", 1.0, unit)


def _measured(results: Sequence[Result], race: str) -> list[Measurement]:
    return [entry for result in results for entry in result.measurements(race)]


def _refusals(results: Sequence[Result]) -> list[str]:
    """Who refused requests: the throughput of such a server counts for nothing."""
    return [
        f"{result.name} refused {result.bad(c):,} requests at c={c}; it is left out of the comparison there"
        for result in results
        for c in result.loads
        if result.bad(c)
    ]
