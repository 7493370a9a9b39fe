"""One prediction by Cog's API while it waits and runs: its state, who waits for it, who follows it, and what they are told."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from drivetrain.backends.serving.http.messages import Exchange, Stream
from drivetrain.backends.serving.replica.calls import Answer, Progress
from drivetrain.backends.serving.replica.webhooks import Webhook

KEEP_ALIVE = 15.0
"""Seconds without an event after which a follower is sent a comment."""
BEHIND = 1024
"""Events that a follower may lag behind; further back, its stream ends with an error."""

Event = tuple[str, bytes]
"""Name and JSON data."""

_REFUSED = frozenset((400, 422))
"""Statuses of wrong inputs: there was nothing to run, and as by Cog's server its caller alone is told."""


class Prediction:
    """A prediction that has no answer yet, and that nobody follows while it runs.

    `ended` is called with the answer; `began` is when the request was here. `ticket` is the pool's; `exchange` waits for the answer, if
    anybody does.
    """

    __slots__ = ("answer", "began", "body", "ended", "exchange", "id", "ticket")

    def __init__(
        self, key: str, body: bytes, exchange: Exchange | None, ended: Callable[[Prediction, Answer], None]
    ) -> None:
        self.id = key
        self.body = body
        self.exchange = exchange
        self.began = time.monotonic()
        self.ended = ended
        self.ticket = 0
        self.answer: Answer | None = None

    def done(self, answer: Answer) -> None:
        """The end: the answer goes to whoever waits."""
        self.answer = answer
        self.ended(self, answer)

    def state(self) -> dict[str, Any]:
        """How far it is, as Cog's API tells it to those who ask with the same id."""
        return {"id": self.id, "logs": "", "metrics": {}, "status": "processing"}


class FollowedPrediction(Prediction):
    """A prediction whose progress is kept: for event streams, for webhooks, for those who ask how far it is.

    `history` is how many events are kept for followers who come later.
    """

    __slots__ = (
        "_events",
        "_forgotten",
        "_history",
        "_line",
        "_logs",
        "_outputs",
        "canceled_if_left",
        "followers",
        "status",
        "webhook",
    )

    def __init__(
        self,
        key: str,
        body: bytes,
        exchange: Exchange | None,
        ended: Callable[[Prediction, Answer], None],
        history: int,
        webhook: Webhook | None = None,
    ) -> None:
        super().__init__(key, body, exchange, ended)
        self.webhook = webhook
        self.status = "starting"
        self.followers: set[Follower] = set()
        self.canceled_if_left = False
        self._history = history
        self._events: deque[Event] = deque()
        self._forgotten = 0
        self._logs: list[str] = []
        self._line = ""
        self._outputs: list[msgspec.Raw] = []

    def progress(self, progress: Progress) -> None:
        """Something happened before the end."""
        if progress.kind == "output":
            index = len(self._outputs)
            self._outputs.append(msgspec.Raw(progress.body))
            self._tell("output", b'{"chunk":%b,"index":%d}' % (progress.body, index), "output")
        elif progress.kind == "log":
            lines, end, self._line = (self._line + progress.body.decode(errors="replace")).rpartition("\n")
            self._log(lines + end)
        elif progress.kind == "start":
            self.status = "processing"
            self._tell("start", msgspec.json.encode({"id": self.id, "status": self.status}), "start")

    def done(self, answer: Answer) -> None:
        """The end: the answer goes to whoever waits, and the last state to whoever follows."""
        self._log(self._line)
        super().done(answer)
        if answer.status in _REFUSED:
            self.webhook = None
        if self.followers or self.webhook is not None:
            state = self._final(answer)
            self.status = str(state["status"])
            self._tell("completed", msgspec.json.encode(state), "completed", lambda: state)

    def state(self) -> dict[str, Any]:
        """How far it is, as Cog's webhooks tell it too."""
        found: dict[str, Any] = {"id": self.id, "logs": "".join(self._logs), "metrics": {}, "status": self.status}
        if self._outputs:
            found["output"] = self._outputs
        return found

    def follow(self, exchange: Exchange, leave: Callable[[FollowedPrediction], None]) -> Follower:
        """A new follower, who is told of everything from the beginning. `leave` is called when the last one has gone."""
        follower = Follower(self, list(self._events), self._forgotten, leave)
        self.followers.add(follower)
        exchange.on_disconnect(follower.gone)
        return follower

    def _log(self, text: str) -> None:
        if text:
            self._logs.append(text)
            self._tell("log", msgspec.json.encode({"data": text, "source": "stdout"}), "logs")

    def _final(self, answer: Answer) -> Mapping[str, Any]:
        """The last state: the answer, and what a prediction that failed had printed and given until then."""
        told = msgspec.json.decode(answer.body)
        if "status" not in told:  # it was never run
            return {**self.state(), "error": str(told.get("error", told.get("detail", ""))), "status": "failed"}
        if told["status"] != "succeeded":
            told["logs"] = "".join(self._logs) or told.get("logs", "")
            if self._outputs:
                told["output"] = self._outputs
        return dict(told)

    def _tell(self, name: str, data: bytes, event: str, state: Callable[[], Mapping[str, Any]] | None = None) -> None:
        if self._history:
            if len(self._events) == self._history:
                self._events.popleft()
                self._forgotten += 1
            self._events.append((name, data))
        for follower in self.followers:
            follower.tell((name, data))
        if self.webhook is not None:
            self.webhook.tell(event, state or self.state)


