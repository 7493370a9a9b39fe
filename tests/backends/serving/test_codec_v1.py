"""KServe's V1 protocol: instances in, predictions out."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivetrain.backends.serving.replica.calls import Answer, Call, Codec, Decoded, Outcome, Refused, Signature, Wire
from drivetrain.backends.serving.replica.codecs import codec_for


def codec_of(required: dict[str, Any], array_input: str | None = None, **optional: Any) -> Codec:
    schema = {"type": "object", "properties": required | optional, "required": list(required)}
    document = {"components": {"schemas": {"Input": schema}}}
    return codec_for(Wire.V1, Signature("model", document, array_input=array_input))


NUMBER = codec_of({"x": {"type": "number", "maximum": 100}}, y={"type": "number", "default": 0.5})
PAIR = codec_of({"x": {"type": "number"}, "y": {"type": "integer"}})
ROWS = codec_of({"rows": {"type": "array", "items": {"type": "object"}}}, "rows")
VECTOR = codec_of({"xs": {"type": "array", "items": {"type": "number"}}}, "xs")
OBJECT = codec_of({"entity": {"type": "object"}})


def decoded(codec: Codec, body: Any) -> Decoded:
    return codec.decode(Call(Wire.V1, body if isinstance(body, bytes) else json.dumps(body).encode()))


def refused(codec: Codec, body: Any) -> tuple[int, str]:
    with pytest.raises(Refused) as found:
        decoded(codec, body)
    return read(found.value.answer)


def read(answer: Answer) -> tuple[int, Any]:
    found = json.loads(answer.body)
    return answer.status, found["predictions"] if answer.status == 200 else found["error"]


def test_each_instance_is_an_item() -> None:
    assert decoded(NUMBER, {"instances": [{"x": 1, "y": 2.5}, {"x": 3.0, "z": 4}]}).items == [
        {"x": 1, "y": 2.5},
        {"x": 3.0},
    ]


def test_a_bare_value_is_for_the_one_required_input() -> None:
    assert decoded(NUMBER, {"instances": [1, 2.5]}).items == [{"x": 1}, {"x": 2.5}]
    assert decoded(NUMBER, {"instances": [1, {"x": 2}]}).items == [{"x": 1}, {"x": 2}]
    assert decoded(OBJECT, {"instances": [{"key": 1}, {"entity": {"key": 2}}]}).items == [
        {"entity": {"key": 1}},
        {"entity": {"key": 2}},
    ]


def test_the_instances_are_one_list_input_as_one_call() -> None:
    call = decoded(ROWS, {"instances": [{"a": 1}, {"a": 2}]})
    assert list(call.items) == [{"rows": [{"a": 1}, {"a": 2}]}]
    assert read(call.encode([Outcome("succeeded", [{"p": 1}, {"p": 2}])])) == (200, [{"p": 1}, {"p": 2}])
    assert read(call.encode([Outcome("succeeded", 7)])) == (200, [7])


@pytest.mark.parametrize("codec", [NUMBER, ROWS, VECTOR, OBJECT])
def test_no_instances_are_no_predictions_and_nothing_is_computed(codec: Codec) -> None:
    call = decoded(codec, {"instances": []})
    assert list(call.items) == []
    assert read(call.encode([])) == (200, [])


def test_instances_that_do_not_fit_the_list_input_are_lists_of_their_own() -> None:
    call = decoded(VECTOR, {"instances": [[1, 2], [3]]})
    assert list(call.items) == [{"xs": [1, 2]}, {"xs": [3]}]
    assert read(call.encode([Outcome("succeeded", 3), Outcome("succeeded", 4)])) == (200, [3, 4])
    assert list(decoded(VECTOR, {"instances": [{"xs": [1.0]}]}).items) == [{"xs": [1.0]}]
    assert list(decoded(VECTOR, {"instances": [1, 2]}).items) == [{"xs": [1, 2]}]


def test_inputs_is_another_word_for_instances() -> None:
    assert list(decoded(NUMBER, {"inputs": [{"x": 1}]}).items) == [{"x": 1}]


@pytest.mark.parametrize(
    ("codec", "body", "words"),
    [
        (NUMBER, b"{", "Unrecognized request format: Input data was truncated"),
        (NUMBER, b'{"instances":["\xff"]}', "Unrecognized request format"),
        (NUMBER, [], 'Expected a JSON object with "instances", a list'),
        (NUMBER, {}, 'Expected a JSON object with "instances", a list'),
        (NUMBER, {"instances": {"x": 1}}, 'Expected "instances" to be a list'),
        (NUMBER, {"instances": [{"x": 1}, {"x": 101}]}, "instances[1]: x: 101 is greater than the maximum of 100"),
        (
            NUMBER,
            {"instances": ["a", {}]},
            'instances[0]: x: "a" is not of type "number"; instances[1]: x: Field required',
        ),
        (PAIR, {"instances": [1]}, 'instances[0]: __root__: 1 is not of type "object"'),
        (ROWS, {"instances": [{}, 3]}, 'rows/1: 3 is not of type "object"'),
    ],
)
def test_a_bad_request_is_400_with_all_problems(codec: Codec, body: Any, words: str) -> None:
    status, error = refused(codec, body)
    assert (status, error[: len(words)]) == (400, words)


def test_one_failed_prediction_fails_the_call() -> None:
    call = decoded(NUMBER, {"instances": [1, 2]})
    assert read(call.encode([Outcome("succeeded", 1), Outcome("failed", error="no such row")])) == (500, "no such row")
    assert read(call.encode([Outcome("succeeded", 1), Outcome("canceled")])) == (500, "the prediction was canceled")


def test_a_prediction_without_a_json_form_is_500() -> None:
    status, error = read(decoded(NUMBER, {"instances": [1]}).encode([Outcome("succeeded", math.nan)]))
    assert (status, error.startswith("Failed to serialize output")) == (500, True)


def test_a_call_that_never_ran_has_its_status() -> None:
    assert read(NUMBER.failed(Call(Wire.V1, b""), Outcome("failed", error="too late"), 504)) == (504, "too late")


values = st.recursive(
    st.none() | st.booleans() | st.integers(-200, 200) | st.floats(-200, 200) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["x", "y", "xs", "rows", "entity"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(instances=st.lists(values, max_size=3), codec=st.sampled_from([NUMBER, PAIR, ROWS, VECTOR, OBJECT]))
def test_the_fast_paths_agree_with_the_complete_one(instances: list[Any], codec: Any) -> None:
    body = json.dumps({"instances": instances}).encode()
    for read_fast in codec._fast:
        try:
            items, whole = read_fast(body)
        except (ValueError, TypeError):
            continue
        found, found_whole = codec._read_slowly(body)
        assert (repr(list(items)), whole) == (repr(list(found)), found_whole)
        break


@settings(max_examples=200, deadline=None)
@given(body=st.binary(max_size=40) | values.map(lambda value: json.dumps({"instances": value}).encode()))
@pytest.mark.parametrize("codec", [NUMBER, ROWS, VECTOR])
def test_any_bytes_are_either_instances_or_refused_with_400(codec: Codec, body: bytes) -> None:
    try:
        decoded(codec, body)
    except Refused as refusal:
        status, error = read(refusal.answer)
    else:
        status, error = 400, "taken"
    assert (status, bool(error)) == (400, True)
