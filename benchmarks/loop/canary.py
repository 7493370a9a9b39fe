"""Simulated rollouts: how often a candidate that is no worse is taken back, and how soon one that is; beside Flagger's threshold rule and
beside a test for two shares that is simply repeated at each look.

The engine is the one that rollouts use, looked at every ten seconds, with the traffic that its decisions lead to. All rules see the same
answers of the candidate, in order.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import beta, norm

from benchmarks.measures import Findings, Measurement, Target
from drivetrain.backends.serving.gateway.routing import turns
from drivetrain.engines.canary import Comparison, Plan, Standing, decide

RACE = "canary"
PLAN = Plan(
    shadow=0.0, steps=(5, 25, 50, 100), step_time=300.0, step_requests=100, limit=3600.0, alpha=0.05, failures=0.005, slower=1.25,
    quality=0.01,
)  # fmt: skip
"""The defaults of `serving.canary`, with steps."""
RATE = 50
"""Requests a second to the service."""
LOOK = 10
"""Seconds from one look to the next."""
MEDIAN, SPREAD = 0.02, 0.5
"""Of the champion's latencies: median in seconds, and the standard deviation of their logarithm."""
ROLLOUTS = 2000


@dataclass(frozen=True, slots=True)
class Case:
    """A candidate: shares of failed answers, the champion's first, and how many times the champion's latencies its are."""

    champion: float
    candidate: float
    slower: float = 1.0


@dataclass(frozen=True, slots=True)
class End:
    """How a rollout ended: `promoted`, `rolled_back` or `undecided`; answers of the candidate and seconds until then."""

    state: str
    answers: int
    seconds: float


