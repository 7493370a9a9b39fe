"""What is asked of KServe's own model server and of the replica: an echo model behind V1, V2 and gRPC, bad requests too."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from kserve import InferInput, InferRequest
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as stubs

from tests.backends.serving import servers
from tests.backends.serving.conformance import Row
from tests.backends.serving.servers import HOST, Reply, Server
from tests.ports import free_port

RUNNER = """
from cog import BaseRunner, Input

class Runner(BaseRunner):
    def run(self, x: float, y: float = Input(default=0.0)) -> float:
        if x == -1:
            raise ValueError("no such carrier")
        return 3 * x + y
"""

MODEL_SERVER = '''
import sys
import kserve
from kserve.protocol.rest.server import RESTServer

init = RESTServer.__init__
def on_loopback(self, *args, **more):
    init(self, *args, **more)
    self.config.host = "127.0.0.1"
RESTServer.__init__ = on_loopback

def echo(x, y=0.0):
    if x == -1:
        raise ValueError("no such carrier")
    return 3 * x + y

class Echo(kserve.Model):
    def load(self):
        self.ready = True

    async def predict(self, payload, headers=None, response_headers=None):
        if isinstance(payload, kserve.InferRequest):
            columns = {one.name: one.as_numpy().reshape(-1).tolist() for one in payload.inputs}
            rows = zip(*columns.values())
            found = [float(echo(**dict(zip(columns, row)))) for row in rows]
            output = kserve.InferOutput("output", [len(found)], "FP64", found)
            return kserve.InferResponse(
                payload.id or "made", "model", [output],
                use_binary_outputs=payload.use_binary_outputs, requested_outputs=payload.request_outputs,
            )
        return {"predictions": [echo(**one) for one in payload["instances"]]}

model = Echo("model")
model.load()
kserve.ModelServer(http_port=int(sys.argv[1]), grpc_port=int(sys.argv[2]), workers=1).start([model])
'''  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A request over HTTP. `different` says why the answers are not the same, where they are not meant to be."""

    protocol: str
    name: str
    method: str = "GET"
    path: str = ""
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    different: str = ""


@dataclass(frozen=True)
class GrpcCase:
    """A request over gRPC: the method and its message."""

    name: str
    method: str
    message: Any
    different: str = ""
    protocol: str = "V2 gRPC"


def v1(name: str, body: Any, different: str = "") -> Case:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Case("V1", name, "POST", "/v1/models/model:predict", raw, JSON, different)


def v2(name: str, *inputs: Mapping[str, Any], different: str = "", **more: Any) -> Case:
    body = json.dumps({"id": "r1", "inputs": inputs} | more).encode()
    return Case("V2 REST", name, "POST", "/v2/models/model/infer", body, JSON, different)


def v2_binary(name: str, request: InferRequest, cut: int = 0, different: str = "") -> Case:
    body, length = request.to_rest()
    headers = {"content-type": "application/octet-stream", "inference-header-content-length": str(length)}
    return Case("V2 REST", name, "POST", "/v2/models/model/infer", body[: len(body) - cut], headers, different)


def tensor(name: str, values: Sequence[Any], datatype: str = "FP64", shape: Sequence[int] = ()) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": list(shape) or [len(values)], "data": values}


def binary(*names: str, **more: Any) -> InferRequest:
    """Two rows in binary."""
    inputs = []
    for name in names:
        inputs.append(InferInput(name, [2], "FP64"))
        inputs[-1].set_data_from_numpy(np.array([1.0, 2.0]))
    return InferRequest("model", inputs, request_id="r1", **more)


def raw_message(**more: Any) -> Any:
    return InferRequest(
        "model", [InferInput("x", [2], "FP64", np.array([1.0, 2.0]))], request_id="r1", **more
    ).to_grpc()


def typed_message(name: str = "x", model: str = "model", shape: int = 2, values: Sequence[float] = (1.0, 2.0)) -> Any:
    message = pb.ModelInferRequest(model_name=model, id="r1")
    message.inputs.add(name=name, datatype="FP64", shape=[shape]).contents.fp64_contents.extend(values)
    return message


JSON = {"content-type": "application/json"}
SCHEMA = (
    "the inputs are checked against the runner's schema before it runs; KServe leaves that to the model, which fails"
)
SHAPE = "shape and data have to agree; KServe leaves that to the model, which fails"
WORDS = "the same status; the words differ"
TENSORS = "tensors follow from Cog's schema; KServe's are empty unless the model overrides them"
VERSION = (
    "the one model answers whichever version is named; KServe has these routes, and says that it has no versions yet"
)
LOADED = "the model is there as long as its replica; another one is a revision of its own, which the gateway brings up"
EXTENSIONS = "each server names itself and its extensions"

