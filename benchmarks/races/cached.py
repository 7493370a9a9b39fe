"""A run in which nothing has changed: every step comes from the cache, in the time of a short command."""

from __future__ import annotations

from benchmarks.environments import FLYTE, ZENML
from benchmarks.measures import Findings, Measurement, Target, at_most
from benchmarks.processes import MARK, family
from benchmarks.projects import RunFailed, copy_flights, run, stages
from benchmarks.races.chain import LONG, SHORT, our_command, peer_chain, quantity
from benchmarks.setting import OURS, Setting
from benchmarks.timing import CommandFailed, Entrant, in_turns, run_once

NAME = "cached"
LIMIT = 0.5
FLIGHTS = "flights, cached"
TEXT = "flights unchanged within 0.5 s"


def run_race(setting: Setting) -> Findings:
    """The cached chains, ours and those of the peers that cache on one machine, and the cached flights example."""
    ours = [
        setting.ours(f"{quantity(length)}, cached", our_command(length, "cached"), f"{NAME}-drivetrain-{length}")
        for length in (SHORT, LONG)
    ]
    peers = [peer_chain(setting, peer, SHORT, f"{NAME}-{peer.folder}", "cached") for peer in (FLYTE, ZENML)]
    chains = in_turns([*ours, *peers], setting.rounds)
    targets = [at_most(NAME, f"{entry.quantity} within 0.5 s", entry, LIMIT) for entry in chains if entry.name == OURS]
    target, flights = _flights(setting)
    return Findings(
        [*targets, target],
        [*chains, flights],
        ("Metaflow resumes a run but has no cache; KFP caches on a cluster only.",),
    )


def _flights(setting: Setting) -> tuple[Target, Measurement]:
    samples: list[float] = []
    try:
        project = copy_flights(setting, f"{NAME}-flights")
        with family(NAME) as kin:
            setting.say("  flights, to fill the cache")
            run(setting, kin, project)
            again = Entrant(
                OURS, FLIGHTS, [setting.drivetrain, "run", "--json"], project, {MARK: kin.mark}, project.parent / "home"
            )
            for _ in range(1 + setting.rounds):
                samples.append(run_once(again))
                missed = [stage.name for stage in stages(project) if stage.state != "cached"]
                if missed:
                    raise RunFailed(f"not from the cache: {', '.join(missed)}")
    except (RunFailed, CommandFailed, OSError, LookupError) as error:
        measured = Measurement(OURS, FLIGHTS, error=f"{type(error).__name__}: {error}")
    else:
        measured = Measurement(OURS, FLIGHTS, tuple(samples[1:]))
    return at_most(NAME, TEXT, measured, LIMIT), measured
