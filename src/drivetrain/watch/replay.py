"""The past once more: rows put to the gateway in order of time, each with its own time, labels when they were known, and a look of the
loop at each step of the clock.

The requests depend on the rows and the seed alone. While traffic is split they are sent one after another, so that which revision
answers which does not depend on chance either; what is measured in real time (latencies) does.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from drivetrain import service, wiring
from drivetrain.backends.serving import Endpoint
from drivetrain.backends.serving.gateway import captured
from drivetrain.backends.serving.gateway.capture import sampled
from drivetrain.backends.serving.gateway.events import FEEDBACK, RESPONSE, Event
from drivetrain.backends.serving.http.client import Client, parse
from drivetrain.backends.serving.http.outcomes import ClientError, ClientResponse
from drivetrain.backends.serving.http.tls import client_context
from drivetrain.errors import ServingError, UsageError
from drivetrain.journal import Decision
from drivetrain.project import Project
from drivetrain.watch.replay_rows import Ask, Rows, Told

_PATIENCE = 60.0
_CAUGHT_UP_WITHIN = 10.0
_TRIES = 5
_PREDICTIONS = "/predictions"


class Clock:
    """The simulated time, in seconds since 1970."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Looks(Protocol):
    """What looks at each step: the loop."""

    def tick(self) -> Sequence[Decision]: ...


class Watcher(Protocol):
    """Is told how the replay goes on."""

    def stepped(self, now: float, totals: Totals) -> None:
        """A step is over."""
        ...

    def decided(self, decision: Decision) -> None:
        """A decision is new, or has changed its state."""
        ...


@dataclass(slots=True)
class Totals:
    """Counts so far: `asked` rows of `rows`, `failed` among them, `labels` told, events that the capture log `lost`."""

    rows: int
    asked: int = 0
    failed: int = 0
    labels: int = 0
    lost: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """What is replayed: from `start` up to `end`, `step` seconds between two looks; `speed` simulated seconds a second, None: as fast
    as it goes; at most `connections` requests at once."""

    start: float
    end: float
    step: float
    speed: float | None = None
    connections: int = 8


@dataclass(slots=True)
class Answers:
    """What was answered: row, revision and the captured form of the answer, in the order of time."""

    places: list[int] = field(default_factory=list)
    at: list[float] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)


