"""Every datatype through JSON and binary data, with KServe's own classes on the other side; and whatever else may come off a wire."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from kserve import InferInput, InferOutput, InferRequest, InferResponse
from kserve.protocol.infer_type import RequestedOutput

from drivetrain.backends.serving.replica import open_inference_pb2 as pb
from drivetrain.backends.serving.replica.calls import Answer, Call, Decoded, Outcome, Refused, Signature, Wire
from drivetrain.backends.serving.replica.codecs import codec_for
from drivetrain.backends.serving.replica.codecs.tensors import DATATYPES
from tests.backends.serving.tensors import PAIR, ROWS, VECTOR, WHOLE, any_array, decoded, echoed, request, same, tensor


@settings(max_examples=150, deadline=None)
@given(found=any_array)
def test_any_tensor_comes_and_goes_as_json(found: tuple[str, Any]) -> None:
    datatype, array = found
    elements = [one.decode() for one in array.ravel()] if datatype == "BYTES" else array.ravel().tolist()
    for data in (elements, array.tolist() if datatype != "BYTES" else elements):
        body = request(tensor("a", datatype, array.shape, data))
        if datatype != "BYTES":  # a text may be "NaN"
            body = body.replace(b"NaN", b"null")
        there, answer = echoed(codec_for(Wire.V2, WHOLE), Call(Wire.V2, body))
        assert same(there, array)
        (output,) = json.loads(answer.body)["outputs"]
        assert (output["datatype"], output["shape"]) == (datatype, list(array.shape))
        assert repr(output["data"]).replace("None", "nan") == repr(elements)


@settings(max_examples=150, deadline=None)
@given(found=any_array)
def test_kserves_classes_write_what_we_read_and_read_what_we_write_as_json(found: tuple[str, Any]) -> None:
    datatype, array = found
    if datatype == "FP16" or (array.dtype.kind == "f" and np.isnan(array).any()):
        return  # KServe refuses FP16 in JSON, and has no agreement on NaN
    given = InferInput("a", list(array.shape), datatype)
    given.set_data_from_numpy(array, binary_data=False)
    body, length = InferRequest("model", [given], request_id="r").to_rest()
    assert length is None
    there, answer = echoed(codec_for(Wire.V2, WHOLE), Call(Wire.V2, json.dumps(body).encode()))
    assert same(there, array)
    read = InferResponse.from_rest(json.loads(answer.body)).outputs[0].as_numpy()
    if datatype == "BYTES":
        read = np.array([*(one.encode() for one in read.ravel()), None], dtype=object)[:-1].reshape(read.shape)
    assert same(read, array)


@settings(max_examples=150, deadline=None)
@given(found=any_array)
def test_kserves_classes_write_what_we_read_and_read_what_we_write_as_binary_data(found: tuple[str, Any]) -> None:
    datatype, array = found
    given = InferInput("a", list(array.shape), datatype)
    given.set_data_from_numpy(array, binary_data=True)
    asked = InferRequest("model", [given], request_id="r", parameters={"binary_data_output": True})
    body, length = asked.to_rest()
    assert length is not None
    there, answer = echoed(
        codec_for(Wire.V2, WHOLE), Call(Wire.V2, body, json.dumps({"header_length": length}).encode())
    )
    assert same(there, array)
    assert json.loads(answer.meta)["header_length"] < len(answer.body)
    theirs, _ = InferResponse("r", "model", [output_of(datatype, array)], use_binary_outputs=True).to_rest()
    assert answer.body.endswith(theirs[theirs.rindex(b"}") + 1 :] if datatype != "BYTES" else given._raw_data)
    read = parsed(answer)
    assert same(read, array)


def output_of(datatype: str, array: Any) -> InferOutput:
    output = InferOutput("a", list(array.shape), datatype)
    output.set_data_from_numpy(array, binary_data=True)
    return output


def parsed(answer: Answer) -> Any:
    """The output as KServe's classes read it."""
    length = json.loads(answer.meta)["header_length"]
    head = json.loads(answer.body[:length])
    output = InferOutput("a", head["outputs"][0]["shape"], head["outputs"][0]["datatype"])
    output._raw_data = answer.body[length:]
    return output.as_numpy()


