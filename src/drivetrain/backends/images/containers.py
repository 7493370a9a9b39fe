"""Containers of an image on this machine, by podman or Docker."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from drivetrain.backends.images.config import PORT
from drivetrain.errors import ServingError, StageError, SystemFault

_HERE = re.compile(r"(localhost|127\.[0-9.]+|\[::1\])(:[0-9]+)?/")
_TOKEN = "DRIVETRAIN_TOKEN"
"""The replica's own variable, which it hands on to no model."""
_STOP = 10
"""Seconds that a container is given to answer what it has begun."""


@dataclass(frozen=True, slots=True)
class Container:
    """A container that was started; `port` of this machine leads to the service in it."""

    name: str
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

    def start(self, image: str, host: str, port: int, token: str) -> Container:
        """Starts a container of the image, by id or reference; `port` 0 is any free one of the address `host`, and `token` the bearer
        token that changes need there. Raises `ServingError` if it ends at once; nothing is left of it then."""
        name = f"drivetrain-{secrets.token_hex(6)}"
        address = {"localhost": "127.0.0.1"}.get(host, f"[{host}]" if ":" in host else host)
        words = ["--detach", "--name", name, "--read-only", "--tmpfs", "/tmp", "--env", _TOKEN]
        words += ["--publish", f"{address}:{port or ''}:{PORT}"]
        if self._is_podman and _HERE.match(image):
            words.append("--tls-verify=false")  # a registry here may do without TLS, as Docker has it by itself
        try:
            # By name, so that the value stands in no command line.
            self._run("run", *words, image, variables={_TOKEN: token})
            try:
                told = self._run("port", name, str(PORT)).splitlines()[0]
            except (SystemFault, IndexError) as error:
                raise ServingError(f"the container ended at once: {self.logs(name)}") from error
        except BaseException:
            self._remove(name)
            raise
        return Container(name, int(told.rpartition(":")[2]))

    def is_running(self, container: Container) -> bool:
        """Whether the container still runs."""
        told = json.loads(self._run("inspect", "--format", "{{json .State.Running}}", container.name))
        return bool(told)

    def logs(self, name: str) -> str:
        """The end of what the container printed."""
        ended = subprocess.run(
            [self._program, "logs", "--tail", "20", name], capture_output=True, text=True, check=False
        )
        return (ended.stdout + ended.stderr).strip()

    def stop(self, container: Container) -> None:
        """Ends the container when it has answered what it has begun, and removes it."""
        self._run("stop", "--time", str(_STOP), container.name)
        self._run("rm", "--force", container.name)

    def _remove(self, name: str) -> None:
        """Removes what there is of a container, if anything."""
        subprocess.run([self._program, "rm", "--force", name], capture_output=True, check=False)

    def _run(self, *words: str, cwd: Path | None = None, variables: Mapping[str, str] | None = None) -> str:
        ended = subprocess.run(
            [self._program, *words], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, cwd=cwd,
            env=os.environ | (variables or {}),
        )  # fmt: skip
        if ended.returncode != 0:
            name = Path(self._program).name
            raise SystemFault(f"{name} {words[0]} ended with {ended.returncode}: {ended.stderr.strip()[-500:]}")
        return ended.stdout.strip()
