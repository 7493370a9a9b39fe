"""Segment files: records appended, whole or not at all to their reader, on a disk that may be full and a machine that may stop.

    file    magic (8) | marker (8) | crc32 of both (4) | record ...
    record  marker (8) | length of the head (4) | length of the body (4) | crc32 of lengths, head and body (4) | head | body

The marker is drawn anew for each file, so that no body can hold what looks like a record of it: after damage a reader searches for
the next marker. A writer never goes on with a file that it has not begun itself; a tail torn by a crash stays where it is, and
whatever comes next stands in the next file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from zlib import crc32

MAGIC = b"DTCAPT1\n"
MARKER = 8
START = len(MAGIC) + MARKER + 4
LENGTHS = struct.Struct("<II")
CHECK = struct.Struct("<I")
HEADER = MARKER + LENGTHS.size + CHECK.size
_JOINED = 64 * 1024
"""Bodies up to here are copied next to their head, larger ones are not."""
_SUFFIX = ".capture"
_MOST_PARTS = 1000
"""The system takes 1024 in one call."""

SYNCS = ("never", "interval", "always")

Record = tuple[bytes, ...]
"""A record without its marker, in pieces; see `packed`."""


def packed(head: bytes, body: bytes) -> Record:
    """A record, ready to be written; can be made before it is known into which segment."""
    lengths = LENGTHS.pack(len(head), len(body))
    if len(body) <= _JOINED:
        both = head + body
        return (lengths + CHECK.pack(crc32(both, crc32(lengths))) + both,)
    return lengths + CHECK.pack(crc32(body, crc32(head, crc32(lengths)))) + head, body


def path_of(directory: Path, number: int) -> Path:
    """The file of a segment."""
    return directory / f"{number:012d}{_SUFFIX}"


def numbers(directory: Path) -> list[int]:
    """The segments that there are, oldest first; none if there is no directory."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    stems = (name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX))
    return sorted(int(stem) for stem in stems if stem.isdigit())


class Segments:
    """Appends records to the newest segment of a directory, and keeps all of them within `keep` bytes.

    No call raises for what the disk does: `append` says how many records it has written, and `fault` why it was not all of them.
    One thread at a time.
    """

    def __init__(self, directory: Path, *, segment: int, keep: int, sync: str) -> None:
        self._directory, self._keep = directory, keep
        # At least two segments, so that removing the oldest never leaves nothing.
        self._segment = min(segment, keep // 2)
        self._sync = sync
        self._file: int | None = None
        self._number = 0
        self._marker = b""
        self._size = 0
        self.dirty = False
        """Whether something is written that `flush` has not been called for."""
        self.fault: OSError | None = None
        self.bytes = 0
        """Bytes written by this object, of records alone."""
        self.largest = self._segment - START - MARKER
        """Bytes that a record may have."""

    def append(self, records: Sequence[Record]) -> int:
        """Writes the records in order, and says how many of them are in the file, whole."""
        done = 0
        self.fault = None
        try:
            while done < len(records):
                done += self._write(records, done)
                if self.fault is not None:
                    break
            if self._sync == "always" and done:
                self._flush()
        except OSError as error:
            self.fault = error
        if self.fault is not None:
            self._seal(torn=True)
        return done

    def flush(self) -> None:
        """Has the disk keep what was written, unless the policy is "never"."""
        if not self.dirty or self._sync == "never":
            self.dirty = False
            return
        try:
            self._flush()
        except OSError as error:
            self.fault = error
            self._seal(torn=True)

    def close(self) -> None:
        """Flushes, and ends the segment; a later `append` starts the next."""
        self.flush()
        self._seal(torn=False)

    def _write(self, records: Sequence[Record], first: int) -> int:
        file = self._ready_for(MARKER + sum(map(len, records[first])))
        parts: list[bytes] = []
        ends: list[int] = []
        size = 0
        for index in range(first, len(records)):
            record = records[index]
            length = MARKER + sum(map(len, record))
            if ends and (self._size + size + length > self._segment or len(parts) + 3 > _MOST_PARTS):
                break
            parts.append(self._marker)
            parts += record
            size += length
            ends.append(size)
        written = os.writev(file, parts)
        self.dirty = True
        whole = len(ends)
        if written < size:
            whole = sum(end <= written for end in ends)
            self.fault = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path_of(self._directory, self._number)))
        kept = ends[whole - 1] if whole else 0
        self._size += kept
        self.bytes += kept
        return whole

    def _ready_for(self, length: int) -> int:
        """The file to write to: another one where this one is full."""
        if self._file is not None and self._size > START and self._size + length > self._segment:
            self.close()
        if self._file is None:
            self._file = self._open()
        return self._file

    def _open(self) -> int:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._make_room()
        self._number = max([self._number, *numbers(self._directory)])
        while True:
            self._number += 1
            path = path_of(self._directory, self._number)
            with contextlib.suppress(FileExistsError):  # another writer's
                file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
                break
        self._marker = os.urandom(MARKER)
        start = MAGIC + self._marker
        try:
            if os.write(file, start + CHECK.pack(crc32(start))) != START:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        except OSError:
            os.close(file)
            path.unlink(missing_ok=True)
            raise
        self._size = START
        if self._sync != "never":
            _sync_directory(self._directory)
        return file

    def _make_room(self) -> None:
        """Removes the oldest segments until there is room for one more."""
        sizes = {}
        for path in map(self._path, numbers(self._directory)):
            with contextlib.suppress(FileNotFoundError):
                sizes[path] = path.stat().st_size
        total = sum(sizes.values())
        for path, size in sizes.items():
            if total + self._segment <= self._keep:
                return
            path.unlink(missing_ok=True)
            total -= size

    def _path(self, number: int) -> Path:
        return path_of(self._directory, number)

    def _flush(self) -> None:
        if self._file is not None:
            getattr(os, "fdatasync", os.fsync)(self._file)
        self.dirty = False

    def _seal(self, *, torn: bool) -> None:
        file, self._file = self._file, None
        if file is None:
            return
        # What cannot be cut off is skipped by the reader.
        with contextlib.suppress(OSError):
            if torn:
                os.ftruncate(file, self._size)
        with contextlib.suppress(OSError):
            os.close(file)
        if self._size <= START:
            with contextlib.suppress(OSError):
                self._path(self._number).unlink()


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
