"""What both entrants are given: a Debian as base, a model with weights and its changes, and wheels in a folder."""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.packaging.containers import storage
from benchmarks.packaging.scratch import run
from drivetrain.backends.images import cog, runtime

PYTHON = "3.11"
"""Of the base, Debian 12."""
MIB = 1 << 20
WEIGHTS = 256 * MIB
NEW = "humanize==4.12.3"
"""The dependency that is added."""
_PROGRAMS = ("buildah", "podman", "skopeo", "docker-registry", "debootstrap", "curl")
_PACKAGES = "python3,python3-venv,python3-pip,ca-certificates"
_ROOM = 20_000_000_000
"""Bytes on the disk that are enough: the large weights take most of them."""


class Missing(RuntimeError):
    """Something that the benchmarks need is not there."""


def needed(room: Path) -> None:
    """Raises `Missing` unless all that is needed is installed, and there is space below `room`."""
    lacking = [name for name in _PROGRAMS if not shutil.which(name)]
    if lacking:
        raise Missing(f"{', '.join(lacking)} of Debian's packages wanted")
    if os.geteuid() != 0:
        raise Missing("only root makes a base")
    if (free := shutil.disk_usage(room).free) < _ROOM:
        raise Missing(
            f"{free / 1e9:.0f} GB are free at {room}, and {_ROOM / 1e9:.0f} GB wanted (TMPDIR names another place)"
        )


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
    def variables(self) -> Mapping[str, str]:
        """Variables that have pip take packages from the folder alone, and temporary files stay below `scratch`."""
        return {
            "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.wheels), "PIP_CONFIG_FILE": "/dev/null", "TMPDIR": str(self.scratch),
        }  # fmt: skip


def make(scratch: Path, bundle: Path, example: Mapping[str, Any]) -> World:
    """The base and the wheels, which take a minute."""
    world = World(scratch, scratch / "base", scratch / "wheels", bundle, example)
    root, archive = scratch / "debian", scratch / "base.tar"
    run(["debootstrap", "--variant=minbase", f"--include={_PACKAGES}", "bookworm", str(root)])
    for name in ("var/cache/apt", "var/lib/apt/lists"):
        shutil.rmtree(root / name, ignore_errors=True)
    # Times stay as they are: with others the bytecode of Python's own library would count as stale.
    run(["tar", "--sort=name", "--numeric-owner", "-C", str(root), "-cf", str(archive), "."])
    shutil.rmtree(root)
    with storage(scratch) as kept:
        kept.podman("import", "--quiet", str(archive), "localhost/base:1")
        kept.podman("push", "--quiet", "localhost/base:1", f"oci:{world.base}:1")
    archive.unlink()
    words = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:", "--python-version", PYTHON]
    run([*words, "-d", str(world.wheels), *requirements(bundle), *runtime.requirements(False), NEW])
    return world


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
    path.parent.mkdir(parents=True, exist_ok=True)
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
