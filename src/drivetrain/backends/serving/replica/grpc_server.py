"""The Open Inference Protocol over gRPC: a server that hands serialized requests on, and knows nothing of models.

Both the replica's front and the gateway use it. ModelInfer is not parsed here: its bytes go to `Service.infer`, and the answer's bytes
go back, or its status: 400 is INVALID_ARGUMENT, 401 UNAUTHENTICATED, 404 NOT_FOUND, 413 and 429 RESOURCE_EXHAUSTED, 499 CANCELLED, 503
UNAVAILABLE, 504 DEADLINE_EXCEEDED, anything else INTERNAL.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import msgspec

from drivetrain.backends.serving.replica import open_inference_pb2 as pb
from drivetrain.backends.serving.replica.calls import Answer
from drivetrain.backends.serving.replica.codecs.metadata import ModelMetadata, ServerMetadata
from drivetrain.errors import ServingError

log = logging.getLogger(__name__)

SERVICE = "inference.GRPCInferenceService"

_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    499: grpc.StatusCode.CANCELLED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}

Metadata = Sequence[tuple[str, str | bytes]]
Infer = Callable[[bytes, float | None, Metadata], Awaitable[Answer]]


@dataclass(frozen=True, slots=True)
class Service:
    """What the server answers with.

    `infer` is given a serialized ModelInferRequest, the deadline in seconds of `time.monotonic()` (None for none) and the call's
    metadata; it is cancelled when the caller goes. `Answer.meta` may have `{"headers": {name: value}}`: they go back as trailing
    metadata, and `{"not_run": true}` as `x-drivetrain-not-run: 1`. `model_ready` and `model_metadata` give None for a model that is not
    there; in place of metadata there may be an `Answer` that says why there are none now. `allowed` is given the metadata `authorization`
    ("" if there is none) of each ModelInfer.
    """

    infer: Infer
    ready: Callable[[], bool]
    model_ready: Callable[[str], Awaitable[bool | None]]
    server_metadata: Callable[[], ServerMetadata]
    model_metadata: Callable[[str], Awaitable[ModelMetadata | Answer | None]]
    allowed: Callable[[str], bool] | None = None
    live: Callable[[], bool] = lambda: True


@dataclass(frozen=True, slots=True)
class Listening:
    """Where to listen: port 0 for any; TLS with `certificate` and `key`, PEM files; messages up to `message_limit` bytes."""

    host: str
    port: int
    certificate: str | None = None
    key: str | None = None
    message_limit: int = 16 * 1024 * 1024


class GrpcServer:
    """A server of one service, on the running event loop."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._server: Any = None
        self.port = 0
        """The port it listens on, once it is bound."""

    def bind(self, listening: Listening) -> None:
        """Takes the address; calls wait until the start. Raises `ServingError` if it is taken or the TLS files cannot be used."""
        self._server = grpc.aio.server(
            options=(
                ("grpc.so_reuseport", 0),  # or a second server would share the port unnoticed
                ("grpc.max_receive_message_length", listening.message_limit),
                ("grpc.max_send_message_length", -1),
            )
        )
        self._server.add_generic_rpc_handlers((_handlers(self._service),))
        self.port = _bound(self._server, listening)

    async def start(self) -> None:
        """Answers from now on."""
        await self._server.start()

    async def stop(self, grace: float) -> None:
        """Takes no further calls, and ends those that run after `grace` seconds."""
        if self._server is not None:
            await self._server.stop(grace)


def _bound(server: Any, listening: Listening) -> int:
    address = f"[{listening.host}]" if ":" in listening.host else listening.host
    address = f"{address}:{listening.port}"
    credentials = _credentials(listening)
    try:
        port: int = (
            server.add_insecure_port(address) if credentials is None else server.add_secure_port(address, credentials)
        )
    except RuntimeError as error:
        raise ServingError(
            f"gRPC cannot listen on {address}",
            hint="another process has the port, or the address is not this machine's",
        ) from error
    return port


def _credentials(listening: Listening) -> Any:
    if listening.certificate is None or listening.key is None:
        return None
    try:
        pair = Path(listening.key).read_bytes(), Path(listening.certificate).read_bytes()
    except OSError as error:
        raise ServingError(f"the TLS file {error.filename} cannot be read: {error.strerror}") from error
    return grpc.ssl_server_credentials([pair])


