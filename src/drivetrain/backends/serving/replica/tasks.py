"""The worker's loop for runners that are coroutines: as many predictions at once as there are slots, on one event loop."""

from __future__ import annotations

import asyncio
import inspect
import socket
import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from drivetrain.backends.serving.replica import cell as cells
from drivetrain.backends.serving.replica import channel, execution, frames, scope
from drivetrain.backends.serving.replica.calls import Answer, Call, Decoded, Outcome, Progress
from drivetrain.backends.serving.replica.cell import Cell
from drivetrain.backends.serving.replica.coding import Codecs
from drivetrain.backends.serving.replica.frames import Kind, Times
from drivetrain.backends.serving.replica.runner import Canceled, Runner
from drivetrain.backends.serving.replica.scope import Scope


class Tasks:
    """Begins calls in the order in which they came, each as soon as a slot is free. A prediction that takes longer than `timeout` seconds
    is canceled and answered 504."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        connection: socket.socket,
        cell: Cell,
        runner: Runner,
        codecs: Codecs,
        timeout: float,
    ) -> None:
        self._loop = loop
        self._connection = connection
        self._cell = cell
        self._runner = runner
        self._codecs = codecs
        self._timeout = timeout
        self._reader = channel.Reader()
        self._pending: deque[tuple[int, Call, bool]] = deque()
        self._running: dict[int, asyncio.Task[None]] = {}
        self._free = list(range(runner.signature.slots - 1, -1, -1))
        self._out: list[bytes] = []
        self._stopping = False
        self._checking: asyncio.Task[None] | None = None  # the loop itself would forget it
        self._done = asyncio.Event()

    def serve(self) -> None:
        """Until the front says stop, or has gone."""
        self._loop.add_reader(self._connection.fileno(), self._readable)
        self._loop.run_until_complete(self._done.wait())

    def _readable(self) -> None:
        data = channel.receive(self._connection, wait=False)
        if data is None:
            return
        if not data:  # the front has gone: nobody is left to answer
            self._loop.remove_reader(self._connection.fileno())
            self._done.set()
            return
        self._reader.feed(data)
        for frame in self._reader.frames():
            self._take(frame)
        self._start()

    def _take(self, frame: memoryview) -> None:
        if frame[4] == Kind.CALL:
            self._pending.append(frames.unpack_call(frame))
            return
        note = frames.unpack_note(frame)
        if note.kind == Kind.CANCEL:
            self._pending = deque(job for job in self._pending if job[0] != note.id)
            task = self._running.get(note.id)
            if task is not None and not task.cancelling():  # once: it may await something while it ends
                task.cancel()
        elif note.kind == Kind.HEALTH:
            self._checking = self._loop.create_task(self._healthcheck())
        elif note.kind == Kind.STOP:
            self._stopping = True
            self._end_if_idle()

    def _start(self) -> None:
        while self._pending and self._free:
            number, call, wanted = self._pending.popleft()
            start = time.monotonic()
            decoded = self._decode(number, call)
            if decoded is None:
                continue
            self._cell.numbers[0] = number  # before the clock is read: what the front takes to be late must never begin
            begin = time.monotonic()
            if call.deadline is not None and begin > call.deadline:
                self._answer(number, self._codecs.late(call))
                continue
            slot = self._free.pop()
            self._mark(slot, number, begin)
            task = self._loop.create_task(self._carry_out(number, call, decoded, wanted, begin - start))
            self._running[number] = task
            task.add_done_callback(lambda _, number=number, slot=slot: self._ended(number, slot))  # type: ignore[misc]

    def _decode(self, number: int, call: Call) -> Decoded | None:
        self._cell.numbers[1] = number
        decoded = self._codecs.decoded(call)
        self._cell.numbers[1] = 0
        if isinstance(decoded, Answer):
            self._answer(number, decoded)
            return None
        return decoded

    async def _carry_out(self, number: int, call: Call, decoded: Decoded, wanted: bool, took: float) -> None:
        begin = time.monotonic()
        report = self._report_of(number) if wanted else None
        try:
            async with asyncio.timeout(self._timeout):
                outcomes = [await self._predict(item, report, decoded.context) for item in decoded.items]
        except TimeoutError:
            words = f"the prediction took longer than {self._timeout:g} s"
            self._answer(number, self._codecs.failed(call, words, 504))
            return
        except asyncio.CancelledError:
            outcomes = [execution.canceled(time.time())] * len(decoded.items)
        end = time.monotonic()
        answer = self._codecs.answer(call, decoded, outcomes)
        self._answer(number, answer, (took, 0.0, end - begin, time.monotonic() - end, 1))

    async def _predict(
        self, item: Mapping[str, Any], report: execution.Report | None, context: Mapping[str, str] | None
    ) -> Outcome:
        own = Scope(execution.follower(report), context)
        scope.enter_task(own)
        made: list[str] = []
        started = time.time()
        try:
            if self._runner.converts:  # files may have to be fetched
                arguments = await asyncio.to_thread(self._runner.prepare, item, made)
            else:
                arguments = self._runner.prepare(item, made)
            output = await self._output(arguments, report)
        except asyncio.CancelledError:
            raise  # canceled, or too slow: `_carry_out` knows
        except (Exception, Canceled, SystemExit) as error:  # noqa: BLE001 - the user's code
            return execution.failed(error, own, started)
        finally:
            scope.enter_task(None)
            execution.remove(made)
        return execution.succeeded(output, own, started)

    async def _output(self, arguments: Mapping[str, Any], report: execution.Report | None) -> Any:
        result = self._runner.run(**arguments)
        if inspect.isasyncgen(result):
            return [execution.item_of(self._runner, item, report) async for item in result]
        return execution.finish(self._runner, await result, report)

    def _report_of(self, number: int) -> execution.Report:
        def report(progress: Progress) -> None:
            frame = frames.pack_note(Kind.PROGRESS, number, progress.kind.encode() + b"\n" + progress.body)
            if threading.current_thread() is threading.main_thread():
                self._say(frame)
            else:  # what a thread of the runner prints
                self._loop.call_soon_threadsafe(self._say, frame)

        report(Progress("start", b""))
        return report

    async def _healthcheck(self) -> None:
        found = await self._runner.health()
        self._say(frames.pack_note(Kind.HEALTH, 0, found.encode()))

    def _ended(self, number: int, slot: int) -> None:
        del self._running[number]
        self._mark(slot, 0, 0.0)
        self._free.append(slot)
        self._start()
        self._end_if_idle()

    def _end_if_idle(self) -> None:
        if self._stopping and not self._running and not self._pending:
            self._flush()
            self._done.set()

    def _mark(self, slot: int, number: int, begin: float) -> None:
        if slot < cells.SLOTS:
            place = cells.slot(slot)
            self._cell.times[place + 1] = begin
            self._cell.numbers[place] = number

    def _answer(self, number: int, answer: Answer, times: Times = (0.0, 0.0, 0.0, 0.0, 0)) -> None:
        self._say(frames.pack_answer(number, answer, times))

    def _say(self, frame: tuple[bytes, bytes]) -> None:
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out += frame

    def _flush(self) -> None:
        if self._out:
            try:
                channel.send(self._connection, self._out)
            except (BrokenPipeError, ConnectionResetError):
                self._out.clear()
                self._done.set()
