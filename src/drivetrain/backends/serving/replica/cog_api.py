"""Cog's HTTP API, as Cog's own server has it; docs/conformance.md lists the differences, each with its reason.

A body is handed to the worker as it came. It is looked into here only if it may name an id or a webhook, or if others may be told of the
prediction before its end: then the inputs are checked here too, so that wrong ones are refused at once.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from time import monotonic
from typing import Any, Literal

import msgspec

from drivetrain.backends.serving.http.messages import Exchange, Response
from drivetrain.backends.serving.replica import health
from drivetrain.backends.serving.replica.calls import Answer, Call, Codec, Refused, Wire
from drivetrain.backends.serving.replica.codecs import codec_for
from drivetrain.backends.serving.replica.front import LATER, Front, Protocol, outcome_of, reply_json
from drivetrain.backends.serving.replica.predictions import FollowedPrediction, Prediction, new_id
from drivetrain.backends.serving.replica.webhooks import Sender, Webhook

Headers = Mapping[bytes, bytes]

NO_STREAMING = "This model does not support streaming responses. Add @cog.streaming to predict() to enable SSE."
NO_TRAINING_STREAM = "Training endpoints do not support streaming responses."
TEXT = b"text/plain; charset=utf-8"
MAX_FOLLOWERS = 1024
APART = 64 * 1024
"""Larger bodies are read by the worker alone, if they can be: it would take the event loop too long."""
_HISTORY = 1024

Event = Literal["start", "output", "logs", "completed"]


class Envelope(msgspec.Struct):
    """What stands around the inputs, as far as the front needs it."""

    id: str | None = None
    webhook: str | None = None
    webhook_events_filter: tuple[Event, ...] = ("start", "output", "logs", "completed")


COG = Protocol(
    Wire.COG,
    "cog",
    lambda words: {"error": words, "status": "failed"},
    "Setup has not finished yet. Wait until it has finished, or GET /health-check for status.",
)
_read = msgspec.json.Decoder(Envelope).decode
_encode = msgspec.json.Encoder().encode
_PLAIN = Envelope()
_INDEX = {
    "docs_url": "/docs",
    "openapi_url": "/openapi.json",
    "shutdown_url": "/shutdown",
    "healthcheck_url": "/health-check",
    "predictions_url": "/predictions",
    "predictions_idempotent_url": "/predictions/{prediction_id}",
    "predictions_cancel_url": "/predictions/{prediction_id}/cancel",
}


class CogApi:
    """The routes. `running` are the predictions that have no answer yet, by id."""

    def __init__(self, front: Front, sender: Sender) -> None:
        self.running: dict[str, Prediction] = {}
        self._front = front
        self._sender = sender
        self._history = history_capacity()
        self._codec: Codec | None = None

    def index(self, exchange: Exchange) -> None:
        """`GET /`"""
        reply_json(exchange, 200, {"cog_version": health.version("cog"), **_INDEX})

    def health_check(self, exchange: Exchange) -> None:
        """`GET /health-check`: 200, whatever the state; the body tells it."""
        health.answer(self._front.pool, exchange)

    def openapi(self, exchange: Exchange) -> None:
        """`GET /openapi.json`"""
        signature = self._front.pool.signature
        if signature is None:
            reply_json(exchange, 503, {"error": "OpenAPI schema not available"}, (LATER,))
            return
        reply_json(exchange, 200, health.document(signature))

    def shutdown(self, exchange: Exchange) -> None:
        """`POST /shutdown`"""
        if self._front.permitted(exchange):
            reply_json(exchange, 200, {})
            self._front.shut_down()

    def cancel(self, exchange: Exchange, key: str) -> None:
        """`POST /predictions/ID/cancel`"""
        if not self._front.permitted(exchange):
            return
        prediction = self.running.get(key)
        if prediction is None:
            reply_json(exchange, 404, {})
            return
        self._cancel(prediction)
        reply_json(exchange, 200, {})

    def create(self, exchange: Exchange) -> None:
        """`POST /predictions`"""
        request = exchange.request
        headers = dict(request.headers)
        body = _body(exchange, headers)
        if body is None:
            return
        if b"accept" in headers and _wants_events(headers[b"accept"]):
            self._create_streamed(exchange, headers, body, None)
        elif headers.get(b"prefer") == b"respond-async":
            self._create_async(exchange, headers, body, None)
        else:
            self._create_sync(exchange, headers, body, None)

    def create_with_id(self, exchange: Exchange, key: str, kind: str = "prediction") -> None:
        """`PUT /predictions/ID`: a new prediction, or how far the running one of that id is."""
        headers = dict(exchange.request.headers)
        body = _body(exchange, headers)
        if body is None:
            return
        envelope = _envelope(body)
        if envelope is not None and envelope.id is not None and envelope.id != key:
            message = f"{kind} ID must match the ID supplied in the URL"
            reply_json(exchange, 422, {"detail": [{"loc": ["body", "id"], "msg": message, "type": "value_error"}]})
            return
        streamed = kind == "prediction" and _wants_events(headers.get(b"accept", b""))
        known = self.running.get(key) if envelope is not None else None
        if known is not None:
            self._tell(exchange, known, streamed)
        elif streamed:
            self._create_streamed(exchange, headers, body, key)
        elif headers.get(b"prefer") == b"respond-async":
            self._create_async(exchange, headers, body, key)
        else:
            self._create_sync(exchange, headers, body, key)

    def train(self, exchange: Exchange) -> None:
        """`POST /trainings`: the same as a prediction, as in Cog's server, but for event streams."""
        if _wants_events(exchange.request.header(b"accept") or b""):
            reply_json(exchange, 406, {"error": NO_TRAINING_STREAM})
        else:
            self.create(exchange)

    def train_with_id(self, exchange: Exchange, key: str) -> None:
        """`PUT /trainings/ID`"""
        if _wants_events(exchange.request.header(b"accept") or b""):
            reply_json(exchange, 406, {"error": NO_TRAINING_STREAM})
        else:
            self.create_with_id(exchange, key, "training")

    # three ways to answer

    def _create_sync(self, exchange: Exchange, headers: Headers, body: bytes, key: str | None) -> None:
        """The answer comes at the prediction's end. If the client goes, it is canceled."""
        envelope: Envelope | None
        if key is not None and len(body) < APART:
            # Cog's server knows an id only once its inputs are right: who repeats a refused request must not be told that it runs.
            envelope = self._checked(exchange, body)
            if envelope is None:
                return
        else:
            envelope = _envelope(body) if key is not None or may_name(body) else _PLAIN
            envelope = envelope or _PLAIN  # what cannot be read is refused by the worker
        name = _id(key, envelope, headers)
        webhook = self._webhook(envelope, headers)
        prediction: Prediction
        if key is None and webhook is None:
            prediction = Prediction(name, body, exchange, self._ended)
        else:
            prediction = FollowedPrediction(name, body, exchange, self._ended, self._history, webhook)
        if self._submit(prediction, exchange, headers):
            exchange.on_disconnect(partial(self._cancel, prediction))

    def _create_async(self, exchange: Exchange, headers: Headers, body: bytes, key: str | None) -> None:
        """202 at once."""
        envelope = self._checked(exchange, body)
        if envelope is None:
            return
        prediction = self._followed(headers, body, key, envelope)
        if self._submit(prediction, exchange, headers):
            reply_json(exchange, 202, {"id": prediction.id, "status": "starting"})

    def _create_streamed(self, exchange: Exchange, headers: Headers, body: bytes, key: str | None) -> None:
        """Events as they come. If nobody follows it any more, the prediction is canceled."""
        if not self._streams(exchange):
            return
        envelope = self._checked(exchange, body)
        if envelope is None:
            return
        prediction = self._followed(headers, body, key, envelope)
        prediction.canceled_if_left = True
        if self._submit(prediction, exchange, headers):
            self._follow(exchange, prediction)

    # parts of them

    def _followed(self, headers: Headers, body: bytes, key: str | None, envelope: Envelope) -> FollowedPrediction:
        name, webhook = _id(key, envelope, headers), self._webhook(envelope, headers)
        return FollowedPrediction(name, body, None, self._ended_apart, self._history, webhook)

    def _submit(self, prediction: Prediction, exchange: Exchange, headers: Headers) -> bool:
        """Hands the prediction to the worker; False if it was answered here instead."""
        progress = prediction.progress if isinstance(prediction, FollowedPrediction) else None
        meta = b'{"id":%b}' % _encode(prediction.id)
        ticket = self._front.submit(exchange, COG, headers, prediction.body, meta, prediction.done, progress)
        if not ticket:
            return False
        prediction.ticket = ticket
        self.running[prediction.id] = prediction
        return True

    def _cancel(self, prediction: Prediction) -> None:
        self._front.pool.cancel(prediction.ticket)

    def _ended(self, prediction: Prediction, answer: Answer) -> None:
        if self.running.get(prediction.id) is prediction:
            del self.running[prediction.id]
        assert prediction.exchange is not None
        self._front.ended("cog", prediction.exchange, answer, prediction.began)

    def _ended_apart(self, prediction: Prediction, answer: Answer) -> None:
        """The same, where nobody waits for the answer."""
        if self.running.get(prediction.id) is prediction:
            del self.running[prediction.id]
        self._front.metrics.ended("cog", outcome_of(answer), monotonic() - prediction.began)

    def _webhook(self, envelope: Envelope, headers: Headers) -> Webhook | None:
        if envelope.webhook is None:
            return None
        trace = [
            (name.decode(), headers[name].decode("latin-1"))
            for name in (b"traceparent", b"tracestate")
            if name in headers
        ]
        return self._sender.webhook(envelope.webhook, envelope.webhook_events_filter, trace)

    def _checked(self, exchange: Exchange, body: bytes) -> Envelope | None:
        """What stands around the inputs, if these are right; else None, and what is wrong with them has been answered.

        It is the one place where the front reads the inputs: before it promises something of a prediction that has not begun.
        """
        codec = self._known_codec()
        if codec is not None:  # else it is not ready, which is said later
            try:
                codec.decode(Call(Wire.COG, body))
            except Refused as refused:
                self._front.ended("cog", exchange, refused.answer, monotonic())
                return None
        return _envelope(body) or _PLAIN

    def _known_codec(self) -> Codec | None:
        signature = self._front.pool.signature
        if self._codec is None and signature is not None:
            self._codec = codec_for(Wire.COG, signature)
        return self._codec

    def _streams(self, exchange: Exchange) -> bool:
        signature = self._front.pool.signature
        if signature is not None and not signature.streams:
            reply_json(exchange, 406, {"error": NO_STREAMING})
            return False
        return True

    def _tell(self, exchange: Exchange, known: Prediction, streamed: bool) -> None:
        """What a repeated request is told of the running prediction."""
        if not streamed:
            reply_json(exchange, 202, known.state() | {"input": self._inputs(known.body)})
        elif self._streams(exchange):
            if isinstance(known, FollowedPrediction):
                self._follow(exchange, known)
            else:
                reply_json(exchange, 409, {"error": "Prediction stream unavailable"})

    def _inputs(self, body: bytes) -> Any:
        """The inputs of a prediction; none if it waits to be refused."""
        codec = self._known_codec()
        try:
            return codec.decode(Call(Wire.COG, body)).items[0] if codec is not None else {}
        except Refused:
            return {}

    def _follow(self, exchange: Exchange, prediction: FollowedPrediction) -> None:
        if len(prediction.followers) >= MAX_FOLLOWERS:
            reply_json(exchange, 429, {"error": "Too many stream subscribers"})
            return
        follower = prediction.follow(exchange, self._left)
        follower.start(exchange.stream(200, ((b"cache-control", b"no-cache"),), b"text/event-stream"))

    def _left(self, prediction: FollowedPrediction) -> None:
        if prediction.canceled_if_left:
            self._cancel(prediction)


