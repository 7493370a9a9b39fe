"""Captures what was asked and answered: to a durable log on this machine, to an HTTP sink, or to both.

The event loop only puts an event into a queue (about a microsecond). A thread takes what has gathered there, a few at a time so that
it never holds the interpreter for long, makes the attributes and writes. What cannot be kept is counted, not waited for.
"""

from __future__ import annotations

import logging
import queue
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

from drivetrain.backends.serving.gateway.events import FEEDBACK, REQUEST, RESPONSE, Event, head
from drivetrain.backends.serving.gateway.segments import SYNCS, Segments, packed
from drivetrain.backends.serving.gateway.settings import Capturing
from drivetrain.backends.serving.gateway.sink import Sink
from drivetrain.errors import ServingError

_log = logging.getLogger(__name__)

QUEUE_BYTES = 64 * 1024**2
"""Bodies that may wait to be written, and as many to be sent, besides the bound on their number: large bodies must not fill the memory."""
_LINGER = 0.01
"""Seconds after an event in which others gather: one wake-up of the thread for all of them."""
_PAUSE = 0.0005
"""Between two portions, so that the event loop gets the interpreter."""
_PORTION = 64
_SYNC_EVERY = 1.0
_TRY_AGAIN = 0.5
"""Seconds after a failed write in which events are lost without asking the disk."""
_COMPLAIN_EVERY = 60.0


@dataclass(frozen=True, slots=True)
class Counters:
    """Events written to the log and their bytes, events lost on the way to it, events in the queue; and for the sink those that it
    took (`sent`), and those it never got (`unsent`)."""

    written: int
    lost: int
    bytes: int
    queue: int
    sent: int = 0
    unsent: int = 0


