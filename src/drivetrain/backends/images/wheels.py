"""Wheels: the Python packages of an image, resolved for its platform and never run here.

pip resolves and downloads (`--only-binary`); a package that has no wheel for the platform is refused. Of a whole lock file with
digests, a package that comes as source alone is built into a wheel (`sdists`), or compiled in a container of the base (`compiling`).
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from email.parser import BytesParser
from pathlib import Path
from urllib.parse import unquote
from zipfile import ZipFile

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

from drivetrain.backends.images import Wheel, compiling, locks, sdists
from drivetrain.backends.images.compiling import Ground
from drivetrain.backends.images.sdists import Place
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
_SCRIPT = re.compile(r"subprocess-exited-with-error|metadata-generation-failed")
_NO_SUCH = re.compile(r"from versions: none")


class _NotBuilt(StageError):
    """A package's build script does not run here."""


class _NoWheel(StageError):
    """There is no wheel that meets a requirement."""

    def __init__(self, message: str, requirement: str, *, hint: str) -> None:
        super().__init__(message, hint=hint)
        self.requirement = requirement


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

    def resolve(
        self, wanted: Wanted, folder: Path | None = None, ground: Callable[[Sequence[str]], Ground] | None = None
    ) -> Sequence[Wheel]:
        """The wheels, by name; those from before where nothing that is asked for has changed.

        Paths in the requirements are relative to `folder` (None: to where the process is). `ground` gives what packages are compiled
        on, for the names of all that were found; None: none is.

        Raises `StageError` for requirements that contradict each other, have no wheel for the platform or are not whole, `Unavailable`
        if no package index answers, `SystemFault` if there is no pip; and what `ground` raises.
        """
        key = digest_of(["wheels", asdict(wanted), GLIBC, _beside(wanted, folder or Path.cwd())])
        noted = self._store.note(key)
        if isinstance(noted, dict) and ground is not None:
            # Some of them were compiled: which they are depends on the ground.
            key = _on(ground(noted["names"]), key)
        known = self._known(key)
        if known is not None:
            return known
        _checked(wanted.requirements)
        with tempfile.TemporaryDirectory(prefix="resolving-", dir=self._store.root) as directory:
            place = Path(directory)
            at = Place(folder or Path.cwd(), place / "constraints.txt", _places(wanted))
            try:
                _download(wanted, place, at.folder)
            except _NotBuilt as refused:
                if ground is None or not wanted.may_build or not compiling.runs_here(wanted.architecture):
                    raise
                self._fetch(wanted, place, at, ground, refused)
            sources, compiled_on = self._build(wanted, place / "found", at, ground)
            while lacking := _lacking(place / "found", wanted):
                if wanted.whole:
                    raise _gaps(lacking)
                wanted = replace(wanted, requirements=(*wanted.requirements, *sorted(lacking)))
                _download(wanted, place, at.folder)
            hashes = locks.hashes(wanted.pins)
            found = [self._keep(path, hashes, sources.get(path.name, "")) for path in sorted(place.glob("found/*.whl"))]
        found.sort(key=lambda wheel: wheel.name)
        if compiled_on is not None and not isinstance(noted, dict):
            self._store.keep_note(key, {"names": [wheel.name for wheel in found]})
            key = _on(compiled_on, key)
        self._store.keep_note(key, [asdict(wheel) for wheel in found])
        return found

    def _fetch(
        self, wanted: Wanted, place: Path, at: Place, ground: Callable[[Sequence[str]], Ground], refused: StageError
    ) -> None:
        """Finds what has a wheel here, and the sources of all else in a container: their build scripts do not run here. Raises `refused`
        if nothing lacks a wheel."""
        wheels, sources = wanted.requirements, list[str]()
        while True:
            try:
                _download(replace(wanted, requirements=wheels), place, at.folder, binary=True)
                break
            except _NoWheel as error:
                lacking = _lines_of(error.requirement, wheels)
                if not lacking:
                    raise
                sources += lacking
                wheels = [line for line in wheels if line not in lacking]
        if not sources:
            raise refused
        below = ground(sorted(_name(line) for line in wanted.requirements if not line.startswith("-")))
        (place / "found").mkdir(exist_ok=True)
        for line in sources:
            try:
                compiling.source(line, place / "found", below, at, self._store)
            except StageError as error:
                raise _nowhere(refused, error) from error

    def _build(
        self, wanted: Wanted, found: Path, at: Place, ground: Callable[[Sequence[str]], Ground] | None
    ) -> tuple[Mapping[str, str], Ground | None]:
        """Builds wheels of the sources that were found: each one's name and its source's digest, and what any was compiled on."""
        sources = [path for path in sorted(found.glob("*")) if path.name.endswith(sdists.SUFFIXES)]
        made: dict[str, str] = {}
        compiled_on: Ground | None = None
        for path in sources:
            try:
                wheel = sdists.wheel(path, found, at)
            except StageError as refused:
                if ground is None or not compiling.runs_here(wanted.architecture):
                    raise
                compiled_on = compiled_on or ground(_names(found))
                try:
                    wheel = compiling.wheel(path, found, compiled_on, at, self._store)
                except StageError as error:
                    raise _nowhere(refused, error) from error
            made[wheel.name] = _sha256(path)
        return made, compiled_on

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


