"""Packages that come as source alone: built into wheels here, as pip builds them, if they are Python and nothing else.
What has to be compiled is left to `compiling`.

Their own build script runs for that, on this machine; so only what a lock file names by its digest gets here.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZIP_STORED, ZipFile, ZipInfo

from packaging.utils import parse_wheel_filename

from drivetrain.backends.images.layers import WHEN
from drivetrain.errors import StageError

SUFFIXES = (".tar.gz", ".zip", ".tar.bz2", ".tar.xz")

_HINT = (
    "another version may have a wheel; or install buildah or Docker, which compiles it in a container of the base, where that runs on this "
    "machine; or build it there (`pip wheel`) and name its folder with --find-links in the lock file"
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where pip is started, and what holds for it: `lines` say where packages are looked for, as in a requirements file; paths are
    relative to `folder`. The file `constraints` has the lock file's versions."""

    folder: Path
    constraints: Path
    lines: Sequence[str] = ()


def environment(constraints: Path) -> Mapping[str, str]:
    """What pip is started with where it may build: what a build needs (setuptools) comes in the lock file's versions, too."""
    return {**os.environ, "PIP_CONSTRAINT": str(constraints), "SOURCE_DATE_EPOCH": str(WHEN), "PYTHONHASHSEED": "0"}


def wheel(sdist: Path, folder: Path, place: Place) -> Path:
    """The wheel that the source makes, written into the directory `folder`; the same source gives the same bytes.

    Raises `StageError` if it cannot be built, or if what it makes is for one platform: that would have to be compiled for the image's.
    """
    scratch = folder / f"building-{sdist.name}"
    requirements = folder.with_name("source.txt")
    requirements.write_text("\n".join([*place.lines, str(sdist)]) + "\n", encoding="utf-8")
    command = [
        # -P: modules that lie in the project's folder are none of pip's.
        sys.executable, "-P", "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-input", "--no-deps",
        "--no-cache-dir", "--wheel-dir", str(scratch), "--requirement", str(requirements),
    ]  # fmt: skip
    ended = subprocess.run(
        command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
        env=environment(place.constraints), cwd=place.folder,
    )  # fmt: skip
    made = sorted(scratch.glob("*.whl"))
    if ended.returncode != 0 or len(made) != 1:
        said = ended.stderr.strip()[-500:] or "pip did not say why"
        raise StageError(
            f"{sdist.name} is source, and no wheel can be built of it: {said}",
            hint=_HINT,
        )
    tags = parse_wheel_filename(made[0].name)[3]
    if not all((tag.abi, tag.platform) == ("none", "any") for tag in tags):
        raise StageError(
            f"{sdist.name} is source, and not of Python alone: it would have to be compiled for the image's platform",
            hint=_HINT,
        )
    return repacked(made[0], folder)


def repacked(source: Path, folder: Path) -> Path:
    """The wheel in another folder, without what depends on when, where and by whom it was packed: times, order, modes, compression."""
    target = folder / source.name
    with ZipFile(source) as old, ZipFile(target, "w", ZIP_STORED) as new:
        for name in sorted(info.filename for info in old.infolist() if not info.is_dir()):
            info = ZipInfo(name)
            info.external_attr = (0o100755 if old.getinfo(name).external_attr >> 16 & 0o100 else 0o100644) << 16
            new.writestr(info, old.read(name))
    return target
