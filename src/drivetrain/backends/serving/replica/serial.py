"""The worker's loop for runners that compute one thing at a time. It reads its frames itself: no thread and no event loop stands between
a call and the model."""

from __future__ import annotations

import asyncio
import select
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Mapping
from types import FrameType
from typing import Any

from drivetrain.backends.serving.replica import cell as cells
from drivetrain.backends.serving.replica import channel, execution, frames, scope
from drivetrain.backends.serving.replica.calls import Answer, Call, Decoded, Outcome, Progress
from drivetrain.backends.serving.replica.cell import Cell
from drivetrain.backends.serving.replica.coding import Codecs
from drivetrain.backends.serving.replica.frames import Kind, Times
from drivetrain.backends.serving.replica.runner import Canceled, Runner
from drivetrain.backends.serving.replica.scope import Scope

QUICK = 0.0002
"""Seconds. Answers wait for each other, to leave in one send, for no longer than this, and only where models usually take less."""
_SMOOTHED = 0.05
_SLOT = cells.slot(0)

Job = tuple[int, Call, bool]


class Serial:
    """Carries out calls in the order in which they came, one at a time."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, connection: socket.socket, cell: Cell, runner: Runner, codecs: Codecs
    ) -> None:
        self.loop = loop
        self.connection = connection
        self.cell = cell
        self.runner = runner
        self.codecs = codecs
        self.pending: deque[Job] = deque()
        self._reader = channel.Reader()
        self._out: list[bytes] = []
        self._sending = threading.RLock()  # what other threads of the runner print is sent by them
        self._sent = 0.0
        self._stopping = False
        self._usual = 1.0
        self._interruptible = 0
        self._scope = Scope()

    def serve(self) -> None:
        """Until the front says stop, or has gone."""
        self.listen()
        while self.pending or self.read(wait=True):
            while self.pending:
                now = self.single(self.pending.popleft())
                if self.pending and now - self._sent > QUICK:
                    self.flush(now)
                    if not self.read(wait=False):
                        return
            self.flush(time.monotonic())
            if self._stopping:
                return

    def listen(self) -> None:
        """From now on the front's signal can interrupt a prediction."""
        signal.signal(signal.SIGUSR1, self._interrupt)

    def read(self, wait: bool, within: float | None = None) -> bool:
        """Takes in what has arrived; False if the front has gone."""
        if within is not None:
            wait = False
            select.select((self.connection,), (), (), within)
        data = channel.receive(self.connection, wait)
        if data is None:
            return True
        self._reader.feed(data)
        for frame in self._reader.frames():
            self._take(frame)
        return bool(data)

    def single(self, job: Job) -> float:
        """Carries out one call; gives the time at its end."""
        number, call, wanted = job
        start = time.monotonic()
        decoded = self.decode(number, call)
        if decoded is None:
            return start
        begin = self.begin(number, call)
        if not begin:
            return start
        report = self.report_of(number) if wanted else None
        outcomes = self.predict_all(number, decoded, report)
        end = time.monotonic()
        self.cell.numbers[_SLOT] = 0
        answer = self.codecs.answer(call, decoded, outcomes)
        now = time.monotonic()
        self.took(end - begin)
        self.answer(number, answer, (begin - start, 0.0, end - begin, now - end, 1))
        return now

    def decode(self, number: int, call: Call) -> Decoded | None:
        """The call's inputs; None if it has been answered, since they are refused."""
        self.cell.numbers[1] = number
        decoded = self.codecs.decoded(call)
        self.cell.numbers[1] = 0
        if isinstance(decoded, Answer):
            self.answer(number, decoded)
            return None
        return decoded

    def begin(self, number: int, call: Call) -> float:
        """Notes that the call begins, where the front can see it. Gives the time; 0 if it is too late, and the call has been answered."""
        self.cell.numbers[0] = number  # before the clock is read: what the front takes to be late must never begin
        now = time.monotonic()
        if call.deadline is not None and now > call.deadline:
            self.answer(number, self.codecs.late(call))
            return 0.0
        if self._out and self._usual > QUICK:
            self.flush(now)
        self.mark(number, now)
        return now

    def mark(self, number: int, now: float) -> None:
        """Notes what runs since when."""
        self.cell.times[_SLOT + 1] = now
        self.cell.numbers[_SLOT] = number

    def predict_all(self, number: int, decoded: Decoded, report: execution.Report | None) -> list[Outcome]:
        """Runs the items, until the call is canceled."""
        outcomes: list[Outcome] = []
        for item in decoded.items:
            if self.cell.cancel == number:
                outcomes.append(execution.canceled(time.time()))
            else:
                outcomes.append(self._predict(number, item, report, decoded.context))
        return outcomes

    def _predict(
        self, number: int, item: Mapping[str, Any], report: execution.Report | None, context: Mapping[str, str] | None
    ) -> Outcome:
        own = self._scope
        if report is not None or context or not own.untouched:
            own = self._scope = Scope(execution.follower(report), context)
        made: list[str] = []
        started = time.time()
        scope.enter(own)
        try:
            try:
                self.interruptible(number)
                result = self.runner.run(**self.runner.prepare(item, made))
                output = execution.finish(self.runner, result, report)
            finally:
                self._interruptible = 0
        except BaseException as error:  # noqa: BLE001 - the user's code: it may raise anything, SystemExit too
            return execution.failed(error, own, started)
        finally:
            scope.enter(None)
            if made:
                execution.remove(made)
        return execution.succeeded(output, own, started)

    def report_of(self, number: int) -> execution.Report:
        """Sends progress of the call at once."""

        def report(progress: Progress) -> None:
            frame = frames.pack_note(Kind.PROGRESS, number, progress.kind.encode() + b"\n" + progress.body)
            if threading.current_thread() is not threading.main_thread():
                with self._sending:
                    channel.send(self.connection, list(frame))
                return
            # An interruption within a send would leave half a frame behind.
            interruptible, self._interruptible = self._interruptible, 0
            self._out += frame
            self.flush(time.monotonic())
            self.interruptible(interruptible)

        report(Progress("start", b""))
        return report

    def answer(self, number: int, answer: Answer, times: Times = (0.0, 0.0, 0.0, 0.0, 0)) -> None:
        """Sends the answer with the next flush."""
        self._out += frames.pack_answer(number, answer, times)

    def flush(self, now: float) -> None:
        """Sends all answers that there are."""
        self._sent = now
        if self._out:
            with self._sending:
                channel.send(self.connection, self._out)

    def took(self, seconds: float) -> None:
        """Remembers how long the model usually takes."""
        self._usual += _SMOOTHED * (seconds - self._usual)

    @property
    def stopping(self) -> bool:
        """Whether the front wants this to end."""
        return self._stopping

    def interruptible(self, number: int) -> None:
        """From now on a cancellation of this call interrupts what runs; 0 for none. Raises `Canceled` if it has come already."""
        self._interruptible = number
        if number and number == self.cell.cancel:
            self._interruptible = 0
            raise _canceled()

    def _take(self, frame: memoryview) -> None:
        kind = frame[4]
        if kind == Kind.CALL:
            self.pending.append(frames.unpack_call(frame))
            return
        note = frames.unpack_note(frame)
        if note.kind == Kind.CANCEL:
            self.forget(note.id)
        elif note.kind == Kind.HEALTH:
            found = self.loop.run_until_complete(self.runner.health())
            self._out += frames.pack_note(Kind.HEALTH, 0, found.encode())
            self.flush(time.monotonic())
        elif note.kind == Kind.STOP:
            self._stopping = True

    def forget(self, number: int) -> None:
        """Drops a call that has not begun: it has been answered."""
        self.pending = deque(job for job in self.pending if job[0] != number)

    def _interrupt(self, _number: int, _frame: FrameType | None) -> None:
        # The signal may come late, when the call that it was meant for has ended: only that very one is interrupted.
        if self._interruptible and self._interruptible == self.cell.cancel:
            self._interruptible = 0
            raise _canceled()


def _canceled() -> Canceled:
    return Canceled("the prediction was canceled")
