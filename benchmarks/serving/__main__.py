"""`python -m benchmarks.serving`: how fast models are served, beside the peers, and whether every target holds."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks import command
from benchmarks.measures import Findings
from benchmarks.serving import judged
from benchmarks.serving.judged import Bench
from benchmarks.serving.races import Plan

RACES: Mapping[str, Callable[[Bench], Findings]] = {
    "echo": judged.echo,
    "gateway": judged.gateway,
    "models": judged.models,
    "batching": judged.batching,
    "lookup": judged.lookup,
    "gpu": judged.gpu,
    "wake": judged.wake,
    "soak": judged.soak,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if every target holds, 1 if one misses or could not be measured, 2 for wrong usage."""
    parser = command.parser("benchmarks.serving", "Races the data plane.", RACES, "serving.json")
    parser.add_argument(
        "--seconds", type=int, default=4, metavar="N", help="length of a sample in whole seconds, as wrk wants it (4)"
    )
    parser.add_argument("--soak", type=float, default=30.0, metavar="N", help="minutes of the soak (30)")
    parser.add_argument(
        "--pictures", type=Path, default=command.PICTURES, metavar="DIR", help="directory of the PNG files"
    )
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="bench-serving-") as scratch:
        place = Path(scratch)
        plan = Plan(place, place, given.rounds, given.seconds, command.say)
        return command.run(RACES, Bench(plan, given.soak, given.pictures), given)


if __name__ == "__main__":
    raise SystemExit(main())