def test_binary_is_chosen_for_each_output() -> None:
    outputs = [RequestedOutput("a", {"binary_data": True}), RequestedOutput("b")]
    given = InferInput("x", [1], "FP64", [1.0])
    body, _ = InferRequest("model", [given], request_id="r", request_outputs=outputs).to_rest()
    call = decoded(WHOLE, json.dumps(body).encode())
    answer = call.encode([Outcome("succeeded", {"b": np.array([1]), "a": np.array([2], "<i4")})])
    length = json.loads(answer.meta)["header_length"]
    assert json.loads(answer.body[:length])["outputs"] == [
        {"name": "a", "shape": [1], "datatype": "INT32", "parameters": {"binary_data_size": 4}},
        {"name": "b", "shape": [1], "datatype": "INT64", "data": [1]},
    ]
    assert answer.body[length:] == b"\x02\0\0\0"


# nothing that comes off a wire does more than be refused

small = st.integers(-2, 5)
wild_tensor = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["x", "s", "xs", "n", "rows", "a"]),
        "datatype": st.sampled_from([*DATATYPES, "FP8", ""]),
        "shape": st.lists(small, max_size=3) | st.just([2**70]) | st.none(),
    },
    optional={
        "data": st.recursive(
            st.none()
            | st.booleans()
            | st.integers()
            | st.floats(allow_nan=False, allow_infinity=False)
            | st.text(max_size=3),
            lambda inner: st.lists(inner, max_size=4),
            max_leaves=6,
        ),
        "parameters": st.dictionaries(
            st.sampled_from(["binary_data_size", "z"]), st.integers(-1, 40) | st.text(max_size=2)
        ),
    },
)
wild_request = st.fixed_dictionaries(
    {"inputs": st.lists(wild_tensor, max_size=3)},
    optional={
        "id": st.text(max_size=3) | st.integers(),
        "outputs": st.lists(st.fixed_dictionaries({"name": st.text(max_size=2)})),
    },
)


def harmless(decode: Callable[[], Decoded]) -> None:
    """Decodes; and where that works, has an answer."""
    try:
        found = decode()
    except Refused as refusal:
        answer = refusal.answer
    else:
        count = 1 if found.tensors is not None else len(found.items)
        output: Any = dict(found.tensors) if found.tensors is not None else 1
        answer = found.encode([Outcome("succeeded", output)] * count)
    assert answer.status in (200, 400, 404)


@settings(max_examples=400, deadline=None)
@given(
    head=wild_request.map(lambda found: json.dumps(found).encode()) | st.binary(max_size=50),
    tail=st.binary(max_size=40),
    signature=st.sampled_from([PAIR, VECTOR, ROWS, WHOLE]),
    sized=st.booleans(),
)
def test_any_request_is_answered_or_refused(head: bytes, tail: bytes, signature: Signature, sized: bool) -> None:
    harmless(lambda: decoded(signature, head + tail, len(head)) if sized else decoded(signature, head))


@settings(max_examples=300, deadline=None)
@given(
    body=st.binary(max_size=60),
    inputs=st.lists(
        st.tuples(st.sampled_from(["x", "s", "a"]), st.sampled_from([*DATATYPES, ""]), st.lists(small, max_size=3))
    ),
    raw=st.lists(st.binary(max_size=16), max_size=3),
    signature=st.sampled_from([PAIR, VECTOR, ROWS, WHOLE]),
)
def test_any_grpc_message_is_answered_or_refused(
    body: bytes, inputs: list[tuple[str, str, list[int]]], raw: list[bytes], signature: Signature
) -> None:
    codec = codec_for(Wire.GRPC, signature)
    harmless(lambda: codec.decode(Call(Wire.GRPC, body)))
    message = pb.ModelInferRequest(model_name="model", raw_input_contents=raw)
    for name, datatype, shape in inputs:
        message.inputs.add(name=name, datatype=datatype, shape=shape)
    harmless(lambda: codec.decode(Call(Wire.GRPC, message.SerializeToString())))
