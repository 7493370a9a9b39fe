"""The races: what each server does with the same model under the same load, one after the other."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.environments import InstallFailed, Peer
from benchmarks.measures import Measurement
from benchmarks.serving import load
from benchmarks.serving.entrants import OURS, PEERS, Model, peer_server, replica
from benchmarks.serving.load import Load, LoadFailed
from benchmarks.serving.servers import NotUp, Running

Start = Callable[[], AbstractContextManager[Running]]


@dataclass(frozen=True, slots=True)
class Plan:
    """How a race is run: `rounds` samples of `seconds` each at every number of `connections`."""

    scratch: Path
    files: Path
    """Where the models lie."""
    rounds: int
    seconds: float
    say: Callable[[str], None]


@dataclass(slots=True)
class Result:
    """What one server did: its samples at each number of connections, or why it could not be measured."""

    name: str
    loads: dict[int, list[Load]] = field(default_factory=dict)
    error: str = ""

    def median(self, connections: int, what: str) -> float | None:
        """The median over the rounds of `rate`, `p50` or `p99`."""
        found = self.loads.get(connections)
        return statistics.median(getattr(entry, what) for entry in found) if found else None

    def bad(self, connections: int) -> int:
        """Answers that were not 2xx, over all rounds."""
        return sum(entry.bad for entry in self.loads.get(connections, []))

    def answers_everything(self, connections: int) -> bool:
        """Whether it was measured at that number of connections and not one answer was refused."""
        return bool(self.loads.get(connections)) and self.bad(connections) == 0

    def measurements(self, race: str) -> list[Measurement]:
        """Every sample, as the report shows it."""
        if self.error:
            return [Measurement(self.name, race, error=self.error)]
        return [
            Measurement(
                self.name, f"{race}, c={connections}, {label}", tuple(getattr(e, what) * scale for e in loads), unit
            )
            for connections, loads in sorted(self.loads.items())
            for what, label, unit, scale in (
                ("rate", "requests/s", "/s", 1.0),
                ("p50", "p50", "ms", 1e3),
                ("p99", "p99", "ms", 1e3),
            )
        ]


def model_race(plan: Plan, model: Model, connections: Sequence[int], peers: Sequence[Peer] = PEERS) -> list[Result]:
    """Ours first, then each peer, with the model: one server at a time has the machine for itself."""
    found = [measure(plan, OURS, lambda: replica(model, plan.files, plan.scratch), connections)]
    for peer in peers:
        found.append(measure(plan, peer.name, _start(peer, model, plan), connections))
    return found


def _start(peer: Peer, model: Model, plan: Plan) -> Start:
    return lambda: peer_server(peer, model, plan.files, plan.scratch)


def measure(plan: Plan, name: str, start: Start, connections: Sequence[int]) -> Result:
    """One server under each load; a warm-up of a second before each does not count."""
    result = Result(name)
    try:
        with start() as server:
            for count in connections:
                load.closed(server.address, count, 1)
                result.loads[count] = [load.closed(server.address, count, plan.seconds) for _ in range(plan.rounds)]
                plan.say(f"  {name:<12} {told(result, count)}")
    except (NotUp, InstallFailed, LoadFailed, OSError) as error:
        result.error = f"{type(error).__name__}: {error}"
        plan.say(f"  {name:<12} FAILED {result.error}")
    return result


def with_and_without(plan: Plan, model: Model) -> tuple[Result, Result]:
    """Our replica with micro-batches and without, one connection each: both are up, and are asked in turns."""
    found = Result("with"), Result("without")
    try:
        with (
            replica(model, plan.files, plan.scratch) as batching,
            replica(model, plan.files, plan.scratch, ("--batch-max", "1")) as single,
        ):
            both = list(zip(found, (batching, single), strict=True))
            for _, server in both:
                load.closed(server.address, 1, 1)
            for _ in range(plan.rounds):
                for result, server in both:
                    result.loads.setdefault(1, []).append(load.closed(server.address, 1, plan.seconds))
    except (NotUp, LoadFailed, OSError) as error:
        for result in found:
            result.error = f"{type(error).__name__}: {error}"
    for result in found:
        plan.say(f"  {result.name:<12} {result.error or told(result, 1)}")
    return found


def told(result: Result, connections: int) -> str:
    """A result in a line."""
    rate, p50, p99 = (result.median(connections, what) or 0.0 for what in ("rate", "p50", "p99"))
    bad = f", {result.bad(connections)} not 2xx" if result.bad(connections) else ""
    return f"c={connections:<3} {rate:>9,.0f} requests/s  p50 {p50 * 1e3:7.3f} ms  p99 {p99 * 1e3:7.3f} ms{bad}"


def best(results: Sequence[Result], connections: int, what: str) -> tuple[float, str] | None:
    """The best peer's median and its name, among those that answer everything: the highest rate, or the lowest latency."""
    entries = [
        (value, entry.name)
        for entry in results
        if entry.name != OURS and entry.answers_everything(connections)
        and (value := entry.median(connections, what)) is not None
    ]  # fmt: skip
    if not entries:
        return None
    return max(entries) if what == "rate" else min(entries)
