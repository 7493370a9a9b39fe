"""Drivetrain's own part of the image in which a pipeline's steps run: all of it, as an installer would place it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import drivetrain
from drivetrain import __version__
from drivetrain.backends.images import layers, locks, unpacked
from drivetrain.backends.images.layers import Entry
from drivetrain.errors import StageError, SystemFault

NAME = "drivetrain"
"""The distribution; a lock file that names it too does not count: an image has the Drivetrain that makes it."""


def refuse(there: Sequence[Requirement], python: str, target: Mapping[str, str], lock: str) -> None:
    """Raises `StageError` if Drivetrain does not run on that Python, or needs what is not among the packages that are `there`; `lock` is
    the lock file's name, `target` what markers are asked of."""
    told = _distribution().metadata
    wanted = told["Requires-Python"]
    if wanted and not SpecifierSet(wanted).contains(f"{python}.0"):
        raise StageError(
            f"the image is to have Python {python}, and Drivetrain runs on {wanted}",
            hint="build.python_version of cog.yaml says which Python an image has",
        )
    lacking = locks.unmet(told.get_all("Requires-Dist", []), there, target)
    if lacking:
        raise StageError(
            f"{lock} does not have what Drivetrain {__version__} itself needs: {', '.join(lacking)}",
            hint="resolve it anew with drivetrain among its requirements: the steps of a pipeline run on it alone",
        )


def entries(python: str) -> Iterator[Entry]:
    """Every file of the package, its metadata, and its programs, where they belong in the image."""
    site = unpacked.site_packages(python)
    found = _distribution()
    points = _entry_points(found)
    info = f"{site}/{NAME}-{__version__}.dist-info"
    home = Path(drivetrain.__file__).parent
    yield from layers.tree(home, f"{site}/{NAME}", lambda path: path.name == "__pycache__")
    yield layers.content(f"{info}/METADATA", _metadata(found).encode())
    yield layers.content(f"{info}/entry_points.txt", points.encode())
    yield from unpacked.console_scripts(points)


def _distribution() -> metadata.Distribution:
    try:
        return metadata.distribution(NAME)
    except metadata.PackageNotFoundError as error:
        raise SystemFault(
            "Drivetrain runs here without being installed, and nothing says what it needs",
            hint="pip install PATH_OF_THE_CLONE",
        ) from error


def _metadata(found: metadata.Distribution) -> str:
    """What libraries ask of it, always in the same words: those of the installed file depend on who wrote it."""
    lines = ["Metadata-Version: 2.1", f"Name: {NAME}", f"Version: {__version__}"]
    lines += [f"Requires-Python: {text}" for text in found.metadata.get_all("Requires-Python", [])]
    lines += [f"Provides-Extra: {name}" for name in sorted(found.metadata.get_all("Provides-Extra", []))]
    lines += sorted(f"Requires-Dist: {Requirement(line)}" for line in found.metadata.get_all("Requires-Dist", []))
    return "\n".join(lines) + "\n"


def _entry_points(found: metadata.Distribution) -> str:
    groups: dict[str, list[str]] = {}
    for point in found.entry_points:
        groups.setdefault(point.group, []).append(f"{point.name} = {point.value}\n")
    return "".join(f"[{group}]\n{''.join(sorted(groups[group]))}" for group in sorted(groups))
