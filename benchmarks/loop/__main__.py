"""`python -m benchmarks.loop`: how the loop watches, decides and rolls out, beside the peers, and whether every target holds."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks import command
from benchmarks.loop import canary, drift, false_alarms, monitor, whole
from benchmarks.loop.bench import Bench
from benchmarks.measures import Findings

RACES: Mapping[str, Callable[[Bench], Findings]] = {
    "drift": drift.race,
    "false_alarms": false_alarms.race,
    "monitor": lambda bench: monitor.race(bench.say),
    "canary": lambda bench: canary.race(bench.say),
    "loop": whole.race,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if every target holds, 1 if one misses or could not be measured, 2 for wrong usage."""
    parser = command.parser("benchmarks.loop", "Races the loop.", RACES, "loop.json")
    parser.add_argument(
        "--pictures", type=Path, default=command.PICTURES, metavar="DIR", help="directory of the PNG files"
    )
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="bench-loop-") as scratch:
        return command.run(RACES, Bench(Path(scratch), given.rounds, given.pictures, command.say), given)


if __name__ == "__main__":
    raise SystemExit(main())
