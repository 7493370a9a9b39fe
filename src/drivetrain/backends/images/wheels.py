"""Wheels: the Python packages of an image, resolved for its platform and never run here.

pip resolves and downloads (`--only-binary`); a package that has no wheel for the platform would have to be compiled, and is refused.
Of a whole lock file with digests, a package that comes as source alone is built into a wheel (`sdists`).
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from email.parser import BytesParser
from pathlib import Path
from urllib.parse import unquote
from zipfile import ZipFile

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

from drivetrain.backends.images import Wheel, locks, sdists
from drivetrain.backends.images.store import Store
from drivetrain.errors import StageError, SystemFault, Unavailable
from drivetrain.records import digest as digest_of

_LEGACY = {"amd64": ("manylinux2014", "manylinux2010", "manylinux1"), "arm64": ("manylinux2014",)}
_OLDEST = {"amd64": 5, "arm64": 17}
GLIBC = 28
"""The GNU C library (2.N) that wheels may want: that of Debian 10, Ubuntu 20.04 and RHEL 8, and so of every base of the last years."""
_UNREACHABLE = re.compile(r"Connection|Max retries|Timeout|timed out|Temporary failure|Name or service not known", re.I)
_NO_WHEEL = re.compile(r"No matching distribution found for (\S+)")
_NOT_THERE = re.compile(r"Cannot install (\S+) because")
_NO_SUCH = re.compile(r"from versions: none")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What packages are to be found, and for which platform. `requirements` are lines as pip reads them, `pins` a lock file's text
    whose versions, and hashes where it has any, hold for every package that it names. `whole` says that the requirements are all that
    is to be found, and that what they need has to be among them; where each of those has its digests (`--hash`), source will do."""

    requirements: Sequence[str]
    python: str
    architecture: str
    pins: str = ""
    whole: bool = False

    @property
    def may_build(self) -> bool:
        """Whether packages that come as source are built."""
        return self.whole and all(" --hash" in line for line in self.requirements if not line.startswith("-"))