class Recorder:
    """A `contracts.Recorder`. `request`, `response` and `feedback` are for one thread, that of the event loop."""

    def __init__(self, settings: Capturing, service: str, source: str) -> None:
        self._service, self._source = service, source
        self._limit = settings.queue
        self._threshold = round(settings.sample * 2**32)
        self._queue: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._segments = _segments(settings)
        self._sink = Sink(settings.sink, settings.queue, QUEUE_BYTES) if settings.sink else None
        self._open = self._wanted = self._segments is not None or self._sink is not None
        # Each is changed by one thread alone: refused and bytes in by the event loop's, all others by the writer's.
        self._refused = self._bytes_in = self._bytes_out = self._written = self._lost = 0
        self._failed_until = self._complained_at = float("-inf")
        self._thread = threading.Thread(target=self._work, name="capture", daemon=True)
        if self._wanted:
            self._thread.start()

    def request(self, event_id: str, revision: str, path: str, content_type: str, body: bytes, at: float) -> bool:
        """Whether this one is in the sample: which are depends on their ids alone."""
        if not (self._open and sampled(event_id, self._threshold)):
            return False
        self._put(REQUEST, event_id, revision, path, content_type, body, at)
        return True

    def response(
        self,
        event_id: str,
        revision: str,
        path: str,
        content_type: str,
        body: bytes,
        at: float,
        status: int,
        took: float,
    ) -> None:
        """The answer to a request that was in the sample."""
        self._put(RESPONSE, event_id, revision, path, content_type, body, at, status, took)

    def feedback(self, event_id: str, body: bytes, at: float) -> None:
        """A label; kept whether its prediction was in the sample or not."""
        if self._wanted:
            self._put(FEEDBACK, event_id, "", "/feedback", "application/json", body, at)

    def counters(self) -> Counters:
        """What has become of the events so far."""
        sent, unsent = (self._sink.sent, self._sink.lost) if self._sink else (0, 0)
        written = self._segments.bytes if self._segments else 0
        return Counters(self._written, self._refused + self._lost, written, self._queue.qsize(), sent, unsent)

    def close(self, timeout: float = 5.0) -> None:
        """Writes what waits, for so long at most, and lets the files go; events after this are lost."""
        if not self._open:
            return
        self._open = False
        end = time.monotonic() + timeout
        self._queue.put(None)
        self._thread.join(timeout)
        if self._sink:
            self._sink.close(max(0.0, end - time.monotonic()))
        if self._thread.is_alive():
            _log.warning("%d captured events of %s were not written in time", self._queue.qsize(), self._service)

    def _put(
        self,
        kind: str,
        event_id: str,
        revision: str,
        path: str,
        content_type: str,
        body: bytes,
        at: float,
        status: int = 0,
        took: float = 0.0,
    ) -> None:
        size = len(body)
        waiting = self._bytes_in - self._bytes_out
        if not self._open or self._queue.qsize() >= self._limit or waiting + size > QUEUE_BYTES:
            self._refused += 1
            return
        self._bytes_in += size
        self._queue.put(
            Event(kind, event_id, revision, path, content_type, body, at, status, took, self._service, self._source)
        )

    def _work(self) -> None:
        """The writer thread: sleeps without cost while there is nothing to do."""
        segments = self._segments
        synced = time.monotonic()
        while self._open or not self._queue.empty():
            dirty = segments is not None and segments.dirty
            try:
                first = self._queue.get(timeout=max(0.0, synced + _SYNC_EVERY - time.monotonic()) if dirty else None)
            except queue.Empty:
                first = None
            if first is not None:
                if self._open:
                    time.sleep(_PAUSE if self._queue.qsize() > _PORTION else _LINGER)
                self._keep(self._portion(first))
            if segments is not None and time.monotonic() - synced >= _SYNC_EVERY:
                segments.flush()
                synced = time.monotonic()
        if segments is not None:
            segments.close()

    def _portion(self, first: Event) -> list[Event]:
        """The longer the queue, the more at a time: under full load it must be kept short too."""
        found = [first]
        waiting = self._queue.qsize()
        for _ in range(min(waiting, max(_PORTION, waiting // 4))):
            event = self._queue.get_nowait()
            if event is not None:
                found.append(event)
        return found

    def _keep(self, events: Sequence[Event]) -> None:
        if self._sink is not None:
            self._sink.offer(events)
        if self._segments is not None:
            self._store(self._segments, events)
        self._bytes_out += sum(len(event.body) for event in events)

    def _store(self, segments: Segments, events: Sequence[Event]) -> None:
        done = 0
        if time.monotonic() >= self._failed_until:
            records = [packed(head(event), event.body) for event in events]
            done = segments.append([record for record in records if sum(map(len, record)) <= segments.largest])
            if segments.fault is not None:
                self._failed(segments.fault)
        self._written += done
        self._lost += len(events) - done

    def _failed(self, fault: OSError) -> None:
        now = time.monotonic()
        self._failed_until = now + _TRY_AGAIN
        if now - self._complained_at >= _COMPLAIN_EVERY:
            self._complained_at = now
            _log.warning("captured events of %s are being lost: %s; predictions go on", self._service, fault)


def open_recorder(settings: Capturing, name: str) -> Recorder:
    """A recorder for the service `name`. One without directory and sink keeps nothing, and says so of every request.

    Raises `ServingError` for settings that say nothing; a directory that cannot be written to is counted as loss, not raised.
    """
    if settings.sync not in SYNCS:
        raise ServingError(f"capture sync is {settings.sync!r}", hint=f"one of {', '.join(SYNCS)}")
    if not 0.0 <= settings.sample <= 1.0:
        raise ServingError(f"capture sample is {settings.sample}", hint="a share between 0 and 1")
    return Recorder(settings, name, socket.gethostname())


def sampled(event_id: str, threshold: int) -> bool:
    """Whether an id is in the sample that takes `threshold` of 2**32; the same for every process and every time."""
    return threshold >= 2**32 or crc32(event_id.encode("utf-8", "surrogatepass")) < threshold


def _segments(settings: Capturing) -> Segments | None:
    if settings.directory is None:
        return None
    return Segments(Path(settings.directory), segment=settings.segment, keep=settings.keep, sync=settings.sync)
