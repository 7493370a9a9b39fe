"""Which Debian packages an image's layers have installed, as dpkg's own records in them say."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from drivetrain.backends.images import PIECE, Layer
from drivetrain.backends.images.store import Store
from drivetrain.records import digest as digest_of

_STATUS = re.compile(r"(?:\./)?var/lib/dpkg/status(?:\.d/(?!.*\.md5sums)[^/]+)?")
_RELEASE = re.compile(r"(?:\./)?(?:usr/lib|etc)/os-release")
_MOST = 64 << 20
"""Bytes of records that are read; a full desktop has a tenth of that."""


@dataclass(frozen=True, slots=True, order=True)
class Package:
    """An installed package."""

    name: str
    version: str
    architecture: str


@dataclass(frozen=True, slots=True)
class Debian:
    """What is installed; `release` is `ID-VERSION` (`debian-12`), empty where the image does not say. `complete` is False if a layer could
    not be read."""

    packages: Sequence[Package] = ()
    release: str = ""
    complete: bool = True


def installed(layers: Sequence[Layer], store: Store) -> Debian:
    """The packages after all layers; what was read of a layer before is found again in the store."""
    packages: dict[str, list[Package]] = {}
    release, complete = "", True
    for layer in layers:
        found = _records(layer, store)
        if found is None:
            complete = False
            continue
        if "status" in found[0]:
            packages = {name: entries for name, entries in packages.items() if name != "status"}
        packages |= found[0]
        release = found[1] or release
    every = {package for entries in packages.values() for package in entries}
    return Debian(sorted(every), release, complete)


def _records(layer: Layer, store: Store) -> tuple[dict[str, list[Package]], str] | None:
    """By record file: `status`, or that of one package in images without dpkg itself. None if the layer cannot be read."""
    if layer.blob.path is None:
        return None
    key = digest_of(["dpkg", layer.diff_id])
    known = store.note(key)
    if isinstance(known, dict):
        return {name: [Package(**entry) for entry in told] for name, told in known["files"].items()}, known["release"]
    try:
        files, release = _read(layer.blob.path)
    except (tarfile.TarError, EOFError, OSError):
        return None
    told = {name: [asdict(package) for package in entries] for name, entries in files.items()}
    store.keep_note(key, {"files": told, "release": release})
    return files, release


def _read(path: Path) -> tuple[dict[str, list[Package]], str]:
    files: dict[str, list[Package]] = {}
    release = ""
    with path.open("rb") as raw:
        is_plain = raw.read(2) != b"\x1f\x8b"
    # A plain archive is read by its headers alone; of a packed one all has to be unpacked.
    with tarfile.open(path, "r:" if is_plain else "r|*", bufsize=PIECE) as tar:
        for info in tar:
            if info.isfile() and _STATUS.fullmatch(info.name):
                files[info.name.rpartition("/")[2]] = list(parse(_text(tar, info)))
            elif info.isfile() and _RELEASE.fullmatch(info.name):
                release = _release(_text(tar, info))
    return files, release


def _text(tar: tarfile.TarFile, info: tarfile.TarInfo) -> str:
    stream: IO[bytes] | None = tar.extractfile(info)
    return stream.read(_MOST).decode("utf-8", "replace") if stream is not None else ""


def parse(text: str) -> Iterator[Package]:
    """The packages in dpkg's records that are installed; lines that are none of its kind are passed over."""
    for stanza in re.split(r"\n[ \t]*\n", text):
        fields = dict(_fields(stanza))
        state = fields.get("status", "install ok installed").split()
        if fields.get("package") and fields.get("version") and state[-1:] == ["installed"]:
            yield Package(fields["package"], fields["version"], fields.get("architecture", "all"))


def _fields(stanza: str) -> Iterator[tuple[str, str]]:
    for line in stanza.splitlines():
        name, colon, value = line.partition(":")
        if colon and name and not name[0].isspace():
            yield name.lower(), value.strip()


def _release(text: str) -> str:
    told = {name: value.strip().strip("\"'") for name, _, value in (line.partition("=") for line in text.splitlines())}
    return "-".join(part for part in (told.get("ID"), told.get("VERSION_ID")) if part)
