"""How many replicas there should be, by the load that was seen: the decision of Knative's KPA, value by value.

The caller gives the time, the averages over the stable and the panic window, and how many replicas are ready. The only state is
that of panic mode and of the delay before scaling down.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from drivetrain.engines.windows import Peak

TICK = 2.0
"""Seconds between two decisions; also the slots in which `scale_down_delay` is counted."""
TARGET_MIN = 0.01


@dataclass(frozen=True, slots=True)
class Config:
    """Knative's settings of the same names, with its defaults; times in seconds, shares as fractions.

    `total` is the load that a replica can carry, `target` the part of it that is aimed at (see `targets`). `metric` is
    "concurrency" or "rps", `aggregation` "linear" or "weighted-exponential". A `target_burst_capacity` of -1 keeps the activator in
    the path for good; `activation_scale` counts from 2.
    """

    target: float = 70.0
    total: float = 100.0
    metric: str = "concurrency"
    stable_window: float = 60.0
    panic_window: float = 6.0
    panic_threshold: float = 2.0
    max_scale_up_rate: float = 1000.0
    max_scale_down_rate: float = 2.0
    target_burst_capacity: float = 211.0
    scale_down_delay: float = 0.0
    activation_scale: int = 0
    aggregation: str = "linear"


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided, and why.

    `stable` and `panic` are the averages; `stable_pods` and `panic_pods` what they ask for, after the clamps. `panicking` says which
    mode decided. `clamps` name what held the number: "up-rate", "down-rate", "activation-scale", "panic" (never down while it
    lasts), "scale-down-delay". `excess` is the excess burst capacity: below zero the activator belongs in the path.
    """

    want: int
    excess: int
    ready: int
    stable: float
    panic: float
    stable_pods: int
    panic_pods: int
    panicking: bool
    clamps: tuple[str, ...] = ()


class Decider:
    """Decides for one revision. With more than one replica ready at its birth it starts in panic: having lost its history, it must
    not scale down before it has seen a whole window."""

    __slots__ = ("_delay", "config", "most", "panic_since")

    def __init__(self, config: Config, ready: int, now: float) -> None:
        self.config = config
        self.panic_since: float | None = now if ready > 1 else None
        self.most = ready
        delay = config.scale_down_delay
        self._delay = Peak(math.ceil(delay / TICK)) if delay > 0 else None

    def decide(self, now: float, ready: int, stable: float, panic: float, *, reachable: bool = True) -> Decision:
        """The decision for this tick. `reachable` says whether any route leads to the revision."""
        config = self.config
        counted = ready if ready > 1 else 1
        ceiling = math.ceil(config.max_scale_up_rate * counted)
        floor = math.floor(counted / config.max_scale_down_rate) if reachable else 0
        for_stable = math.ceil(stable / config.target)
        for_panic = math.ceil(panic / config.target)
        stable_pods, clamps = self._clamped(for_stable, floor, ceiling)
        panic_pods, panic_clamps = self._clamped(for_panic, floor, ceiling)
        self._panic(now, over=for_panic / counted >= config.panic_threshold)

        want = stable_pods
        panicking = self.panic_since is not None
        if panicking:
            if panic_pods > stable_pods:
                want, clamps = panic_pods, panic_clamps
            if want < self.most:
                clamps = (*clamps, "panic")
            want = self.most = max(self.most, want)
        if reachable and self._delay is not None:
            delayed = self._delay.record(int(now // TICK), want)
            if delayed != want:
                want, clamps = delayed, (*clamps, "scale-down-delay")
        return Decision(
            want, self._excess(ready, panic), ready, stable, panic, stable_pods, panic_pods, panicking, clamps
        )

    def _clamped(self, asked: int, floor: int, ceiling: int) -> tuple[int, tuple[str, ...]]:
        pods = asked
        clamps: tuple[str, ...] = ()
        if pods < floor:
            pods, clamps = floor, ("down-rate",)
        if pods > ceiling:
            pods, clamps = ceiling, ("up-rate",)
        activation = self.config.activation_scale
        if activation > 1 and asked > 0 and activation > pods:
            return activation, (*clamps, "activation-scale")
        return pods, clamps

    def _panic(self, now: float, *, over: bool) -> None:
        if over:
            self.panic_since = now
        elif self.panic_since is not None and self.panic_since + self.config.stable_window < now:
            self.panic_since = None
            self.most = 0

    def _excess(self, ready: int, panic: float) -> int:
        burst = self.config.target_burst_capacity
        if burst == 0:
            return 0
        return math.floor(ready * self.config.total - burst - panic) if burst > 0 else -1


def targets(
    metric: str = "concurrency",
    *,
    container_concurrency: float = 0.0,
    target: float | None = None,
    utilization: float = 0.7,
    default: float | None = None,
) -> tuple[float, float]:
    """`target` and `total` of a replica, from what a service says of itself: its limit of requests at once (0: none), the
    annotated target, the utilization as a fraction. `default` is what a replica can carry if nothing is said (100, for rps 200)."""
    usual = default or (200.0 if metric == "rps" else 100.0)
    total = usual if metric == "rps" else container_concurrency or usual
    if target is not None:
        limited = metric == "concurrency" and container_concurrency > 0
        total = min(target, container_concurrency) if limited else target
    return max(TARGET_MIN, total * utilization), total


def panic_window(stable_window: float, percentage: float = 10.0) -> float:
    """The panic window: a share of the stable one in whole seconds, one at the least."""
    return max(1.0, math.floor(stable_window * percentage / 100.0 + 0.5))
