"""KServe's V1 and the Open Inference Protocol on a running replica, over HTTP and gRPC."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator

import grpc
import pytest

from drivetrain.backends.serving.replica import open_inference_pb2 as pb
from tests.backends.serving.asking import metric, place_of
from tests.backends.serving.servers import HOST, Server, running
from tests.ports import free_port


@pytest.fixture(scope="module")
def grpc_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory, grpc_port: int) -> Iterator[Server]:
    place = place_of(tmp_path_factory.mktemp("echo"), "echo")
    with running("replica", place, options=("--grpc-port", str(grpc_port))) as server:
        yield server


def test_v1_predicts_and_says_whether_the_model_is_ready(echo: Server) -> None:
    assert echo.get("/v1/models").json() == {"models": ["model"]}
    assert echo.get("/v1/models/model").json() == {"name": "model", "ready": True}
    reply = echo.request("POST", "/v1/models/model:predict", {"instances": [{"x": 1}, {"x": 2, "y": 1}]})
    assert (reply.status, reply.json()) == (200, {"predictions": [3, 7]})


def test_v2_predicts_and_tells_of_server_and_model(echo: Server) -> None:
    assert echo.get("/v2/health/live").json() == {"live": True}
    assert echo.get("/v2/health/ready").json() == {"ready": True}
    assert echo.get("/v2").json()["extensions"] == ["binary_tensor_data"]
    assert echo.get("/v2/models").json() == {"models": ["model"]}
    assert echo.get("/v2/models/model/ready").json() == {"name": "model", "ready": True}
    told = echo.get("/v2/models/model").json()
    assert [(tensor["name"], tensor["datatype"], tensor["shape"]) for tensor in told["inputs"]] == [
        ("x", "FP64", [-1]),
        ("y", "FP64", [-1]),
    ]
    tensor = {"name": "x", "shape": [2], "datatype": "FP64", "data": [1.0, 2.0]}
    reply = echo.request("POST", "/v2/models/model/infer", {"id": "mine", "inputs": [tensor]})
    assert reply.status == 200
    assert reply.json()["id"] == "mine"
    assert reply.json()["outputs"][0]["data"] == [3.0, 6.0]


def test_v2_routes_with_a_version_are_those_without(echo: Server) -> None:
    for rest in ("", "/ready"):
        assert echo.get(f"/v2/models/model/versions/1{rest}").json() == echo.get(f"/v2/models/model{rest}").json()
    tensor = {"name": "x", "shape": [2], "datatype": "FP64", "data": [1.0, 2.0]}
    reply = echo.request("POST", "/v2/models/model/versions/latest/infer", {"inputs": [tensor]})
    assert (reply.status, reply.json()["outputs"][0]["data"]) == (200, [3.0, 6.0])


def test_v2_binary_tensors_go_in_and_out_with_their_header_length(echo: Server) -> None:
    head = json.dumps(
        {
            "inputs": [
                {"name": "x", "shape": [2], "datatype": "FP64", "parameters": {"binary_data_size": 16}},
            ],
            "parameters": {"binary_data_output": True},
        }
    ).encode()
    body = head + struct.pack("<2d", 1.0, 2.0)
    headers = {"content-type": "application/octet-stream", "inference-header-content-length": str(len(head))}
    reply = echo.request("POST", "/v2/models/model/infer", body, headers)
    assert reply.status == 200, reply.body
    assert reply.headers["content-type"] == "application/octet-stream"
    length = int(reply.headers["inference-header-content-length"])
    assert json.loads(reply.body[:length])["outputs"][0]["parameters"] == {"binary_data_size": 16}
    assert struct.unpack("<2d", reply.body[length:]) == (3.0, 6.0)


def test_a_header_length_that_is_no_number_is_refused(echo: Server) -> None:
    reply = echo.request("POST", "/v2/models/model/infer", {}, {"inference-header-content-length": "x"})
    assert reply.status == 400
    assert "Inference-Header-Content-Length" in reply.json()["error"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/models/other"),
        ("POST", "/v1/models/other:predict"),
        ("GET", "/v2/models/other"),
        ("GET", "/v2/models/other/ready"),
        ("POST", "/v2/models/other/infer"),
        ("GET", "/v2/models/other/versions/1"),
    ],
)
def test_an_unknown_model_is_404_in_kserves_words(echo: Server, method: str, path: str) -> None:
    reply = echo.request(method, path, {} if method == "POST" else None)
    assert (reply.status, reply.json()) == (404, {"error": "Model with name other does not exist."})


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/models/model:predict", 405),
        ("POST", "/v2/models/model/ready", 405),
        ("POST", "/v2", 405),
        ("GET", "/v2/models/model/nothing", 404),
        ("GET", "/v2/models/model/", 404),
        ("GET", "/v2/models/model/versions", 404),
        ("GET", "/v2/models/model/versions/", 404),
        ("GET", "/v2/models/model/versions/1/", 404),
        ("GET", "/v2/models/model/versions//ready", 404),
        ("GET", "/v2/models/model/versions/1/nothing", 404),
        ("GET", "/v2/models/model/versions/1/infer", 405),
        ("GET", "/v1/nothing", 404),
        ("POST", "/v2/repository/models/model/unload", 404),
    ],
)
def test_what_is_no_route_of_kserves_is_answered_as_kserve_does(
    echo: Server, method: str, path: str, status: int
) -> None:
    reply = echo.request(method, path, {} if method == "POST" else None)
    assert reply.status == status
    assert "detail" in reply.json()


def test_grpc_answers_on_its_own_port(echo: Server, grpc_port: int) -> None:
    request = pb.ModelInferRequest(model_name="model", id="mine")
    request.inputs.add(name="x", datatype="FP64", shape=[2]).contents.fp64_contents.extend([1.0, 2.0])
    with grpc.insecure_channel(f"{HOST}:{grpc_port}") as channel:
        infer = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=pb.ModelInferResponse.FromString,
        )
        before = metric(echo, "requests_total", protocol="grpc", outcome="succeeded")
        answer = infer(request, timeout=10)
        assert list(answer.outputs[0].contents.fp64_contents) == [3.0, 6.0]
        assert answer.id == "mine"
    assert metric(echo, "requests_total", protocol="grpc", outcome="succeeded") == before + 1
