"""What both entrants are given: a Debian as base, a model with weights and its changes, wheels in a folder, and a registry."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.serving.servers import free_port
from drivetrain.backends.images import cog, runtime

PYTHON = "3.11"
"""Of the base, Debian 12."""
MIB = 1 << 20
WEIGHTS = 256 * MIB
NEW = "humanize==4.12.3"
"""The dependency that is added."""
_PACKAGES = "python3,python3-venv,python3-pip,ca-certificates"
_CONTAINERS = '[containers]\ndefault_ulimits = ["nofile=1024:1024", "nproc=1000:1000"]\n[engine]\nruntime = "runc"\n'
"""For machines where crun finds no cgroups of its kind and limits cannot be raised."""


class Missing(RuntimeError):
    """A program that the benchmarks need is not there."""


def needed() -> None:
    """Raises `Missing` unless all that is needed is installed."""
    lacking = [
        name
        for name in ("buildah", "podman", "skopeo", "docker-registry", "debootstrap", "curl")
        if not shutil.which(name)
    ]
    if lacking or os.geteuid() != 0:
        raise Missing(f"{', '.join(lacking)} of Debian's packages wanted" if lacking else "only root makes a base")


def run(words: Sequence[str], *, directory: Path | None = None, variables: Mapping[str, str] | None = None) -> str:
    """What a command prints. Raises `RuntimeError` with what it said last if it fails."""
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, cwd=directory, stdin=subprocess.DEVNULL,
        env=os.environ | dict(variables or {}),
    )  # fmt: skip
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip())[-800:]
        raise RuntimeError(f"{' '.join(words[:4])} ... ended with {done.returncode}: {said}")
    return done.stdout


@dataclass(frozen=True, slots=True)
class World:
    """Made once for all races. `base` is an OCI layout, `wheels` a folder that pip finds everything in, `bundle` the model's as the stage
    deploy lays it out, `example` inputs that it answers."""

    scratch: Path
    base: Path
    wheels: Path
    bundle: Path
    example: Mapping[str, Any]

    @property
    def pip(self) -> Mapping[str, str]:
        """Variables that have pip take packages from the folder alone."""
        return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.wheels), "PIP_CONFIG_FILE": "/dev/null"}

    @property
    def containers(self) -> Mapping[str, str]:
        """Variables that have podman and buildah run where there is no systemd."""
        return {"CONTAINERS_CONF": str(self.scratch / "containers.conf")}


def make(scratch: Path, bundle: Path, example: Mapping[str, Any]) -> World:
    """The base and the wheels, which take a minute, and the containers' configuration."""
    (scratch / "containers.conf").write_text(_CONTAINERS)
    world = World(scratch, scratch / "base", scratch / "wheels", bundle, example)
    root = scratch / "debian"
    run(["debootstrap", "--variant=minbase", f"--include={_PACKAGES}", "bookworm", str(root)])
    for name in ("var/cache/apt", "var/lib/apt/lists"):
        shutil.rmtree(root / name, ignore_errors=True)
    run(["tar", "--sort=name", "--mtime=@0", "--numeric-owner", "-C", str(root), "-cf", str(scratch / "base.tar"), "."])
    shutil.rmtree(root)
    podman = ["podman", *storage(scratch / "import")]
    run([*podman, "import", "--quiet", str(scratch / "base.tar"), "localhost/base:1"], variables=world.containers)
    run([*podman, "push", "--quiet", "localhost/base:1", f"oci:{world.base}:1"], variables=world.containers)
    clear(world, scratch / "import")
    (scratch / "base.tar").unlink()
    lines = [*requirements(bundle), *runtime.requirements(False), NEW]
    words = [
        "python3",
        "-m",
        "pip",
        "download",
        "--quiet",
        "--only-binary=:all:",
        "--python-version",
        PYTHON,
        "-d",
        str(world.wheels),
    ]
    run([*words, *lines])
    return world


def storage(home: Path) -> Sequence[str]:
    """Options that give podman and buildah a storage of their own below `home`. What they keep of what runs goes to a short path, as
    they want it."""
    short = hashlib.sha256(str(home).encode()).hexdigest()[:8]
    return ["--root", str(home / "root"), "--runroot", f"{tempfile.gettempdir()}/bench-{short}"]


