"""Whether a candidate is worse than the champion, and what follows from it for the traffic. Pure: answers and times are passed in.

Both arms answer at the same time, and are compared block by block: a run of answers of one arm with the run of the other beside it. What
befalls both at once (a slow database, the night) so cancels out, and the candidate's share may change meanwhile.

Harm, for which alpha is divided by three: a share of failed answers more than `failures` above the champion's; latencies of which some
quantile is more than `slower` times the champion's; a mean loss more than `quality` above it, once labels come. Only harm counts: a
candidate that is better is never rolled back. No worse, which promotion asks for, each at alpha: failures below the same margin; an answer
that, more often than not, takes less than `slower` times that of the champion beside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from drivetrain.engines.latencies import Latencies
from drivetrain.engines.runs import Blocks, Runs
from drivetrain.engines.sequential import Bets, mixture

_TESTS = 3


@dataclass(frozen=True, slots=True)
class Plan:
    """How traffic moves. Times in seconds, `steps` in percent, rising to 100; see `serving.canary` of the definition."""

    shadow: float
    steps: tuple[int, ...]
    step_time: float
    step_requests: int
    limit: float
    alpha: float
    failures: float
    slower: float
    quality: float
    most_requests: int | None = None

    @property
    def first(self) -> int:
        """The step that a rollout begins with; -1 is the shadow."""
        return -1 if self.shadow > 0 else 0

    def percent(self, step: int) -> int:
        """The candidate's share in that step; 0 while it is the shadow (step -1)."""
        return 0 if step < 0 else self.steps[step]


@dataclass(frozen=True, slots=True)
class Judged:
    """One comparison: both arms' values over `count` answers (pairs for latency, differences for quality), and the p-values, valid at all
    times, of "it is no worse" (small: harm is shown) and of "it is worse" (small: it is shown to be no worse)."""

    name: Literal["failures", "latency", "quality"]
    candidate: float
    champion: float
    count: int
    p_harm: float
    p_worse: float
    harmful: bool
    no_worse: bool


@dataclass(frozen=True, slots=True)
class Evidence:
    """All comparisons, as they stand."""

    failures: Judged
    latency: Judged
    quality: Judged

    @property
    def harm(self) -> Judged | None:
        """What shows that the candidate is worse."""
        return next((each for each in (self.failures, self.latency, self.quality) if each.harmful), None)


class Comparison:
    """The evidence so far, in little memory: `to_json` is a few kilobytes."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        margin = plan.failures
        self._runs = Runs()
        self._answers, self._failed = [0, 0], [0, 0]
        self._worse, self._fine = Bets(-1.0 - margin), Bets(margin - 1.0)
        self._latencies, self._quicker = Latencies(plan.slower), Bets(-0.5)
        self._slow = self._lossy = 1.0
        self._losses = [0.0, 0.0, 0.0]  # count, sum and sum of squares of the differences
        self._sums = [0.0, 0.0]

    def add(self, candidate: np.ndarray, failed: np.ndarray, took: np.ndarray) -> None:
        """More answers in order: whether each is the candidate's, whether it failed, and its latency in seconds, NaN where it does
        not count."""
        if len(candidate) == 0:
            return
        for arm in (0, 1):
            own = candidate == bool(arm)
            self._answers[arm] += int(own.sum())
            self._failed[arm] += int(failed[own].sum())
        blocks = self._runs.add(candidate, failed, took)
        excess = blocks.candidate_failed - blocks.champion_failed
        self._worse.add(excess - self._plan.failures)
        self._fine.add(self._plan.failures - excess)
        self._add_latencies(blocks)

    def _add_latencies(self, blocks: Blocks) -> None:
        both = np.isfinite(blocks.candidate_took) & np.isfinite(blocks.champion_took)
        ours, theirs = blocks.candidate_took[both], blocks.champion_took[both]
        self._latencies.add(ours, theirs)
        self._quicker.add(0.5 - (ours > self._plan.slower * theirs))
        self._slow = min(self._slow, self._latencies.p_value)

    def add_losses(self, candidate: np.ndarray, champion: np.ndarray) -> None:
        """Losses of both arms, pair by pair: of the same request where both answered it, else of requests beside each other."""
        difference = candidate - champion
        for place, value in enumerate((len(difference), difference.sum(), (difference**2).sum())):
            self._losses[place] += float(value)
        self._sums[0] += float(champion.sum())
        self._sums[1] += float(candidate.sum())
        count, mean, variance = self._difference()
        self._lossy = min(self._lossy, mixture(count, mean, variance, self._plan.quality, self._plan.alpha / _TESTS))

    @property
    def answers(self) -> int:
        """Answers of the candidate so far."""
        return self._answers[1]

    def evidence(self) -> Evidence:
        """What follows from it all."""
        return Evidence(self._failures(), self._latency(), self._quality())

    def _failures(self) -> Judged:
        shares = [_share(failed, count) for failed, count in zip(self._failed, self._answers, strict=True)]
        return self._judged("failures", shares[1], shares[0], self.answers, self._worse.p_value, self._fine.p_value)

    def _latency(self) -> Judged:
        ours, theirs = self._latencies.quantiles(0.5)
        return self._judged("latency", ours, theirs, self._latencies.count, self._slow, self._quicker.p_value)

    def _quality(self) -> Judged:
        count, mean, variance = self._difference()
        worse = mixture(count, -mean, variance, -self._plan.quality, self._plan.alpha)
        return self._judged(
            "quality", _share(self._sums[1], count), _share(self._sums[0], count), count, self._lossy, worse
        )

    def tails(self) -> tuple[float, float]:
        """The 99th percentiles of the latencies, candidate's and champion's, in seconds; NaN before there are any."""
        return self._latencies.quantiles(0.99)

    def _judged(
        self, name: Literal["failures", "latency", "quality"], candidate: float, champion: float, count: int, p_harm: float,
        p_worse: float,
    ) -> Judged:  # fmt: skip
        alpha = self._plan.alpha
        return Judged(
            name,
            candidate,
            champion,
            count,
            p_harm,
            p_worse,
            harmful=p_harm <= alpha / _TESTS,
            no_worse=p_worse <= alpha,
        )

    def _difference(self) -> tuple[int, float, float]:
        """Count, mean and variance of the differences between the losses."""
        count, total, squares = self._losses
        if count == 0:
            return 0, math.nan, math.nan
        mean = total / count
        return int(count), mean, max(0.0, squares / count - mean**2) + self._plan.quality**2 / count

    def to_json(self) -> dict[str, Any]:
        """What `from_json` makes the same of."""
        return {
            "answers": self._answers, "failed": self._failed, "runs": self._runs.to_json(), "worse": self._worse.to_json(),
            "fine": self._fine.to_json(), "latencies": self._latencies.to_json(), "quicker": self._quicker.to_json(),
            "slow": self._slow, "lossy": self._lossy, "losses": self._losses, "sums": self._sums,
        }  # fmt: skip

    @classmethod
    def from_json(cls, plan: Plan, found: Mapping[str, Any]) -> Comparison:
        """As it was kept, under the same plan."""
        made = cls(plan)
        made._answers, made._failed = list(found["answers"]), list(found["failed"])
        made._runs = Runs.from_json(found["runs"])
        made._worse = Bets.from_json(-1.0 - plan.failures, found["worse"])
        made._fine = Bets.from_json(plan.failures - 1.0, found["fine"])
        made._latencies = Latencies.from_json(plan.slower, found["latencies"])
        made._quicker = Bets.from_json(-0.5, found["quicker"])
        made._slow, made._lossy = float(found["slow"]), float(found["lossy"])
        made._losses, made._sums = list(found["losses"]), list(found["sums"])
        return made


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a rollout stands: its step (-1: shadow), since when the rollout and the step go on, and the candidate's answers in the step."""

    step: int
    started: float
    entered: float
    answers: int