class Replay:
    """Plays one range. Interrupted at any point it leaves service and loop as they are then; `now` says how far it came."""

    def __init__(self, project: Project, rows: Rows, plan: Plan, clock: Clock, watcher: Watcher) -> None:
        """Raises `UsageError` if the service captures nothing, or has been asked later than the range begins."""
        part = project.definition.monitoring
        if not part.capture.keep:
            raise UsageError(
                "the service captures nothing, so there is nothing to watch", hint="monitoring.capture.keep"
            )
        self._project = project
        self._rows = rows
        self._plan = plan
        self._clock = clock
        self._watcher = watcher
        self._sample = round(part.sample * 2**32)
        self._serving = wiring.serving(project.state)
        self._log = _Log(service.capture_directory(project.state, project.definition.name))
        latest = self._log.latest
        if latest > plan.start:
            when = datetime.fromtimestamp(math.ceil(latest), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            raise UsageError(
                f"the service was asked at {when} already, and time does not run backwards",
                hint=f"begin with --from {when}, or replay in a copy of the project",
            )
        self._owed_from = plan.start if latest == float("-inf") else float("-inf")
        self.answers = Answers()
        self.totals = Totals(rows.between(plan.start, plan.end))

    def run(self, loop: Looks) -> None:
        """Plays to the end. Raises `ServingError` if nothing serves any more, and what `loop.tick` raises."""
        began = time.monotonic()
        for start, end in self._steps():
            pace = None if self._plan.speed is None else _Pace(began, self._plan.start, self._plan.speed)
            self._play(self._rows.events(start, end, self._owed_from), pace)
            if pace is not None:
                time.sleep(pace.left(end))
            self._clock.now = end
            for decision in loop.tick():
                self._watcher.decided(decision)
            self._watcher.stepped(end, self.totals)

    def _steps(self) -> Iterator[tuple[float, float]]:
        start = self._plan.start
        while start < self._plan.end:
            end = min(start + self._plan.step, self._plan.end)
            yield start, end
            start = end

    def _play(self, events: Sequence[Ask | Told], pace: _Pace | None) -> None:
        if not events:
            return
        name = self._project.definition.name
        endpoint: Endpoint | None = self._serving.find(name)
        if endpoint is None:
            raise ServingError("nothing serves", hint="`drivetrain deploy` brings the champion up")
        split = sum(found.weight > 0 for found in self._serving.status(name).revisions) > 1
        sender = _Sender(self._project, endpoint, 1 if split else self._plan.connections, pace)
        asks = [event for event in events if isinstance(event, Ask)]
        bodies = dict(zip((ask.id for ask in asks), self._rows.bodies(asks), strict=True))
        found = asyncio.run(sender.send(events, bodies))
        for ask in asks:
            answer = found[ask.id]
            self.totals.asked += 1
            self.totals.failed += answer.status != 200 or b'"failed"' in answer.body
            self.answers.places.append(ask.place)
            self.answers.at.append(ask.at)
            self.answers.events.append(answer)
        told = [event.id for event in events if isinstance(event, Told)]
        self.totals.labels += len(told)
        kept = {ask.id for ask in asks if sampled(ask.id, self._sample)}
        self.totals.lost += self._log.await_events(kept, set(told))


class _Pace:
    """Real time that goes with simulated time."""

    def __init__(self, began: float, start: float, speed: float) -> None:
        self._began, self._start, self._speed = began, start, speed

    def left(self, at: float) -> float:
        """Seconds until the simulated instant is there."""
        return max(0.0, self._began + (at - self._start) / self._speed - time.monotonic())


class _Sender:
    """Sends the events of one step, in order of time, so many at once at most."""

    def __init__(self, project: Project, endpoint: Endpoint, connections: int, pace: _Pace | None) -> None:
        settings = service.settings(project.definition, project.root, project.state)
        token = Path(settings.token_file).read_text().strip()
        self._tls = client_context(settings.certificate) if settings.certificate else None
        if self._tls is not None:
            self._tls.check_hostname = False  # reached by its address on this machine
        self._address = parse(endpoint.url)
        self._revision = endpoint.revision
        self._headers = [(b"Authorization", b"Bearer " + token.encode()), (b"Content-Type", b"application/json")]
        self._connections = connections
        self._pace = pace

    async def send(self, events: Sequence[Ask | Told], bodies: dict[str, bytes]) -> dict[str, Event]:
        """The answer to each request, by its id. Raises `ServingError` if there is no answer at all, repeatedly."""
        client = Client(self._address, connections=self._connections, tls=self._tls)
        gate, found = asyncio.Semaphore(self._connections), dict[str, Event]()
        try:
            async with asyncio.TaskGroup() as group:
                for event in events:
                    if self._pace is not None and (left := self._pace.left(event.at)):
                        await asyncio.sleep(left)
                    await gate.acquire()
                    task = group.create_task(self._one(client, event, bodies, found))
                    task.add_done_callback(lambda _: gate.release())
        except* ClientError as errors:
            raise ServingError(f"the gateway does not answer: {errors.exceptions[0]}") from errors
        finally:
            await client.close()
        return found

    async def _one(self, client: Client, event: Ask | Told, bodies: dict[str, bytes], found: dict[str, Event]) -> None:
        if isinstance(event, Ask):
            headers = [*self._headers, (b"X-Drivetrain-Time", f"{event.at:.6f}".encode())]
            answer = await _answered(client, _PREDICTIONS, headers, bodies[event.id])
            revision = (answer.header(b"x-drivetrain-revision") or b"").decode()
            kind = (answer.header(b"content-type") or b"").decode("latin-1")
            found[event.id] = Event(
                RESPONSE, event.id, revision, _PREDICTIONS, kind, answer.body, event.at, answer.status
            )
        else:
            body = json.dumps({"id": event.id, "label": event.label, "time": event.at}).encode()
            answer = await _answered(client, "/feedback", self._headers, body)
            if answer.status != 202:
                raise ServingError(f"a label was not taken: HTTP status {answer.status}")


async def _answered(client: Client, path: str, headers: list[tuple[bytes, bytes]], body: bytes) -> ClientResponse:
    """The answer; a connection that breaks is tried again, as asking twice about a row does no harm."""
    for number in range(_TRIES):
        try:
            return await client.request("POST", path, headers, body, _PATIENCE)
        except ClientError:
            if number == _TRIES - 1:
                raise
        await asyncio.sleep(0.2 * 2**number)
    raise AssertionError("the last try returns or raises")


class _Log:
    """The capture log, read to know when what was sent stands there."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._position: captured.Position | None = None
        self.latest = float("-inf")
        """The latest time of any event so far."""
        for event in self._new():
            self.latest = max(self.latest, event.at)

    def _new(self) -> Iterator[Event]:
        if self._directory.is_dir():
            for position, event in captured.read(self._directory, self._position):
                self._position = position
                yield event

    def await_events(self, answered: set[str], told: set[str]) -> int:
        """Waits until the answers and labels of these ids are there; how many did not come, because the service lost them."""
        end = time.monotonic() + _CAUGHT_UP_WITHIN
        left: dict[str, set[str]] = {RESPONSE: set(answered), FEEDBACK: set(told)}
        while True:
            for event in self._new():
                if event.type in left:
                    left[event.type].discard(event.id)
            missing = sum(map(len, left.values()))
            if not missing or time.monotonic() > end:
                return missing
            time.sleep(0.002)