CASES: Sequence[Case | GrpcCase] = (
    Case("V1", "models", path="/v1/models"),
    Case("V1", "a model's status", path="/v1/models/model"),
    Case("V1", "the status of a model that is not there", path="/v1/models/other"),
    v1("two instances", {"instances": [{"x": 1}, {"x": 2, "y": 0.5}]}),
    v1("no instances", {"instances": []}),
    v1("bare values", {"instances": [1, 2]}, "a bare value is the one required input; KServe's model has to know"),
    v1("`inputs`", {"inputs": [{"x": 1}]}, "read as `instances`, as KServe's own helper does; its echo model does not"),
    v1("instances are no list", {"instances": 5}),
    v1("a wrong type", {"instances": [{"x": "1"}]}, SCHEMA),
    v1("a field that is required is missing", {"instances": [{}]}, SCHEMA),
    v1("an unknown field", {"instances": [{"x": 1, "z": 2}]}, "unknown fields are dropped, as Cog has it"),
    v1("not JSON", b"{", WORDS),
    v1("a failed prediction", {"instances": [{"x": -1}]}, WORDS),
    Case("V1", "a model that is not there", "POST", "/v1/models/other:predict", b'{"instances":[]}', JSON),
    Case("V2 REST", "server", path="/v2", different=EXTENSIONS),
    Case("V2 REST", "live", path="/v2/health/live"),
    Case("V2 REST", "ready", path="/v2/health/ready"),
    Case("V2 REST", "models", path="/v2/models"),
    Case("V2 REST", "a model's metadata", path="/v2/models/model", different=TENSORS),
    Case("V2 REST", "a model is ready", path="/v2/models/model/ready"),
    Case("V2 REST", "the metadata of a model that is not there", path="/v2/models/other"),
    Case("V2 REST", "a model that is not there", "POST", "/v2/models/other/infer", b'{"inputs":[]}', JSON),
    v2("two rows", tensor("x", [1, 2])),
    v2("two tensors, shape [N, 1]", tensor("x", [1, 2], shape=[2, 1]), tensor("y", [0.5, 1], shape=[2, 1])),
    v2("nested data", tensor("x", [[1], [2]], shape=[2, 1])),
    v2("32-bit floats", tensor("x", [0.5, 2], "FP32")),
    v2("FP16 as JSON", tensor("x", [1.0], "FP16"), different="FP16 is taken in JSON, too"),
    v2("outputs by name", tensor("x", [1]), outputs=[{"name": "output"}]),
    v2("an output that is not there", tensor("x", [1]), outputs=[{"name": "p"}], different=WORDS),
    v2("outputs in binary", tensor("x", [1, 2]), parameters={"binary_data_output": True}),
    v2("one output in binary", tensor("x", [1]), outputs=[{"name": "output", "parameters": {"binary_data": True}}]),
    v2_binary("inputs in binary", binary("x", "y")),
    v2_binary("inputs and outputs in binary", binary("x", parameters={"binary_data_output": True})),
    v2_binary("binary data is cut off", binary("x"), 1, SHAPE),
    v2("no id", tensor("x", [1]), id=None),
    v2("data shorter than the shape", tensor("x", [1], shape=[2]), different=SHAPE),
    v2("data longer than the shape", tensor("x", [1, 2], shape=[1]), different=SHAPE),
    v2("an element of a wrong type", tensor("x", ["a"]), different=SCHEMA),
    v2("a datatype that is none", tensor("x", [1], "FP8"), different=WORDS),
    v2("an input that is not there", tensor("z", [1]), different=SCHEMA),
    v2("no data", {"name": "x", "datatype": "FP64", "shape": [1]}, different="an error is 400 with one line; KServe's is FastAPI's 422"),
    v2("no inputs", different="an error; KServe's model answers with no rows"),
    v2("a failed prediction", tensor("x", [-1]), different=WORDS),
    Case("V2 REST", "a version's metadata", path="/v2/models/model/versions/1", different=VERSION),
    Case("V2 REST", "a version is ready", path="/v2/models/model/versions/1/ready", different=VERSION),
    replace(v2("two rows for a version", tensor("x", [1, 2]), different=VERSION), path="/v2/models/model/versions/1/infer"),
    Case("V2 REST", "a version of a route that is none", path="/v2/models/model/versions/1/nothing"),
    Case("V2 REST", "not JSON", "POST", "/v2/models/model/infer", b"{", JSON, "an error is 400 with one line; KServe's is FastAPI's 422"),
    GrpcCase("server live", "ServerLive", pb.ServerLiveRequest()),
    GrpcCase("server ready", "ServerReady", pb.ServerReadyRequest()),
    GrpcCase("server metadata", "ServerMetadata", pb.ServerMetadataRequest(), EXTENSIONS),
    GrpcCase("a model is ready", "ModelReady", pb.ModelReadyRequest(name="model")),
    GrpcCase("a model that is not there is ready", "ModelReady", pb.ModelReadyRequest(name="other")),
    GrpcCase("a model's metadata", "ModelMetadata", pb.ModelMetadataRequest(name="model"), "as over REST"),
    GrpcCase("two rows, raw", "ModelInfer", raw_message(), "KServe adds the parameter `binary_data_size`, which has no meaning over gRPC"),
    GrpcCase("two rows, by type", "ModelInfer", typed_message()),
    GrpcCase("data shorter than the shape", "ModelInfer", typed_message(shape=3), SHAPE),
    GrpcCase("an input that is not there", "ModelInfer", typed_message("z"), SCHEMA),
    GrpcCase("a model that is not there", "ModelInfer", typed_message(model="other")),
    GrpcCase("a failed prediction", "ModelInfer", typed_message(values=[-1.0], shape=1), WORDS),
    # Last of all: there KServe's model is gone.
    Case("V2 REST", "the model is loaded", "POST", "/v2/repository/models/model/load", different=LOADED),
    Case("V2 REST", "the model is unloaded", "POST", "/v2/repository/models/model/unload", different=LOADED),
)  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """A server's two doors."""

    http: Server
    grpc_port: int


