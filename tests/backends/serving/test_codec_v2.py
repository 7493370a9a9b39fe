"""The Open Inference Protocol: tensors as JSON, as binary data and over gRPC, with KServe's own classes on the other side."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from drivetrain.backends.serving.replica.calls import Answer, Call, Outcome, Refused, Wire
from drivetrain.backends.serving.replica.codecs import codec_for
from drivetrain.backends.serving.replica.codecs.tensors import from_raw
from tests.backends.serving.tensors import (
    NUMBER,
    PAIR,
    ROWS,
    VECTOR,
    WHOLE,
    decoded,
    refused,
    request,
    signature,
    tensor,
)


def told(answer: Answer) -> dict[str, Any]:
    """The outputs by name, as `(datatype, shape, data)`."""
    assert answer.status == 200, answer
    outputs = json.loads(answer.body)["outputs"]
    return {output["name"]: (output["datatype"], output["shape"], output["data"]) for output in outputs}


def outputs_of(*values: Any) -> dict[str, Any]:
    """What is answered where the runner gives these, one for each row."""
    rows = [float(number) for number in range(len(values))]
    call = decoded(
        PAIR, request(tensor("x", "FP64", [len(rows)], rows), tensor("s", "BYTES", [len(rows)], ["a"] * len(rows)))
    )
    return told(call.encode([Outcome("succeeded", value) for value in values]))


# inputs


def test_scalar_tensors_are_an_item_for_each_row() -> None:
    body = request(tensor("x", "FP32", [2], [0.5, 1]), tensor("s", "BYTES", [2, 1], ["a", "é"]))
    assert list(decoded(PAIR, body).items) == [{"x": 0.5, "s": "a"}, {"x": 1.0, "s": "é"}]


def test_list_tensors_are_a_list_for_each_row() -> None:
    body = request(tensor("xs", "FP64", [2, 2], [[1, 2], [3, 4]]), tensor("n", "INT8", [2], [7, 8]))
    assert list(decoded(VECTOR, body).items) == [{"xs": [1.0, 2.0], "n": 7}, {"xs": [3.0, 4.0], "n": 8}]
    one = request(tensor("xs", "FP64", [2], [1, 2]), tensor("n", "INT8", [1], [7]))
    assert list(decoded(VECTOR, one).items) == [{"xs": [1.0, 2.0], "n": 7}]


def test_other_names_are_the_columns_of_a_list_of_rows() -> None:
    body = request(
        tensor("a", "INT64", [2], [1, 2]),
        tensor("b", "FP64", [2, 2], [1, None, 3, 4]),
        tensor("c", "BYTES", [2], ["u", "v"]),
    )
    call = decoded(ROWS, body)
    assert list(call.items) == [{"rows": [{"a": 1, "b": [1.0, None], "c": "u"}, {"a": 2, "b": [3.0, 4.0], "c": "v"}]}]
    answer = call.encode([Outcome("succeeded", [{"p": True}, {"p": False}])])
    assert told(answer) == {"p": ("BOOL", [2], [True, False])}
    assert told(call.encode([Outcome("succeeded", 3)])) == {"output": ("INT64", [1], [3])}


def test_a_runner_that_takes_tensors_gets_them_whole() -> None:
    body = request(tensor("a", "FP32", [2, 2], [[1, 2], [3, None]]), tensor("b", "BYTES", [], "x"))
    call = decoded(WHOLE, body)
    assert call.tensors is not None
    assert (call.tensors["a"].dtype, call.tensors["a"].shape) == (np.float32, (2, 2))
    assert call.tensors["b"][()] == b"x"
    given = {"p": np.array([[math.nan, 1.5]], "f4"), "l": np.array(["u", "é"], dtype=object), "q": np.uint8(3)}
    assert told(call.encode([Outcome("succeeded", given)])) == {
        "p": ("FP32", [1, 2], [None, 1.5]),
        "l": ("BYTES", [2], ["u", "é"]),
        "q": ("UINT8", [], [3]),
    }


def test_binary_numbers_are_not_copied() -> None:
    data = np.arange(4, dtype="<f8").tobytes()
    found = from_raw("x", "FP64", [2, 2], memoryview(data)).array
    assert not found.flags.owndata
    assert not found.flags.writeable


def test_a_nan_is_a_null_and_the_schema_decides_whether_it_may_be() -> None:
    schema = signature({"x": NUMBER | {"nullable": True}})
    assert list(decoded(schema, request(tensor("x", "FP64", [2], [None, 1]))).items) == [{"x": None}, {"x": 1.0}]
    body = request(tensor("x", "FP64", [1], [None]), tensor("s", "BYTES", [1], ["a"]))
    assert refused(PAIR, body) == 'row 0: x: null is not of type "number"'


X, S = tensor("x", "FP64", [1], [1]), tensor("s", "BYTES", [1], ["a"])


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "Unrecognized request format"),
        (b"[]", "Unrecognized request format"),
        (b'{"inputs":[{"name":"\xff"}]}', "Unrecognized request format"),
        (b"[" * 5000, "Unrecognized request format"),
        (request(), "no inputs"),
        (request(X, X), "no inputs, or one of them twice: x, x"),
        (request(X), "row 0: s: Field required"),
        (request(X, S, tensor("z", "FP64", [1], [1])), "there is no input 'z'; there are x, s"),
        (request(tensor("x", "FP64", [2], [1, 2]), S), "the inputs differ in their number of rows: x 2, s 1"),
        (request(tensor("x", "FP64", [1, 2], [1, 2]), S), "input 'x' is one value a row: its shape is [N] or [N, 1], not [1, 2]"),
        (request(tensor("x", "FP64", [2], [1]), S), "input 'x' has 1 elements, but shape [2] needs 2"),
        (request(tensor("x", "FP64", [2, 2], [[1, 2], [3]]), S), "input 'x' is neither flat nor nested FP64 of shape [2, 2]"),
        (request(tensor("x", "FP64", [1], ["a"]), S), "input 'x' has an element that is no FP64"),
        (request(tensor("x", "FP64", [1], None), S), "input 'x' is neither flat nor nested FP64 of shape [1]"),
        (request(tensor("x", "FP32", [1], [1e300]), S), "input 'x' has an element that does not fit FP32"),
        (request(tensor("x", "INT64", [1], [2**63]), S), "input 'x' has an element that does not fit INT64"),
        (request(tensor("x", "UINT64", [1], [2**64]), S), "input 'x' has an element that does not fit UINT64"),
        (request(tensor("x", "INT8", [1], [128]), S), "input 'x' has an element that is no INT8: Expected `int` <= 127"),
        (request(tensor("x", "INT32", [1], [1.0]), S), "input 'x' has an element that is no INT32"),
        (request(tensor("x", "BOOL", [1], [1]), S), "input 'x' has an element that is no BOOL"),
        (request(tensor("x", "FP8", [1], [1]), S), "input 'x' has the datatype 'FP8'; there are BOOL, UINT8"),
        (request(tensor("x", "FP64", [-1], [1]), S), "input 'x' has a shape of more than 32 dimensions, or a negative one"),
        (request(tensor("x", "FP64", [1] * 33, [1]), S), "input 'x' has a shape of more than 32 dimensions, or a negative one"),
        (request(tensor("x", "FP64", [10**12, 0], []), S), "input 'x' has no elements, and other dimensions of more than 65536 together"),
        (request({"name": "x", "datatype": "FP64", "shape": [1]}, S), "'data' field is missing for input 'x'"),
        (request(X | {"parameters": {"binary_data_size": 8}}, S), "input 'x' has both data and binary_data_size"),
        (request(X, tensor("s", "BYTES", [1], ["abcd"])), 'row 0: s: "abcd" is longer than 3 characters'),
        (request(X, S, outputs=[{"name": 3}]), "Unrecognized request format"),
    ],
)  # fmt: skip
def test_a_bad_request_is_400_and_says_why(body: bytes, words: str) -> None:
    assert refused(PAIR, body)[: len(words)] == words


def binary(*inputs: tuple[str, str, Sequence[int], int], data: bytes) -> tuple[bytes, int]:
    head = json.dumps(
        {
            "inputs": [
                {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": size}}
                for name, datatype, shape, size in inputs
            ]
        }
    ).encode()
    return head + data, len(head)


@pytest.mark.parametrize(
    ("entry", "data", "words"),
    [
        (("x", "FP64", [1], 8), bytes(9), "1 bytes of binary data belong to no input"),
        (("x", "FP64", [1], 9), bytes(8), "binary_data_size of input 'x' is 9, but 8 bytes are left"),
        (("x", "FP64", [1], -1), bytes(8), "binary_data_size of input 'x' is -1"),
        (("x", "FP64", [2], 8), bytes(8), "input 'x' has 8 bytes of data, but 16 bytes are needed"),
        (("x", "BOOL", [2], 2), b"\x01\x02", "input 'x' has a byte that is neither 0 nor 1 as BOOL"),
        (("x", "BYTES", [1], 3), bytes(3), "input 'x' ends within element 0"),
        (("x", "BYTES", [1], 6), b"\x09\0\0\0ab", "input 'x' ends within element 0"),
        (("x", "BYTES", [2], 5), b"\x01\0\0\0a", "input 'x' does not have the 2 elements"),
        (("x", "BYTES", [0], 5), b"\x01\0\0\0a", "input 'x' does not have the 0 elements"),
        (("x", "BYTES", [1], 5), b"\x01\0\0\0\xff", "'x' has an element that is not UTF-8"),
    ],
)
def test_binary_data_has_exactly_the_size_that_it_says(
    entry: tuple[str, str, Sequence[int], int], data: bytes, words: str
) -> None:
    body, header_length = binary(entry, data=data)
    assert refused(PAIR, body, header_length)[: len(words)] == words


@pytest.mark.parametrize("length", [-1, 10**6])
def test_a_header_longer_than_the_body_is_refused(length: int) -> None:
    assert refused(PAIR, request(X, S), length).startswith(f"Inference-Header-Content-Length is {length}")


# outputs


def test_the_fields_of_objects_are_tensors_and_nested_ones_are_joined_with_dots() -> None:
    given = {"label": "late", "p": {"no": 0.25, "yes": {"a": 1}}}
    assert outputs_of(given, given) == {
        "label": ("BYTES", [2], ["late", "late"]),
        "p.no": ("FP64", [2], [0.25, 0.25]),
        "p.yes.a": ("INT64", [2], [1, 1]),
    }


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([True, False], ("BOOL", [2], [True, False])),
        ([1, -2], ("INT64", [2], [1, -2])),
        ([1, 2**63], ("UINT64", [2], [1, 2**63])),
        ([2**64, 1], ("FP64", [2], [2.0**64, 1.0])),
        ([1, 0.5], ("FP64", [2], [1.0, 0.5])),
        ([None, 1], ("FP64", [2], [None, 1.0])),
        ([None, None], ("FP64", [2], [None, None])),
        (["a", None], ("BYTES", [2], ["a", ""])),
        ([[1, 2], [3, 4]], ("INT64", [2, 2], [1, 2, 3, 4])),
        ([[[True]], [[False]]], ("BOOL", [2, 1, 1], [True, False])),
        ([[], []], ("FP64", [2, 0], [])),
        ([[1], [2, 3]], ("BYTES", [2], ["[1]", "[2,3]"])),
        ([[{"a": 1}], [{"a": "é"}]], ("BYTES", [2], ['[{"a":1}]', '[{"a":"é"}]'])),
        ([True, None], ("BYTES", [2], ["true", "null"])),
        ([1, "a"], ("BYTES", [2], ["1", '"a"'])),
    ],
)
def test_the_datatype_follows_from_the_values(values: list[Any], expected: tuple[str, list[int], list[Any]]) -> None:
    assert outputs_of(*values) == {"output": expected}
    assert outputs_of(*({"f": value} for value in values)) == {"f": expected}


def test_a_field_that_a_row_lacks_is_unknown_there() -> None:
    assert outputs_of({"a": 1}, {"b": "x"}) == {"a": ("FP64", [2], [1.0, None]), "b": ("BYTES", [2], ["", "x"])}


def test_no_rows_of_columns_are_nothing_to_compute() -> None:
    call = decoded(ROWS, request(tensor("a", "INT64", [0], []), tensor("b", "FP64", [0, 2], [])))
    assert list(call.items) == []
    assert told(call.encode([])) == {}


@pytest.mark.parametrize("shape", [[65_536, 2, 0], [0, 65_537], [300, 300, 0]])
def test_a_tensor_without_elements_has_no_dimensions_that_would_cost_much(shape: list[int]) -> None:
    with pytest.raises(Refused) as refused:
        decoded(WHOLE, request(tensor("x", "FP32", shape, [])))
    assert b"has no elements" in refused.value.answer.body


def test_a_tensor_that_infer_does_not_take_is_400() -> None:
    answer = decoded(WHOLE, request(X)).encode([Outcome("refused", error="3 columns are needed")])
    assert (answer.status, answer.body) == (400, b'{"error":"3 columns are needed"}')


def test_no_rows_have_no_outputs() -> None:
    body = request(tensor("x", "FP64", [0], []), tensor("s", "BYTES", [0], []), outputs=[{"name": "p"}])
    assert told(decoded(PAIR, body).encode([])) == {}


def test_the_answer_has_the_id_of_the_request_or_a_new_one() -> None:
    given = json.loads(decoded(PAIR, request(X, S, id="r1")).encode([Outcome("succeeded", 1)]).body)
    assert (given["id"], given["model_name"]) == ("r1", "model")
    assert len(json.loads(decoded(PAIR, request(X, S)).encode([Outcome("succeeded", 1)]).body)["id"]) == 32


def test_outputs_are_those_asked_for_in_their_order() -> None:
    call = decoded(PAIR, request(X, S, outputs=[{"name": "b"}, {"name": "a"}]))
    assert list(told(call.encode([Outcome("succeeded", {"a": 1, "b": 2, "c": 3})]))) == ["b", "a"]
    answer = call.encode([Outcome("succeeded", {"a": 1})])
    assert (answer.status, json.loads(answer.body)) == (400, {"error": "there is no output 'b'; there are a"})


def test_one_failed_row_fails_the_call() -> None:
    answer = decoded(PAIR, request(X, S)).encode([Outcome("failed", error="no such row")])
    assert (answer.status, answer.body) == (500, b'{"error":"no such row"}')


@pytest.mark.parametrize("array", [np.array([1j]), np.array([{}], dtype=object), np.array(["2013-01-01"], "M8[D]")])
def test_an_array_that_is_no_tensor_fails_the_call(array: Any) -> None:
    answer = decoded(WHOLE, request(X)).encode([Outcome("succeeded", {"p": array})])
    assert (answer.status, b"the output cannot be written as tensors" in answer.body) == (500, True)


def test_a_call_that_never_ran_has_its_status() -> None:
    answer = codec_for(Wire.V2, PAIR).failed(Call(Wire.V2, b""), Outcome("canceled"), 499)
    assert (answer.status, answer.body) == (499, b'{"error":"the prediction was canceled"}')
