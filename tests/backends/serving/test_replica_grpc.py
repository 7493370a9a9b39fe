"""gRPC calls that a gateway hands on to a replica over HTTP."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from kserve.protocol.grpc import grpc_predict_v2_pb2 as theirs
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as stubs

from tests.backends.serving import gateways
from tests.backends.serving.servers import HOST
from tests.ports import free_port


def test_a_grpc_call_goes_through_the_gateway_to_the_model_and_back(
    bundle: Callable[[str], Path], tmp_path: Path
) -> None:
    port = free_port()
    with gateways.running(tmp_path / "gateway", grpc_port=port) as gateway:
        gateway.serve("r1", bundle("echo"))
        with grpc.insecure_channel(f"{HOST}:{port}") as channel:
            stub = stubs.GRPCInferenceServiceStub(channel)
            asked = theirs.ModelInferRequest(model_name="echo", id="mine")
            asked.inputs.add(name="x", datatype="FP64", shape=[2]).contents.fp64_contents.extend([1.0, 2.0])
            answer, call = stub.ModelInfer.with_call(asked, timeout=20)
            assert (answer.id, answer.model_name) == ("mine", "echo")
            assert list(answer.outputs[0].contents.fp64_contents) == [3.0, 6.0]
            assert dict(call.trailing_metadata())["x-drivetrain-revision"] == "r1"

            asked.inputs[0].name = "z"
            with pytest.raises(grpc.RpcError) as refused:
                stub.ModelInfer(asked, timeout=20)
            assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
            assert refused.value.details() == "there is no input 'z'; there are x, y"

            with pytest.raises(grpc.RpcError) as unread:
                channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")(b"\xff", timeout=20)
            assert unread.value.code() == grpc.StatusCode.INVALID_ARGUMENT