class Wheels:
    """Wheels kept in a directory of the store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._place = store.root / "wheels"
        self._place.mkdir(exist_ok=True)

    def path(self, wheel: Wheel) -> Path:
        """Where the wheel lies: in a directory named for its digest, under its own name."""
        return self._place / wheel.sha256 / wheel.file

    def resolve(self, wanted: Wanted) -> Sequence[Wheel]:
        """The wheels, by name; those from before where nothing that is asked for has changed.

        Raises `StageError` for requirements that contradict each other, have no wheel for the platform or are not whole, `Unavailable`
        if no package index answers, `SystemFault` if there is no pip.
        """
        key = digest_of(["wheels", asdict(wanted), GLIBC])
        known = self._known(key)
        if known is not None:
            return known
        _checked(wanted.requirements)
        with tempfile.TemporaryDirectory(prefix="resolving-", dir=self._store.root) as directory:
            place = Path(directory)
            _download(wanted, place)
            sources = _build(wanted, place)
            while lacking := _lacking(place / "found", wanted):
                if wanted.whole:
                    raise _gaps(lacking)
                wanted = replace(wanted, requirements=(*wanted.requirements, *sorted(lacking)))
                _download(wanted, place)
            hashes = locks.hashes(wanted.pins)
            found = [self._keep(path, hashes, sources.get(path.name, "")) for path in sorted(place.glob("found/*.whl"))]
        found.sort(key=lambda wheel: wheel.name)
        self._store.keep_note(key, [asdict(wheel) for wheel in found])
        return found

    def _known(self, key: str) -> Sequence[Wheel] | None:
        told = self._store.note(key)
        if not isinstance(told, list):
            return None
        found = [Wheel(**entry) for entry in told]
        whole = all(self.path(wheel).is_file() and self.path(wheel).stat().st_size == wheel.size for wheel in found)
        return found if whole else None

    def _keep(self, path: Path, hashes: Mapping[str, set[str]], source: str) -> Wheel:
        sha256 = _sha256(path)
        name, version, _, _ = parse_wheel_filename(path.name)
        wheel = Wheel(str(name), str(version), path.name, sha256, path.stat().st_size, source)
        if hashes.get(wheel.name) and (source or sha256) not in hashes[wheel.name]:
            raise StageError(
                f"{path.name} has the digest {sha256}, which the lock file does not have for {name}",
                hint="resolve the lock file anew, or see what the package index gives out",
            )
        target = self.path(wheel)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, target)
        return wheel


def platform_tags(architecture: str) -> list[str]:
    """The platforms that wheels for the architecture may name, newest first."""
    machine = locks.MACHINES[architecture]
    numbered = [f"manylinux_2_{minor}_{machine}" for minor in range(GLIBC, _OLDEST[architecture] - 1, -1)]
    return [*numbered, *(f"{name}_{machine}" for name in _LEGACY[architecture]), f"linux_{machine}"]


def _checked(requirements: Sequence[str]) -> None:
    for line in requirements:
        if line.startswith("-"):
            if not line.startswith(locks.PLACES):
                raise StageError(f"{line}: only where to look for packages can be said in this way")
            continue
        try:
            Requirement(line.partition(" --hash")[0])
        except InvalidRequirement as error:
            raise StageError(
                f"{line} is no requirement that names a package: {str(error).splitlines()[0]}",
                hint="a directory or file of this machine would not be the same on another",
            ) from error


def _lacking(folder: Path, wanted: Wanted) -> dict[str, str]:
    """What the wheels need on the platform that is not among them, and which of them needs it: pip asks this machine, and not the
    platform, whether a requirement with a marker (`; python_version < "3.11"`) counts."""
    target = locks.environment(wanted.python, wanted.architecture)
    paths = sorted(folder.glob("*.whl"))
    names = {parse_wheel_filename(path.name)[0]: path for path in paths}
    return {
        str(need).partition(";")[0].strip(): name
        for name, path in names.items() for need in _needs(path)
        if canonicalize_name(need.name) not in names and (need.marker is None or need.marker.evaluate(target))
    }  # fmt: skip


def _gaps(lacking: Mapping[str, str]) -> StageError:
    told = ", ".join(f"{need} (for {name})" for need, name in sorted(lacking.items()))
    return StageError(
        f"the lock file is not whole: it lacks {told}",
        hint="`pip-compile` and `uv pip compile` write one with all that is needed",
    )


def _needs(path: Path) -> list[Requirement]:
    with ZipFile(path) as file:
        name = next(name for name in file.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name))
        told = BytesParser().parsebytes(file.read(name), headersonly=True)
    return [Requirement(line) for line in told.get_all("Requires-Dist", [])]


def _build(wanted: Wanted, place: Path) -> Mapping[str, str]:
    """Builds wheels of the sources that were found; each one's name, and its source's digest."""
    sources = [path for path in sorted(place.glob("found/*")) if path.name.endswith(sdists.SUFFIXES)]
    return {sdists.wheel(path, place / "found", place / "constraints.txt").name: _sha256(path) for path in sources}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# pip


def _download(wanted: Wanted, place: Path) -> None:
    if importlib.util.find_spec("pip") is None:
        raise SystemFault("there is no pip here to find packages with", hint=f"{sys.executable} -m ensurepip")
    (place / "requirements.txt").write_text("\n".join(wanted.requirements) + "\n", encoding="utf-8")
    (place / "constraints.txt").write_text(locks.constraints(wanted.pins), encoding="utf-8")
    digits = wanted.python.replace(".", "")
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input",
        "--dest", str(place / "found"), "--requirement", str(place / "requirements.txt"),
        "--implementation", "cp", "--python-version", wanted.python,
        *(("--no-deps",) if wanted.whole else ("--constraint", str(place / "constraints.txt"))),
        *(() if wanted.may_build else ("--only-binary=:all:",)),
        *(word for abi in (f"cp{digits}", "abi3", "none") for word in ("--abi", abi)),
        *(word for tag in platform_tags(wanted.architecture) for word in ("--platform", tag)),
    ]  # fmt: skip
    ended = subprocess.run(
        command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
        env=sdists.environment(place / "constraints.txt") if wanted.may_build else None,
    )  # fmt: skip
    if ended.returncode != 0:
        raise _failure(ended.stderr, wanted)
    for path in place.glob("found/*%*"):
        # pip leaves a version's epoch (`1!2.0`) as it stands in the address.
        path.rename(path.with_name(unquote(path.name)))


def _failure(said: str, wanted: Wanted) -> StageError | SystemFault:
    where = f"linux/{wanted.architecture} and Python {wanted.python}"
    # What a whole lock file pins is constrained to the same version: nothing can be in the way of it but that it is not there.
    lacking = _NO_WHEEL.search(said) or (_NOT_THERE.search(said) if wanted.whole else None)
    errors = [line.removeprefix("ERROR: ") for line in said.splitlines() if line.startswith("ERROR: ")]
    told = " ".join(errors) or said.strip()[-500:] or "pip did not say why"
    if _UNREACHABLE.search(said):
        return Unavailable(f"no package index answers: {told}")
    if lacking is None:
        return StageError(f"the requirements cannot be met for {where}: {told}")
    hint = "another version may have one; or build it (`pip wheel`) and name its folder with --find-links in the requirements"
    if _NO_SUCH.search(said):
        hint = f"nothing of that name is there as a wheel; {hint}"
    return StageError(f"{lacking[1]} has no wheel for {where}: {told}", hint=hint)