class Answers:
    """What both arms answer, the same for every rule that asks with the same seed."""

    def __init__(self, case: Case, seed: int) -> None:
        self._case = case
        self._failures = [np.random.default_rng([seed, arm]) for arm in (0, 1)]
        self._latencies = [np.random.default_rng([seed, arm, 1]) for arm in (0, 1)]

    def take(self, arm: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The next answers of the champion (0) or the candidate (1): whether each failed, and its latency in seconds."""
        share = (self._case.champion, self._case.candidate)[arm]
        median = MEDIAN * (1.0, self._case.slower)[arm]
        return self._failures[arm].random(count) < share, median * np.exp(
            SPREAD * self._latencies[arm].standard_normal(count)
        )

    def mixed(self, percent: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The next answers as the gateway spreads requests: whether each is the candidate's, failed, and its latency."""
        period = np.array([name == "candidate" for name in turns({"candidate": percent, "champion": 100 - percent})])
        candidate = np.resize(period, count)
        failed, took = np.empty(count, dtype=bool), np.empty(count)
        for arm in (0, 1):
            own = candidate == bool(arm)
            failed[own], took[own] = self.take(arm, int(own.sum()))
        return candidate, failed, took


def ours(case: Case, seed: int) -> End:
    """A rollout as `drivetrain watch` does it."""
    answers, comparison = Answers(case, seed), Comparison(PLAN)
    step, entered, before, now = 0, 0.0, 0, 0.0
    while now < PLAN.limit:
        now += LOOK
        comparison.add(*answers.mixed(PLAN.percent(step), RATE * LOOK))
        standing = Standing(step, 0.0, entered, comparison.answers - before)
        match decide(PLAN, standing, comparison.evidence(), now).kind:
            case "promote":
                return End("promoted", comparison.answers, now)
            case "roll_back" if now < PLAN.limit:
                return End("rolled_back", comparison.answers, now)
            case "step":
                step, entered, before = step + 1, now, comparison.answers
    return End("undecided", comparison.answers, now)


INTERVAL, THRESHOLD, STEP_WEIGHT, MAX_WEIGHT = 60, 10, 2, 50
SUCCESS, DURATION = 0.99, 0.5
"""Of Flagger's documentation: a success rate of 99 % and a 99th percentile of 500 ms, looked at each minute; the weight rises by 2 to 50;
ten checks that failed, counted over the whole analysis, take the candidate back."""


def flagger(case: Case, seed: int) -> End:
    """The same candidate under Flagger's rule: a failed check halts, and ten of them end it."""
    answers, weight, failed_checks, seen, now = Answers(case, seed), STEP_WEIGHT, 0, 0, 0.0
    while True:
        now += INTERVAL
        failed, took = answers.take(1, RATE * INTERVAL * weight // 100)
        seen += len(failed)
        if 1.0 - failed.mean() >= SUCCESS and np.quantile(took, 0.99) <= DURATION:
            if weight >= MAX_WEIGHT:
                return End("promoted", seen, now)
            weight += STEP_WEIGHT
        else:
            failed_checks += 1
            if failed_checks >= THRESHOLD:
                return End("rolled_back", seen, now)


def repeated(case: Case, seed: int) -> End:
    """The same steps with a test of two shares at each look, one-sided at alpha, as if each look were the only one."""
    answers, counts, failures = Answers(case, seed), np.zeros(2), np.zeros(2)
    critical = float(norm.ppf(1.0 - PLAN.alpha))
    for look in range(1, int(PLAN.step_time * 3 / LOOK) + 1):
        step = min(int((look - 1) * LOOK / PLAN.step_time), 2)
        candidate, failed, _ = answers.mixed(PLAN.percent(step), RATE * LOOK)
        for arm in (0, 1):
            counts[arm] += (candidate == bool(arm)).sum()
            failures[arm] += failed[candidate == bool(arm)].sum()
        shares = failures / counts
        error = math.sqrt(float((shares * (1.0 - shares) / counts).sum()))
        if error > 0.0 and (shares[1] - shares[0] - PLAN.failures) / error > critical:
            return End("rolled_back", int(counts[1]), look * LOOK)
    return End("promoted", int(counts[1]), PLAN.step_time * 3)


RULES: dict[str, Callable[[Case, int], End]] = {
    "Drivetrain": ours, "Flagger's rule": flagger, "a test repeated at each look": repeated,
}  # fmt: skip


def race(say: Callable[[str], None] = print, rollouts: int = ROLLOUTS) -> Findings:
    """The races with their targets. Takes about ten minutes for 2,000 rollouts of each kind on one core."""
    draw = np.random.default_rng(0)
    bases = np.exp(draw.uniform(np.log(0.001), np.log(0.05), rollouts))
    same = [Case(base, base) for base in bases]
    margin = [Case(base, base + PLAN.failures, PLAN.slower) for base in bases[: rollouts // 4]]
    worse = [Case(0.01, 0.05)] * (rollouts // 4)
    slow = [Case(0.01, 0.01, 2.0)] * (rollouts // 4)
    say(f"  {len(same):,} rollouts of candidates like their champions")
    no_harm = {name: [rule(case, seed) for seed, case in enumerate(same)] for name, rule in RULES.items()}
    say(
        f"  {len(margin):,} of candidates at the margin, {len(worse):,} with 5x the failures, {len(slow):,} that are slow"
    )
    at_margin = [ours(case, seed) for seed, case in enumerate(margin)]
    naive = [repeated(case, seed) for seed, case in enumerate(margin)]
    harm = {name: [rule(case, seed) for seed, case in enumerate(worse)] for name, rule in RULES.items()}
    slower = [ours(case, seed) for seed, case in enumerate(slow)]
    needed = [float(end.answers) for end in harm["Drivetrain"] if end.state == "rolled_back"]
    every = len(needed) == len(worse)
    targets = [
        _share("false rollbacks under continuous looks, candidates like their champions", no_harm["Drivetrain"]),
        _share("false rollbacks under continuous looks, candidates worse by just the margin", at_margin),
        _share("candidates worse by the margin that are promoted", at_margin, "promoted"),
        Target(
            RACE,
            "5x the failures (1 % to 5 %): answers of the candidate until it is taken back, median",
            statistics.median(needed) if every else None,
            1000.0,
            "limit",
            unit="answers",
            error="" if every else f"{len(worse) - len(needed)} of {len(worse)} were not taken back",
        ),
    ]
    measurements = [
        Measurement(name, "answers until 5x the failures are taken back",
                    tuple(float(end.answers) for end in ends if end.state == "rolled_back"), "answers")
        for name, ends in harm.items()
    ]  # fmt: skip
    notes = [
        *(f"{name}: {_percent(no_harm[name], 'rolled_back')} of candidates like their champions taken back, "
          f"{_percent(no_harm[name], 'promoted')} promoted; of those with 5x the failures {_percent(harm[name], 'rolled_back')} "
          f"taken back, {_when(harm[name])}" for name in RULES),
        f"worse by just the margin: {_percent(at_margin, 'rolled_back')} taken back, {_percent(naive, 'rolled_back')} by a test that is "
        "repeated at each look as if it were the only one",
        f"twice the champion's latency: {_percent(slower, 'rolled_back')} taken back, {_when(slower)}",
        f"like their champions: promoted {_when(no_harm['Drivetrain'], 'promoted')}; "
        f"{_percent(no_harm['Drivetrain'], 'undecided')} undecided after {PLAN.limit / 60:g} minutes",
    ]  # fmt: skip
    return Findings(targets, measurements, notes)


def _share(text: str, ends: Sequence[End], state: str = "rolled_back") -> Target:
    count = sum(end.state == state for end in ends)
    upper = float(beta.ppf(0.95, count + 1, len(ends) - count))
    text = f"{text}: {count} of {len(ends):,} (95 % sure: below {upper:.1%}), at most alpha"
    return Target(RACE, text, count / len(ends), PLAN.alpha, "alpha", unit="")


def _percent(ends: Sequence[End], state: str) -> str:
    return f"{sum(end.state == state for end in ends) / len(ends):.1%}"


def _when(ends: Sequence[End], state: str = "rolled_back") -> str:
    found = [end for end in ends if end.state == state]
    if not found:
        return "never"
    answers = statistics.median(end.answers for end in found)
    return f"after {answers:,.0f} of the candidate's answers and {statistics.median(end.seconds for end in found):,.0f} s (medians)"
