"""Packages that come as source alone: built into wheels here, as pip builds them, if they are Python and nothing else.

Their own build script runs for that, on this machine; so only what a lock file names by its digest gets here.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from zipfile import ZIP_STORED, ZipFile, ZipInfo

from packaging.utils import parse_wheel_filename

from drivetrain.backends.images.layers import WHEN
from drivetrain.errors import StageError

SUFFIXES = (".tar.gz", ".zip", ".tar.bz2", ".tar.xz")


def environment(constraints: Path) -> Mapping[str, str]:
    """What pip is started with where it may build: what a build needs (setuptools) comes in the lock file's versions, too."""
    return {**os.environ, "PIP_CONSTRAINT": str(constraints), "SOURCE_DATE_EPOCH": str(WHEN), "PYTHONHASHSEED": "0"}


def wheel(sdist: Path, folder: Path, constraints: Path) -> Path:
    """The wheel that the source makes, written into the directory `folder`; the same source gives the same bytes.

    Raises `StageError` if it cannot be built, or if what it makes is for one platform: that would have to be compiled for the image's.
    """
    scratch = folder / f"building-{sdist.name}"
    command = [
        sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-input", "--no-deps",
        "--no-cache-dir", "--wheel-dir", str(scratch), str(sdist),
    ]  # fmt: skip
    ended = subprocess.run(
        command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, env=environment(constraints)
    )
    made = sorted(scratch.glob("*.whl"))
    if ended.returncode != 0 or len(made) != 1:
        said = ended.stderr.strip()[-500:] or "pip did not say why"
        raise StageError(
            f"{sdist.name} is source, and no wheel can be built of it: {said}",
            hint="another version may have a wheel; or build it (`pip wheel`) and name its folder with --find-links in the lock file",
        )
    tags = parse_wheel_filename(made[0].name)[3]
    if not all((tag.abi, tag.platform) == ("none", "any") for tag in tags):
        raise StageError(
            f"{sdist.name} is source, and not of Python alone: it would have to be compiled for the image's platform",
            hint="another version may have a wheel; or build it there (`pip wheel`) and name its folder with --find-links in the lock file",
        )
    return _repacked(made[0], folder / made[0].name)


def _repacked(source: Path, target: Path) -> Path:
    """The wheel without what depends on when, where and by whom it was packed: times, order, modes, compression."""
    with ZipFile(source) as old, ZipFile(target, "w", ZIP_STORED) as new:
        for name in sorted(info.filename for info in old.infolist() if not info.is_dir()):
            info = ZipInfo(name)
            info.external_attr = (0o100755 if old.getinfo(name).external_attr >> 16 & 0o100 else 0o100644) << 16
            new.writestr(info, old.read(name))
    return target
