"""Keeps as many replicas of a revision as its load asks for: samples each second, decides each two, wakes it when a request comes.

The gateway holds requests for a revision that sleeps, as Knative's activator does, and needs no time to get into the path; the
engine is therefore run with a target burst capacity of 0. The last replica goes when nothing came for `window` and then `grace`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from drivetrain.backends.serving.gateway.contracts import Scalable
from drivetrain.backends.serving.gateway.settings import Scaling
from drivetrain.engines.autoscaler import SAMPLE, Autoscaler, Outcome
from drivetrain.engines.decider import TICK, Config, Decision, panic_window, targets
from drivetrain.engines.scale_to_zero import Bounds, Phase

_log = logging.getLogger(__name__)


class Scaler:
    """Scales one revision. `clock` gives seconds that never go back; `name` is for the log.

    `run` does everything by itself; `sample`, `tick` and `poke` are its steps, and none of them blocks.
    """

    def __init__(
        self, settings: Scaling, revision: Scalable, clock: Callable[[], float], name: str = "revision"
    ) -> None:
        self._revision, self._clock, self._name = revision, clock, name
        self._rate = settings.metric == "rps"
        self._engine = Autoscaler(_config(settings), _bounds(settings), ready=revision.ready, now=clock())
        self._again: float | None = None
        self._poked = False

    @property
    def phase(self) -> Phase:
        """Activating, active or inactive."""
        return self._engine.status.phase

    @property
    def decision(self) -> Decision | None:
        """The last decision, None before there was one."""
        return self._engine.last

    async def run(self) -> None:
        """Samples and decides until it is cancelled."""
        now = self._clock()
        next_sample, next_tick = now + SAMPLE, now + TICK
        while True:
            due = min(next_sample, next_tick, self._again or next_tick)
            await asyncio.sleep(max(0.0, due - self._clock()))
            now = self._clock()
            if now >= next_sample:
                self.sample()
                # What was missed (a machine that slept) is not made up for.
                next_sample = max(next_sample + SAMPLE, now)
            if now >= next_tick:
                self.tick()
                next_tick = max(next_tick + TICK, now)
            elif self._again is not None and now >= self._again:
                self._follow(self._engine.look_again(now, self._revision.ready))

    def sample(self) -> None:
        """Notes the load since the last sample. A revision that sleeps gives none, so that it wakes with an empty window."""
        now = self._clock()
        in_flight, per_second = self._revision.sample(now)
        load = per_second if self._rate else in_flight
        self._poked = False
        if load > 0 or self._revision.ready > 0:
            self._engine.record(now, load)

    def tick(self) -> None:
        """Decides, and has the revision follow."""
        now = self._clock()
        self._follow(self._engine.tick(now, self._revision.ready))

    def poke(self) -> None:
        """A request has come for which there may be no replica: one that sleeps is woken now, not at the next tick."""
        last = self._engine.last
        if self._revision.wanted > 0 and (last is None or last.want > 0):
            return
        if not self._poked:
            # However many wait: the next sample counts them.
            self._engine.record(self._clock(), 1.0)
            self._poked = True
        self.tick()

    def _follow(self, outcome: Outcome) -> None:
        step = outcome.step
        self._again = None if step.again is None else self._clock() + step.again
        wanted = self._revision.wanted
        if not step.act or step.scale is None or step.scale == wanted:
            return
        _log.info("%s: %d -> %d replicas: %s", self._name, wanted, step.scale, outcome.reason)
        self._revision.scale(step.scale)


def _config(settings: Scaling) -> Config:
    target, total = targets(settings.metric, target=settings.target, utilization=settings.utilization / 100)
    return Config(
        target,
        total,
        metric=settings.metric,
        stable_window=settings.window,
        panic_window=panic_window(settings.window),
        target_burst_capacity=0.0,
    )


def _bounds(settings: Scaling) -> Bounds:
    return Bounds(min_scale=settings.min, max_scale=settings.max, stable_window=settings.window, grace=settings.grace)