def _handlers(service: Service) -> Any:
    async def live(request: Any, context: Any) -> Any:
        return pb.ServerLiveResponse(live=service.live())

    async def ready(request: Any, context: Any) -> Any:
        return pb.ServerReadyResponse(ready=service.ready())

    async def model_ready(request: Any, context: Any) -> Any:
        found = await service.model_ready(request.name)
        if found is None:
            await _no_model(context, request.name)
        return pb.ModelReadyResponse(ready=bool(found))

    async def server_metadata(request: Any, context: Any) -> Any:
        found = service.server_metadata()
        return pb.ServerMetadataResponse(name=found.name, version=found.version, extensions=found.extensions)

    async def model_metadata(request: Any, context: Any) -> Any:
        found = await service.model_metadata(request.name)
        if found is None:
            await _no_model(context, request.name)
            raise AssertionError("abort raises")
        if isinstance(found, Answer):
            await _abort(context, found)
            raise AssertionError("abort raises")
        return _model_metadata(found)

    async def infer(body: bytes, context: Any) -> bytes:
        return await _infer(service, body, context)

    methods = {
        "ServerLive": _method(live, pb.ServerLiveRequest),
        "ServerReady": _method(ready, pb.ServerReadyRequest),
        "ModelReady": _method(model_ready, pb.ModelReadyRequest),
        "ServerMetadata": _method(server_metadata, pb.ServerMetadataRequest),
        "ModelMetadata": _method(model_metadata, pb.ModelMetadataRequest),
        "ModelInfer": grpc.unary_unary_rpc_method_handler(infer),
    }
    return grpc.method_handlers_generic_handler(SERVICE, methods)


def _method(answer: Any, request: Any) -> Any:
    return grpc.unary_unary_rpc_method_handler(
        answer, request_deserializer=request.FromString, response_serializer=lambda message: message.SerializeToString()
    )


async def _infer(service: Service, body: bytes, context: Any) -> bytes:
    metadata: Metadata = tuple(context.invocation_metadata())
    if service.allowed is not None and not service.allowed(_authorization(metadata)):
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, "a bearer token is needed, as metadata `authorization`")
    left = context.time_remaining()
    deadline = None if left is None else time.monotonic() + left
    try:
        answer = await service.infer(body, deadline, metadata)
    except Exception:  # whatever went wrong, the caller gets a status and the log the reason
        log.exception("ModelInfer failed")
        answer = Answer(500, b'{"error":"internal error"}')
    headers = _headers(answer)
    if headers:
        context.set_trailing_metadata(tuple(headers.items()))
    if answer.status != 200:
        await _abort(context, answer)
    return answer.body


def _authorization(metadata: Metadata) -> str:
    return next((str(value) for name, value in metadata if name == "authorization"), "")


def _headers(answer: Answer) -> Mapping[str, str]:
    meta = msgspec.json.decode(answer.meta) if answer.meta else {}
    headers: dict[str, str] = meta.get("headers", {})
    return headers | {"x-drivetrain-not-run": "1"} if meta.get("not_run") else headers


def _message(body: bytes) -> str:
    """The words of `{"error": ...}`."""
    try:
        return str(msgspec.json.decode(body)["error"])
    except (msgspec.MsgspecError, UnicodeDecodeError, KeyError, TypeError):
        return body.decode(errors="replace")


async def _abort(context: Any, answer: Answer) -> None:
    await context.abort(_CODES.get(answer.status, grpc.StatusCode.INTERNAL), _message(answer.body))


async def _no_model(context: Any, name: str) -> None:
    await context.abort(grpc.StatusCode.NOT_FOUND, f"Model with name {name} does not exist.")


def _model_metadata(found: ModelMetadata) -> Any:
    answer = pb.ModelMetadataResponse(name=found.name, platform=found.platform)
    for entry in found.inputs:
        answer.inputs.add(name=entry.name, datatype=entry.datatype, shape=entry.shape)
    for entry in found.outputs:
        answer.outputs.add(name=entry.name, datatype=entry.datatype, shape=entry.shape)
    return answer
