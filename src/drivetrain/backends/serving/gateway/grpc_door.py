"""The gateway's gRPC port: each ModelInfer is posted to the gateway's own handler, and so routed, captured and counted as others are.

The replica gets it as `POST /v2/models/NAME/infer` with the content type below, and answers with the bytes of a ModelInferResponse.
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
from drivetrain.backends.serving.http.outcomes import ClientError
from drivetrain.backends.serving.replica import grpc_server
from drivetrain.backends.serving.replica.calls import Answer
from drivetrain.backends.serving.replica.codecs.metadata import ModelMetadata, ServerMetadata, TensorMetadata
from drivetrain.backends.serving.replica.grpc_server import Metadata

CONTENT_TYPE = b"application/vnd.open-inference+protobuf"
_WITHIN = 5.0
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
    target = f"/v2/models/{name}/infer"

    async def infer(body: bytes, deadline: float | None, metadata: Metadata) -> Answer:
        headers = [
            (key.encode(), _bytes(value)) for key, value in metadata if key in _FORWARDED or _is_sticky(gateway, key)
        ]
        headers.append((b"content-type", CONTENT_TYPE))
        if deadline is not None:
            left = max(0, math.ceil((deadline - time.monotonic()) * 1000))
            headers.append((b"x-request-timeout-ms", b"%d" % left))
        arrived = asyncio.get_running_loop().time()
        posted = Posted(Request("POST", target, "", headers, body, arrived))
        handler(posted)
        try:
            response = await posted.answer
        except asyncio.CancelledError:
            posted.leave()
            raise
        marks = {key.decode(): value.decode("latin-1") for key, value in response.headers if key.startswith(b"x-")}
        return Answer(response.status, response.body, json.dumps({"headers": marks}).encode())

    def ready() -> bool:
        primary = gateway.router.routes.primary
        return primary is not None and gateway.revisions[primary].state in ("ready", "asleep")

    async def model_metadata(asked: str) -> ModelMetadata | None:
        return await _model_metadata(gateway, name) if asked == name else None

    return grpc_server.Service(
        infer=infer,
        ready=ready,
        model_ready=lambda asked: ready() if asked == name else None,
        server_metadata=lambda: ServerMetadata("drivetrain", __version__, ()),
        model_metadata=model_metadata,
    )


async def _model_metadata(gateway: Service, name: str) -> ModelMetadata | None:
    primary = gateway.router.routes.primary
    upstreams = gateway.revisions[primary].pool.upstreams if primary is not None else []
    for upstream in upstreams:
        try:
            answer = await upstream.client.request("GET", f"/v2/models/{name}", timeout=_WITHIN)
        except ClientError:
            continue
        if answer.status == 200:
            found = json.loads(answer.body)
            tensors = [
                [TensorMetadata(t["name"], t["datatype"], t["shape"]) for t in found[side]]
                for side in ("inputs", "outputs")
            ]
            return ModelMetadata(found["name"], found["platform"], tensors[0], tensors[1])
    return None


def _is_sticky(gateway: Service, key: str) -> bool:
    header = gateway.router.routes.sticky
    return header is not None and header.lower() == key


def _bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode()
