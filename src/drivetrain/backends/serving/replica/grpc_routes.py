"""The Open Inference Protocol over gRPC, on the same worker and in the same metrics as HTTP."""

from __future__ import annotations

import asyncio
import json
from time import monotonic

import msgspec

from drivetrain.backends.serving.replica.calls import Answer, Call, Wire
from drivetrain.backends.serving.replica.codecs.metadata import SERVER, ModelMetadata, model_metadata
from drivetrain.backends.serving.replica.front import Front, outcome_of
from drivetrain.backends.serving.replica.grpc_server import GrpcServer, Listening, Metadata, Service
from drivetrain.backends.serving.replica.pool import Full, NotReady


async def listen(front: Front, host: str, port: int, message_limit: int) -> GrpcServer:
    """A server that listens. Raises `ServingError` if the address is taken."""
    server = GrpcServer(service(front))
    server.bind(Listening(host, port, message_limit=message_limit))
    await server.start()
    return server


def service(front: Front) -> Service:
    """What the server answers with."""

    def ready() -> bool:
        return front.pool.state in ("READY", "BUSY")

    async def infer(body: bytes, deadline: float | None, metadata: Metadata) -> Answer:
        return await _infer(front, body, deadline, metadata)

    async def model_ready(name: str) -> bool | None:
        return ready() if name == front.name else None

    async def metadata_of(name: str) -> ModelMetadata | Answer | None:
        if name != front.name:
            return None
        signature = front.pool.signature
        return model_metadata(signature) if signature is not None else Answer(503, _not_ready(front))

    return Service(
        infer=infer,
        live=lambda: front.live,
        ready=ready,
        model_ready=model_ready,
        server_metadata=lambda: SERVER,
        model_metadata=metadata_of,
    )


async def _infer(front: Front, body: bytes, deadline: float | None, metadata: Metadata) -> Answer:
    began = monotonic()
    loop = asyncio.get_running_loop()
    answered: asyncio.Future[Answer] = loop.create_future()

    def done(answer: Answer) -> None:
        front.metrics.ended("grpc", outcome_of(answer), monotonic() - began)
        if not answered.done():
            answered.set_result(answer)

    try:
        ticket = front.pool.submit(Call(Wire.GRPC, body, _meta(metadata), deadline), done)
    except (NotReady, Full) as error:
        body = json.dumps({"error": f"At capacity: {error}"}).encode() if isinstance(error, Full) else _not_ready(front)
        front.metrics.ended("grpc", "rejected", monotonic() - began)
        headers = {"headers": {"x-drivetrain-not-run": "1"}}
        return Answer(503, body, json.dumps(headers).encode())
    try:
        return await answered
    except asyncio.CancelledError:  # the caller has gone
        front.pool.cancel(ticket)
        raise


def _not_ready(front: Front) -> bytes:
    return json.dumps({"error": f"Model with name {front.name} is not ready."}).encode()


def _meta(metadata: Metadata) -> bytes:
    named = next((value for key, value in metadata if key == "x-request-id"), None)
    return msgspec.json.encode({"id": str(named)}) if named is not None else b""
