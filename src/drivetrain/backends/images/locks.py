"""A lock file: what it pins, for which platform, and whether it is whole."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from drivetrain.backends.images import Wheel
from drivetrain.errors import StageError

MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
"""OCI's name of an architecture -> Python's."""
PLACES = ("--extra-index-url", "--index-url", "-i ", "--find-links", "-f ")
"""Options of pip that say where packages are looked for."""


def environment(python: str, architecture: str) -> dict[str, str]:
    """What markers (`; python_version < "3.12"`) are asked of: the platform, and not this machine.

    Of the image's Python nothing is known but `MAJOR.MINOR`; its first release counts.
    """
    version = {"python_version": python, "python_full_version": f"{python}.0"}
    own = {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix", "extra": ""}
    return {**own, **version, "platform_machine": MACHINES[architecture]}


def pinned(pins: str, target: Mapping[str, str], *, without: str = "") -> list[Requirement]:
    """What the lock file pins for the platform, its markers answered; `without` is the name of a package that is left out.

    A lock file for all platforms has several versions of one package, each with a marker. Raises `StageError` for a line that is no
    requirement, and for one that pins no version.
    """
    found: list[Requirement] = []
    for bare, _ in _statements(pins):
        try:
            line = Requirement(bare)
        except InvalidRequirement as error:
            raise StageError(f"the lock file has a line that names no package: {bare}") from error
        if canonicalize_name(line.name) == without or (line.marker and not line.marker.evaluate(dict(target))):
            continue
        if not line.url and not any(part.operator in ("==", "===") for part in line.specifier):
            raise StageError(
                f"the lock file does not say which version of {line.name} is to be taken: {bare}",
                hint="`pip-compile` and `uv pip compile` write one that does",
            )
        line.marker = None
        found.append(line)
    return found


def unmet(wanted: Iterable[str], there: Sequence[Requirement], target: Mapping[str, str]) -> list[str]:
    """Which of the requirements (as metadata have them) what is pinned does not meet."""
    versions = {str(canonicalize_name(line.name)): line for line in there}
    lines = [line for line in map(Requirement, wanted) if line.marker is None or line.marker.evaluate(dict(target))]
    return sorted(str(line).partition(";")[0].strip() for line in lines if not _meets(line, versions))


def _meets(wanted: Requirement, there: Mapping[str, Requirement]) -> bool:
    found = there.get(canonicalize_name(wanted.name))
    if found is None:
        return False
    # Where an address is pinned, nothing is known of the version.
    return bool(found.url) or all(
        wanted.specifier.contains(part.version, prereleases=True)
        for part in found.specifier if part.operator in ("==", "===")
    )  # fmt: skip


def lines(found: Sequence[Requirement], pins: str) -> list[str]:
    """What is pinned as lines that pip reads; with digests if the lock file has them for every package."""
    known = hashes(pins)
    by_name = [(line, sorted(known.get(canonicalize_name(line.name), ()))) for line in found]
    if not all(digests for _, digests in by_name):
        return [str(line) for line, _ in by_name]
    return [f"{line} {' '.join(f'--hash=sha256:{digest}' for digest in digests)}" for line, digests in by_name]


def places(pins: str) -> list[str]:
    """The lines that say where packages are looked for."""
    return [line for line in _lines(pins) if line.startswith(PLACES)]


def hashes(pins: str) -> Mapping[str, set[str]]:
    """Each package's SHA-256 digests; none for one that is pinned without."""
    found: dict[str, set[str]] = {}
    for bare, rest in _statements(pins):
        try:
            name = canonicalize_name(Requirement(bare).name)
        except InvalidRequirement:
            continue
        found.setdefault(name, set()).update(re.findall(r"--hash[= ]sha256:([0-9a-f]{64})", rest))
    return found


def constraints(pins: str) -> str:
    """The lock file's versions. A local version (`2.13.0+cpu`) is on no index, and says nothing here."""
    return "".join(f"{bare}\n" for bare, _ in _statements(pins) if "+" not in bare.partition(";")[0])


def as_lock(wheels: Sequence[Wheel]) -> str:
    """The wheels as a lock file that pip reads."""
    return "".join(
        f"{wheel.name}=={wheel.version} \\\n    --hash=sha256:{wheel.source or wheel.sha256}\n" for wheel in wheels
    )


def _statements(pins: str) -> Iterator[tuple[str, str]]:
    """Each pinned requirement without its hashes, and the rest of its line."""
    for line in _lines(pins):
        bare, dashes, rest = line.partition(" --hash")
        if bare and not bare.startswith("-"):
            yield bare.strip(), dashes + rest


def _lines(pins: str) -> Iterator[str]:
    for line in re.sub(r"\\\r?\n", " ", pins).splitlines():
        yield re.sub(r"(^|\s)#.*$", "", line).strip()