def _names(found: Path) -> Sequence[str]:
    """The packages that lie in the directory, as wheel or as source, by name."""
    wheels = {str(parse_wheel_filename(path.name)[0]) for path in found.glob("*.whl")}
    sources = {path.name.rpartition("-")[0] for path in found.iterdir() if path.name.endswith(sdists.SUFFIXES)}
    return sorted({*wheels, *(str(canonicalize_name(name)) for name in sources)})


def _lines_of(requirement: str, lines: Sequence[str]) -> list[str]:
    wanted = canonicalize_name(Requirement(requirement).name)
    return [line for line in lines if not line.startswith("-") and _name(line) == wanted]


def _name(line: str) -> str:
    return str(canonicalize_name(Requirement(line.partition(" --hash")[0]).name))


def _nowhere(refused: StageError, error: StageError) -> StageError:
    return StageError(
        f"{refused.message}; and in a container of the base that failed: {error.message}",
        hint="build.system_packages of cog.yaml has to name what it is compiled with, such as gcc and Python's headers",
    )


def _places(wanted: Wanted) -> Sequence[str]:
    return [line for line in wanted.requirements if line.startswith(locks.PLACES)]


def _beside(wanted: Wanted, folder: Path) -> Sequence[object]:
    """What lies in the folders that the requirements name by a relative path: another project means others by the same name."""
    named = [
        line.partition("=")[2] or line.partition(" ")[2] for line in _places(wanted) if not line.startswith("--index")
    ]
    places = [folder / name.strip() for name in named if "://" not in name and not Path(name.strip()).is_absolute()]
    files = [path for place in places if place.is_dir() for path in sorted(place.iterdir())]
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]


def _on(ground: Ground, key: str) -> str:
    return digest_of([key, ground.image.digest, ground.python])


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# pip


def _download(wanted: Wanted, place: Path, folder: Path, *, binary: bool = False) -> None:
    if importlib.util.find_spec("pip") is None:
        raise SystemFault("there is no pip here to find packages with", hint=f"{sys.executable} -m ensurepip")
    (place / "requirements.txt").write_text("\n".join(wanted.requirements) + "\n", encoding="utf-8")
    (place / "constraints.txt").write_text(locks.constraints(wanted.pins), encoding="utf-8")
    digits = wanted.python.replace(".", "")
    command = [
        # -P: modules that lie in the project's folder are none of pip's.
        sys.executable, "-P", "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input",
        "--dest", str(place / "found"), "--requirement", str(place / "requirements.txt"),
        "--implementation", "cp", "--python-version", wanted.python,
        *(("--no-deps",) if wanted.whole else ("--constraint", str(place / "constraints.txt"))),
        *(() if wanted.may_build and not binary else ("--only-binary=:all:",)),
        *(word for abi in (f"cp{digits}", "abi3", "none") for word in ("--abi", abi)),
        *(word for tag in platform_tags(wanted.architecture) for word in ("--platform", tag)),
    ]  # fmt: skip
    ended = subprocess.run(
        command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
        env=sdists.environment(place / "constraints.txt") if wanted.may_build else None, cwd=folder,
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
        kind = _NotBuilt if _SCRIPT.search(said) else StageError
        return kind(f"the requirements cannot be met for {where}: {told}")
    hint = "another version may have one; or build it (`pip wheel`) and name its folder with --find-links in the requirements"
    if _NO_SUCH.search(said):
        hint = f"nothing of that name is there as a wheel; {hint}"
    return _NoWheel(f"{lacking[1]} has no wheel for {where}: {told}", lacking[1], hint=hint)