def clear(world: World, home: Path) -> None:
    """Takes such a storage away, with all containers and images in it."""
    podman = ["podman", *storage(home)]
    for words in (["rm", "--all", "--force", "--time", "2"], ["rmi", "--all", "--force"]):
        run([*podman, *words], variables=world.containers)
    # The directory is mounted onto itself, and stays so.
    subprocess.run(["umount", str(home / "root" / "overlay")], capture_output=True, check=False)
    for place in (home, Path(podman[-1])):
        shutil.rmtree(place, ignore_errors=True)


def requirements(bundle: Path) -> Sequence[str]:
    """What the model's own `cog.yaml` asks for."""
    return cog.read(bundle).requirements


def model(world: World, place: Path, seed: int, size: int = WEIGHTS) -> Path:
    """A copy of the bundle with a file of weights."""
    shutil.copytree(world.bundle, place)
    weights(place, seed, size)
    return place


def weights(place: Path, seed: int, size: int = WEIGHTS) -> Path:
    """Writes weights that nothing compresses."""
    path = place / "model" / "weights.bin"
    chance = random.Random(seed)
    with path.open("wb") as file:
        for start in range(0, size, MIB):
            file.write(chance.randbytes(min(MIB, size - start)))
    return path


def change_code(place: Path, number: int) -> None:
    """A line more in the runner."""
    with (place / "run.py").open("a") as file:
        file.write(f"\n# change {number}\n")


def add_dependency(place: Path) -> None:
    """A package more in `cog.yaml`, or in the requirements that it names."""
    told = cog.read(place).told
    named = told["build"].get("python_requirements")
    if named:
        with (place / named).open("a") as file:
            file.write(f"\n{NEW}\n")
        return
    told["build"]["python_packages"] = [*requirements(place), NEW]
    (place / "cog.yaml").write_text(json.dumps(told))  # YAML takes JSON as it is


@dataclass(frozen=True, slots=True)
class Registry:
    """A registry that runs. `home` is where it keeps blobs."""

    home: Path
    host: str

    def bytes(self) -> int:
        """Bytes of all blobs and manifests."""
        return sum(path.stat().st_size for path in self.home.glob("docker/registry/v2/blobs/sha256/*/*/data"))


@contextlib.contextmanager
def registry(world: World, place: Path) -> Iterator[Registry]:
    """Debian's docker-registry with the base in it, and nothing else."""
    port, home = free_port(), place / "registry"
    home.mkdir(parents=True)
    told = {
        "version": 0.1,
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(home)}},
        "http": {"addr": f"127.0.0.1:{port}"},
    }
    (place / "registry.json").write_text(json.dumps(told))
    with (place / "registry.log").open("wb") as log:
        process = subprocess.Popen(["docker-registry", "serve", str(place / "registry.json")], stdout=log, stderr=log)
    try:
        _wait(process, port)
        found = Registry(home, f"localhost:{port}")
        run(
            [
                "skopeo",
                "copy",
                "--quiet",
                "--dest-tls-verify=false",
                f"oci:{world.base}:1",
                f"docker://{found.host}/base:1",
            ]
        )
        yield found
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(home, ignore_errors=True)


def _wait(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise RuntimeError("docker-registry did not come up")


def raw_upload(path: Path, found: Registry) -> float:
    """Seconds that curl takes to send a file to the registry as a blob, its digest known."""
    digest = run(["sha256sum", str(path)]).split()[0]
    began = time.monotonic()
    head = run(
        ["curl", "-sS", "-X", "POST", "-D", "-", "-o", "/dev/null", f"http://{found.host}/v2/raw/blobs/uploads/"]
    )
    place = next(line.split(": ", 1)[1].strip() for line in head.splitlines() if line.lower().startswith("location:"))
    address = f"{place}&digest=sha256:{digest}"
    words = [
        "curl",
        "-sS",
        "-f",
        "-o",
        "/dev/null",
        "-H",
        "Content-Type: application/octet-stream",
        "-H",
        "Expect:",
        "-T",
        str(path),
    ]
    run([*words, address])
    return time.monotonic() - began
