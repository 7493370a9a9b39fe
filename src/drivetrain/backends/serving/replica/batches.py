"""The worker's loop for runners that compute several calls at once, with `batch` (items) or `infer` (tensors).

Answers are never mixed up: what goes in together comes out in the same order, or the batch counts as failed. A batch whose call raises is
run again item by item, so that one bad item fails alone.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from drivetrain.backends.serving.replica import cell as cells
from drivetrain.backends.serving.replica import execution, scope, tensors
from drivetrain.backends.serving.replica.batching import Company
from drivetrain.backends.serving.replica.calls import Call, Decoded, Outcome
from drivetrain.backends.serving.replica.cell import Cell
from drivetrain.backends.serving.replica.coding import Codecs
from drivetrain.backends.serving.replica.runner import Canceled, Runner
from drivetrain.backends.serving.replica.scope import Scope
from drivetrain.backends.serving.replica.serial import Serial

_SLOT = cells.slot(0)


@dataclass(slots=True)
class Ready:
    """A call whose inputs have been read. `kind` is what calls must agree in to be computed together, None for one that goes alone;
    `size` is how many items or rows it has."""

    number: int
    call: Call
    wanted: bool
    decoded: Decoded
    took: float
    since: float
    kind: object
    size: int


class Batches(Serial):
    """Like `Serial`, but takes what has arrived together, up to `most` items."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        connection: socket.socket,
        cell: Cell,
        runner: Runner,
        codecs: Codecs,
        most: int,
        wait: float,
    ) -> None:
        super().__init__(loop, connection, cell, runner, codecs)
        self._most = most
        self._company = Company(most, wait)
        self._ready: deque[Ready] = deque()

    def serve(self) -> None:
        """Until the front says stop, or has gone."""
        self.listen()
        while True:
            self._read_bodies()
            if not self._ready:
                self.flush(time.monotonic())
                if self.stopping or not self.read(wait=True):
                    return
                continue
            now = time.monotonic()
            held = self._company.hold(now, len(self._ready))
            if held > 0.0 and not self.stopping:
                self.flush(now)
                if not self.read(wait=False, within=held):
                    return
                continue
            self._company.began(len(self._ready))
            group = self._group()
            took = self._compute(group)
            self.flush(time.monotonic())
            if not self.read(wait=False):
                return
            self._company.ended(time.monotonic(), took, len(group), len(self._ready) + len(self.pending))

    def forget(self, number: int) -> None:
        """Drops a call that has not begun: it has been answered."""
        super().forget(number)
        self._ready = deque(ready for ready in self._ready if ready.number != number)

    def _read_bodies(self) -> None:
        """Reads the bodies of as many calls as one batch can take."""
        while self.pending and len(self._ready) < self._most:
            number, call, wanted = self.pending.popleft()
            start = time.monotonic()
            decoded = self.decode(number, call)
            if decoded is not None:
                now = time.monotonic()
                kind, size = self._kind(decoded)
                self._ready.append(Ready(number, call, wanted, decoded, now - start, now, kind, size))

    def _kind(self, decoded: Decoded) -> tuple[object, int]:
        if decoded.context:
            return None, len(decoded.items)  # what it tells the runner is not for others
        if decoded.tensors is not None:
            return tensors.kind(decoded.tensors), tensors.rows(decoded.tensors)
        return ("items" if self.runner.batch is not None else None), len(decoded.items)

    def _group(self) -> list[Ready]:
        """The next calls that go together, in their order."""
        first = self._ready.popleft()
        found, total = [first], first.size
        while self._ready and first.kind is not None:
            following = self._ready[0]
            if following.kind != first.kind or total + following.size > self._most:
                break
            found.append(self._ready.popleft())
            total += following.size
        return found

    def _compute(self, group: Sequence[Ready]) -> float:
        """Runs the calls and answers them; gives the seconds that the model took."""
        # Before the clock is read: what the front takes to be late must never begin.
        self.cell.numbers[0] = group[-1].number
        begin = time.monotonic()
        live = [ready for ready in group if not self._expired(ready, begin)]
        if not live:
            return 0.0
        self.mark(live[0].number, begin)
        reports = [self.report_of(ready.number) if ready.wanted else None for ready in live]
        if live[0].decoded.tensors is not None:
            outcomes = self._infer(live)
        elif self.runner.batch is not None:
            outcomes = self._batch(live)
        else:
            outcomes = [self.predict_all(live[0].number, live[0].decoded, reports[0])]
        end = time.monotonic()
        self.cell.numbers[_SLOT] = 0
        together = sum(ready.size for ready in live)
        for ready, own in zip(live, outcomes, strict=True):
            start = time.monotonic()
            answer = self.codecs.answer(ready.call, ready.decoded, own)
            encoded = time.monotonic() - start
            self.answer(ready.number, answer, (ready.took, begin - ready.since, end - begin, encoded, together))
        self.took(end - begin)
        return end - begin

    def _expired(self, ready: Ready, now: float) -> bool:
        late = ready.call.deadline is not None and now > ready.call.deadline
        if late:
            self.answer(ready.number, self.codecs.late(ready.call))
        return late

    def _batch(self, group: Sequence[Ready]) -> list[list[Outcome]]:
        made: list[str] = []
        inputs: list[Mapping[str, Any] | Outcome] = []
        for ready in group:
            inputs += [self._prepared(item, made) for item in ready.decoded.items]
        good = [given for given in inputs if not isinstance(given, Outcome)]
        alone = group[0] if len(group) == 1 else None
        try:
            found = iter(self._together(good, self._call_batch, alone))
        finally:
            execution.remove(made)
        outcomes = iter([given if isinstance(given, Outcome) else next(found) for given in inputs])
        return [[next(outcomes) for _ in ready.decoded.items] for ready in group]

    def _infer(self, group: Sequence[Ready]) -> list[list[Outcome]]:
        parts = [ready.decoded.tensors for ready in group]
        alone = group[0] if len(group) == 1 else None
        return [[outcome] for outcome in self._together(parts, self._call_infer, alone)]

    def _together(
        self, inputs: Sequence[Any], compute: Callable[[Sequence[Any]], Sequence[Any]], alone: Ready | None
    ) -> list[Outcome]:
        """The outcomes of inputs that are computed at once; if that fails, one by one. `alone` is the call if it is but one: it can
        then be interrupted, and what is printed is its own."""
        if not inputs:
            return []
        own, started = Scope(context=alone.decoded.context if alone else None), time.time()
        scope.enter(own if alone else None)
        try:
            try:
                self.interruptible(alone.number if alone else 0)
                outputs = compute(inputs)
            finally:
                self.interruptible(0)
        except BaseException as error:  # noqa: BLE001 - the user's code: it may raise anything
            if len(inputs) == 1 or isinstance(error, Canceled):
                return [execution.failed(error, own, started)] * len(inputs)
            return [outcome for each in inputs for outcome in self._again(each, compute)]
        finally:
            scope.enter(None)
        if len(inputs) > 1:
            own = Scope()  # what several share is not one caller's to see
        return [self._outcome(output, own, started) for output in outputs]

    def _again(self, one: Any, compute: Callable[[Sequence[Any]], Sequence[Any]]) -> list[Outcome]:
        self.cell.times[_SLOT + 1] = time.monotonic()  # each has the whole time limit
        return self._together([one], compute, None)

    def _outcome(self, output: Any, own: Scope, started: float) -> Outcome:
        if isinstance(output, BaseException):
            return execution.failed(output, own, started)
        return execution.succeeded(output, own, started)

    def _call_batch(self, inputs: Sequence[Any]) -> Sequence[Any]:
        assert self.runner.batch is not None
        outputs = list(self.runner.batch([dict(given) for given in inputs]))
        if len(outputs) != len(inputs):
            raise ValueError(f"batch() gave {len(outputs)} outputs for {len(inputs)} inputs")
        return [one if isinstance(one, BaseException) else execution.encoded(self.runner, one) for one in outputs]

    def _call_infer(self, parts: Sequence[Any]) -> Sequence[Any]:
        if len(parts) == 1:
            return [dict(self._inferred(dict(parts[0])))]
        sizes = [tensors.rows(part) for part in parts]
        return tensors.split(self._inferred(tensors.join(parts)), sizes)

    def _inferred(self, given: dict[str, Any]) -> Any:
        assert self.runner.infer is not None
        try:
            return self.runner.infer(given)
        except ValueError as error:
            if not self.runner.raised(error):
                raise
            raise execution.Unfit(execution.words_of(error)) from error

    def _prepared(self, item: Mapping[str, Any], made: list[str]) -> Mapping[str, Any] | Outcome:
        started = time.time()
        try:
            return self.runner.prepare(item, made)
        except Exception as error:  # noqa: BLE001 - the user's own coders, and what a download may raise
            return execution.failed(error, Scope(), started)
