"""The flights example from nothing to an endpoint that answers: its time, stage by stage, and its memory."""

from __future__ import annotations

from benchmarks.measures import Findings, Measurement, Target, at_most
from benchmarks.processes import family
from benchmarks.projects import RunFailed, copy_flights, endpoint_answers, run, stages
from benchmarks.setting import OURS, Setting

NAME = "flights"
SECONDS = 60.0
BYTES = 1.5e9
RUNS = 3
"""Each takes the better part of a minute, so there are fewer than in the other races."""


def run_race(setting: Setting) -> Findings:
    """Runs of fresh copies of the project; times are medians, memory is the most of any run."""
    times: list[float] = []
    peaks: list[tuple[int, str]] = []
    by_stage: dict[str, list[float]] = {}
    memory: dict[str, list[float]] = {}
    try:
        for number in range(min(RUNS, setting.rounds)):
            setting.say(f"  run {number + 1}")
            project = copy_flights(setting, f"{NAME}-{number}")
            with family(NAME) as kin:
                done = run(setting, kin, project)
                endpoint_answers(project)
            times.append(done.seconds)
            found = stages(project)
            peaks += [(done.peak, done.peak_command), *((stage.peak, stage.name) for stage in found)]
            for stage in found:
                by_stage.setdefault(stage.name, []).append(stage.seconds)
                memory.setdefault(stage.name, []).append(float(stage.peak))
    except (RunFailed, OSError, LookupError) as error:
        return _failed(f"{type(error).__name__}: {error}")
    whole = Measurement(OURS, "nothing to endpoint", tuple(times))
    peak, whose = max(peaks)
    highest = Measurement(OURS, "peak of any process", (float(peak),), "B")
    measured = [Measurement("stage", name, tuple(samples)) for name, samples in by_stage.items()]
    measured += [Measurement("peak", name, tuple(samples), "B") for name, samples in memory.items()]
    return Findings(
        [
            at_most(NAME, "nothing to an answering endpoint in 60 s", whole, SECONDS),
            at_most(NAME, "no process above 1.5 GB", highest, BYTES),
        ],
        [whole, highest, *measured],
        (f"The highest peak is that of `{whose}`.",),
    )


def _failed(error: str) -> Findings:
    targets = [
        Target(NAME, "nothing to an answering endpoint in 60 s", None, SECONDS, "limit", error=error),
        Target(NAME, "no process above 1.5 GB", None, BYTES, "limit", unit="B", error=error),
    ]
    return Findings(targets, [Measurement(OURS, "nothing to endpoint", error=error)])
