"""A rollout: from a copy of the traffic over rising shares to the whole, or back. What it has seen and how far it came is in the journal.

Each look reads the answers that are new, decides, writes the decision down together with the position, and only then moves traffic. A look
that was killed anywhere is so done again by the next: nothing is read twice, and no move is forgotten.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

from drivetrain import deployment
from drivetrain.definition.serving import Canary
from drivetrain.engines.canary import Comparison, Evidence, Move, Plan, Standing, decide
from drivetrain.errors import ServingError, UsageError
from drivetrain.journal import Journal
from drivetrain.project import Project
from drivetrain.watch.arms import Arms, Losses
from drivetrain.watch.sources import Source
from drivetrain.watch.traffic import Traffic, local_traffic

_ENDED = ("promoted", "rolled_back")
_PATIENCE = 3
"""Looks in which a candidate may fail to take its traffic before it is taken back."""
_POINTS = 400
"""Points of the curves that are kept; beyond it every other one goes."""
_STRIDE = 20
"""Answers of the candidate from one point to the next, at least."""


class Keeper(Protocol):
    """Where the state is kept: the journal."""

    def rollout(self, candidate: str) -> str | None: ...

    def keep_rollout(self, candidate: str, state: str, now: float) -> None: ...


@dataclass(frozen=True, slots=True)
class RolloutState:
    """Where a rollout stands. `state` is `shadow`, `step`, `promoting`, `promoted`, `rolling_back` or `rolled_back`; `step` counts from 0,
    -1 is the shadow; `percent` is the candidate's share. `numbers` holds what `reason` rests on: counts, shares, latencies in seconds,
    p-values."""

    step: int
    percent: int
    state: str
    reason: str
    numbers: Mapping[str, float]

    @property
    def ended(self) -> bool:
        """Whether nothing follows any more."""
        return self.state in _ENDED


@dataclass(frozen=True, slots=True)
class Point:
    """One point of a rollout's curves: when (seconds since 1970), the candidate's share in percent, and the numbers as they stood."""

    at: float
    percent: int
    numbers: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class _Kept:
    champion: str
    started: float
    entered: float
    step: int
    phase: str
    reason: str
    before: int = 0
    """The candidate's answers when the step began."""
    faults: int = 0
    position: str | None = None
    points: Sequence[Mapping[str, Any]] = field(default_factory=tuple)


