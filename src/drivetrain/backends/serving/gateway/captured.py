"""Reads what was captured: all of it in order, while it is being written too, or the events of one prediction.

    position = None
    while True:
        for position, event in read(directory, position): ...
        keep(position); sleep(1)

A record is given whole and as it was written, or not at all.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

from drivetrain.backends.serving.gateway.events import REQUEST, Event, id_prefix, parse
from drivetrain.backends.serving.gateway.segments import (
    CHECK,
    HEADER,
    LENGTHS,
    MAGIC,
    MARKER,
    START,
    numbers,
    path_of,
)

_log = logging.getLogger(__name__)
_CHUNK = 1 << 20

Position = str
"""Where a reader stands: after an event. `SEGMENT:OFFSET`, padded so that texts order as positions do."""


def read(directory: Path, position: Position | None = None) -> Iterator[tuple[Position, Event]]:
    """The events after `position` (from the oldest on without one), each with the position after it, up to the newest.

    Segments that were removed to make room are passed over. Raises `ValueError` for what is no position.
    """
    number, offset = _parsed(position) if position else (0, START)
    while True:
        present = [entry for entry in numbers(directory) if entry >= number]
        if not present:
            return
        if present[0] != number:
            number, offset = present[0], START
        for found, event in _events(path_of(directory, number), offset, sealed=len(present) > 1):
            offset = found
            yield f"{number:012d}:{offset:012d}", event
        # The newest segment is read up to its end; one that was not the newest when it was listed grows no more.
        if len(present) > 1:
            number, offset = present[1], START
        elif not any(entry > number for entry in numbers(directory)):
            return


def newest(directory: Path) -> Position | None:
    """A position at most a megabyte before the newest event, found without reading what comes before; None if there is no log yet."""
    present = numbers(directory)
    if not present:
        return None
    try:
        with _File(path_of(directory, present[-1])) as file:
            offset = max(START, os.fstat(file.handle).st_size - _CHUNK)
            found = file.search(offset) if offset > START and file.marker is not None else START
    except FileNotFoundError:
        return None
    return f"{present[-1]:012d}:{offset if found is None else found:012d}"


def find(directory: Path, event_id: str) -> list[Event]:
    """The request, the answer and the labels of a prediction, in the order in which they were written; newest segments first, and
    no older ones once the request is found."""
    needle = id_prefix(event_id)
    found: list[Event] = []
    for number in reversed(numbers(directory)):
        here = _matching(path_of(directory, number), needle)
        found = here + found
        if any(event.type == REQUEST for event in here):
            break
    return found


class _File:
    """A segment opened for reading; `marker` is None if its start is not what it should be."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        start = os.pread(self.handle, START, 0)
        whole = len(start) == START and start.startswith(MAGIC) and CHECK.unpack(start[-4:])[0] == crc32(start[:-4])
        self.marker = start[len(MAGIC) : len(MAGIC) + MARKER] if whole else None

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.handle)

    def record(self, offset: int) -> tuple[bytes, bytes] | None:
        """Head and body of the record at an offset, None if there is no whole one."""
        if offset < START:
            return None
        found = _record(os.pread(self.handle, HEADER, offset), 0, self.marker)
        if found is None or offset + found > os.fstat(self.handle).st_size:
            return None
        data = os.pread(self.handle, found, offset)
        return _checked(data, 0, found) if len(data) == found else None

    def search(self, offset: int) -> int | None:
        """The offset of the next whole record from an offset on."""
        assert self.marker is not None
        while True:
            chunk = os.pread(self.handle, _CHUNK, offset)
            place = chunk.find(self.marker)
            if place >= 0:
                if self.record(offset + place) is not None:
                    return offset + place
                offset += place + 1
            elif len(chunk) < _CHUNK:
                return None
            else:
                offset += len(chunk) - MARKER + 1


def _record(data: bytes, place: int, marker: bytes | None) -> int | None:
    """The length of the record whose header stands there, None if it is no header of this file."""
    if len(data) - place < HEADER:
        return None
    if data[place : place + MARKER] != marker:
        return None
    head, body = LENGTHS.unpack_from(data, place + MARKER)
    return HEADER + int(head) + int(body)


def _checked(data: bytes, place: int, length: int) -> tuple[bytes, bytes] | None:
    start, check = place + MARKER, place + MARKER + LENGTHS.size
    with memoryview(data) as view:
        checked = crc32(view[place + HEADER : place + length], crc32(view[start:check]))
    if CHECK.unpack_from(data, check)[0] != checked:
        return None
    middle = place + HEADER + LENGTHS.unpack_from(data, start)[0]
    return data[place + HEADER : middle], data[middle : place + length]


def _events(path: Path, offset: int, *, sealed: bool) -> Iterator[tuple[int, Event]]:
    try:
        file = _File(path)
    except FileNotFoundError:
        return
    with file:
        if file.marker is None:
            if sealed:
                _log.warning("%s does not start as a segment does; passed over", path)
            return
        for end, head, body in _records(file, offset, sealed=sealed):
            yield end, parse(head, body)


def _records(file: _File, offset: int, *, sealed: bool) -> Iterator[tuple[int, bytes, bytes]]:
    """Each whole record from an offset on: the offset after it, its head and its body."""
    data, base = b"", offset
    while True:
        place = offset - base
        length = _record(data, place, file.marker)
        if length is None or place + length > len(data):
            data, base, place = os.pread(file.handle, _CHUNK, offset), offset, 0
            length = _record(data, 0, file.marker)
            if length is not None and len(data) < length <= os.fstat(file.handle).st_size - offset:
                data = os.pread(file.handle, length, offset)
        found = None if length is None or place + length > len(data) else _checked(data, place, length)
        if found is not None and length is not None:
            offset += length
            yield offset, *found
            continue
        if not data:
            return
        following = file.search(offset + 1)
        if following is None:
            # A tail that was torn by a crash, or one that is being written.
            if sealed:
                _log.warning("%s is torn from byte %d on; passed over", file.path, offset)
            return
        _log.warning("%s is damaged from byte %d to %d; passed over", file.path, offset, following)
        data, base, offset = b"", following, following


def _matching(path: Path, needle: bytes) -> list[Event]:
    found: list[Event] = []
    try:
        file = _File(path)
    except FileNotFoundError:
        return found
    with file:
        base, overlap = 0, len(needle) - 1
        while file.marker is not None:
            chunk = os.pread(file.handle, 4 * _CHUNK, base)
            place = chunk.find(needle)
            while place >= 0:
                # A head stands right after its record's header; what is found elsewhere is part of a body.
                record = file.record(base + place - HEADER)
                if record is not None:
                    found.append(parse(*record))
                place = chunk.find(needle, place + 1)
            if len(chunk) < 4 * _CHUNK:
                break
            base += len(chunk) - overlap
    return found


def _parsed(position: Position) -> tuple[int, int]:
    number, colon, offset = position.partition(":")
    if not (colon and number.isdigit() and offset.isdigit()):
        raise ValueError(f"{position!r} is no position in a capture log; it is SEGMENT:OFFSET")
    return int(number), int(offset)
