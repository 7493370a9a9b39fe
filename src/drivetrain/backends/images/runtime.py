"""The replica's own part of an image: Drivetrain's files that it runs on, and the libraries that those import."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

import drivetrain
from drivetrain.errors import MissingLibrary
from drivetrain.usercode import closure

MODULE = "drivetrain.backends.serving.replica"
_STARTS = ("__main__.py", "worker.py")
"""The replica's two programs: its front, and the worker that the front starts."""
_PINNED = ("cog", "coglet", "httptools", "msgspec", "uvloop")
_GRPC = ("grpcio",)
_FREE = ("numpy", "protobuf>=6.31.1")
"""Libraries that models use as well: theirs to choose the version of."""


def requirements(grpc: bool) -> Sequence[str]:
    """What the replica imports. Its own libraries in the versions that are installed beside this Drivetrain, which it was tested with."""
    return (*(f"{name}=={_version(name)}" for name in (*_PINNED, *(_GRPC if grpc else ()))), *_FREE)


def _version(name: str) -> str:
    try:
        return metadata.version(name).partition("+")[0]
    except metadata.PackageNotFoundError as error:
        raise MissingLibrary(name, "serving") from error


def files() -> Iterator[tuple[str, Path]]:
    """Each of Drivetrain's files that the replica is made of: its name below `site-packages`, and where it lies here."""
    home = Path(drivetrain.__file__).parent.parent
    place = MODULE.replace(".", "/")
    for path in closure(home, [f"{place}/{name}" for name in _STARTS]):
        yield path.as_posix(), home / path


def arguments(name: str, runner: str) -> list[str]:
    """What the replica is started with in an image."""
    return ["--bundle", "/src", "--runner", runner, "--name", name, "--host", "0.0.0.0"]