class Rollout:
    """The rollout of one candidate. `losses` tells how wrong answers were, once labels come; without it quality is not compared."""

    def __init__(
        self, plan: Plan, candidate: str, traffic: Traffic, source: Source, keeper: Keeper, losses: Losses | None = None
    ) -> None:
        self._plan = plan
        self._candidate = candidate
        self._traffic = traffic
        self._source = source
        self._keeper = keeper
        self._losses = losses
        self._kept: _Kept | None = None
        self._comparison = Comparison(plan)
        self._arms = Arms("", candidate, losses)
        self._load(traffic.champion())

    def advance(self, now: float) -> RolloutState:
        """One look at time `now` (seconds since 1970). Raises `ServingError` if the service does not answer, or the candidate did not take
        its traffic and is given another try; `advance` again then."""
        champion = self._traffic.champion()
        self._load(champion)
        kept = self._kept
        if kept is not None and kept.phase in _ENDED:
            if kept.phase == "rolled_back":  # the same version may have been brought up again: it is known to be worse
                self._traffic.revive()
                self._traffic.restore()
            return self.state()
        if kept is None:
            self._begin(champion, now)
        elif kept.phase != "promoting" and champion != kept.champion:
            self._keep(self._with(phase="rolled_back", reason=f"{champion} was promoted meanwhile"), now)
            return self.state()
        elif now < kept.entered:
            # The clock was set back: else all that is answered until it has caught up would be passed over, and no limit would end it.
            self._keep(self._with(started=kept.started - (kept.entered - now), entered=now), now)
        self._traffic.revive()
        if self._now.phase in ("shadow", "step"):
            self._look(now)
        self._move_traffic(now)
        return self.state()

    def take_back(self, reason: str, now: float) -> RolloutState:
        """Ends it, whatever the evidence says; the champion answers everything. Raises `ServingError` if the service does not answer."""
        champion = self._traffic.champion()
        self._load(champion)
        if self._kept is None:
            self._begin(champion, now)
        if self._now.phase not in (*_ENDED, "promoting"):
            self._keep(self._with(phase="rolling_back", reason=reason), now)
        self._traffic.revive()
        self._move_traffic(now)
        return self.state()

    def state(self) -> RolloutState:
        """As it was after the last look. Raises `UsageError` before the first."""
        now = self._now
        percent = {"promoting": 100, "promoted": 100, "rolling_back": 0, "rolled_back": 0}.get(now.phase)
        share = self._plan.percent(now.step) if percent is None else percent
        return RolloutState(now.step, share, now.phase, now.reason, numbers_of(self._comparison))

    @property
    def _now(self) -> _Kept:
        if self._kept is None:
            raise UsageError(f"the rollout of {self._candidate} has not begun")
        return self._kept

    def _load(self, champion: str) -> None:
        """What is in the journal, unless that was another rollout of the same candidate, which has ended. Each look begins with it: one
        that could not be written down is as if it had not been."""
        self._kept = None
        text = self._keeper.rollout(self._candidate)
        if text is None:
            return
        found = json.loads(text)
        kept = _Kept(**found["kept"])
        if kept.phase in _ENDED and champion != (self._candidate if kept.phase == "promoted" else kept.champion):
            return
        # A rollout goes on as it began: under another plan its numbers would mean something else.
        self._kept, self._plan = kept, Plan(**{**found["plan"], "steps": tuple(found["plan"]["steps"])})
        self._comparison = Comparison.from_json(self._plan, found["comparison"])
        self._arms = Arms.from_json(kept.champion, self._candidate, self._losses, found["arms"])

    def _begin(self, champion: str, now: float) -> None:
        plan = self._plan
        self._comparison, self._arms = Comparison(plan), Arms(champion, self._candidate, self._losses)
        phase, reason = ("shadow" if plan.first < 0 else "step"), "it has begun"
        if champion == self._candidate:
            phase, reason = "promoted", "it is the champion already"
        position = self._source.newest()
        self._keep(_Kept(champion, now, now, plan.first, phase, reason, position=position), now)

    def _look(self, now: float) -> None:
        """Reads what is new, decides, and writes both down."""
        was = self._now
        position = self._arms.read(
            self._source, was.position, self._comparison, since=was.started, shadow=was.phase == "shadow"
        )
        standing = Standing(was.step, was.started, was.entered, self._comparison.answers - was.before)
        move = decide(self._plan, standing, self._comparison.evidence(), now)
        changed = replace(was, position=position, reason=move.reason)
        changed = self._after(changed, move, now)
        if changed != was:
            self._keep(self._pointed(changed, now), now)

    def _after(self, kept: _Kept, move: Move, now: float) -> _Kept:
        match move.kind:
            case "step":
                answers = self._comparison.answers
                return replace(kept, phase="step", step=kept.step + 1, entered=now, before=answers, faults=0)
            case "promote":
                return replace(kept, phase="promoting", faults=0)
            case "roll_back":
                return replace(kept, phase="rolling_back")
        return kept

    def _pointed(self, kept: _Kept, now: float) -> _Kept:
        """With a point of the curves, if enough has happened since the last."""
        numbers = numbers_of(self._comparison)
        last = kept.points[-1] if kept.points else None
        share = self._plan.percent(kept.step)
        if (
            last is not None
            and last["percent"] == share
            and kept.phase in ("shadow", "step")
            and (numbers["answers"] - last["numbers"]["answers"] < _STRIDE)
        ):
            return kept
        points = [*kept.points, {"at": now, "percent": share, "numbers": numbers}]
        return replace(kept, points=points if len(points) <= _POINTS else [*points[:-1:2], points[-1]])

    def _move_traffic(self, now: float) -> None:
        """Has the traffic be what was written down; a candidate that cannot take it is taken back."""
        try:
            self._act()
        except ServingError as error:
            kept = self._now
            if kept.phase == "rolling_back":
                raise
            if kept.faults + 1 < _PATIENCE:
                self._keep(self._with(faults=kept.faults + 1), now)
                raise
            self._keep(self._with(phase="rolling_back", reason=f"it does not take its traffic: {error}"), now)
            self._act()
        ended = {"promoting": "promoted", "rolling_back": "rolled_back"}.get(self._now.phase)
        if ended is not None:
            self._keep(self._with(phase=ended), now)
        elif self._now.faults:
            self._keep(self._with(faults=0), now)

    def _act(self) -> None:
        match self._now.phase:
            case "shadow":
                self._traffic.shadow()
            case "step" if (share := self._plan.percent(self._now.step)) < 100:
                self._traffic.share(share)
            case "promoting":
                self._traffic.promote()
            case "rolling_back":
                self._traffic.restore()

    def _with(self, **changes: Any) -> _Kept:
        return replace(self._now, **changes)

    def _keep(self, kept: _Kept, now: float) -> None:
        whole = {
            "plan": asdict(self._plan),
            "kept": {name: getattr(kept, name) for name in _Kept.__slots__},
            "comparison": self._comparison.to_json(),
            "arms": self._arms.to_json(),
        }
        self._keeper.keep_rollout(self._candidate, json.dumps(whole, separators=(",", ":")), now)
        self._kept = kept


def plan_of(canary: Canary) -> Plan:
    """The plan that a definition's `serving.canary` states."""
    return Plan(
        shadow=canary.shadow.total_seconds(),
        steps=tuple(canary.steps),
        step_time=canary.step_time.total_seconds(),
        step_requests=canary.step_requests,
        limit=canary.limit.total_seconds(),
        alpha=canary.alpha,
        failures=canary.failures,
        slower=canary.slower,
        quality=canary.quality,
        most_requests=canary.most_requests,
    )


def open_rollout(
    opened: Project, candidate: str, source: Source, journal: Journal, losses: Losses | None = None
) -> Rollout:
    """The rollout of a candidate of the project's, begun or gone on with. Raises `UsageError` if no run deployed that revision here, or
    nothing has been promoted yet."""
    found = deployment.of_revision(opened, candidate)
    if found is None:
        raise UsageError(f"{candidate} is no revision that was deployed here", hint="`drivetrain runs` lists them")
    traffic = local_traffic(opened, found)
    return Rollout(plan_of(opened.definition.serving.canary), candidate, traffic, source, journal, losses)


def points(text: str) -> list[Point]:
    """The curves of a rollout, from its state as the journal keeps it."""
    return [Point(**found) for found in json.loads(text)["kept"]["points"]]


def numbers_of(comparison: Comparison) -> dict[str, float]:
    """The evidence as plain numbers; what is not known yet is absent."""
    evidence: Evidence = comparison.evidence()
    ours, theirs = comparison.tails()
    found = {"answers": float(comparison.answers), "latency_p99_candidate": ours, "latency_p99_champion": theirs}
    for judged in (evidence.failures, evidence.latency, evidence.quality):
        for key in ("candidate", "champion", "count", "p_harm", "p_worse"):
            found[f"{judged.name}_{key}"] = float(getattr(judged, key))
    return {name: value for name, value in found.items() if math.isfinite(value)}
