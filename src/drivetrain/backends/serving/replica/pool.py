"""The front's side of the worker: calls go in, each gets exactly one answer, whatever happens to the process that holds the model.

    pool = Pool(settings); pool.start(); await pool.wait_ready()
    ticket = pool.submit(Call(Wire.COG, body), done)      # done(Answer), later, on this event loop
    pool.cancel(ticket)
    await pool.stop(grace=10)

Calls begin in the order of their tickets. The front sends calls ahead (so that the worker never waits for the next one) but knows, from
memory that both share, which have begun: those that have not can be canceled, expire, and move to a new worker if this one dies.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from typing import Any

from drivetrain.backends.serving.replica import entries, frames
from drivetrain.backends.serving.replica.calls import Answer, Call, Progress, ReplicaSettings, Signature
from drivetrain.backends.serving.replica.coding import Codecs
from drivetrain.backends.serving.replica.entries import Done, Entry, Follow, Full, NotReady, Setup
from drivetrain.backends.serving.replica.frames import Kind
from drivetrain.backends.serving.replica.process import Process
from drivetrain.backends.serving.replica.restarts import Restarts

__all__ = ["Done", "Follow", "Full", "NotReady", "Pool", "Setup"]

_TICK = 0.025
_AHEAD = 64
"""Calls that the worker may have beside those that run."""
_AHEAD_BYTES = 8 * 1024 * 1024
_GRACE = 2.0
"""Seconds beyond `timeout` for a coroutine to end by itself, and for a worker that stands still to be noticed."""
_RECENT = 4096
_LOOKED_FOR = 1.0


class Pool:
    """One worker and the calls for it. All methods are for the event loop's own thread."""

    def __init__(self, settings: ReplicaSettings, restarts: Restarts | None = None) -> None:
        self.settings = settings
        self.signature: Signature | None = None
        self.setup = Setup(time.time())
        self.load_seconds: float | None = None
        """How long loading and setup of the worker that runs have taken."""
        self.deaths = 0
        """Workers that ended unasked."""
        self.checks = False
        """Whether the runner has a `healthcheck` of its own."""
        self.recent: deque[tuple[float, float, float, float, float, int]] = deque(maxlen=_RECENT)
        """Of the latest answers: seconds from submission to answer, decoding, waiting for company, computing, encoding; batch size."""
        self._state = "STARTING"
        self._restarts = restarts or Restarts()
        self._process: Process | None = None
        self._codecs: Codecs | None = None
        self._queue: deque[Entry] = deque()
        self._sent: dict[int, Entry] = {}
        self._unwanted: dict[int, float] = {}  # canceled calls, and until when they are looked for among those that run
        self._number = 0
        self._abreast = 1
        self._window = _AHEAD
        self._capacity = settings.queue + 1
        self._ticking = False
        self._heard = 0.0
        self._overran: set[int] = set()
        self._stopping = False
        self._ready = asyncio.Event()
        self._idle = asyncio.Event()
        self._ended = asyncio.Event()
        self._checkup = entries.Checkup()
        self._starting: asyncio.TimerHandle | None = None

    # -- what it is doing

    @property
    def state(self) -> str:
        """In Cog's words: STARTING, READY, BUSY (every slot taken; calls wait), SETUP_FAILED, UNHEALTHY (the worker died, a new one
        starts), DEFUNCT (given up)."""
        if self._state == "READY" and len(self._sent) >= self._abreast:
            return "BUSY"
        return self._state

    @property
    def pid(self) -> int | None:
        """The worker's process id."""
        return self._process.pid if self._process is not None else None

    @property
    def in_flight(self) -> int:
        """Calls that have begun and are not answered."""
        begun = self._begun
        return sum(1 for number in self._sent if number <= begun)

    @property
    def queued(self) -> int:
        """Calls that have not begun."""
        return len(self._queue) + len(self._sent) - self.in_flight

    # -- its life

    def start(self) -> None:
        """Starts the worker; returns at once."""
        loop = asyncio.get_running_loop()
        self._ended.clear()
        self.setup = Setup(time.time())
        self._process = Process(loop, self.settings, self._received, self._died)
        self._starting = loop.call_later(self.settings.setup_within, self._too_slow)

    async def wait_ready(self) -> bool:
        """Waits until setup has ended in one way or the other; whether calls are taken now."""
        await self._ready.wait()
        return self._state == "READY"

    async def stop(self, grace: float) -> None:
        """Takes no more calls, lets those that it has be answered for `grace` seconds, and ends the worker. What is not answered by then
        is: as not run, or as failed if it had begun."""
        self._stopping = True
        self._ready.set()
        if self._starting is not None:
            self._starting.cancel()
        if (self._queue or self._sent) and self._state == "READY":
            self._idle.clear()
            await entries.at_most(self._idle, grace)
        process = self._process
        if process is not None:
            if self._sent or self._state != "READY":
                process.kill("the replica is being stopped")
            else:
                process.link.write(*frames.pack_note(Kind.STOP))
            if not await entries.at_most(self._ended, _GRACE):
                process.kill("the replica is being stopped")
                await entries.at_most(self._ended, _GRACE)
        self._give_up("the replica has been stopped")

    async def healthcheck(self, within: float = 5.0) -> str:
        """What the runner's own `healthcheck` finds wrong; empty if nothing is, it has none, or a prediction is running."""
        if not self.checks or self._state != "READY" or self._sent or self._process is None:
            return ""
        link = self._process.link
        return await self._checkup.result(lambda: link.write(*frames.pack_note(Kind.HEALTH)), within)

    # -- calls

    def submit(self, call: Call, done: Done, progress: Follow | None = None) -> int:
        """Has the call carried out; `done` is called once with its answer, never before this returns. Gives a ticket for `cancel`.

        Raises `NotReady`, or `Full` if more calls wait than `settings.queue`.
        """
        if self._state != "READY" or self._stopping:
            raise NotReady("STOPPING" if self._stopping else self._state)
        if len(self._sent) + len(self._queue) >= self._capacity:
            raise Full(f"{self.settings.queue} calls wait already")
        self._number = number = self._number + 1
        entry = Entry(number, call, done, progress, time.monotonic())
        if self._queue or not self._room():
            self._queue.append(entry)
        else:
            self._send(entry)
        if not self._ticking:
            self._ticking = True
            asyncio.get_running_loop().call_later(_TICK, self._tick)
        return number

    def cancel(self, ticket: int) -> bool:
        """Cancels the call: one that has not begun is answered so now; one that runs is interrupted and then answered; in a batch
        of several it runs to its end. False if it has been answered."""
        for entry in self._queue:
            if entry.number == ticket:
                self._queue.remove(entry)
                self._soon(entry, self._answers.canceled(entry.call))
                return True
        waiting = self._sent.get(ticket)
        if waiting is None or self._process is None:
            return False
        if not self._together:
            self._unwanted[ticket] = time.monotonic() + _LOOKED_FOR
        if ticket > self._begun:
            del self._sent[ticket]
            self._process.link.write(*frames.pack_note(Kind.CANCEL, ticket))
            self._soon(waiting, self._answers.canceled(waiting.call))
            self._dispatch()
        else:
            self._interrupt(self._process, ticket)
        return True

    def _interrupt(self, process: Process, ticket: int) -> None:
        if self._is_async:
            process.link.write(*frames.pack_note(Kind.CANCEL, ticket))
        else:
            process.interrupt(ticket)

    @property
    def _is_async(self) -> bool:
        return self.signature is not None and self.signature.is_async

    @property
    def _together(self) -> bool:
        return self.signature is not None and (self.signature.batches or self.signature.infers)

    # -- inside

    @property
    def _answers(self) -> Codecs:
        assert self._codecs is not None, "no call is taken before the signature is known"
        return self._codecs

    @property
    def _begun(self) -> int:
        return self._process.cell.begun if self._process is not None else 0

    def _room(self) -> bool:
        process = self._process
        if process is None or self._state != "READY":
            return False
        return len(self._sent) < self._window and (process.link.backlog < _AHEAD_BYTES or not self._sent)

    def _send(self, entry: Entry) -> None:
        assert self._process is not None
        if not self._sent:
            self._heard = entry.submitted
        self._sent[entry.number] = entry
        self._process.link.write(*frames.pack_call(entry.number, entry.call, entry.progress is not None))

    def _dispatch(self) -> None:
        while self._queue and self._room():
            self._send(self._queue.popleft())
        if self._stopping and not self._queue and not self._sent:
            self._idle.set()

    def _received(self, frame: memoryview) -> None:
        kind = frame[4]
        if kind == Kind.ANSWER:
            number, answer, times = frames.unpack_answer(frame)
            entry = self._sent.pop(number, None)
            if entry is None:
                return  # it was canceled or had expired, and has been answered
            self._heard = now = time.monotonic()
            if times[4]:
                self.recent.append((now - entry.submitted, *times))
            if self._queue or self._stopping:
                self._dispatch()
            entry.tell(entry.done, answer)
            return
        self._noted(frames.unpack_note(frame))

    def _noted(self, note: frames.Note) -> None:
        self._heard = time.monotonic()
        if note.kind == Kind.PROGRESS:
            entry = self._sent.get(note.id)
            if entry is not None and entry.progress is not None:
                word, _, body = note.body.partition(b"\n")
                entry.tell(entry.progress, Progress(word.decode(), body))
        elif note.kind == Kind.LOG:
            self.setup.printed(note.body.decode())
        elif note.kind == Kind.READY:
            self._is_ready(json.loads(note.body))
        elif note.kind == Kind.SETUP_FAILED:
            self.setup.ended("failed", note.body.decode())
            asyncio.get_running_loop().call_later(_GRACE, self._end_failed, self._process)
        elif note.kind == Kind.HEALTH:
            self._checkup.answered(note.body.decode())

    def _is_ready(self, told: dict[str, Any]) -> None:
        self.signature = signature = Signature(**told["signature"])
        self._codecs = Codecs(signature)
        self.load_seconds = told["took"]
        self.checks = told["checks"]
        self.setup.ended("succeeded")
        together = self.settings.batch_max if signature.batches or signature.infers else 1
        self._abreast = signature.slots
        self._window = max(_AHEAD, 2 * together) + signature.slots
        self._capacity = self.settings.queue + max(together, signature.slots)
        self._state = "READY"
        self._restarts.ready(time.monotonic())
        self._cancel_limit()
        self._ready.set()
        self._dispatch()

    def _end_failed(self, process: Process | None) -> None:
        if process is not None and process is self._process:  # threads that setup has started hold it up
            process.kill("its setup failed")

    def _cancel_limit(self) -> None:
        if self._starting is not None:
            self._starting.cancel()
            self._starting = None

    def _too_slow(self) -> None:
        if self._process is not None:
            self.setup.ended("failed", f"it took longer than {self.settings.setup_within:g} s")
            self._process.kill("its setup took too long")

    def _died(self, code: int) -> None:
        """The worker has gone: what had begun is answered, the rest goes back into the queue."""
        process, self._process = self._process, None
        assert process is not None
        self._cancel_limit()
        began, reading, reason = process.cell.begun, process.cell.decoding, process.reason(code)
        process.close()
        self._ended.set()
        self._checkup.answered("the worker died")
        sent, self._sent = list(self._sent.values()), {}
        was_ready = self._state == "READY"
        failed_setup = self.setup.status == "failed"
        self._state = "UNHEALTHY" if self.signature is not None else "STARTING"
        if not self._stopping:
            self.deaths += 1
            self._start_again(failed_setup, reason)
        for entry in reversed(sent):
            if was_ready and entry.number <= began:
                self._lost(entry, reason)
            elif entry.number == reading and entry.attempts:
                words = f"the worker died, twice, while it read this request: {reason}"
                self._soon(entry, self._answers.failed(entry.call, words))
            else:
                entry.attempts += entry.number == reading
                self._queue.appendleft(entry)
        self._overran = set()
        if self._stopping:
            self._give_up("the replica has been stopped")
            self._idle.set()
        elif self._state in ("SETUP_FAILED", "DEFUNCT"):
            self._give_up(f"the model is not available: {self._state}")

    def _lost(self, entry: Entry, reason: str) -> None:
        """Answers a call that had begun when the worker died."""
        # Where one thing runs at a time, all that had begun is the batch that ran too long.
        overran = entry.number in self._overran or bool(self._overran and not self._is_async)
        words, status = entries.loss(reason, self.settings.timeout, overran, bool(self._overran))
        self._soon(entry, self._answers.failed(entry.call, words, status))

    def _start_again(self, failed_setup: bool, reason: str) -> None:
        if failed_setup and self.signature is None:  # it never came up: what raised once will raise again
            self._state = "SETUP_FAILED"
            self._ready.set()
            return
        delay = self._restarts.died(time.monotonic())
        if delay is None:
            self._state = "DEFUNCT"
            if self.setup.status != "failed":
                self.setup.ended("failed", reason)
            self._ready.set()
            return
        self._starting = asyncio.get_running_loop().call_later(delay, self.start)

    def _give_up(self, words: str) -> None:
        """Answers all that waits, since nothing will run it."""
        while self._queue:
            entry = self._queue.popleft()
            self._soon(entry, self._answers.not_run(entry.call, words))

    def _soon(self, entry: Entry, answer: Answer) -> None:
        asyncio.get_running_loop().call_soon(entry.done, answer)

    def _tick(self) -> None:
        """While there are calls: those that are too late, and those that run too long."""
        if not self._sent and not self._queue and not self._unwanted:
            self._ticking = False
            return
        asyncio.get_running_loop().call_later(_TICK, self._tick)
        now = time.monotonic()
        self._expire(now)
        process = self._process
        if process is None or self._state != "READY":
            return
        limit = self.settings.timeout + (_GRACE if self._is_async else 0.0)
        running = process.cell.running(self._abreast)
        if self._unwanted:
            self._look_for_unwanted(process, {number for number, _ in running}, now)
        self._overran = {number for number, began in running if now - began > limit}
        if self._overran:
            process.kill(f"the prediction took longer than {self.settings.timeout:g} s")
        elif not running and self._sent and now - self._heard > self.settings.timeout + _GRACE:
            process.kill("it stood still")

    def _look_for_unwanted(self, process: Process, running: set[int], now: float) -> None:
        """A call may begin while it is being canceled, and an interruption come a moment too early: it is interrupted again."""
        for number in running & self._unwanted.keys():
            self._interrupt(process, number)
        self._unwanted = {n: until for n, until in self._unwanted.items() if n in running or now < until}

    def _expire(self, now: float) -> None:
        late = [entry for entry in self._queue if entry.call.deadline is not None and entry.call.deadline < now]
        for entry in late:
            self._queue.remove(entry)
        begun = self._begun
        for entry in list(self._sent.values()):
            if entry.number > begun and entry.call.deadline is not None and entry.call.deadline < now:
                del self._sent[entry.number]
                if self._process is not None:
                    self._process.link.write(*frames.pack_note(Kind.CANCEL, entry.number))
                late.append(entry)
        for entry in late:
            self._soon(entry, self._answers.late(entry.call))
        if late:
            self._dispatch()
