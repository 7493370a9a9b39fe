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
    await server.start(Listening(host, port, message_limit=message_limit))
    return server


def service(front: Front) -> Service:
    """What the server answers with."""

    def ready() -> bool:
        return front.pool.state in ("READY", "BUSY")

    async def infer(body: bytes, deadline: float | None, metadata: Metadata) -> Answer:
        return await _infer(front, body, deadline, metadata)

    async def metadata_of(name: str) -> ModelMetadata | None:
        signature = front.pool.signature
        return model_metadata(signature) if name == front.name and signature is not None else None

    return Service(
        infer=infer,
        ready=ready,
        model_ready=lambda name: ready() if name == front.name else None,
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
        words = f"At capacity: {error}" if isinstance(error, Full) else f"Model with name {front.name} is not ready."
        front.metrics.ended("grpc", "rejected", monotonic() - began)
        headers = {"headers": {"x-drivetrain-not-run": "1"}}
        return Answer(503, json.dumps({"error": words}).encode(), json.dumps(headers).encode())
    try:
        return await answered
    except asyncio.CancelledError:  # the caller has gone
        front.pool.cancel(ticket)
        raise


def _meta(metadata: Metadata) -> bytes:
    named = next((value for key, value in metadata if key == "x-request-id"), None)
    return msgspec.json.encode({"id": str(named)}) if named is not None else b""
