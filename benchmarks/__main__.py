"""`python -m benchmarks`: the races, their report, and whether every target holds."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks import command, picture
from benchmarks.measures import Findings
from benchmarks.races import cached, chain, flights, help_text, tenfold
from benchmarks.setting import Setting

RACES: Mapping[str, Callable[[Setting], Findings]] = {
    "chain": chain.run_race,
    "help": help_text.run_race,
    "cached": cached.run_race,
    "flights": flights.run_race,
    "tenfold": tenfold.run_race,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if every target holds, 1 if one misses or could not be measured, 2 for wrong usage."""
    parser = command.parser("benchmarks", "Races Drivetrain against its peers.", RACES, "latest.json")
    parser.add_argument(
        "--picture",
        type=Path,
        default=command.PICTURES / "bench-chain.png",
        metavar="FILE",
        help="PNG of the race chain",
    )
    given = parser.parse_args(arguments)
    return command.run({name: _alone(name, race) for name, race in RACES.items()}, given, given)


def _alone(name: str, race: Callable[[Setting], Findings]) -> Callable[[argparse.Namespace], Findings]:
    """The race in a directory of its own, which goes when it is over."""

    def run(given: argparse.Namespace) -> Findings:
        with tempfile.TemporaryDirectory(prefix=f"bench-{name}-") as scratch:
            found = race(Setting(Path(scratch), given.rounds, command.say))
        if name == chain.NAME:
            quantities = [chain.quantity(length) for length in (chain.SHORT, chain.LONG)]
            picture.draw_chain(given.picture, found.measurements, quantities)
        return found

    return run


if __name__ == "__main__":
    raise SystemExit(main())
