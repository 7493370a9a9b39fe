"""Containers of an image on this machine, by podman or Docker."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from drivetrain.backends.images.config import PORT
from drivetrain.errors import ServingError, StageError, SystemFault

_STOP = 10
"""Seconds that a container is given to answer what it has begun."""


@dataclass(frozen=True, slots=True)
class Container:
    """A container that was started; `port` of this machine leads to the service in it."""

    id: str
    port: int


class Containers:
    """podman where it is installed, else Docker. Every verb raises `SystemFault` with what the program said if it fails."""

    def __init__(self) -> None:
        """Raises `SystemFault` if there is neither."""
        found = shutil.which("podman") or shutil.which("docker")
        if found is None:
            raise SystemFault("there is neither podman nor Docker here to run an image", hint="install podman")
        self._program = found
        self._is_podman = Path(found).name == "podman"

    def load(self, layout: Path) -> str:
        """Takes the image of an OCI image layout and returns its id; it is called `localhost/NAME` there, after the folder.

        Raises `StageError` with Docker, which takes images from registries alone.
        """
        if not self._is_podman:
            raise StageError(
                "Docker takes images from registries alone",
                hint="push the image and name it: --from-image REF; or use podman",
            )
        # Relative, since a name is made of the whole path, and not every path can be one.
        return self._run("pull", "--quiet", f"oci:{layout.name}", cwd=layout.parent)

    def start(self, image: str, host: str, port: int) -> Container:
        """Starts a container of the image, by id or reference; `port` 0 is any free one of the address `host`."""
        place = f"{host}:{port or ''}:{PORT}"
        words = ("--detach", "--read-only", "--tmpfs", "/tmp", "--publish", place, image)
        found = self._run("run", *words).splitlines()[-1]
        try:
            told = self._run("port", found, str(PORT)).splitlines()[0]
        except SystemFault as error:
            raise ServingError(f"the container ended at once: {self.logs(found)}") from error
        return Container(found, int(told.rpartition(":")[2]))

    def is_running(self, container: Container) -> bool:
        """Whether the container still runs."""
        told = json.loads(self._run("inspect", "--format", "{{json .State.Running}}", container.id))
        return bool(told)

    def logs(self, identity: str) -> str:
        """The end of what the container printed."""
        ended = subprocess.run(
            [self._program, "logs", "--tail", "20", identity], capture_output=True, text=True, check=False
        )
        return (ended.stdout + ended.stderr).strip()

    def stop(self, container: Container) -> None:
        """Ends the container when it has answered what it has begun, and removes it."""
        self._run("stop", "--time", str(_STOP), container.id)
        self._run("rm", "--force", container.id)

    def _run(self, *words: str, cwd: Path | None = None) -> str:
        ended = subprocess.run(
            [self._program, *words], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, cwd=cwd
        )
        if ended.returncode != 0:
            name = Path(self._program).name
            raise SystemFault(f"{name} {words[0]} ended with {ended.returncode}: {ended.stderr.strip()[-500:]}")
        return ended.stdout.strip()
