"""A chain of steps that do nothing, each step of ours in a process of its own: what the machinery itself costs."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from benchmarks.environments import CHAINS, FLYTE, HERE, METAFLOW, Peer
from benchmarks.measures import Findings, Measurement, Target, at_most, faster_than, per_extra
from benchmarks.setting import OURS, Setting
from benchmarks.timing import Entrant, in_turns

NAME = "chain"
SHORT, LONG = 5, 20
EXTRA_STEP = 0.050
"""Seconds that one more step may cost."""
FACTOR = 5.0
"""How many times as fast as the peers that give a step a process, or a database."""


def quantity(length: int) -> str:
    return f"{length} steps"


def run_race(setting: Setting) -> Findings:
    """Whole processes of 5 and of 20 steps, ours and every peer's, in turns."""
    entrants = [entrant for length in (SHORT, LONG) for entrant in _entrants(setting, length)]
    measured = in_turns(entrants, setting.rounds)
    found = {(entry.name, entry.quantity): entry for entry in measured}
    names = [OURS, *(peer.name for peer in CHAINS)]
    extra = [per_extra(name, found[name, quantity(SHORT)], found[name, quantity(LONG)], LONG - SHORT) for name in names]
    return Findings(
        _targets(found, extra[0]),
        [*measured, *extra],
        (
            "Flyte's local mode calls the tasks in its own process; ZenML's local orchestrator too. Drivetrain, Metaflow and KFP "
            "start a process a step.",
        ),
    )


def _targets(found: dict[tuple[str, str], Measurement], extra: Measurement) -> Sequence[Target]:
    targets = [
        faster_than(
            NAME,
            f"{SHORT} steps take at most Flyte's time",
            found[OURS, quantity(SHORT)],
            found[FLYTE.name, quantity(SHORT)],
            1.0,
        )
    ]
    for length in (SHORT, LONG):
        for peer in CHAINS:
            if peer is not FLYTE:
                text = f"{length} steps {FACTOR:.0f}x as fast as {peer.name}"
                ours, theirs = found[OURS, quantity(length)], found[peer.name, quantity(length)]
                targets.append(faster_than(NAME, text, ours, theirs, FACTOR))
    targets.append(at_most(NAME, "an extra step costs at most 50 ms", extra, EXTRA_STEP))
    return targets


def _entrants(setting: Setting, length: int) -> list[Entrant]:
    ours = setting.ours(quantity(length), our_command(length), f"{NAME}-drivetrain")
    return [ours, *(peer_chain(setting, peer, length, f"{NAME}-{peer.folder}") for peer in CHAINS)]


def our_command(length: int, *more: str) -> list[str]:
    """Runs our chain, in the working directory."""
    return [sys.executable, str(HERE / "chain" / "drivetrain_chain.py"), str(length), *more]


def peer_chain(setting: Setting, peer: Peer, length: int, folder: str, *more: str) -> Entrant:
    """A peer's own chain, written as its users write one."""
    # Metaflow reads a flow's steps from its source, so that a flow of another length is another file.
    chain = [f"chain_{length}.py", "run"] if peer is METAFLOW else ["chain.py", str(length), *more]
    what = quantity(length) + (", cached" if more else "")
    return setting.peer(peer, what, "python", [str(peer.home / chain[0]), *chain[1:]], folder)
