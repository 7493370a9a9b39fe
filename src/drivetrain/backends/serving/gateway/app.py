"""The gateway's handler: what it answers itself, and how every other request gets to a replica."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

from drivetrain.backends.serving.gateway import requests
from drivetrain.backends.serving.gateway.admin import Admin, Door, reply, unauthorized
from drivetrain.backends.serving.gateway.contracts import Recorder
from drivetrain.backends.serving.gateway.endings import has_failed
from drivetrain.backends.serving.gateway.forward import Forward, Outbound, Shared, own_answer
from drivetrain.backends.serving.gateway.lookup import Lookup
from drivetrain.backends.serving.gateway.requests import Read
from drivetrain.backends.serving.gateway.scrape import Scrape
from drivetrain.backends.serving.gateway.service import Service
from drivetrain.backends.serving.gateway.settings import Settings
from drivetrain.backends.serving.gateway.shadow import Shadow
from drivetrain.backends.serving.gateway.tasks import Tasks
from drivetrain.backends.serving.http.messages import Exchange, Response
from drivetrain.backends.serving.http.outcomes import ClientError

_CANCELED_WITHIN = 5.0
_MISSING = b"x-drivetrain-missing-features"
_SAFE = frozenset(("GET", "HEAD", "OPTIONS"))


@dataclass(frozen=True, slots=True)
class Parts:
    """What the handler works with. `recorder` is None where nothing is captured, `lookup` where nothing is looked up."""

    service: Service
    admin: Admin
    door: Door
    shared: Shared
    scrape: Scrape
    shadow: Shadow
    recorder: Recorder | None
    lookup: Lookup | None
    stop: Callable[[], None]


class App:
    """A `Handler`."""

    def __init__(self, settings: Settings, parts: Parts) -> None:
        self._settings = settings
        self._parts = parts
        self._service = parts.service
        self._metrics = parts.service.metrics
        self._recorder = parts.recorder
        self._ids = requests.new_ids()
        self._guard = settings.guard_predictions
        self._tasks = Tasks()
        self._own: dict[tuple[str, str], Callable[[Exchange], None]] = {
            ("GET", "/health-check"): self._health_check,
            ("GET", "/metrics"): self._give_metrics,
            ("GET", "/v2/health/live"): lambda exchange: exchange.reply(reply(200, {"live": True})),
            ("GET", "/v2/health/ready"): self._ready,
            ("POST", "/feedback"): self._feedback,
            ("POST", "/shutdown"): self._shutdown,
        }

    def __call__(self, exchange: Exchange) -> None:
        """Answers a request, now or later."""
        request = exchange.request
        own = self._own.get((request.method, request.path))
        if own is not None:
            own(exchange)
        elif request.path.startswith("/-/"):
            self._parts.admin(exchange)
        else:
            self._pass(exchange)

    def _pass(self, exchange: Exchange) -> None:
        started = perf_counter()
        request = exchange.request
        try:
            read = requests.read(request, self._ids)
        except requests.BadRequest as error:
            exchange.reply(own_answer(400, str(error)))
            return
        predicts = requests.predicts(request.method, request.path)
        canceled = requests.canceled(request.method, request.path)
        # A training is neither enriched nor captured: who has the token may ask for one, others for predictions.
        changes = canceled is not None or requests.trains(request.method, request.path)
        if read.authorization is not None or self._guard or changes:
            admitted = self._parts.door.admits(request)
            guarded = changes or (self._guard and (predicts or request.method not in _SAFE))
            if guarded and not admitted:
                exchange.reply(self._marked(unauthorized(), read))
                return
            if not admitted:
                read.at = None  # who has no token does not say what time it is
                if read.authorization is not None and not self._guard:
                    read.kept.append(read.authorization)  # not the gateway's token: the model's own business
            elif read.at is not None and not requests.is_instant(read.at):
                said = "X-Drivetrain-Time is not a time in seconds since the epoch"
                exchange.reply(self._marked(own_answer(400, said), read))
                return
        else:
            read.at = None
        if canceled is not None:
            self._tasks.start(exchange, self._cancel(exchange, read, canceled))
        elif predicts and self._parts.lookup is not None:
            self._tasks.start(exchange, self._look_up(exchange, read, started, self._parts.lookup))
        else:
            self._send(exchange, read, request.body, predicts, started)

    def _send(
        self,
        exchange: Exchange,
        read: Read,
        body: bytes,
        predicts: bool,
        started: float,
        marks: Sequence[tuple[bytes, bytes]] = (),
        answer: Response | None = None,
    ) -> None:
        """`marks` are headers that the answer gets besides its id and its revision; with `answer`, no replica is asked for one."""
        request, service = exchange.request, self._service
        prediction = requests.id_in_path(request.method, request.path)
        holder = self._parts.shared.holders.find(prediction) if prediction else None
        name = holder.pool.revision if holder is not None else service.router.pick(self._sticky_value(exchange))
        revision = service.revisions.get(name) if name is not None else None
        if revision is None:
            self._metrics.unrouted += 1
            exchange.reply(self._marked(own_answer(503, "nothing is deployed", 5.0), read))
            return
        patience = self._settings.timeout
        if read.timeout is not None and read.timeout < patience:
            patience = read.timeout
        out = Outbound(
            request.method,
            requests.target(request),
            [*read.kept, (b"x-request-id", read.request_id)],
            body,
            request.arrived + patience,
            prediction,
        )
        forward = Forward(self._parts.shared, revision.pool, exchange, out, self._finish)
        forward.started = started
        forward.marks = [(b"x-request-id", read.request_id), *marks]
        forward.preferred = holder
        forward.streams = read.streams
        if predicts:
            if self._recorder is not None:
                self._capture(forward, self._recorder, prediction, read)
            if service.router.routes.shadow is not None and answer is None:
                self._parts.shadow.copy(request, out, read, forward.event)
        if answer is None:
            forward.start()
        else:
            self._finish(forward, answer)

    def _sticky_value(self, exchange: Exchange) -> bytes | None:
        header = self._service.router.routes.sticky
        return exchange.request.header(header.lower().encode()) if header is not None else None

    def _capture(self, forward: Forward, recorder: Recorder, prediction: str | None, read: Read) -> None:
        request = forward.exchange.request
        event = prediction or requests.id_in_body(request.body) or read.request_id.decode()
        content_type = read.content_type.decode("latin-1")
        at = time.time() if read.at is None else read.at
        if recorder.request(event, forward.pool.revision, request.path, content_type, forward.out.body, at):
            forward.event, forward.at = event, read.at

    def _finish(self, forward: Forward, response: Response) -> None:
        took = perf_counter() - forward.started
        if not forward.streamed:
            response.headers = [*response.headers, *forward.marks, forward.pool.mark]
            forward.exchange.reply(response)
        numbers = forward.pool.numbers
        failed = response.status == 200 and has_failed(response.body)
        numbers.count(500 if failed else response.status, took)
        numbers.added.observe(max(0.0, took - forward.spent))
        if forward.event is not None and self._recorder is not None:
            self._recorder.response(
                forward.event, forward.pool.revision, forward.exchange.request.path,
                response.content_type.decode("latin-1"), response.body, time.time() if forward.at is None else forward.at,
                response.status, took,
            )  # fmt: skip

    async def _look_up(self, exchange: Exchange, read: Read, started: float, lookup: Lookup) -> None:
        request = exchange.request
        began = perf_counter()
        found = await lookup.enrich(request.path, read.content_type.decode("latin-1"), request.body)
        if found.looked_up:
            self._metrics.lookup.observe(perf_counter() - began)
        self._metrics.lookup_failed += found.failed
        for feature in found.missing:
            self._metrics.missing[feature] = self._metrics.missing.get(feature, 0) + 1
        if not exchange.gone:
            marks = [(_MISSING, ", ".join(found.missing).encode())] if found.missing else []
            self._send(exchange, read, found.body, True, started, marks, found.error)

    async def _cancel(self, exchange: Exchange, read: Read, prediction: str) -> None:
        """Asks the replica that has the prediction; if it is not known, all of them."""
        holder = self._parts.shared.holders.find(prediction)
        others = [upstream for revision in self._service.revisions.values() for upstream in revision.pool.upstreams]
        answer = own_answer(404, f"there is no prediction {prediction}")
        for upstream in [holder] if holder is not None else others:
            headers = [*read.kept, (b"x-request-id", read.request_id)]
            target = requests.target(exchange.request)
            try:
                found = await upstream.client.request("POST", target, headers, exchange.request.body, _CANCELED_WITHIN)
            except ClientError:
                continue
            answer = Response(found.status, found.body, [upstream.pool.mark], found.header(b"content-type") or b"")
            if found.status < 400:
                break
        exchange.reply(self._marked(answer, read))

    def _marked(self, response: Response, read: Read) -> Response:
        response.headers = [*response.headers, (b"x-request-id", read.request_id)]
        return response

    def _health_check(self, exchange: Exchange) -> None:
        """Cog's words, with the revision that most requests go to. One that sleeps is ready: the first request wakes it."""
        name = self._service.router.routes.primary
        state = self._service.revisions[name].state if name is not None else "starting"
        status = {"ready": "READY", "asleep": "READY", "failed": "SETUP_FAILED"}.get(state, "STARTING")
        exchange.reply(reply(200, {"status": status, "revision": name}))

    def _ready(self, exchange: Exchange) -> None:
        name = self._service.router.routes.primary
        ready = name is not None and self._service.revisions[name].state in ("ready", "asleep")
        exchange.reply(reply(200 if ready else 503, {"ready": ready}))

    def _give_metrics(self, exchange: Exchange) -> None:
        self._tasks.start(exchange, self._parts.scrape.answer(exchange))

    def _feedback(self, exchange: Exchange) -> None:
        request = exchange.request
        if not self._parts.door.admits(request):
            exchange.reply(unauthorized())
            return
        try:
            said = json.loads(request.body)
            event, _, at = said["id"], said["label"], said.get("time")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            event = at = None
        if not isinstance(event, str) or not event:
            exchange.reply(reply(422, {"error": "feedback has the `id` of a prediction and its `label`, in JSON"}))
        elif at is not None and not requests.is_instant(at):
            exchange.reply(reply(422, {"error": "the `time` of feedback is in seconds since the epoch"}))
        elif self._recorder is None:
            hint = "set `monitoring.capture.keep` or `monitoring.capture.sink`"
            exchange.reply(reply(409, {"error": "this service captures nothing", "hint": hint}))
        else:
            self._recorder.feedback(event, request.body, time.time() if at is None else float(at))
            exchange.reply(reply(202, {"id": event}))

    def _shutdown(self, exchange: Exchange) -> None:
        if not self._parts.door.admits(exchange.request):
            exchange.reply(unauthorized())
            return
        exchange.reply(reply(200, {}))
        self._parts.stop()
