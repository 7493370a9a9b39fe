"""`python -m benchmarks`: the races, their report, and whether every target holds."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks import picture, report
from benchmarks.environments import HERE
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
    given = _parser().parse_args(arguments)
    names = [name for name in RACES if name in given.only]
    machine = report.this_machine()
    _say(f"{machine.processor}, {machine.cores} cores, load {machine.load}; Python {machine.python}")
    found: dict[str, Findings] = {}
    for name in names:
        _say(f"{name} ...")
        with tempfile.TemporaryDirectory(prefix=f"bench-{name}-") as scratch:
            found[name] = RACES[name](Setting(Path(scratch), given.rounds, _say))
    print(report.text(found))
    report.write_json(given.output, machine, found, given.rounds)
    if "chain" in found and given.picture:
        picture.draw_chain(
            given.picture, found["chain"].measurements, [chain.quantity(n) for n in (chain.SHORT, chain.LONG)]
        )
    held = all(target.verdict == "holds" for findings in found.values() for target in findings.targets)
    return 0 if held or given.report_only else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Races Drivetrain against its peers.")
    parser.add_argument("--only", type=_names, default=list(RACES), metavar="RACE,...", help=f"of {', '.join(RACES)}")
    parser.add_argument("--rounds", type=_positive, default=5, help="samples each, after one warm-up (5)")
    parser.add_argument("--report-only", action="store_true", help="end with 0 even if a target is missed")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "latest.json", help="JSON file to write")
    parser.add_argument(
        "--picture",
        type=Path,
        default=HERE.parent / "docs" / "images" / "bench-chain.png",
        help="PNG of the chain race",
    )
    return parser


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in RACES]
    if unknown:
        raise argparse.ArgumentTypeError(f"no race {', '.join(unknown)}; there are {', '.join(RACES)}")
    return names


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