@cache
def rows(place: Path) -> Sequence[Row]:
    """The answers of both servers to every case, compared. The servers run for as long as this takes."""
    with kserve_server(place / "kserve") as kserve, replica(place / "replica") as ours:
        return [_row(case, answer(case, kserve), answer(case, ours)) for case in CASES]


def _row(case: Case | GrpcCase, theirs: str, ours: str) -> Row:
    same = theirs == ours
    return Row(case.protocol, case.name, theirs, ours, "same" if same else "different", case.different)


def answer(case: Case | GrpcCase, server: Pair) -> str:
    """Status and body in one line, ids masked."""
    if isinstance(case, GrpcCase):
        return _grpc_answer(case, server.grpc_port)
    return _words(server.http.request(case.method, case.path, case.body or None, case.headers))


def _words(reply: Reply) -> str:
    length = reply.headers.get("inference-header-content-length")
    head, rest = (reply.body[: int(length)], reply.body[int(length) :]) if length else (reply.body, b"")
    try:
        found = json.dumps(_plain(json.loads(head)), sort_keys=True, ensure_ascii=False)
    except ValueError:
        found = head.decode(errors="replace")
    return f"{reply.status} {found}" + (f" + {len(rest)} bytes {rest.hex()}" if rest else "")


def _plain(value: Any) -> Any:
    """The value without what is null or empty: an optional field that is not given."""
    if isinstance(value, dict):
        found = {name: _plain(entry) for name, entry in value.items() if entry not in (None, {})}
        if not re.fullmatch("r1|made", str(found.get("id", "r1"))):
            found["id"] = "made"
        return found
    return [_plain(entry) for entry in value] if isinstance(value, list) else value


def _grpc_answer(case: GrpcCase, port: int) -> str:
    with grpc.insecure_channel(f"{HOST}:{port}") as channel:
        try:
            found = getattr(stubs.GRPCInferenceServiceStub(channel), case.method)(case.message, timeout=20)
        except grpc.RpcError as error:
            return f"{error.code().name} {error.details()}"  # type: ignore[attr-defined]
    return "OK " + re.sub(r"\s+", " ", str(found)).strip()


@contextmanager
def kserve_server(place: Path) -> Iterator[Pair]:
    """KServe's own model server with the echo model."""
    place.mkdir(parents=True)
    (place / "server.py").write_text(MODEL_SERVER)
    http, rpc = free_port(), free_port()
    log = place / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "server.py", str(http), str(rpc)], cwd=place, stdin=subprocess.DEVNULL,
            stdout=file, stderr=file, start_new_session=True,
        )  # fmt: skip
    server = Server(http, process, log)
    try:
        _wait(server)
        yield Pair(server, rpc)
    finally:
        server.end()


@contextmanager
def replica(place: Path) -> Iterator[Pair]:
    """The replica with the echo runner."""
    rpc = free_port()
    servers.bundle(place, RUNNER)
    with servers.running("replica", place, options=["--grpc-port", str(rpc)]) as server:
        yield Pair(server, rpc)


def _wait(server: Server, within: float = 60.0) -> None:
    deadline = time.monotonic() + within
    while True:
        assert server.process.poll() is None, server.log.read_text(errors="replace")[-3000:]
        assert time.monotonic() < deadline, server.log.read_text(errors="replace")[-3000:]
        try:
            if server.get("/v2/models/model/ready").status == 200:
                return
        except OSError:
            time.sleep(0.05)
