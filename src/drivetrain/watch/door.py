"""The loop's own door: `POST /alerts` for Alertmanager, `POST /events` for KServe's logger, `GET /metrics`, `GET /status`.

It answers from a thread of its own, whatever the loop is at. What comes in is written down before it is answered, many messages in one
transaction; beyond what can wait the answer is 503, and who asked tries again.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs

from drivetrain.backends.serving.gateway import capture
from drivetrain.backends.serving.gateway.admin import Door as Guard
from drivetrain.backends.serving.gateway.admin import reply, unauthorized
from drivetrain.backends.serving.gateway.settings import Capturing
from drivetrain.backends.serving.http import server as http
from drivetrain.backends.serving.http.messages import Exchange, Limits, Request, Response
from drivetrain.errors import DrivetrainError, SystemFault
from drivetrain.journal import Journal
from drivetrain.watch import alerts, posted
from drivetrain.watch.samples import Described, Sample

_log = logging.getLogger(__name__)

WAITING = 1000
"""Messages that may wait to be written down; one more is answered 503."""
_BODY = 16 * 1024**2
_MESSAGE = 1024**2
_COMPLAIN_EVERY = 60.0

METRICS = {
    "drivetrain_loop_webhooks_total": Described(
        "counter",
        "Alerts that were told by webhook; `forged`, `malformed` and `overloaded` count messages, the others alerts",
        ("outcome",),
    ),
    "drivetrain_loop_posted_total": Described("counter", "Events that were posted", ("outcome",)),
}


@dataclass(frozen=True, slots=True)
class Openings:
    """What the door needs. `token` is the bearer token of alerts and events; `triggers` the names that alerts may have; events go to
    `directory`, at most `keep` bytes."""

    service: str
    token: str
    triggers: Collection[str]
    journal: Path
    directory: Path
    keep: int


class Door:
    """Open from `open` to `close`. `metrics` and `status` are what it shows, set by the loop at any time."""

    def __init__(self, openings: Openings, clock: Callable[[], float] = time.time) -> None:
        self.metrics = ""
        self.status: object = {}
        self.alerted = threading.Event()
        """Set when an alert has come that was not known: there is something to look at."""
        self.counts: Counter[tuple[str, str]] = Counter()
        self._openings = openings
        self._clock = clock
        self._guard = Guard(openings.token)
        self._waiting: list[tuple[Exchange, alerts.Read]] = []
        self._writing: asyncio.Task[None] | None = None
        self._complained: dict[str, float] = {}
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending: asyncio.Event | None = None
        self._failure: Exception | None = None
        self._recorder: capture.Recorder | None = None
        self._writer = ThreadPoolExecutor(1, "alerts")
        self._journal: Journal | None = None

    def open(self, host: str, port: int) -> int:
        """Listens, and says on which port. Raises `ServingError` if the address cannot be had."""
        opened, found = threading.Event(), [0]

        async def serve() -> None:
            server = http.Server(self._handle, Limits(body=_BODY))
            try:
                found[0] = await server.listen(host, port)
            except DrivetrainError as error:
                self._failure = error
                return
            self._loop, self._ending = asyncio.get_running_loop(), asyncio.Event()
            opened.set()
            await self._ending.wait()
            await server.stop(2.0)
            if self._writing is not None:
                await self._writing

        def work() -> None:
            try:
                http.run(serve())
            finally:
                opened.set()

        self._thread = threading.Thread(target=work, name="door", daemon=True)
        self._thread.start()
        opened.wait()
        if self._failure is not None:
            raise self._failure
        return found[0]

    def close(self) -> None:
        """Answers what has come, and listens no more; a second call does nothing."""
        if self._loop is None or self._ending is None or self._thread is None:
            return
        self._loop.call_soon_threadsafe(self._ending.set)
        self._thread.join()
        self._thread = None
        self._writer.submit(self._close_journal).result()
        self._writer.shutdown()
        if self._recorder is not None:
            self._recorder.close()

    def samples(self) -> list[Sample]:
        """What has come, counted."""
        service = self._openings.service
        return [
            Sample(f"drivetrain_loop_{kind}_total", {"service": service, "outcome": outcome}, float(count))
            for (kind, outcome), count in sorted(dict(self.counts).items())
        ]

    # on the door's event loop

    def _handle(self, exchange: Exchange) -> None:
        request = exchange.request
        match request.method, request.path:
            case "GET", "/metrics":
                exchange.reply(Response(200, self.metrics.encode(), content_type=b"text/plain; version=0.0.4"))
            case "GET", "/status":
                exchange.reply(reply(200, self.status))
            case "POST", "/alerts":
                self._alerted(exchange)
            case "POST", "/events":
                self._posted(exchange)
            case _:
                exchange.reply(
                    reply(404, {"error": f"{request.method} {request.path} is nothing that can be asked here"})
                )

    def _alerted(self, exchange: Exchange) -> None:
        if not self._guard.admits(exchange.request):
            self._refuse(exchange, "webhooks", "forged", unauthorized())
            return
        try:
            if len(exchange.request.body) > _MESSAGE:
                raise ValueError("a message has 1 MiB at most")
            found = alerts.read(exchange.request.body, self._openings.service, self._openings.triggers)
        except ValueError as error:
            self._refuse(exchange, "webhooks", "malformed", reply(422, {"error": str(error)}))
            return
        self.counts["webhooks", "unknown"] += found.unknown
        if not found.alerts:
            exchange.reply(reply(200, {"alerts": 0}))
        elif len(self._waiting) >= WAITING:
            busy = reply(503, {"error": "too many messages wait"})
            busy.headers = [(b"retry-after", b"1")]
            self._refuse(exchange, "webhooks", "overloaded", busy)
        else:
            self._waiting.append((exchange, found))
            if self._writing is None or self._writing.done():
                self._writing = asyncio.get_running_loop().create_task(self._write())

    async def _write(self) -> None:
        """Writes down what waits, all of it at once, until nothing does; then answers."""
        loop = asyncio.get_running_loop()
        while self._waiting:
            taken, self._waiting = self._waiting, []
            rows = [row for _, found in taken for row in found.alerts]
            try:
                new = await loop.run_in_executor(self._writer, self._keep, rows)
            except SystemFault as error:
                for exchange, _ in taken:
                    exchange.reply(reply(500, {"error": str(error)}))
                continue
            self.counts["webhooks", "new"] += new
            self.counts["webhooks", "repeated"] += len(rows) - new
            if new:
                self.alerted.set()
            for exchange, found in taken:
                exchange.reply(reply(200, {"alerts": len(found.alerts)}))

    def _posted(self, exchange: Exchange) -> None:
        request = exchange.request
        if not (self._guard.admits(request) or self._guard.admits(_with_token(request))):
            self._refuse(exchange, "posted", "forged", unauthorized())
            return
        try:
            event = posted.read(request.header, request.body, self._openings.service, self._clock())
        except ValueError as error:
            self._refuse(exchange, "posted", "malformed", reply(422, {"error": str(error)}))
            return
        if self._recorder is None:
            place = Capturing(directory=str(self._openings.directory), keep=self._openings.keep)
            self._recorder = capture.open_recorder(place, self._openings.service)
        posted.keep(event, request.body, self._recorder)
        self.counts["posted", "taken"] += 1
        exchange.reply(reply(202, {"id": event.id}))

    def _refuse(self, exchange: Exchange, kind: str, outcome: str, response: Response) -> None:
        """Counts it, and says so once a minute, however many there are."""
        self.counts[kind, outcome] += 1
        now = time.monotonic()
        if now - self._complained.get(outcome, float("-inf")) >= _COMPLAIN_EVERY:
            self._complained[outcome] = now
            said = json.loads(response.body)["error"]
            _log.warning("%s: a message was %s: %s", exchange.request.path, outcome, said)
        exchange.reply(response)

    # on the writer's thread

    def _keep(self, rows: list[tuple[str, str, str, str]]) -> int:
        if self._journal is None:
            self._journal = Journal(self._openings.journal)
        return self._journal.see_alerts(rows, self._clock())

    def _close_journal(self) -> None:
        if self._journal is not None:
            self._journal.close()


def _with_token(request: Request) -> Request:
    """The request as if the token in its query (`/events?token=...`) were a header: KServe's logger sends no headers of one's own."""
    token = parse_qs(request.query).get("token", [""])[0]
    header = (b"authorization", b"Bearer " + token.encode())
    return Request(request.method, request.path, "", [header], b"", request.arrived)
