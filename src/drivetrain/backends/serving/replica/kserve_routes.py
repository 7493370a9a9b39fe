"""KServe's V1 protocol and the Open Inference Protocol (V2) over HTTP: the routes, and what they say when something is not there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import monotonic

import msgspec

from drivetrain.backends.serving.http.messages import Exchange, Response
from drivetrain.backends.serving.replica.calls import Answer, Wire
from drivetrain.backends.serving.replica.codecs.metadata import SERVER, as_json, model_metadata
from drivetrain.backends.serving.replica.front import LATER, Front, Protocol, headers_of, outcome_of, reply_json

Done = Callable[[Answer], None]

LENGTH = b"inference-header-content-length"
ID = b"x-request-id"
PROTOBUF = b"application/vnd.open-inference+protobuf"
"""The content type of a ModelInferRequest posted to the route for JSON, and of its answer: how a gateway hands gRPC calls on."""


class KServeRoutes:
    """The routes. The one model has the service's name; asking for another is answered 404."""

    def __init__(self, front: Front) -> None:
        self._front = front
        not_ready = f"Model with name {front.name} is not ready."
        self._v1 = Protocol(Wire.V1, "v1", _error, not_ready)
        self._v2 = Protocol(Wire.V2, "v2", _error, not_ready)
        self._grpc = Protocol(Wire.GRPC, "grpc", _error, not_ready)

    @property
    def ready(self) -> bool:
        """Whether predictions are answered."""
        return self._front.pool.state in ("READY", "BUSY")

    # V1

    def models(self, exchange: Exchange) -> None:
        """`GET /v1/models` and `/v2/models`"""
        reply_json(exchange, 200, {"models": [self._front.name]})

    def v1_model(self, exchange: Exchange, name: str) -> None:
        """`GET /v1/models/NAME`"""
        self._model_ready(exchange, name)

    def v1_predict(self, exchange: Exchange, name: str) -> None:
        """`POST /v1/models/NAME:predict`"""
        if self._is_here(exchange, name):
            self._infer(exchange, self._v1, dict(exchange.request.headers), b"")

    # V2

    def server(self, exchange: Exchange) -> None:
        """`GET /v2`"""
        exchange.reply(Response(200, as_json(SERVER)))

    def live(self, exchange: Exchange) -> None:
        """`GET /v2/health/live`: 503 once only a new process can help."""
        if self._front.live:
            reply_json(exchange, 200, {"live": True})
        else:
            reply_json(exchange, 503, {"error": "Server is not live."})

    def server_ready(self, exchange: Exchange) -> None:
        """`GET /v2/health/ready`: 503 also while the worker is gone."""
        if self.ready:
            reply_json(exchange, 200, {"ready": True})
        else:
            reply_json(exchange, 503, {"error": "Server is not ready."}, (LATER,))

    def v2_model(self, exchange: Exchange, name: str) -> None:
        """`GET /v2/models/NAME`"""
        if not self._is_here(exchange, name):
            return
        signature = self._front.pool.signature
        if signature is None:
            reply_json(exchange, 503, _error(self._v2.not_ready), (LATER,))
        else:
            exchange.reply(Response(200, as_json(model_metadata(signature))))

    def v2_model_ready(self, exchange: Exchange, name: str) -> None:
        """`GET /v2/models/NAME/ready`"""
        self._model_ready(exchange, name)

    def v2_infer(self, exchange: Exchange, name: str) -> None:
        """`POST /v2/models/NAME/infer`"""
        if self._is_here(exchange, name):
            headers = dict(exchange.request.headers)
            protocol = self._grpc if headers.get(b"content-type") == PROTOBUF else self._v2
            self._infer(exchange, protocol, headers, None)

    # parts of them

    def _is_here(self, exchange: Exchange, name: str) -> bool:
        if name == self._front.name:
            return True
        reply_json(exchange, 404, _error(f"Model with name {name} does not exist."))
        return False

    def _model_ready(self, exchange: Exchange, name: str) -> None:
        if not self._is_here(exchange, name):
            return
        if self.ready:
            reply_json(exchange, 200, {"name": name, "ready": True})
        else:
            reply_json(exchange, 503, _error(self._v1.not_ready), (LATER,))

    def _infer(
        self, exchange: Exchange, protocol: Protocol, headers: Mapping[bytes, bytes], meta: bytes | None
    ) -> None:
        front, request, word, began = self._front, exchange.request, protocol.word, monotonic()
        if meta is None:
            meta = _v2_meta(headers) if LENGTH in headers or ID in headers else b""
            if meta is None:
                words = "the header Inference-Header-Content-Length has to be a whole number"
                reply_json(exchange, 400, _error(words))
                front.metrics.ended(word, "refused", 0.0)
                return

        def done(answer: Answer) -> None:
            if answer.status == 200 and protocol.wire is Wire.GRPC:
                exchange.reply(Response(200, answer.body, (), PROTOBUF))
                front.metrics.ended(word, "succeeded", monotonic() - began)
            elif answer.status == 200 and answer.meta:
                _reply_binary(exchange, answer)
                front.metrics.ended(word, outcome_of(answer), monotonic() - began)
            else:
                front.ended(word, exchange, answer, began)

        def left() -> None:
            front.pool.cancel(ticket)

        ticket = front.submit(exchange, protocol, headers, request.body, meta, done)
        if ticket:
            exchange.on_disconnect(left)


def _v2_meta(headers: Mapping[bytes, bytes]) -> bytes | None:
    """What the codec is told; None if the header with the length is no number."""
    meta: dict[str, object] = {}
    if ID in headers:
        meta["id"] = headers[ID].decode("utf-8", "replace")
    if LENGTH in headers:
        try:
            meta["header_length"] = int(headers[LENGTH])
        except ValueError:
            return None
    return msgspec.json.encode(meta)


def _reply_binary(exchange: Exchange, answer: Answer) -> None:
    length = msgspec.json.decode(answer.meta).get("header_length")
    if length is None:
        exchange.reply(Response(200, answer.body))
        return
    header = (LENGTH, b"%d" % length)
    exchange.reply(Response(200, answer.body, (header, *headers_of(answer)), b"application/octet-stream"))


def _error(words: str) -> dict[str, str]:
    return {"error": words}


def not_found(exchange: Exchange) -> None:
    """404 for a route that is none, in KServe's form."""
    reply_json(exchange, 404, {"detail": "Not Found"})


def not_allowed(exchange: Exchange, allow: bytes) -> None:
    """405, in KServe's form."""
    reply_json(exchange, 405, {"detail": "Method Not Allowed"}, ((b"allow", allow),))