def history_capacity() -> int:
    """COG_STREAM_HISTORY_CAPACITY, or Cog's default."""
    try:
        return max(0, int(os.environ.get("COG_STREAM_HISTORY_CAPACITY", _HISTORY)))
    except ValueError:
        return _HISTORY


def may_name(body: bytes) -> bool:
    """Whether the body may name an id or a webhook. A key may be written with escapes: where there is one, it is read."""
    return b'"id"' in body or b'"webhook"' in body or b"\\" in body


def _envelope(body: bytes) -> Envelope | None:
    """None for a body that is not right; what is wrong with it is told by the codec."""
    try:
        return _read(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _id(given: str | None, envelope: Envelope, headers: Headers) -> str:
    """From path, body or header; else a new one."""
    if given is not None:
        return given
    if envelope.id:
        return envelope.id
    named = headers.get(b"x-request-id")
    return named.decode("utf-8", "replace") if named else new_id()


def _body(exchange: Exchange, headers: Headers) -> bytes | None:
    """The body. As in Cog's server, one without a content type is not looked at, and one of another type than JSON is answered 415."""
    kind = headers.get(b"content-type")
    if kind is None:
        return b"{}"
    if kind == b"application/json" or is_json(kind):
        if exchange.request.body:
            return exchange.request.body
        message = "Failed to parse the request body as JSON: it is empty"
        detail = [{"loc": ["body"], "msg": message, "type": "value_error.jsondecode"}]
        reply_json(exchange, 400, {"detail": detail})
        return None
    exchange.reply(Response(415, b"Expected request with `Content-Type: application/json`", (), TEXT))
    return None


def is_json(content_type: bytes) -> bool:
    """Whether it is `application/json`, or of a type that builds on it."""
    kind = content_type.partition(b";")[0].strip().lower()
    return kind == b"application/json" or (kind.startswith(b"application/") and kind.endswith(b"+json"))


def _wants_events(accept: bytes) -> bool:
    if b"text/event-stream" not in accept:
        return False
    return any(part.strip().partition(b";")[0] == b"text/event-stream" for part in accept.split(b","))
