"""How a prediction ended, as its answer tells: Cog's is 200 for one that has failed, too, and a stream tells it in its last event."""

from __future__ import annotations

import re

import msgspec

_COMPLETED = b"event: completed\n"
"""Stands in no JSON document: that has no line break within a text."""
_DATA = re.compile(rb"^data: ?(.*)", re.MULTILINE)


class _Ended(msgspec.Struct, gc=False):
    status: str | None = None


_ended = msgspec.json.Decoder(_Ended).decode


def has_failed(body: bytes) -> bool:
    """Whether Cog's answer says that the prediction has failed: a JSON document, or a stream of events with its last one."""
    if b'"failed"' not in body:
        return False
    _, streamed, last = body.rpartition(_COMPLETED)
    if streamed:
        data = _DATA.search(last)
        last = data[1] if data is not None else b""
    try:
        return _ended(last).status == "failed"
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False


class Kept:
    """What is kept of a stream: its first bytes, about as many as `most`, and its last event `completed`, whole."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._begin = bytearray()
        self._end: bytearray | None = None
        """Once the beginning is full: what came since the last `completed`, or what may be the start of one."""
        self._gap = b""

    def add(self, piece: bytes) -> None:
        """The next piece of the stream."""
        if self._end is None:
            self._begin += piece
            if len(self._begin) >= self._most:
                at = self._begin.rfind(_COMPLETED)
                at = len(self._begin) - len(_COMPLETED) if at < 0 else at
                self._end = self._begin[at:]
                del self._begin[at:]
            return
        unread = max(0, len(self._end) - len(_COMPLETED))
        self._end += piece
        at = self._end.rfind(_COMPLETED, unread)
        if at < 0 and not self._end.startswith(_COMPLETED):
            at = len(self._end) - len(_COMPLETED)
        if at > 0:
            del self._end[:at]
            self._gap = b"\n\n"

    def body(self) -> bytes:
        """All of the stream, if nothing had to be left out; a line break stands where something was."""
        return bytes(self._begin + self._gap + (self._end or b""))
