"""Layers: tar archives whose bytes follow from their contents alone.

Entries are sorted by name; times, owners and modes are fixed, a file's execute bit excepted. Contents are streamed in pieces. Nothing
is compressed: what a compressor makes of the same bytes differs from one build of zlib to the next, and uncompressed layers are written,
sent and unpacked fastest.
"""

from __future__ import annotations

import io
import os
import stat
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from drivetrain.backends.images import PIECE
from drivetrain.backends.images.store import Sink
from drivetrain.errors import StageError

WHEN = 315_532_800
"""1980-01-01, the earliest time that zip files know, which some tools pack files of an image into."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A file or a symbolic link of a layer. `name` is relative to the image's root, with `/`; `size` is in bytes; `link` is what a link
    points to, and empty for a file. `shared` says that it is a directory, which everybody may write to, as to `/tmp`."""

    name: str
    size: int = 0
    open: Callable[[], IO[bytes]] = io.BytesIO
    executable: bool = False
    link: str = ""
    shared: bool = False


def content(name: str, data: bytes, *, executable: bool = False) -> Entry:
    """A file from memory."""
    return Entry(name, len(data), lambda: io.BytesIO(data), executable)


def link(name: str, target: str) -> Entry:
    """A symbolic link."""
    return Entry(name, link=target)


def shared(name: str) -> Entry:
    """A directory that everybody may write to, whoever the container runs as."""
    return Entry(name, shared=True)


def file(name: str, path: Path) -> Entry:
    """A file from disk."""
    found = path.stat()
    return Entry(name, found.st_size, lambda: path.open("rb"), bool(found.st_mode & stat.S_IXUSR))


def tree(root: Path, prefix: str, skip: Callable[[PurePosixPath], bool] = lambda path: False) -> Iterator[Entry]:
    """Every file below `root`, named below `prefix`; `skip` is asked of each path relative to `root`, and of directories too.

    A symbolic link stays one. Raises `StageError` for a link that leads out of `root`, and for what is neither file nor link
    (a socket, a device).
    """
    top = root.resolve()
    todo = [root]
    while todo:
        for found in sorted(os.scandir(todo.pop()), key=lambda entry: entry.name):
            path = Path(found.path)
            relative = PurePosixPath(path.relative_to(root).as_posix())
            if skip(relative):
                continue
            name = f"{prefix}/{relative}".lstrip("/")
            if found.is_symlink():
                yield link(name, _inside(top, path))
            elif found.is_dir():
                todo.append(path)
            elif found.is_file():
                yield file(name, path)
            else:
                raise StageError(f"{path} is neither a file nor a directory and cannot go into an image")


def _inside(top: Path, path: Path) -> str:
    """Where the link points, relative to its own place. Raises `StageError` if that is not below `top`."""
    target = path.resolve()
    if not target.is_relative_to(top):
        raise StageError(
            f"{path} is a link to {target}, which lies outside of what the image is made of",
            hint="copy the file there in place of the link",
        )
    return os.path.relpath(target, path.parent.resolve())


def write(sink: Sink, entries: Iterable[Entry]) -> None:
    """The entries as a tar archive, with the directories that they lie in.

    Of two entries with one name the later one counts. Raises `StageError` for a name that would lie outside of the image's root, and
    for a file that changes its size while it is read.
    """
    by_name: dict[str, Entry] = {}
    for entry in entries:
        by_name[_checked(entry.name)] = entry
    directories = {str(parent) for name in by_name for parent in PurePosixPath(name).parents} - {"."}
    clash = directories & {name for name, entry in by_name.items() if not entry.shared}
    if clash:
        raise StageError(f"{sorted(clash)[0]} is both a file and a directory")
    with tarfile.TarFile(fileobj=sink, mode="w", format=tarfile.PAX_FORMAT, copybufsize=PIECE) as tar:  # type: ignore[arg-type]
        for name in sorted({*by_name, *directories}):
            if name in by_name:
                _add(tar, name, by_name[name])
            else:
                tar.addfile(_info(name, tarfile.DIRTYPE, 0o755))


def _checked(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in name:
        raise StageError(f"{name!r} would lie outside of the image's root")
    return str(path)


def _add(tar: tarfile.TarFile, name: str, entry: Entry) -> None:
    if entry.link:
        info = _info(name, tarfile.SYMTYPE, 0o777)
        info.linkname = entry.link
        tar.addfile(info)
        return
    if entry.shared:
        tar.addfile(_info(name, tarfile.DIRTYPE, 0o1777))
        return
    info = _info(name, tarfile.REGTYPE, 0o755 if entry.executable else 0o644)
    info.size = entry.size
    with entry.open() as stream:
        try:
            tar.addfile(info, stream)
        except OSError as error:
            if str(error) == "unexpected end of data":
                raise StageError(f"{name} became shorter while it was read") from error
            raise
        if stream.read(1):
            raise StageError(f"{name} became longer while it was read")


def _info(name: str, kind: bytes, mode: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.mtime = kind, mode, WHEN
    return info
