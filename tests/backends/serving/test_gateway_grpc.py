"""The gateway's gRPC port: calls take the same way as requests over HTTP."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from drivetrain.backends.serving.gateway import captured
from drivetrain.backends.serving.gateway.settings import Capturing, Scaling
from drivetrain.backends.serving.http.messages import Exchange, Response
from drivetrain.backends.serving.replica import open_inference_pb2 as pb
from tests.backends.serving.gateways import TOKEN, Fake, Gateway, configure, fakes, running, wait_until
from tests.backends.serving.servers import HOST
from tests.ports import free_port

PREFIX = "/inference.GRPCInferenceService/"


def infer(exchange: Exchange) -> None:
    """Doubles the request's first tensor."""
    if exchange.request.path == "/v2/models/echo/ready":
        exchange.reply(Response(200, b'{"name":"echo","ready":true}'))
        return
    if exchange.request.path == "/v2/models/echo":
        tensors = [{"name": "x", "datatype": "FP64", "shape": [-1]}]
        said = {"name": "echo", "platform": "cog", "inputs": tensors, "outputs": tensors}
        exchange.reply(Response(200, json.dumps(said).encode()))
        return
    asked = pb.ModelInferRequest.FromString(exchange.request.body)
    answer = pb.ModelInferResponse(model_name="echo", id=asked.id)
    output = answer.outputs.add(name="output", datatype="FP64", shape=[1])
    output.contents.fp64_contents.append(2 * asked.inputs[0].contents.fp64_contents[0])
    exchange.reply(Response(200, answer.SerializeToString(), (), b"application/vnd.open-inference+protobuf"))


def request(x: float) -> Any:
    asked = pb.ModelInferRequest(model_name="echo", id=f"id{x}")
    asked.inputs.add(name="x", datatype="FP64", shape=[1]).contents.fp64_contents.append(x)
    return asked


@contextmanager
def serving(home: Path, *answers: Any, **settings: Any) -> Iterator[tuple[Gateway, Any, list[Fake]]]:
    """A gateway before upstreams `r0`, `r1`, ..., and a channel to its gRPC port."""
    port = free_port()
    with fakes(*answers) as found:
        upstreams = {f"r{number}": fake.url for number, fake in enumerate(found)}
        with running(home, grpc_port=port, upstreams=upstreams, **settings) as gateway:
            wait_until(lambda: all(entry["ready"] for entry in gateway.status()["revisions"]))
            with grpc.insecure_channel(f"{HOST}:{port}") as channel:
                yield gateway, channel, found


def call(channel: Any, x: float, metadata: Any = (), timeout: float = 30.0) -> tuple[Any, dict[str, str]]:
    """The answer, and its trailing metadata."""
    method = channel.unary_unary(
        f"{PREFIX}ModelInfer", pb.ModelInferRequest.SerializeToString, pb.ModelInferResponse.FromString
    )
    answer, done = method.with_call(request(x), timeout=timeout, metadata=metadata)
    return answer, dict(done.trailing_metadata())


def test_calls_are_split_between_revisions_and_say_which_one_answered(tmp_path: Path) -> None:
    with serving(tmp_path, infer, infer) as (gateway, channel, found):
        assert gateway.route(r0=75, r1=25).status == 200
        marks = []
        for n in range(20):
            answer, trailing = call(channel, n, [("x-request-id", f"q{n}")])
            assert answer.outputs[0].contents.fp64_contents == [2.0 * n]
            assert trailing["x-request-id"] == f"q{n}"
            marks.append(trailing["x-drivetrain-revision"])
        assert Counter(marks) == {"r0": 15, "r1": 5}
        posted = found[0].requests[-1]
        assert (posted.method, posted.path) == ("POST", "/v2/models/echo/infer")
        assert posted.header(b"content-type") == b"application/vnd.open-inference+protobuf"


def test_errors_become_codes(tmp_path: Path) -> None:
    def refuse(exchange: Exchange) -> None:
        exchange.reply(Response(400, b'{"error":"x is missing"}'))

    with serving(tmp_path, refuse) as (_, channel, _found), pytest.raises(grpc.RpcError) as raised:
        call(channel, 1)
    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert raised.value.details() == "x is missing"


def test_a_deadline_goes_on_to_the_replica_and_a_caller_that_goes_takes_its_call_with_it(tmp_path: Path) -> None:
    called = threading.Event()

    with serving(tmp_path, lambda _: called.set()) as (_, channel, found):
        with pytest.raises(grpc.RpcError) as raised:
            call(channel, 1, timeout=3.0)
        assert raised.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert called.wait(30)
        assert 0 < int(found[0].requests[0].header(b"x-request-timeout-ms") or 0) <= 3100, "gRPC rounds it up"
        assert found[0].gone.get(timeout=30) == "/v2/models/echo/infer"


