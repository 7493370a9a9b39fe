"""What every `python -m benchmarks.NAME` does: takes its options, runs the races, prints and writes what was found, and judges."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TypeVar

from benchmarks import report
from benchmarks.environments import HERE
from benchmarks.measures import Findings, Target
from drivetrain.errors import DrivetrainError

Bench = TypeVar("Bench")
PICTURES = HERE.parent / "docs" / "images"


def parser(
    name: str, description: str, races: Collection[str], results: str, rounds: int = 5
) -> argparse.ArgumentParser:
    """The options that all of them have. `results` is the file below `benchmarks/results` that is written."""

    def chosen(text: str) -> list[str]:
        names = [name.strip() for name in text.split(",")]
        unknown = [name for name in names if name not in races]
        if unknown:
            raise argparse.ArgumentTypeError(f"no race {', '.join(unknown)}; there are {', '.join(races)}")
        return names

    made = argparse.ArgumentParser(prog=f"python -m {name}", description=description)
    made.add_argument("--only", type=chosen, default=list(races), metavar="RACE,...", help=f"of {', '.join(races)}")
    made.add_argument(
        "--rounds", type=_positive, default=rounds, metavar="N", help=f"samples each, after a warm-up ({rounds})"
    )
    made.add_argument("--report-only", action="store_true", help="end with 0 even if a target is missed")
    made.add_argument(
        "--output", type=Path, default=HERE / "results" / results, metavar="FILE", help="JSON file to write"
    )
    return made


def run(races: Mapping[str, Callable[[Bench], Findings]], bench: Bench, given: argparse.Namespace) -> int:
    """Runs those races that are asked for; 0 if every target holds, 1 if one misses or could not be measured."""
    machine = report.this_machine()
    say(f"{machine.processor}, {machine.cores} cores, load {machine.load}; Python {machine.python}")
    found: dict[str, Findings] = {}
    for name in [name for name in races if name in given.only]:
        say(f"{name} ...")
        found[name] = _run(name, races[name], bench)
    print(report.text(found))
    report.write_json(given.output, machine, found, given.rounds)
    held = all(target.verdict == "holds" for findings in found.values() for target in findings.targets)
    return 0 if held or given.report_only else 1


def say(line: str) -> None:
    """Progress."""
    print(line, file=sys.stderr, flush=True)


def _run(name: str, race: Callable[[Bench], Findings], bench: Bench) -> Findings:
    """The race's findings; one that breaks off is a missed target, and the others go on."""
    try:
        return race(bench)
    except (DrivetrainError, RuntimeError, OSError) as error:
        return Findings(
            [Target(name, f"the race {name} is run", None, None, "", error=f"{type(error).__name__}: {error}")]
        )


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number
