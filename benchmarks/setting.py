"""What every race is given: the interpreter, how often to measure, and room to work in."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.environments import HERE, InstallFailed, Peer, install
from benchmarks.timing import Entrant

OURS = "Drivetrain"


@dataclass(frozen=True, slots=True)
class Setting:
    """`scratch` is an empty directory that goes when the race is over; `say` prints a line of progress."""

    scratch: Path
    rounds: int
    say: Callable[[str], None]

    @property
    def repository(self) -> Path:
        return HERE.parent

    @property
    def drivetrain(self) -> str:
        """The installed command, beside the interpreter that runs the benchmarks."""
        return str(Path(sys.executable).parent / "drivetrain")

    def ours(self, quantity: str, command: Sequence[str], folder: str) -> Entrant:
        """Drivetrain as an entrant, in a directory below `scratch`."""
        return Entrant(OURS, quantity, command, self._directory(folder))

    def peer(self, peer: Peer, quantity: str, program: str, arguments: Sequence[str], folder: str) -> Entrant:
        """A peer as an entrant: `program` of its environment, installed if need be."""
        directory = self._directory(folder)
        try:
            place = install(peer)
        except InstallFailed as error:
            return Entrant(peer.name, quantity, (), directory, error=str(error))
        variables = {**peer.variables, "PATH": f"{place}:/usr/bin:/bin"}
        return Entrant(peer.name, quantity, (str(place / program), *arguments), directory, variables)

    def _directory(self, folder: str) -> Path:
        directory = self.scratch / folder
        directory.mkdir(parents=True, exist_ok=True)
        return directory
