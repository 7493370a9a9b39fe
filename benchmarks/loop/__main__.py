"""`python -m benchmarks.loop`: how the loop watches, decides and rolls out, beside the peers, and whether every target holds."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks import report
from benchmarks.environments import HERE
from benchmarks.loop import canary, drift, false_alarms, monitor, whole
from benchmarks.loop.bench import Bench
from benchmarks.measures import Findings, Target
from drivetrain.errors import DrivetrainError

RACES: Mapping[str, Callable[[Bench], Findings]] = {
    "drift": drift.race,
    "false_alarms": false_alarms.race,
    "monitor": lambda bench: monitor.race(bench.say),
    "canary": lambda bench: canary.race(bench.say),
    "loop": whole.race,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if every target holds, 1 if one misses or could not be measured, 2 for wrong usage."""
    given = _parser().parse_args(arguments)
    machine = report.this_machine()
    _say(f"{machine.processor}, {machine.cores} cores, load {machine.load}; Python {machine.python}")
    found: dict[str, Findings] = {}
    with tempfile.TemporaryDirectory(prefix="bench-loop-") as scratch:
        bench = Bench(Path(scratch), given.rounds, given.pictures, _say)
        for name in [name for name in RACES if name in given.only]:
            _say(f"{name} ...")
            found[name] = _run(name, bench)
    print(report.text(found))
    report.write_json(given.output, machine, found, given.rounds)
    held = all(target.verdict == "holds" for findings in found.values() for target in findings.targets)
    return 0 if held or given.report_only else 1


def _run(name: str, bench: Bench) -> Findings:
    """The race's findings; one that breaks off is a missed target, and the others go on."""
    try:
        return RACES[name](bench)
    except (DrivetrainError, RuntimeError, OSError) as error:
        return Findings(
            [Target(name, f"the race {name} is run", None, None, "", error=f"{type(error).__name__}: {error}")]
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loop", description="Races the loop.")
    parser.add_argument("--only", type=_names, default=list(RACES), metavar="RACE,...", help=f"of {', '.join(RACES)}")
    parser.add_argument("--rounds", type=int, default=5, help="samples each, after one warm-up (5)")
    parser.add_argument("--report-only", action="store_true", help="end with 0 even if a target is missed")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "loop.json", help="JSON file to write")
    parser.add_argument(
        "--pictures", type=Path, default=HERE.parent / "docs" / "images", help="directory of the PNG files"
    )
    return parser


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in RACES]
    if unknown:
        raise argparse.ArgumentTypeError(f"no race {', '.join(unknown)}; there are {', '.join(RACES)}")
    return names


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
