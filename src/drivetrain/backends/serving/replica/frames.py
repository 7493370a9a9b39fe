"""The frames that front and worker send each other: fixed binary heads, so that a call costs two packs and two unpacks.

Every frame begins with its length (of all that follows the first four bytes) and its kind. Numbers are little-endian.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from struct import Struct

from drivetrain.backends.serving.replica.calls import Answer, Call, Wire


class Kind(IntEnum):
    """What a frame says."""

    CALL = 0
    """To the worker: one call."""
    CANCEL = 1
    """To the worker: the call of that id is not wanted any more."""
    STOP = 2
    """To the worker: end when what has arrived is answered."""
    HEALTH = 3
    """To the worker: ask the runner's own `healthcheck`; back: empty if all is well, else what is wrong."""
    ANSWER = 4
    """From the worker: the answer to a call, and how long each part of it took."""
    PROGRESS = 5
    """From the worker: something that a running prediction gave before its end."""
    LOG = 6
    """From the worker: text that `setup()` printed."""
    READY = 7
    """From the worker: setup is done; the body is the runner's signature."""
    SETUP_FAILED = 8
    """From the worker: what `setup()` or loading the runner raised."""


@dataclass(slots=True)
class Note:
    """A frame of any kind but CALL and ANSWER. `id` is that of the call it is about, else 0."""

    kind: int
    id: int = 0
    body: bytes = b""


Times = tuple[float, float, float, float, int]
"""Seconds of decoding, waiting for company, computing and encoding; and how many items were computed together."""

_PREFIX = Struct("<IB")
_CALL = Struct("<IBBHQdI")
_ANSWER = Struct("<IBBHQIffffI")
_NOTE = Struct("<IBBHQ")
_NEVER = float("inf")
_WIRES = tuple(Wire)  # quicker than asking the enumeration
PROGRESS_WANTED = 1


def pack_call(number: int, call: Call, progress: bool) -> tuple[bytes, bytes]:
    """The frame of a call, as head and body; the body is not copied."""
    meta, body = call.meta, call.body
    deadline = _NEVER if call.deadline is None else call.deadline
    size = _CALL.size - 4 + len(meta) + len(body)
    head = _CALL.pack(size, 0, call.wire, PROGRESS_WANTED if progress else 0, number, deadline, len(meta))
    return head + meta, body


def unpack_call(frame: memoryview) -> tuple[int, Call, bool]:
    """Id, call, and whether its progress is wanted."""
    _, _, wire, flags, number, deadline, meta = _CALL.unpack_from(frame)
    start = _CALL.size + meta
    call = Call(
        _WIRES[wire],
        bytes(frame[start:]),
        bytes(frame[_CALL.size : start]) if meta else b"",
        None if deadline == _NEVER else deadline,
    )
    return number, call, bool(flags & PROGRESS_WANTED)


def pack_answer(number: int, answer: Answer, times: Times) -> tuple[bytes, bytes]:
    """The frame of an answer, as head and body."""
    meta, body = answer.meta, answer.body
    size = _ANSWER.size - 4 + len(meta) + len(body)
    return _ANSWER.pack(size, 4, 0, answer.status, number, len(meta), *times) + meta, body


def unpack_answer(frame: memoryview) -> tuple[int, Answer, Times]:
    """Id, answer, and times."""
    _, _, _, status, number, meta, decode, wait, compute, encode, together = _ANSWER.unpack_from(frame)
    start = _ANSWER.size + meta
    found = Answer(status, bytes(frame[start:]), bytes(frame[_ANSWER.size : start]) if meta else b"")
    return number, found, (decode, wait, compute, encode, together)


def pack_note(kind: Kind, number: int = 0, body: bytes = b"") -> tuple[bytes, bytes]:
    """The frame of anything else."""
    return _NOTE.pack(_NOTE.size - 4 + len(body), kind, 0, 0, number), body


def unpack_note(frame: memoryview) -> Note:
    """Anything else."""
    _, kind, _, _, number = _NOTE.unpack_from(frame)
    return Note(kind, number, bytes(frame[_NOTE.size :]))
