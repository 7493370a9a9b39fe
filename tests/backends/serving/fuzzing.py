"""Requests that nobody would write, and what every answer to them has to be."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Mapping
from typing import Any

import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.generation.modes import GenerationMode

from tests.backends.serving.servers import HOST

DOCUMENTED = (503, 504)
"""Server errors that say something about the moment, not about a fault."""
RELAXED = {
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
    "database": None,
    "derandomize": True,
}


def requests_of(port: int, document: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    """Requests to every operation of an OpenAPI document, on that port: right ones, and ones that break it."""
    schema = schemathesis.openapi.from_dict(dict(document))
    schema.config.base_url = f"http://{HOST}:{port}"
    operations = [operation.ok() for operation in schema.get_all_operations()]
    modes = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    return st.one_of(operation.as_strategy(generation_mode=mode) for operation in operations for mode in modes)


def send(port: int, document: Mapping[str, Any], count: int) -> None:
    """Sends so many of them."""
    seen = set()

    @given(case=requests_of(port, document))
    @settings(max_examples=count, **RELAXED)
    def sent(case: Any) -> None:
        response = case.call(timeout=30)
        assert response.status_code < 500 or response.status_code in DOCUMENTED, response.text
        if response.headers.get("content-type") == "application/json" and response.content:
            response.json()
        seen.add((case.method, case.path))

    sent()
    assert len(seen) == 5, seen


class Client:
    """A connection that is kept, for many requests."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection(HOST, port, timeout=30)

    def post(self, path: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, bytes]:
        """Status and body of the answer; the connection is opened anew if the server has closed it."""
        try:
            self._connection.request("POST", path, body, headers)
            response = self._connection.getresponse()
            return response.status, response.read()
        except (http.client.RemoteDisconnected, ConnectionError):
            self._connection.close()
            self._connection.request("POST", path, body, headers)
            response = self._connection.getresponse()
            return response.status, response.read()

    def close(self) -> None:
        self._connection.close()


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
NAMES = st.sampled_from(["x", "y", "mode", "note", "name", "count", "flag", "many", "input", ""]) | st.text(max_size=4)
DATATYPES = st.sampled_from(
    [
        "BOOL",
        "INT8",
        "INT16",
        "INT32",
        "INT64",
        "UINT8",
        "UINT16",
        "UINT32",
        "UINT64",
        "FP16",
        "FP32",
        "FP64",
        "BYTES",
        "fp64",
        "",
    ]
)
SHAPES = st.lists(st.integers(-2, 5) | st.sampled_from([2**31, 2**63, 10**12]), max_size=4)
TENSORS = st.fixed_dictionaries(
    {"name": NAMES, "shape": SHAPES, "datatype": DATATYPES},
    optional={
        "data": st.lists(SCALARS | st.lists(SCALARS, max_size=3), max_size=6) | ANYTHING,
        "parameters": st.dictionaries(
            st.sampled_from(["binary_data_size", "content_type", "x"]), st.integers(-5, 64) | ANYTHING, max_size=2
        ),
    },
)
V2_BODIES = st.fixed_dictionaries(
    {"inputs": st.lists(TENSORS | ANYTHING, max_size=3) | ANYTHING},
    optional={
        "id": ANYTHING,
        "parameters": st.dictionaries(st.sampled_from(["binary_data_output", "x"]), ANYTHING, max_size=2) | ANYTHING,
        "outputs": st.lists(
            st.fixed_dictionaries({"name": NAMES}, optional={"parameters": ANYTHING}) | ANYTHING, max_size=2
        ),
    },
)
V1_BODIES = st.fixed_dictionaries(
    {},
    optional={"instances": st.lists(st.dictionaries(NAMES, SCALARS, max_size=4) | ANYTHING, max_size=4) | ANYTHING, "inputs": ANYTHING},
)  # fmt: skip
COG_BODIES = st.fixed_dictionaries(
    {},
    optional={
        "input": st.dictionaries(NAMES, ANYTHING, max_size=4) | ANYTHING,
        "id": ANYTHING,
        "context": ANYTHING,
        "webhook_events_filter": ANYTHING,
    },
)
LENGTHS = st.none() | st.integers(-2, 400).map(str) | st.text("0123456789-x", max_size=20)
CONTENT_TYPES = st.sampled_from(["application/json", "application/octet-stream", "application/x+json", "text/plain"])


@st.composite
def v2_requests(draw: Callable[..., Any]) -> tuple[bytes, Mapping[str, str]]:
    """Bodies that are nearly right, with or without binary data, and headers that may say so."""
    body = json.dumps(draw(V2_BODIES)).encode() if draw(st.integers(0, 9)) else draw(st.binary(max_size=200))
    length = str(len(body)) if draw(st.booleans()) else draw(LENGTHS)
    headers = {"content-type": draw(CONTENT_TYPES)}
    if length is not None:
        headers["inference-header-content-length"] = length
        body += draw(st.binary(max_size=64))
    return body, headers


def check_v2(client: Client, request: tuple[bytes, Mapping[str, str]], refused: tuple[int, ...] = (400,)) -> None:
    status, body = client.post("/v2/models/model/infer", *request)
    assert status in (200, *refused), (status, body, request)
    if status != 200:
        assert set(json.loads(body)) == {"error"}


def check_json(client: Client, path: str, body: Any, expected: tuple[int, ...]) -> None:
    status, answer = client.post(path, json.dumps(body).encode(), {"content-type": "application/json"})
    assert status in expected, (status, answer, body)
    json.loads(answer)
