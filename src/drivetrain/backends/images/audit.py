"""Known vulnerabilities of an image's Python packages, looked up by pip-audit: in a local copy of advisories, or at PyPI."""

from __future__ import annotations

import contextlib
import json
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version
from pip_audit._audit import Auditor
from pip_audit._dependency_source import DependencySource
from pip_audit._service import PyPIService, ResolvedDependency, ServiceError, VulnerabilityResult, VulnerabilityService
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from drivetrain.backends.images import Advisory, Audit, Wheel
from drivetrain.errors import StageError, Unavailable

_HINT = (
    "package.advisories names a folder or zip file of them: https://osv-vulnerabilities.storage.googleapis.com/PyPI/all.zip, "
    "or a clone of https://github.com/pypa/advisory-database"
)
_SECONDS = 15
_VULNERABLE = ("requests", Version("2.19.0"))
"""A release of which PyPI has known CVE-2018-18074 for years."""


def audit(packages: Sequence[Wheel], advisories: Path | None, cache: Path) -> Audit:
    """What is known of the packages. `advisories` is a folder or zip file of OSV's JSON or YAML files; None: PyPI is asked, and what it
    says is kept in the directory `cache`.

    Raises `Unavailable` if PyPI does not answer, `StageError` if the folder or file holds no advisories.
    """
    service, source = _local(advisories, packages) if advisories is not None else _pypi(cache)
    found: list[Advisory] = []
    unknown: list[str] = []
    with _answering():
        for dependency, results in Auditor(service).audit(_Wheels(packages)):
            if dependency.is_skipped():
                unknown.append(dependency.name)
            found += [_advisory(dependency, result) for result in results]
    return Audit(source, len(packages), sorted(found, key=lambda each: (each.package, each.id)), unknown)


def _local(place: Path, packages: Sequence[Wheel]) -> tuple[VulnerabilityService, str]:
    service = LocalAdvisories(place, {wheel.name for wheel in packages})
    return service, f"{place} ({service.count:,} advisories)"


def _pypi(cache: Path) -> tuple[VulnerabilityService, str]:
    """PyPI, if it is PyPI: a mirror in its place may know the packages and nothing of their vulnerabilities, and pip-audit would take that
    for none."""
    service = PyPIService(cache, timeout=_SECONDS)
    with _answering():
        _, known = service.query(ResolvedDependency(*_VULNERABLE))
    if not known:
        name = "==".join(map(str, _VULNERABLE))
        raise Unavailable(
            f"there is no advisory database: what answers as PyPI knows of no vulnerability in {name}, and no local one is named",
            hint=_HINT,
        )
    return service, "PyPI"


@contextlib.contextmanager
def _answering() -> Iterator[None]:
    try:
        yield
    except (ServiceError, OSError) as error:  # what the HTTP library raises is of the latter
        raise Unavailable(
            f"there is no advisory database: PyPI does not answer ({type(error).__name__}), and no local one is named",
            hint=_HINT,
        ) from error


def _advisory(dependency: Any, result: VulnerabilityResult) -> Advisory:
    return Advisory(
        package=dependency.name, version=str(dependency.version), id=str(result.id), aliases=sorted(map(str, result.aliases)),
        fixed=[str(version) for version in result.fix_versions], told=result.description.strip(),
    )  # fmt: skip


class _Wheels(DependencySource):  # type: ignore[misc]
    """The wheels as pip-audit wants what it looks up."""

    def __init__(self, packages: Sequence[Wheel]) -> None:
        self._packages = packages

    def collect(self) -> Iterator[ResolvedDependency]:
        """One after another."""
        for wheel in self._packages:
            yield ResolvedDependency(wheel.name, Version(wheel.version))

    def fix(self, fix_version: Any) -> None:
        """An image's packages are changed in its requirements, not here."""
        raise NotImplementedError


