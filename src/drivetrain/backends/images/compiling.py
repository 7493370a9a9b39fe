"""Packages that have to be compiled: made into wheels in a container of the base, by this machine's pip and the base's Python.

A compiler may give other bytes each time, and so each wheel is kept, by the digests of its source and of what it was compiled on.
"""

from __future__ import annotations

import ast
import configparser
import hashlib
import importlib.util
import io
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from drivetrain.backends.images import Image, locks, programs, sdists
from drivetrain.backends.images.layers import WHEN
from drivetrain.backends.images.sdists import Place
from drivetrain.backends.images.store import Store
from drivetrain.errors import StageError
from drivetrain.records import digest as digest_of

_HOME = "/drivetrain"
"""Where the container has what is to be built, and what it is built with."""
_SECTIONS = ("global", "download", ":env:")
"""The parts of pip's configuration that count for what `wheels` has pip find; of two that name a key the later one holds."""
_LISTS = ("find-links", "index-url", "extra-index-url")
_FILES = ("cert", "client-cert")
_KEYS = (*_LISTS, *_FILES, "no-index", "trusted-host", "proxy", "timeout", "default-timeout", "retries")


@dataclass(frozen=True, slots=True)
class Ground:
    """What packages are compiled on: the base with its system packages, and the path of the Python in it."""

    image: Image
    python: str


def runs_here(architecture: str) -> bool:
    """Whether containers for the architecture run on this machine, and there is a program that runs them."""
    machine = platform.machine().lower()
    return machine in (architecture, locks.MACHINES[architecture]) and programs.found() is not None


def source(line: str, folder: Path, ground: Ground, place: Place, store: Store) -> Path:
    """The source that a line of the lock file names, written into `folder`: pip runs its build script to find out what it is, and there
    are scripts that run in the base alone.

    Raises `StageError` if pip does not come to it, or it has another digest than the line has.
    """
    with tempfile.TemporaryDirectory(prefix="compiling-", dir=store.root) as directory:
        # Of that package alone: what its build needs may come as wheels.
        name = canonicalize_name(Requirement(line.partition(" --hash")[0]).name)
        made = _pip(f"download --no-binary {name} --dest made", line, Path(directory), ground, place, store)
        return Path(shutil.copyfile(made, folder / made.name))


def wheel(sdist: Path, folder: Path, ground: Ground, place: Place, store: Store) -> Path:
    """The wheel that the source makes on that ground, written into the directory `folder`; the one from before where there is one.

    Raises `StageError` if it cannot be built, with the end of what was printed.
    """
    with sdist.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    key = digest_of(["compiled", digest, ground.image.digest, ground.python])
    known = store.note(key)
    if isinstance(known, dict) and store.path(known["digest"]).is_file():
        return Path(shutil.copyfile(store.path(known["digest"]), folder / known["file"]))
    with tempfile.TemporaryDirectory(prefix="compiling-", dir=store.root) as directory:
        scratch = Path(directory)
        shutil.copyfile(sdist, scratch / sdist.name)
        made = sdists.repacked(_pip("wheel --wheel-dir made", f"./{sdist.name}", scratch, ground, place, store), folder)
    store.keep_note(key, {"digest": store.copy("application/zip", made).digest, "file": made.name})
    return made


def _pip(verb: str, line: str, scratch: Path, ground: Ground, place: Place, store: Store) -> Path:
    """What pip makes of the requirement in a container that has the directory `scratch`. Whatever is written there lies in directories
    that are made here: in those of another user nothing could be removed afterwards."""
    program = programs.found()
    if program is None:
        raise StageError("there is neither buildah nor Docker to compile in")
    settings, mounted = _settings(place)
    lines, more = _lines(place)
    for name in ("made", "lib/pip"):
        (scratch / name).mkdir(parents=True)
    shutil.copyfile(place.constraints, scratch / "constraints.txt")
    (scratch / "pip.conf").write_text(_written(settings), encoding="utf-8")
    (scratch / "requirements.txt").write_text("\n".join([*lines, line]) + "\n", encoding="utf-8")
    # Not every base has a pip of its own.
    pip = Path(cast(str, importlib.util.find_spec("pip").origin)).parent  # type: ignore[union-attr]
    volumes = [f"{scratch}:{_HOME}", f"{pip}:{_HOME}/lib/pip:ro"]
    volumes += sorted({f"{path}:{path}:ro" for path in (*mounted, *more)})
    variables = {
        "PIP_CONFIG_FILE": f"{_HOME}/pip.conf", "PIP_CONSTRAINT": f"{_HOME}/constraints.txt", "SOURCE_DATE_EPOCH": str(WHEN),
        "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip
    told = " ".join(f"{name}={value}" for name, value in variables.items())
    options = "--quiet --disable-pip-version-check --no-input --no-deps --no-cache-dir --requirement requirements.txt"
    command = f"cd {_HOME} && {told} exec {shlex.quote(ground.python)} lib/pip {verb} {options}"
    program.run(ground.image, command, volumes, store)
    made = sorted((scratch / "made").iterdir())
    if len(made) != 1:
        raise StageError(f"pip wrote {len(made)} files, and not one")
    return made[0]


# pip's configuration


def _settings(place: Place) -> tuple[Mapping[str, str], Sequence[Path]]:
    """Where pip looks for packages here and how it gets there, and the files and folders of this machine that are named in that."""
    words = [sys.executable, "-P", "-m", "pip", "config", "list"]
    ended = subprocess.run(
        words, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, cwd=place.folder
    )
    if ended.returncode != 0:
        raise StageError(f"pip's configuration cannot be read: {ended.stderr.strip()[-500:]}")
    entries = [line.partition("=")[::2] for line in ended.stdout.splitlines()]
    by_section = {name: str(ast.literal_eval(value)) for name, value in entries}
    found: dict[str, str] = {}
    mounted: list[Path] = []
    for key in _KEYS:
        told = [by_section[name] for section in _SECTIONS if (name := f"{section}.{key}") in by_section]
        if told:
            # A path may have spaces in it where it cannot be one of several.
            parts = told[-1].split() if key in _LISTS else [told[-1]]
            located = [_located(part, place.folder) if key in (*_LISTS, *_FILES) else (part, None) for part in parts]
            found[key] = "\n".join(part for part, _ in located)
            mounted += [path for _, path in located if path is not None]
    return found, mounted


def _written(settings: Mapping[str, str]) -> str:
    parser = configparser.RawConfigParser()
    parser["global"] = dict(settings)
    found = io.StringIO()
    parser.write(found)
    return found.getvalue()


def _lines(place: Place) -> tuple[list[str], list[Path]]:
    """The lines of the requirements that say where packages are looked for, as they hold in the container, and what they name here."""
    found = [(option, _located(value.strip(), place.folder)) for option, value in map(_split, place.lines)]
    return [f"{option} {value}" for option, (value, _) in found], [path for _, (_, path) in found if path is not None]


def _split(line: str) -> tuple[str, str]:
    option, separator, value = line.partition("=" if "=" in line.partition(" ")[0] else " ")
    return (option, value) if separator else (line, "")


def _located(value: str, folder: Path) -> tuple[str, Path | None]:
    """What stands for the value in a container that has the machine's path where it is here, and that path; None if it is no path."""
    path = (folder / value.removeprefix("file://")).absolute()
    if not value or not path.exists():
        return value, None
    if value.startswith("file:"):
        # The pages of an index lead to files beside it.
        return value, path.parent
    return str(path), path
