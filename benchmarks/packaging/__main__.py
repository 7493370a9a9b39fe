"""`python -m benchmarks.packaging`: how fast a model becomes an image, and whether every target holds."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks import command
from benchmarks.measures import Findings
from benchmarks.packaging import large, publish, scratch, start
from benchmarks.packaging.bench import Bench

RACES: Mapping[str, Callable[[Bench], Findings]] = {
    "publish": publish.race,
    "large": large.race,
    "start": start.race,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if every target holds, 1 if one misses or could not be measured, 2 for wrong usage, 130 if it was interrupted."""
    parser = command.parser("benchmarks.packaging", "Races image builds.", RACES, "packaging.json", rounds=3)
    parser.add_argument(
        "--pictures", type=Path, default=command.PICTURES, metavar="DIR", help="directory of the PNG file"
    )
    given = parser.parse_args(arguments)
    # Whoever ends it otherwise than with Ctrl-C finds the machine as clean.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        with scratch.room() as place:
            return command.run(RACES, Bench(place, given.rounds, given.pictures, command.say), given)
    except KeyboardInterrupt:
        command.say("interrupted: what was started is ended, and nothing is written")
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
