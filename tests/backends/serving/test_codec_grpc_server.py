"""The gRPC server, with KServe's stubs on the other side, on an event loop of uvloop's as the replica and the gateway run it."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import uvloop
from kserve import InferInput, InferRequest
from kserve.protocol.grpc import grpc_predict_v2_pb2 as theirs
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as stubs

from drivetrain.backends.serving.replica.calls import Answer, Call, Outcome, Refused, Wire
from drivetrain.backends.serving.replica.codecs import codec_for
from drivetrain.backends.serving.replica.codecs.metadata import SERVER, ModelMetadata, model_metadata
from drivetrain.backends.serving.replica.grpc_server import GrpcServer, Listening, Service
from drivetrain.errors import ServingError
from tests.backends.serving.certificates import certificate
from tests.backends.serving.tensors import PAIR, WHOLE

MODEL = model_metadata(PAIR)


async def echo(body: bytes, deadline: float | None, metadata: Sequence[tuple[str, str | bytes]]) -> Answer:
    codec = codec_for(Wire.GRPC, WHOLE)
    try:
        found = codec.decode(Call(Wire.GRPC, body))
    except Refused as refusal:
        return refusal.answer
    return found.encode([Outcome("succeeded", dict(found.tensors or {}))])


async def metadata_of(name: str) -> ModelMetadata | None:
    return MODEL if name == "model" else None


async def is_ready(name: str) -> bool | None:
    return True if name == "model" else None


def service(infer: Any = echo, **more: Any) -> Service:
    given: dict[str, Any] = {
        "ready": lambda: True,
        "model_ready": is_ready,
        "server_metadata": lambda: SERVER,
        "model_metadata": metadata_of,
    }
    return Service(infer, **(given | more))


def served(
    found: Service, ask: Callable[[Any, GrpcServer], Awaitable[None]], credentials: Any = None, **listening: Any
) -> None:
    """Asks the server of that service."""

    async def main() -> None:
        server = GrpcServer(found)
        server.bind(Listening("127.0.0.1", 0, **listening))
        await server.start()
        address = f"localhost:{server.port}" if credentials else f"127.0.0.1:{server.port}"
        channel = grpc.aio.secure_channel(address, credentials) if credentials else grpc.aio.insecure_channel(address)
        async with channel:
            await asyncio.wait_for(ask(stubs.GRPCInferenceServiceStub(channel), server), 40)
        await server.stop(0)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


def message(size: int = 1) -> Any:
    return InferRequest("model", [InferInput("a", [size], "FP32", np.ones(size, "f4"))], request_id="r").to_grpc()


async def error_of(call: Awaitable[Any]) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as found:
        await call
    return found.value


def test_kserves_stubs_are_answered_on_every_method() -> None:
    async def ask(stub: Any, server: GrpcServer) -> None:
        assert (await stub.ServerLive(theirs.ServerLiveRequest())).live
        assert (await stub.ServerReady(theirs.ServerReadyRequest())).ready
        assert (await stub.ModelReady(theirs.ModelReadyRequest(name="model"))).ready
        told = await stub.ServerMetadata(theirs.ServerMetadataRequest())
        assert (told.name, list(told.extensions)) == ("drivetrain", ["binary_tensor_data"])
        model = await stub.ModelMetadata(theirs.ModelMetadataRequest(name="model"))
        assert [(entry.name, entry.datatype, list(entry.shape)) for entry in model.inputs] == [
            ("x", "FP64", [-1]),
            ("s", "BYTES", [-1]),
        ]
        assert (await stub.ModelInfer(message())).raw_output_contents[0] == np.ones(1, "f4").tobytes()

    served(service(), ask)


def test_a_model_that_is_not_there_is_not_found() -> None:
    async def ask(stub: Any, server: GrpcServer) -> None:
        for call in (
            stub.ModelReady(theirs.ModelReadyRequest(name="other")),
            stub.ModelMetadata(theirs.ModelMetadataRequest(name="other")),
            stub.ModelInfer(theirs.ModelInferRequest(model_name="other")),
        ):
            found = await error_of(call)
            assert (found.code(), found.details()) == (
                grpc.StatusCode.NOT_FOUND,
                "Model with name other does not exist.",
            )

    served(service(), ask)


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "INVALID_ARGUMENT"),
        (401, "UNAUTHENTICATED"),
        (404, "NOT_FOUND"),
        (413, "RESOURCE_EXHAUSTED"),
        (429, "RESOURCE_EXHAUSTED"),
        (499, "CANCELLED"),
        (500, "INTERNAL"),
        (503, "UNAVAILABLE"),
        (504, "DEADLINE_EXCEEDED"),
        (502, "INTERNAL"),
    ],
)
def test_the_status_of_the_answer_is_the_status_of_the_call(status: int, code: str) -> None:
    async def answer(*_: Any) -> Answer:
        return Answer(status, b'{"error":"words"}', b'{"not_run":true,"headers":{"x-request-id":"r"}}')

    async def ask(stub: Any, server: GrpcServer) -> None:
        found = await error_of(stub.ModelInfer(message()))
        assert (found.code().name, found.details()) == (code, "words")
        trailing = dict(found.trailing_metadata())
        assert (trailing["x-request-id"], trailing["x-drivetrain-not-run"]) == ("r", "1")

    served(service(answer), ask)


def test_deadline_and_metadata_are_handed_on_and_headers_come_back() -> None:
    seen: list[Any] = []

    async def answer(body: bytes, deadline: float | None, metadata: Any) -> Answer:
        seen.append((deadline, dict(metadata)["x-request-id"]))
        return Answer(200, (await echo(body, deadline, metadata)).body, b'{"headers":{"x-drivetrain-revision":"v3"}}')

    async def ask(stub: Any, server: GrpcServer) -> None:
        call = stub.ModelInfer(message(), timeout=20, metadata=(("x-request-id", "q"),))
        await call
        assert dict(await call.trailing_metadata())["x-drivetrain-revision"] == "v3"
        await stub.ModelInfer(message(), metadata=(("x-request-id", "q"),))

    served(service(answer), ask)
    assert [name for _, name in seen] == ["q", "q"]
    assert 0 < seen[0][0] - time.monotonic() < 25  # gRPC rounds on its way
    assert seen[1][0] is None


def test_a_deadline_that_passes_ends_the_call_and_cancels_what_it_asked_for() -> None:
    canceled = asyncio.Event()

    async def never(*_: Any) -> Answer:
        try:
            await asyncio.Event().wait()
        finally:
            canceled.set()
        raise AssertionError

    async def ask(stub: Any, server: GrpcServer) -> None:
        await stub.ServerLive(theirs.ServerLiveRequest())  # to connect takes time too, and the call has to get there
        found = await error_of(stub.ModelInfer(message(), timeout=2.0))
        assert found.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await asyncio.wait_for(canceled.wait(), 25)

    served(service(never), ask)


def test_an_exception_is_internal_and_keeps_its_words_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(*_: Any) -> Answer:
        raise OSError("secret")

    async def ask(stub: Any, server: GrpcServer) -> None:
        found = await error_of(stub.ModelInfer(message()))
        assert (found.code(), found.details()) == (grpc.StatusCode.INTERNAL, "internal error")

    served(service(broken), ask)
    assert "secret" in caplog.text


def test_a_message_above_the_limit_is_refused_and_one_below_it_is_not() -> None:
    async def ask(stub: Any, server: GrpcServer) -> None:
        found = await error_of(stub.ModelInfer(message(1000)))
        assert found.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (await stub.ModelInfer(message(100))).id == "r"

    served(service(), ask, message_limit=1000)


def test_predictions_need_the_token_where_one_is_asked_for() -> None:
    async def ask(stub: Any, server: GrpcServer) -> None:
        assert (await error_of(stub.ModelInfer(message()))).code() is grpc.StatusCode.UNAUTHENTICATED
        assert (await stub.ModelInfer(message(), metadata=(("authorization", "Bearer t"),))).id == "r"
        assert (await stub.ServerLive(theirs.ServerLiveRequest())).live

    served(service(allowed=lambda given: given == "Bearer t"), ask)


def test_a_server_that_only_a_new_one_can_replace_says_so() -> None:
    async def ask(stub: Any, server: GrpcServer) -> None:
        assert not (await stub.ServerLive(theirs.ServerLiveRequest())).live

    served(service(live=lambda: False), ask)


def test_a_server_that_is_not_ready_says_so() -> None:
    async def no(_: str) -> bool:
        return False

    async def not_now(_: str) -> Answer:
        return Answer(503, b'{"error":"Model with name model is not ready."}')

    async def ask(stub: Any, server: GrpcServer) -> None:
        assert not (await stub.ServerReady(theirs.ServerReadyRequest())).ready
        assert not (await stub.ModelReady(theirs.ModelReadyRequest(name="model"))).ready
        found = await error_of(stub.ModelMetadata(theirs.ModelMetadataRequest(name="model")))
        assert (found.code(), found.details()) == (grpc.StatusCode.UNAVAILABLE, "Model with name model is not ready.")

    served(service(ready=lambda: False, model_ready=no, model_metadata=not_now), ask)


def test_a_port_that_is_taken_is_a_clear_error() -> None:
    async def ask(stub: Any, server: GrpcServer) -> None:
        with pytest.raises(ServingError, match=f"gRPC cannot listen on 127.0.0.1:{server.port}"):
            GrpcServer(service()).bind(Listening("127.0.0.1", server.port))

    served(service(), ask)


def test_tls_by_file(tmp_path: Path) -> None:
    public, private = certificate(tmp_path)

    async def ask(stub: Any, server: GrpcServer) -> None:
        assert (await stub.ModelInfer(message())).id == "r"

    credentials = grpc.ssl_channel_credentials(Path(public).read_bytes())
    served(service(), ask, credentials, certificate=public, key=private)
    with pytest.raises(ServingError, match=r"the TLS file .*none\.pem cannot be read"):
        served(service(), ask, certificate=public, key=str(tmp_path / "none.pem"))


def test_stopping_lets_a_running_call_end_and_takes_no_more() -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow(body: bytes, deadline: float | None, metadata: Any) -> Answer:
        begun.set()
        await go_on.wait()
        return await echo(body, deadline, metadata)

    async def ask(stub: Any, server: GrpcServer) -> None:
        running = asyncio.ensure_future(stub.ModelInfer(message()))
        await begun.wait()
        stopping = asyncio.ensure_future(server.stop(20))
        await asyncio.sleep(0)
        go_on.set()
        assert (await running).id == "r"
        await stopping
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", server.port)) != 0

    served(service(slow), ask)
