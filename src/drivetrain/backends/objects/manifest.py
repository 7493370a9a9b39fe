"""The manifest of an artifact: which files it has, and what each holds. Nothing here knows where objects are stored.

A manifest is the canonical JSON `{"files": {relative POSIX path: [SHA-256 as hexadecimal digits, size in bytes]}}`
with sorted keys and no spaces; the SHA-256 of those bytes is the artifact's digest.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from drivetrain.errors import DataError

_DIGEST = re.compile(r"[0-9a-f]{64}")
_MAX_SEGMENT = 255


@dataclass(frozen=True, slots=True)
class Content:
    """What one file holds: `digest` is the SHA-256 of its bytes, `size` their number."""

    digest: str
    size: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """The files of an artifact by their names."""

    files: Mapping[str, Content]

    @property
    def size(self) -> int:
        """Bytes over all files."""
        return sum(content.size for content in self.files.values())

    def encode(self) -> bytes:
        """The canonical form, equal for equal trees."""
        files = {name: [content.digest, content.size] for name, content in self.files.items()}
        return json.dumps({"files": files}, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def decode(data: bytes) -> Manifest:
    """The manifest back from its bytes. Raises `ValueError` if they are none, or if a name would leave the tree."""
    document = json.loads(data)
    if not isinstance(document, dict) or set(document) != {"files"} or not isinstance(document["files"], dict):
        raise ValueError("it is no manifest")
    files: dict[str, Content] = {}
    for name, entry in document["files"].items():
        check_name(name)
        match entry:
            case [str(digest), int(size)] if is_digest(digest) and size >= 0:
                files[name] = Content(digest, size)
            case _:
                raise ValueError(f"its entry for {name!r} is no digest and size")
    for name in files:
        parents = name.split("/")[:-1]
        if any("/".join(parents[:depth]) in files for depth in range(1, len(parents) + 1)):
            raise ValueError(f"{name!r} lies below another file")
    return Manifest(files)


def is_digest(text: str) -> bool:
    """Whether the text is a SHA-256 in lower-case hexadecimal digits."""
    return _DIGEST.fullmatch(text) is not None


def digests_in(data: bytes) -> list[str]:
    """Every SHA-256 that the bytes spell out, sorted; also of a manifest too damaged to decode."""
    return sorted(set(_DIGEST.findall(data.decode("ascii", errors="replace"))))


def check_name(name: str) -> None:
    """Raises `ValueError` unless the name is a relative POSIX path that stays inside its tree."""
    if "\0" in name or "\\" in name:
        raise ValueError(f"the name {name!r} has a character that not every file system takes")
    for segment in name.split("/"):
        if segment in ("", ".", ".."):
            raise ValueError(f"the name {name!r} is no relative path inside the tree")
        try:
            length = len(segment.encode())
        except UnicodeEncodeError:
            raise ValueError(f"the name {name!r} is not UTF-8") from None
        if length > _MAX_SEGMENT:
            raise ValueError(f"a part of the name {name!r} is longer than {_MAX_SEGMENT} bytes")


def source_files(source: Path) -> dict[str, Path]:
    """The files to store, by name and in sorted order: `source` itself under its own name, or all files below it.

    A link is followed if it leads to a file below `source`. Raises `DataError` for any other link, for what is neither
    a file nor a directory, for a name that cannot be stored, and if there is nothing at `source`.
    """
    if source.is_file():
        found = {source.name: source}
    elif source.is_dir():
        root = source.resolve()
        found = {str(path.relative_to(root)): path for path in _walk(root, root)}
    else:
        raise DataError(f"there is no file or directory {source} to store")
    for name in found:
        try:
            check_name(name)
        except ValueError as error:
            raise DataError(f"{source} cannot be stored: {error}", hint="rename the file") from error
    return dict(sorted(found.items()))


def _walk(directory: Path, root: Path) -> Iterator[Path]:
    with os.scandir(directory) as entries:
        for entry in entries:
            path = Path(entry.path)
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(path, root)
            elif entry.is_file(follow_symlinks=False) or (entry.is_symlink() and _leads_inside(path, root)):
                yield path
            else:
                raise DataError(
                    f"{path} cannot be stored: it is no regular file, nor a link to a file of the same directory tree",
                    hint=f"copy what it leads to, or keep it out of {root}",
                )


def _leads_inside(link: Path, root: Path) -> bool:
    try:
        target = link.resolve(strict=True)
    except (OSError, RuntimeError):  # broken, or a ring of links
        return False
    return target.is_relative_to(root) and stat.S_ISREG(target.stat().st_mode)


def hash_file(path: Path, chunk_size: int) -> Content:
    """Digest and size of a file, read in pieces of `chunk_size` bytes."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(chunk_size):
            digest.update(chunk)
            size += len(chunk)
    return Content(digest.hexdigest(), size)
