"""Knative's autoscaler (KPA) of one revision as a plain object: load in, number of replicas out.

    scaler = Autoscaler(Config(), Bounds(), ready=1, now=clock())
    scaler.record(clock(), in_flight)           # each second
    outcome = scaler.tick(clock(), ready=1)     # each two seconds, and at once when a request finds no replica
    if outcome.step.act: have outcome.step.scale replicas

It keeps no clock, no thread and no global state, so that a simulation can run thousands of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from drivetrain.engines.decider import Config, Decider, Decision
from drivetrain.engines.scale_to_zero import Activator, Bounds, Phase, Status, Step, advance, apply
from drivetrain.engines.windows import Buckets

SAMPLE = 1.0
"""Seconds between two samples of the load; also the width of a bucket."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One tick: what the load asked for (None: no data, the last decision stands), and what is to be done."""

    decision: Decision | None
    step: Step
    phase: Phase
    proxying: bool

    @property
    def reason(self) -> str:
        """Why, in words."""
        if self.decision is None or self.step.reason not in ("load", "max scale"):
            return self.step.reason
        found = self.decision
        mode = "panic" if found.panicking else "stable"
        text = f"{mode} mode, load {found.stable:g} (stable) and {found.panic:g} (panic) on {found.ready} ready"
        held = (*found.clamps, *(("max scale",) if self.step.reason == "max scale" else ()))
        return f"{text}; held by {', '.join(held)}" if held else text


class Autoscaler:
    """Windows, decider and the way to zero of one revision; `ready` replicas answer at its birth."""

    __slots__ = ("_averages", "_excess", "_panic", "_proxying_since", "_stable", "bounds", "decider", "last", "status")

    def __init__(self, config: Config, bounds: Bounds, *, ready: int, now: float) -> None:
        if bounds.stable_window != config.stable_window:
            bounds = replace(bounds, stable_window=config.stable_window)
        self.bounds = bounds
        self.decider = Decider(config, ready, now)
        self.status = Status(Phase.ACTIVATING, now)
        self.last: Decision | None = None
        self._stable = Buckets(config.stable_window, SAMPLE)
        self._panic = Buckets(config.panic_window, SAMPLE)
        weighted = config.aggregation == "weighted-exponential"
        self._averages = Buckets.weighted_mean if weighted else Buckets.mean
        self._proxying_since: float | None = now
        burst = config.target_burst_capacity
        self._excess = burst if burst in (-1, 0) else bounds.initial_scale * config.total - burst

    @property
    def config(self) -> Config:
        """What the decider goes by."""
        return self.decider.config

    def record(self, now: float, value: float) -> None:
        """Adds a sample of the load: requests in flight, or requests per second, over all replicas."""
        self._stable.record(now, value)
        self._panic.record(now, value)

    def decide(self, now: float, ready: int, *, reachable: bool = True) -> Decision | None:
        """What the load asks for; None without any sample for a stable window."""
        if self.config.target_burst_capacity != -1 and self._stable.empty(now):
            return None
        stable, panic = self._averages(self._stable, now), self._averages(self._panic, now)
        self.last = decision = self.decider.decide(now, ready, stable, panic, reachable=reachable)
        self._excess = decision.excess
        return decision

    def tick(self, now: float, ready: int, *, reachable: bool = True) -> Outcome:
        """Decides, and says what follows."""
        decision = self.decide(now, ready, reachable=reachable)
        return self._outcome(decision, now, ready, reachable=reachable)

    def look_again(self, now: float, ready: int, *, reachable: bool = True) -> Outcome:
        """What follows from the last decision by now: for the time that `Step.again` names."""
        return self._outcome(None, now, ready, reachable=reachable)

    def _outcome(self, decision: Decision | None, now: float, ready: int, *, reachable: bool) -> Outcome:
        since = self._proxying_since
        activator = Activator(
            proxying=since is not None,
            proxy_for=0.0 if since is None else now - since,
            always=self.config.target_burst_capacity == -1,
        )
        want = None if self.last is None else self.last.want
        step = apply(want, self.status, self.bounds, now, activator, reachable=reachable)
        # Out of the path only with replicas wanted and enough room for a burst.
        if step.scale and self._excess >= 0:
            self._proxying_since = None
        elif since is None:
            self._proxying_since = now
        self.status = advance(self.status, step.scale, ready, self.bounds, now, reachable=reachable)
        return Outcome(decision, step, self.status.phase, self._proxying_since is not None)