class LocalAdvisories(VulnerabilityService):  # type: ignore[misc]
    """Advisories in OSV's form, of which those about the packages `wanted` are kept; `count` is the number of all."""

    def __init__(self, place: Path, wanted: set[str]) -> None:
        self.count = 0
        self._names = {str(canonicalize_name(name)) for name in wanted}
        self._by_name: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
        for name, data in _documents(place):
            self._take(name, data)
        if not self.count:
            raise StageError(f"{place} holds no advisories about PyPI's packages: nothing can be looked up", hint=_HINT)

    def query(self, spec: ResolvedDependency) -> tuple[ResolvedDependency, list[VulnerabilityResult]]:
        """See pip-audit's `VulnerabilityService`."""
        results = []
        for advisory in self._by_name.get(spec.canonical_name, ()):
            entries = [entry for entry in _affected(advisory) if _name(entry) == spec.canonical_name]
            if any(_holds(entry, spec.version) for entry in entries):
                told = advisory.get("summary") or advisory.get("details") or "no description"
                ids = [str(advisory["id"]), *map(str, advisory.get("aliases") or ())]
                results.append(VulnerabilityResult.create(ids, " ".join(str(told).split()), _fixes(entries), None))
        return spec, results

    def _take(self, name: str, data: bytes) -> None:
        text = data.decode("utf-8", "replace")
        if '"PyPI"' not in text and "PyPI" not in text:
            return
        self.count += 1
        # Most are about other packages: reading those would take minutes in YAML.
        if not any(wanted in text.lower().replace("_", "-").replace(".", "-") for wanted in self._names):
            return
        try:
            advisory = json.loads(text) if name.endswith(".json") else YAML(typ="safe", pure=True).load(text)
            if advisory.get("withdrawn"):
                return
            for found in {_name(entry) for entry in _affected(advisory)} & self._names:
                self._by_name[found].append(advisory)
        except (ValueError, YAMLError, AttributeError, KeyError, TypeError) as error:
            raise StageError(f"the advisory {name} cannot be read: {error!r}", hint=_HINT) from error


def _documents(place: Path) -> Iterator[tuple[str, bytes]]:
    suffixes = (".json", ".yaml", ".yml")
    if place.is_dir():
        for path in sorted(place.rglob("*")):
            if path.suffix in suffixes and path.is_file():
                yield path.as_posix(), path.read_bytes()
        return
    try:
        with zipfile.ZipFile(place) as archive:
            for name in sorted(archive.namelist()):
                if name.endswith(suffixes):
                    yield name, archive.read(name)
    except (OSError, zipfile.BadZipFile) as error:
        raise StageError(f"{place} is no folder or zip file of advisories: {error}", hint=_HINT) from error


def _affected(advisory: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    entries = advisory.get("affected") or []
    return [entry for entry in entries if entry["package"].get("ecosystem") == "PyPI"]


def _name(entry: Mapping[str, Any]) -> str:
    return str(canonicalize_name(str(entry["package"]["name"])))


def _holds(entry: Mapping[str, Any], version: Version) -> bool:
    """Whether the version is one of those that are listed, or within a range."""
    listed = (_version(text) for text in entry.get("versions") or ())
    ranges = (part for part in entry.get("ranges") or () if part.get("type") == "ECOSYSTEM")
    return version in listed or any(_within(part.get("events") or (), version) for part in ranges)


def _within(events: Sequence[Mapping[str, str]], version: Version) -> bool:
    """OSV's own rule: in the order of their versions, events switch between affected and not."""
    points: list[tuple[Version, int, str]] = []
    for event in events:
        for kind, text in event.items():
            at = Version("0.dev0") if text == "0" else _version(text)
            if at is not None:
                # Of one version, what ends a range comes before what begins one.
                points.append(
                    (at, ("fixed", "last_affected", "introduced").index(kind) if kind != "limit" else 0, kind)
                )
    affected = False
    for at, _, kind in sorted(points):
        if kind == "introduced" and version >= at:
            affected = True
        elif (kind == "last_affected" and version > at) or (kind in ("fixed", "limit") and version >= at):
            affected = False
    return affected


def _fixes(entries: Sequence[Mapping[str, Any]]) -> list[Version]:
    texts = {
        event["fixed"]
        for entry in entries
        for part in entry.get("ranges") or ()
        if part.get("type") == "ECOSYSTEM"
        for event in part.get("events") or ()
        if "fixed" in event
    }
    return sorted(version for version in map(_version, texts) if version is not None)


def _version(text: object) -> Version | None:
    try:
        return Version(str(text))
    except InvalidVersion:
        return None