class Follower:
    """One client that reads a prediction's event stream."""

    def __init__(
        self,
        prediction: FollowedPrediction,
        replay: Sequence[Event],
        forgotten: int,
        leave: Callable[[FollowedPrediction], None],
    ) -> None:
        self._prediction = prediction
        self._replay = replay
        self._forgotten = forgotten
        self._leave = leave
        self._queue: asyncio.Queue[Event] = asyncio.Queue(BEHIND)
        self._missed = 0
        self._task: asyncio.Task[None] | None = None

    def tell(self, event: Event) -> None:
        """Puts an event into its stream."""
        try:
            self._queue.put_nowait(event)
        except asyncio.QueueFull:
            self._missed += 1

    def start(self, stream: Stream) -> None:
        """Begins to write."""
        self._task = asyncio.get_running_loop().create_task(self._write(stream))

    def gone(self) -> None:
        """The client has gone."""
        if self._task is not None:
            self._task.cancel()
        self._left()

    def _left(self) -> None:
        prediction = self._prediction
        if self in prediction.followers:
            prediction.followers.remove(self)
            if not prediction.followers and prediction.answer is None:
                self._leave(prediction)

    async def _write(self, stream: Stream) -> None:
        try:
            if self._forgotten:
                await stream.write(_lost("SSE stream replay truncated; events were dropped", self._forgotten))
            elif not await self._write_all(stream):
                await stream.write(_lost("SSE stream lagged; events were dropped", self._missed))
            stream.end()
        except ConnectionError:
            pass
        finally:
            self._left()

    async def _write_all(self, stream: Stream) -> bool:
        """False if the client was too slow to be told everything."""
        for event in self._replay:
            await stream.write(_event(event))
            if event[0] == "completed":
                return True
        while not (self._missed and self._queue.empty()):
            try:
                event = await asyncio.wait_for(self._queue.get(), KEEP_ALIVE)
            except TimeoutError:
                await stream.write(b": keep-alive\n\n")
                continue
            await stream.write(_event(event))
            if event[0] == "completed":
                return True
        return False


def _event(event: Event) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (event[0].encode(), event[1])


def _lost(error: str, skipped: int) -> bytes:
    return _event(("error", msgspec.json.encode({"error": error, "skipped": skipped})))


_OWN = f"{secrets.randbits(24):06x}"


def new_id() -> str:
    """An id in the form of Cog's server, with a part of this process's own, so that no two replicas give the same."""
    return f"pred_{time.time_ns():x}{_OWN}"
