"""The Open Inference Protocol over gRPC: the codec and the server, with KServe's messages, classes and stubs on the other side."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from kserve import InferInput, InferRequest, InferResponse
from kserve.protocol.grpc import grpc_predict_v2_pb2 as theirs

from drivetrain.backends.serving.replica.calls import Call, Outcome, Refused, Signature, Wire
from drivetrain.backends.serving.replica.codecs import codec_for
from drivetrain.backends.serving.replica.codecs.metadata import (
    SERVER,
    ModelStatus,
    as_json,
    model_metadata,
)
from tests.backends.serving.tensors import PAIR, ROWS, VECTOR, WHOLE, any_array, echoed, same, signature

CODEC = codec_for(Wire.GRPC, WHOLE)


def refused(message: Any, found: Signature = PAIR) -> tuple[int, str]:
    body = message if isinstance(message, bytes) else message.SerializeToString()
    with pytest.raises(Refused) as refusal:
        codec_for(Wire.GRPC, found).decode(Call(Wire.GRPC, body))
    return refusal.value.answer.status, json.loads(refusal.value.answer.body)["error"]


def input_of(datatype: str, array: Any) -> InferInput:
    return InferInput("a", list(array.shape), datatype, array)


# the codec


@settings(max_examples=150, deadline=None)
@given(found=any_array)
def test_any_tensor_comes_and_goes_raw_as_kserves_classes_write_and_read_it(found: tuple[str, Any]) -> None:
    datatype, array = found
    message = InferRequest("model", [input_of(datatype, array)], request_id="r").to_grpc()
    assert message.raw_input_contents
    there, answer = echoed(CODEC, Call(Wire.GRPC, message.SerializeToString()))
    assert same(there, array)
    response = theirs.ModelInferResponse.FromString(answer.body)
    assert (response.id, response.model_name, list(response.raw_output_contents)) == (
        "r",
        "model",
        list(message.raw_input_contents),
    )
    assert same(InferResponse.from_grpc(response).outputs[0].as_numpy(), array)


@settings(max_examples=150, deadline=None)
@given(found=any_array)
def test_any_tensor_comes_and_goes_by_type_as_kserves_classes_write_and_read_it(found: tuple[str, Any]) -> None:
    datatype, array = found
    if datatype == "FP16":
        return  # has no type of its own
    message = InferRequest("model", [InferInput("a", list(array.shape), datatype, array.ravel().tolist())]).to_grpc()
    assert not message.raw_input_contents
    there, answer = echoed(CODEC, Call(Wire.GRPC, message.SerializeToString()))
    assert same(there, array)
    response = theirs.ModelInferResponse.FromString(answer.body)
    assert not response.raw_output_contents
    assert same(InferResponse.from_grpc(response).outputs[0].as_numpy().reshape(array.shape), array)


def test_an_fp16_output_makes_the_answer_raw() -> None:
    message = InferRequest("model", [InferInput("a", [1], "FP32", [1.0])]).to_grpc()
    call = CODEC.decode(Call(Wire.GRPC, message.SerializeToString()))
    answer = call.encode([Outcome("succeeded", {"h": np.array([1], "<f2"), "d": np.array([2.0])})])
    response = theirs.ModelInferResponse.FromString(answer.body)
    assert [output.datatype for output in response.outputs] == ["FP16", "FP64"]
    assert [len(raw) for raw in response.raw_output_contents] == [2, 8]


def test_rows_and_objects_are_mapped_as_over_rest() -> None:
    message = theirs.ModelInferRequest(model_name="model", id="r")
    message.inputs.add(name="x", datatype="FP64", shape=[2]).contents.fp64_contents.extend([1.0, 2.0])
    message.inputs.add(name="s", datatype="BYTES", shape=[2]).contents.bytes_contents.extend([b"a", "é".encode()])
    call = codec_for(Wire.GRPC, PAIR).decode(Call(Wire.GRPC, message.SerializeToString()))
    assert list(call.items) == [{"x": 1.0, "s": "a"}, {"x": 2.0, "s": "é"}]
    answer = call.encode([Outcome("succeeded", {"p": None}), Outcome("succeeded", {"p": 1})])
    response = theirs.ModelInferResponse.FromString(answer.body)
    assert response.outputs[0].contents.fp64_contents[0] != response.outputs[0].contents.fp64_contents[0]
    assert response.outputs[0].contents.fp64_contents[1] == 1.0


def test_outputs_are_those_asked_for() -> None:
    message = theirs.ModelInferRequest(model_name="model")
    message.inputs.add(name="a", datatype="BOOL", shape=[1]).contents.bool_contents.append(True)
    message.outputs.add(name="q")
    call = CODEC.decode(Call(Wire.GRPC, message.SerializeToString()))
    answer = call.encode([Outcome("succeeded", {"p": np.array([1]), "q": np.array([2])})])
    assert [output.name for output in theirs.ModelInferResponse.FromString(answer.body).outputs] == ["q"]
    answer = call.encode([Outcome("succeeded", {"p": np.array([1])})])
    assert (answer.status, json.loads(answer.body)) == (400, {"error": "there is no output 'q'; there are p"})


def wrong(raw: Sequence[bytes] = (), name: str = "model", **given: Any) -> Any:
    message = theirs.ModelInferRequest(model_name=name, raw_input_contents=raw)
    message.inputs.add(name="x", **({"datatype": "FP64", "shape": [1]} | given))
    return message


@pytest.mark.parametrize(
    ("message", "status", "words"),
    [
        (b"\xff", 400, "Unrecognized request format"),
        (wrong(name="other"), 404, "Model with name other does not exist."),
        (theirs.ModelInferRequest(model_name="model"), 400, "no inputs"),
        (wrong(), 400, "input 'x' has 0 elements, but shape [1] needs 1"),
        (wrong([bytes(8)] * 2), 400, "there are 1 inputs and 2 raw input contents"),
        (wrong([bytes(8)], contents={"fp64_contents": [1]}), 400, "contents of input 'x' must not be given together"),
        (wrong(datatype="FP16"), 400, "input 'x' is FP16: it has to be given as raw input contents"),
        (wrong(datatype="FP9"), 400, "input 'x' has the datatype 'FP9'"),
        (
            wrong(datatype="INT8", contents={"int_contents": [300]}),
            400,
            "input 'x' has an element that does not fit INT8",
        ),
    ],
)
def test_a_bad_request_is_refused_with_words(message: Any, status: int, words: str) -> None:
    found = refused(message)
    assert (found[0], found[1][: len(words)]) == (status, words)


def test_a_call_that_never_ran_has_its_status() -> None:
    answer = CODEC.failed(Call(Wire.GRPC, b""), Outcome("failed", error="the worker died"), 500)
    assert (answer.status, answer.body) == (500, b'{"error":"the worker died"}')


def test_our_messages_may_be_loaded_before_kserves() -> None:
    """After them is how this file has loaded them."""
    ours = "from drivetrain.backends.serving.replica import open_inference_pb2"
    theirs = "import kserve.protocol.grpc.grpc_predict_v2_pb2"
    subprocess.run([sys.executable, "-c", f"{ours}; {theirs}"], check=True, timeout=60, capture_output=True)


# metadata

MODEL = model_metadata(PAIR)


def test_metadata_follows_from_the_schema() -> None:
    assert as_json(MODEL) == (
        b'{"name":"model","platform":"cog","inputs":[{"name":"x","datatype":"FP64","shape":[-1]},'
        b'{"name":"s","datatype":"BYTES","shape":[-1]}],"outputs":[]}'
    )
    assert json.loads(as_json(SERVER))["extensions"] == ["binary_tensor_data"]
    assert as_json(ModelStatus("model", True)) == b'{"name":"model","ready":true}'


def output_metadata(output: Mapping[str, Any], **more: Any) -> list[tuple[str, str, list[int]]]:
    schemas = {"Input": {"properties": {}}, "Output": output, "Choice": {"enum": ["a"], "type": "string"}}
    found = model_metadata(Signature("model", {"components": {"schemas": schemas}}, **more))
    return [(entry.name, entry.datatype, list(entry.shape)) for entry in found.outputs]


def test_metadata_of_outputs_is_that_of_their_tensors() -> None:
    fields = {
        "type": "object",
        "properties": {
            "label": {"allOf": [{"$ref": "#/components/schemas/Choice"}]},
            "p": {"type": "object", "properties": {"no": {"type": "number"}}},
            "many": {"type": "array", "items": {"type": "boolean"}},
        },
    }
    tensors = [("label", "BYTES", [-1]), ("p.no", "FP64", [-1]), ("many", "BOOL", [-1, -1])]
    assert output_metadata(fields) == tensors
    assert output_metadata({"type": "array", "items": fields}, array_input="rows") == tensors
    assert output_metadata({"type": "integer"}) == [("output", "INT64", [-1])]
    assert output_metadata({"type": "array", "items": {"type": "number"}}) == [("output", "FP64", [-1, -1])]
    assert output_metadata({"type": "array", "items": {"type": "object"}}, array_input="rows") == []
    assert output_metadata({"type": "integer"}, infers=True) == []


def test_metadata_of_inputs_has_lists_but_no_columns_of_rows() -> None:
    assert [(entry.name, list(entry.shape)) for entry in model_metadata(VECTOR).inputs] == [
        ("xs", [-1, -1]),
        ("n", [-1]),
    ]
    assert not model_metadata(ROWS).inputs
    assert not model_metadata(WHOLE).inputs


def test_a_signature_of_rows_is_served_too() -> None:
    found = signature({"rows": {"type": "array", "items": {"type": "object"}}}, array_input="rows")
    request = InferRequest("model", [InferInput("f", [2], "FP64", [1.0, 2.0])]).to_grpc()
    call = codec_for(Wire.GRPC, found).decode(Call(Wire.GRPC, request.SerializeToString()))
    assert list(call.items) == [{"rows": [{"f": 1.0}, {"f": 2.0}]}]
