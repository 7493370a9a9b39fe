"""What the races share."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.environments import HERE, InstallFailed, Peer, install
from benchmarks.timing import environment

EVIDENTLY = Peer("Evidently", "loop-evidently", "0.7.23", {"DO_NOT_TRACK": "1"})
NANNYML = Peer("NannyML", "loop-nannyml", "0.13.1", {"NML_DISABLE_USAGE_LOGGING": "1"})
DATASKETCHES = Peer("KLL (datasketches)", "loop-datasketches", "5.2.0")

OURS = "Drivetrain"

_TIMEOUT = 3600.0


@dataclass(frozen=True, slots=True)
class Bench:
    """One run of the benchmarks."""

    scratch: Path
    rounds: int
    pictures: Path
    say: Callable[[str], None]

    def ask(self, peer: Peer, *arguments: str) -> tuple[Any, str]:
        """What the peer's `drift.py` prints, run in its own environment; or None and what went wrong."""
        try:
            python = install(peer) / "python"
        except InstallFailed as error:
            return None, str(error)
        home = self.scratch / peer.folder
        home.mkdir(exist_ok=True)
        single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS"), "1")
        done = subprocess.run(
            [str(python), str(peer.home / "drift.py"), *arguments],
            cwd=home,
            env=environment(
                home, {**single, **peer.variables, "PYTHONPATH": str(HERE.parent), "PYTHONWARNINGS": "ignore"}
            ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIMEOUT,
        )
        if done.returncode:
            said = " | ".join(done.stderr.decode(errors="replace").strip().splitlines()[-3:])
            return None, f"{peer.name} {peer.version} ended with {done.returncode}: {said[-500:]}"
        return json.loads(done.stdout.decode().strip().splitlines()[-1]), ""