@dataclass(frozen=True, slots=True)
class Move:
    """What to do: `stay`, go to the next `step`, `promote`, or `roll_back`; and why."""

    kind: Literal["stay", "step", "promote", "roll_back"]
    reason: str


def decide(plan: Plan, standing: Standing, evidence: Evidence, now: float) -> Move:
    """The move that follows from the evidence. Harm comes first, then the step's own time and answers, then the limits of both."""
    if plan.percent(standing.step) == 100:
        return Move("promote", "the whole traffic at once, as the definition says")
    if (harm := evidence.harm) is not None:
        return Move("roll_back", words(harm, plan))
    last = plan.steps[standing.step + 1] == 100
    time, needed = (plan.shadow if standing.step < 0 else plan.step_time), plan.step_requests
    if now - standing.entered >= time and standing.answers >= needed and (_shown(plan, evidence) or not last):
        return Move("promote", _no_worse(plan, evidence)) if last else Move("step", "nothing says that it is worse")
    over = f"{plan.limit:g} s" if now - standing.started >= plan.limit else None
    if over is None and plan.most_requests is not None and evidence.failures.count >= plan.most_requests:
        over = f"{evidence.failures.count} answers of the candidate"
    if over is not None:
        return Move("roll_back", f"undecided after {over}: {_missing(plan, standing, evidence)}")
    return Move("stay", _missing(plan, standing, evidence))


def words(judged: Judged, plan: Plan) -> str:
    """What harm was shown."""
    chance = f"p = {judged.p_harm:.2g}"
    match judged.name:
        case "failures":
            return (
                f"{judged.candidate:.2%} of its answers failed, {judged.champion:.2%} of the champion's, over {judged.count} "
                f"answers ({chance}, margin {plan.failures:.2%})"
            )
        case "latency":
            return (
                f"its answers are slower: median {judged.candidate * 1e3:.3g} ms, the champion's {judged.champion * 1e3:.3g} ms, over "
                f"{judged.count} pairs ({chance}, allowed {plan.slower:g} times)"
            )
    return (
        f"its loss is {judged.candidate:.4g}, the champion's {judged.champion:.4g}, over {judged.count} labels ({chance}, "
        f"margin {plan.quality:g})"
    )


def _shown(plan: Plan, evidence: Evidence) -> bool:
    """Whether what promotion asks for is shown. Latencies are compared where both arms answer callers, so in steps alone."""
    return evidence.failures.no_worse and (evidence.latency.no_worse or plan.steps[0] == 100)


def _no_worse(plan: Plan, evidence: Evidence) -> str:
    return f"no worse over {evidence.failures.count} answers: {_p_values(plan, evidence)}"


def _p_values(plan: Plan, evidence: Evidence) -> str:
    latency = f", latency p = {evidence.latency.p_worse:.2g}" if plan.steps[0] < 100 else ""
    return f"failures p = {evidence.failures.p_worse:.2g}{latency}"


def _missing(plan: Plan, standing: Standing, evidence: Evidence) -> str:
    if standing.answers < plan.step_requests:
        return f"{standing.answers} of {plan.step_requests} answers of the candidate in this step"
    if plan.steps[standing.step + 1] == 100 and not _shown(plan, evidence):
        return f"not yet shown to be no worse ({_p_values(plan, evidence)}, wanted {plan.alpha:g})"
    return "the step's time is not over"


def _share(part: float, whole: float) -> float:
    return part / whole if whole else math.nan
