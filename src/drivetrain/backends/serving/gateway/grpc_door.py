"""The gateway's gRPC port: what a call asks of the model goes to the gateway's own handler, and is so routed, captured and counted as
other requests are, and wakes a service that sleeps.

The replica gets a ModelInfer as `POST /v2/models/NAME/infer` with the content type below, and answers with the bytes of a
ModelInferResponse; ModelReady and ModelMetadata are the same questions as over HTTP.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Callable

from drivetrain import __version__
from drivetrain.backends.serving.gateway.service import Service
from drivetrain.backends.serving.http.messages import Handler, Headers, Request, Response, Stream
from drivetrain.backends.serving.replica import grpc_server
from drivetrain.backends.serving.replica.calls import Answer
from drivetrain.backends.serving.replica.codecs.metadata import ModelMetadata, ServerMetadata, TensorMetadata
from drivetrain.backends.serving.replica.grpc_server import Metadata

CONTENT_TYPE = b"application/vnd.open-inference+protobuf"
_FORWARDED = ("authorization", "x-request-id", "x-drivetrain-time")


class Posted:
    """An `Exchange` whose answer is awaited."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.gone = False
        self.answer: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        self._callbacks: list[Callable[[], object]] = []

    def reply(self, response: Response) -> None:
        """The answer is there."""
        if not self.answer.done():
            self.answer.set_result(response)

    def stream(self, status: int, headers: Headers, content_type: bytes) -> Stream:
        """Calls are not asked for piece by piece."""
        raise RuntimeError("a unary call is not streamed")

    def on_disconnect(self, callback: Callable[[], object]) -> None:
        """Has `callback` called if the caller goes."""
        self._callbacks.append(callback)

    def leave(self) -> None:
        """The caller has gone."""
        self.gone = True
        for callback in self._callbacks:
            callback()


def service(handler: Handler, gateway: Service) -> grpc_server.Service:
    """What the gRPC server answers with. `handler` is the gateway's."""
    name = gateway.settings.name
    model = f"/v2/models/{name}"

    async def infer(body: bytes, deadline: float | None, metadata: Metadata) -> Answer:
        headers = [
            (key.encode(), _bytes(value)) for key, value in metadata if key in _FORWARDED or _is_sticky(gateway, key)
        ]
        headers.append((b"content-type", CONTENT_TYPE))
        if deadline is not None:
            left = max(0, math.ceil((deadline - time.monotonic()) * 1000))
            headers.append((b"x-request-timeout-ms", b"%d" % left))
        response = await _answer(handler, "POST", f"{model}/infer", headers, body)
        marks = {key.decode(): value.decode("latin-1") for key, value in response.headers if key.startswith(b"x-")}
        return Answer(response.status, response.body, json.dumps({"headers": marks}).encode())

    def ready() -> bool:
        primary = gateway.router.routes.primary
        return primary is not None and gateway.revisions[primary].state in ("ready", "asleep")

    async def model_ready(asked: str) -> bool | None:
        return (await _answer(handler, "GET", f"{model}/ready")).status == 200 if asked == name else None

    async def model_metadata(asked: str) -> ModelMetadata | Answer | None:
        if asked != name:
            return None
        response = await _answer(handler, "GET", model)
        return _metadata(response.body) if response.status == 200 else Answer(response.status, response.body)

    return grpc_server.Service(
        infer=infer,
        ready=ready,
        model_ready=model_ready,
        server_metadata=lambda: ServerMetadata("drivetrain", __version__, ()),
        model_metadata=model_metadata,
    )


async def _answer(handler: Handler, method: str, path: str, headers: Headers = (), body: bytes = b"") -> Response:
    """The handler's answer; the caller of the call may go before it is there."""
    posted = Posted(Request(method, path, "", headers, body, asyncio.get_running_loop().time()))
    handler(posted)
    try:
        return await posted.answer
    except asyncio.CancelledError:
        posted.leave()
        raise


def _metadata(body: bytes) -> ModelMetadata:
    found = json.loads(body)
    inputs, outputs = (
        [TensorMetadata(entry["name"], entry["datatype"], entry["shape"]) for entry in found[side]]
        for side in ("inputs", "outputs")
    )
    return ModelMetadata(found["name"], found["platform"], inputs, outputs)


def _is_sticky(gateway: Service, key: str) -> bool:
    header = gateway.router.routes.sticky
    return header is not None and header.lower() == key


def _bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode()
