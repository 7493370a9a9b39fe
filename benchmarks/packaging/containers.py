"""podman and buildah, each time with storage of their own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.packaging import scratch
from benchmarks.packaging.scratch import run

_CONTAINERS = '[containers]\ndefault_ulimits = ["nofile=1024:1024", "nproc=1000:1000"]\n[engine]\nruntime = "runc"\n'
"""For machines where crun finds no cgroups of its kind and limits cannot be raised."""


@dataclass(frozen=True, slots=True)
class Storage:
    """Images and containers that nobody else sees, below `home`."""

    home: Path
    variables: Mapping[str, str]

    def podman(self, *words: str) -> str:
        """What podman prints."""
        return run(["podman", *self._options, *words], variables=self.variables)

    def buildah(self, *words: str) -> str:
        """What buildah prints."""
        return run(["buildah", *self._options, *words], variables=self.variables)

    def logs(self, container: str) -> str:
        """What the container has printed so far."""
        words = ["podman", *self._options, "logs", container]
        return subprocess.run(
            words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, env=os.environ | dict(self.variables)
        ).stdout  # fmt: skip

    @property
    def _options(self) -> tuple[str, ...]:
        return ("--root", str(self.home / "root"), "--runroot", str(self.home / "run"))


@contextlib.contextmanager
def storage(room: Path) -> Iterator[Storage]:
    """A new storage, gone afterwards with all containers and images in it."""
    # podman refuses a longer path than 50 characters for what it keeps of what runs.
    home = room / f"c{uuid.uuid4().hex[:6]}"
    (home / "tmp").mkdir(parents=True)
    (home / "containers.conf").write_text(_CONTAINERS)
    found = Storage(home, {"CONTAINERS_CONF": str(home / "containers.conf"), "TMPDIR": str(home / "tmp")})
    try:
        yield found
    finally:
        with contextlib.suppress(RuntimeError):
            found.podman("rm", "--all", "--force", "--time", "2")
        scratch.remove(home)