def test_guarded_predictions_need_the_token_over_grpc_too(tmp_path: Path) -> None:
    with serving(tmp_path, infer, guard_predictions=True) as (_, channel, _found):
        with pytest.raises(grpc.RpcError) as raised:
            call(channel, 1)
        assert raised.value.code() == grpc.StatusCode.UNAUTHENTICATED
        answer, _trailing = call(channel, 1, [("authorization", f"Bearer {TOKEN}")])
        assert answer.id == "id1"


def ask(channel: Any, name: str, message: Any, timeout: float = 10.0) -> Any:
    """The answer of another method than ModelInfer."""
    answer = getattr(pb, f"{name}Response").FromString
    return channel.unary_unary(PREFIX + name, type(message).SerializeToString, answer)(message, timeout=timeout)


def test_readiness_and_metadata_are_answered(tmp_path: Path) -> None:
    with serving(tmp_path, infer) as (_, channel, _found):
        assert ask(channel, "ServerLive", pb.ServerLiveRequest()).live
        assert ask(channel, "ServerReady", pb.ServerReadyRequest()).ready
        assert ask(channel, "ModelReady", pb.ModelReadyRequest(name="echo")).ready
        assert ask(channel, "ModelMetadata", pb.ModelMetadataRequest(name="echo")).inputs[0].name == "x"
        for asked in (pb.ModelReadyRequest(name="another"), pb.ModelMetadataRequest(name="another")):
            with pytest.raises(grpc.RpcError) as raised:
                ask(channel, type(asked).__name__.removesuffix("Request"), asked)
            assert raised.value.code() == grpc.StatusCode.NOT_FOUND


def test_a_model_that_is_not_ready_is_unavailable_and_not_unknown(tmp_path: Path) -> None:
    def not_ready(exchange: Exchange) -> None:
        exchange.reply(Response(503, b'{"error":"Model with name echo is not ready."}'))

    with serving(tmp_path, not_ready) as (_, channel, _found):
        assert not ask(channel, "ModelReady", pb.ModelReadyRequest(name="echo")).ready
        with pytest.raises(grpc.RpcError) as raised:
            ask(channel, "ModelMetadata", pb.ModelMetadataRequest(name="echo"))
        assert raised.value.code() == grpc.StatusCode.UNAVAILABLE
        assert raised.value.details() == "Model with name echo is not ready."


def test_whoever_asks_for_the_model_of_a_service_that_sleeps_wakes_it(
    tmp_path: Path, bundle: Callable[[str], Path]
) -> None:
    port, scaling = free_port(), Scaling(min=0, max=1, window=6.0, grace=0.0)
    with (
        running(tmp_path / "home", grpc_port=port, scaling=scaling) as gateway,
        grpc.insecure_channel(f"{HOST}:{port}") as channel,
    ):
        gateway.serve("one", bundle("echo"))
        for method in ("ModelMetadata", "ModelReady"):
            wait_until(lambda: gateway.revision("one")["state"] == "asleep", 60)
            assert ask(channel, "ServerReady", pb.ServerReadyRequest()).ready
            assert gateway.revision("one")["state"] == "asleep"
            answer = ask(channel, method, getattr(pb, f"{method}Request")(name="echo"), timeout=60)
            assert answer.name == "echo" if method == "ModelMetadata" else answer.ready
            assert gateway.revision("one")["state"] == "ready"


def test_the_grpc_port_is_logged_and_one_that_is_taken_ends_the_gateway_before_it_listens(tmp_path: Path) -> None:
    port = free_port()
    with running(tmp_path / "first", grpc_port=port) as gateway:
        # HTTP, by which the gateway is known to be up, is answered a little before.
        wait_until(lambda: f"echo: listening for gRPC on {HOST}:{port}" in gateway.text())
        file = configure(tmp_path / "second", grpc_port=port)
        command = [sys.executable, "-m", "drivetrain.backends.serving.gateway", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert f"gRPC cannot listen on {HOST}:{port}" in done.stderr
    assert "listening on" not in done.stderr


def test_a_call_says_its_own_time_in_its_metadata_if_it_brings_the_token(tmp_path: Path) -> None:
    capturing = Capturing(directory=str(tmp_path / "log"))
    with serving(tmp_path, infer, capturing=capturing) as (gateway, channel, _):
        said = ("x-drivetrain-time", "1364774400")
        call(channel, 1.0, [said, ("authorization", f"Bearer {TOKEN}")])
        call(channel, 2.0, [said])
        assert gateway.end() == 0
    believed, now = sorted({event.at for _, event in captured.read(tmp_path / "log")})[:2]
    assert believed == 1364774400.0 < now
