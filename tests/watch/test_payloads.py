"""Requests and answers of every protocol as columns and predictions; and bodies that nobody should send."""

from __future__ import annotations

import json
import math

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivetrain.backends.serving.gateway.events import REQUEST, RESPONSE, Event
from drivetrain.backends.serving.replica import open_inference_pb2 as pb
from drivetrain.watch.answers import Answers, outcome_of
from drivetrain.watch.payloads import LARGEST, MOST_ROWS, Requests

COG, V1, V2 = "/predictions", "/v1/models/m:predict", "/v2/models/m/infer"
GRPC = "application/vnd.open-inference+protobuf"
NUMBERS = {"temp": True, "hour": True, "airline": False, "origin": False}


@pytest.fixture(scope="module")
def requests():
    """Three features, and a column that is sliced by."""
    return Requests(NUMBERS, 3)


@pytest.fixture(scope="module")
def vectors():
    return Requests({f"x{place}": True for place in range(4)}, 4)


def asked(body, path: str = COG, content_type: str = "application/json") -> Event:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Event(REQUEST, "id", "r", path, content_type, content, 0.0)


def rows_of(requests: Requests, event: Event):
    found = requests.decode([event])
    assert found.faults == [""]
    return [tuple(values[row] for values in found.values.values()) for row in range(found.rows[0])]


ROW = {"temp": 61.5, "hour": 7, "airline": "DL"}


@pytest.mark.parametrize(
    ("path", "body", "count"),
    [
        (COG, {"input": ROW}, 1),
        (COG, {"id": "x", "input": {**ROW, "other": [1, {"a": 2}]}}, 1),
        ("/predictions/abc", {"input": ROW}, 1),
        (COG, {"input": {"rows": [ROW, ROW]}}, 2),
        (V1, {"instances": [ROW, ROW, ROW]}, 3),
        (V1, {"inputs": [ROW]}, 1),
        (V1, {"signature_name": "x", "instances": [ROW]}, 1),
        ("", {"instances": [ROW]}, 1),
        ("", {"input": ROW}, 1),
    ],
)
def test_objects_of_features_are_rows(requests, path, body, count):
    assert rows_of(requests, asked(body, path)) == [(61.5, 7.0, "DL", None)] * count


@pytest.mark.parametrize("name", ['a "quoted" name', "back\\slash", "tab\there", "naïve"])
def test_a_feature_may_have_any_name(name):
    row = {name: 1.5, "temp": 2.0}
    named = Requests({name: True, "temp": True}, 2)
    for path, body in ((COG, {"input": row}), (COG, {"input": {"rows": [row]}}), (V1, {"instances": [row]})):
        assert rows_of(named, asked(body, path)) == [(1.5, 2.0)]


def test_a_column_that_is_sliced_by_is_read_where_it_is_sent(requests):
    assert rows_of(requests, asked({"input": {**ROW, "origin": "JFK"}})) == [(61.5, 7.0, "DL", "JFK")]


def test_what_is_not_there_null_or_no_number_is_missing(requests):
    found = requests.decode(
        [asked({"input": given}) for given in (
            {"hour": 1}, {"hour": 1, "temp": None}, {"hour": 1, "temp": "warm"}, {"hour": 1, "temp": [3]}, {"hour": 1, "temp": 10**400},
            {"hour": 1, "temp": "61.5"}, {"hour": True, "temp": 1}, {"hour": 1, "airline": 5},
        )]
    )  # fmt: skip
    assert found.faults == [""] * 8
    temperatures = found.values["temp"].tolist()
    assert [math.isnan(value) for value in temperatures] == [True] * 5 + [False, False, True]
    assert temperatures[5:7] == [61.5, 1.0]
    assert found.values["hour"].tolist() == [1.0] * 8
    assert found.values["airline"].tolist() == [None] * 7 + [5]


@pytest.mark.parametrize(
    ("path", "body", "count"),
    [
        (COG, {"input": {"pixels": [1, 2.5, None, 4]}}, 1),
        (COG, {"input": {"pixels": [[1, 2.5, None, 4], [1, 2.5, None, 4]]}}, 2),
        (V1, {"instances": [[1, 2.5, None, 4]]}, 1),
        (V1, {"instances": [{"pixels": [1, 2.5, None, 4]}] * 3}, 3),
        (V2, {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP64", "data": [1, 2.5, None, 4]}]}, 1),
        (V2, {"inputs": [{"name": "x", "shape": [2, 2, 2], "datatype": "FP32", "data": [1, 2.5, None, 4] * 2}]}, 2),
    ],
)
def test_bare_numbers_are_the_features_in_their_order(vectors, path, body, count):
    found = rows_of(vectors, asked(body, path))
    np.testing.assert_equal(found, [(1.0, 2.5, math.nan, 4.0)] * count)


def tensors(count: int):
    return [
        {"name": "temp", "shape": [count], "datatype": "FP64", "data": [61.5] * count},
        {"name": "hour", "shape": [count, 1], "datatype": "INT32", "data": [7] * count},
        {"name": "airline", "shape": [count], "datatype": "BYTES", "data": ["DL"] * count},
    ]


def binary(entries):
    """JSON with the data of each tensor behind it."""
    raw = []
    for entry in entries:
        data = entry.pop("data")
        if entry["datatype"] == "BYTES":
            raw.append(b"".join(len(one).to_bytes(4, "little") + one.encode() for one in data))
        else:
            raw.append(np.array(data, {"FP64": "<f8", "INT32": "<i4"}[entry["datatype"]]).tobytes())
        entry["parameters"] = {"binary_data_size": len(raw[-1])}
    return json.dumps({"inputs": entries, "id": "ü}"}).encode() + b"".join(raw)


def test_tensors_are_columns_as_json_binary_and_over_grpc(requests):
    expected = [(61.5, 7.0, "DL", None)] * 2
    assert rows_of(requests, asked({"inputs": tensors(2)}, V2)) == expected
    assert rows_of(requests, asked(binary(tensors(2)), V2, "application/octet-stream")) == expected
    message = pb.ModelInferRequest(model_name="m")
    for entry in tensors(2):
        kind = {"FP64": "fp64", "INT32": "int", "BYTES": "bytes"}[entry["datatype"]]
        data = [one.encode() if isinstance(one, str) else one for one in entry["data"]]
        added = message.inputs.add(name=entry["name"], shape=entry["shape"], datatype=entry["datatype"])
        getattr(added.contents, f"{kind}_contents").extend(data)
    assert rows_of(requests, asked(message.SerializeToString(), V2, GRPC)) == expected


def test_the_way_that_works_is_found_again_after_others(requests):
    events = [
        asked({"input": ROW}),
        asked({"input": {"rows": [ROW]}}),
        asked({"input": {**ROW, "temp": "x"}}),
        asked({"input": ROW}),
    ]
    found = requests.decode(events * 3)
    assert found.rows.tolist() == [1] * 12
    assert found.values["airline"].tolist() == ["DL"] * 12


@pytest.mark.parametrize(
    "event",
    [
        asked(b""), asked(b"{"), asked(b"[]"), asked(b"null"), asked({"input": None}), asked({"input": {}}), asked({"input": {"x": 1}}),
        asked({"input": {"rows": []}}), asked({"input": {"rows": [1, ROW]}}), asked(b"[" * 100_000), asked(b'{"input":' * 50_000),
        asked({"instances": []}, V1), asked({"instances": 3}, V1), asked({"instances": [[1, 2]]}, V1), asked({"inputs": []}, V2),
        asked({"inputs": [{"name": "temp", "shape": [2], "datatype": "FP64", "data": [1]}]}, V2),
        asked({"inputs": [{"name": "temp", "shape": [2**40], "datatype": "FP64", "data": []}]}, V2),
        asked(b'{"inputs":[{"name":"temp","shape":[1],"datatype":"FP64","parameters":{"binary_data_size":"x"}}]}', V2),
        asked(b"\xff\xfe", V2, GRPC), asked({"input": ROW}, "/elsewhere"), asked(b'{"input":{"temp":NaN}}'),
    ],
)  # fmt: skip
def test_what_holds_no_rows_is_unreadable(requests, event):
    found = requests.decode([event, asked({"input": ROW})])
    assert found.faults == ["unreadable", ""]
    assert found.rows.tolist() == [0, 1]


def test_bodies_and_batches_that_are_too_large_are_left_alone(requests):
    events = [
        asked({"input": {**ROW, "airline": "x" * LARGEST}}),
        asked({"instances": [{"temp": 1}] * (MOST_ROWS + 1)}, V1),
    ]
    assert requests.decode(events).faults == ["too_large", "too_large"]


@settings(deadline=None, max_examples=200)
@given(
    st.sampled_from([COG, V1, V2, "", "/x"]),
    st.one_of(
        st.binary(max_size=60),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
            lambda inner: st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["input", "instances", "inputs", "temp", "airline", "name", "shape", "data", "datatype"]), inner,
                max_size=4,
            ),
            max_leaves=12,
        ).map(msgspec.json.encode),
    ),
)  # fmt: skip
def test_no_body_raises_whatever_it_is(path, body):
    found = Requests(NUMBERS, 3).decode([asked(body, path)])
    assert (found.rows[0] > 0) == (found.faults[0] == "")
    answer = Event(RESPONSE, "id", "r", path, "application/json", body, 0.0, 200)
    assert Answers(["a", "b", "c"]).decode([answer], [2]).values.shape == (2, 3)


# answers


def said(output, path: str = COG, status: int = 200, content_type: str = "application/json") -> Event:
    body = (
        output
        if isinstance(output, bytes)
        else json.dumps({"output": output, "status": "succeeded"} if path == COG else output)
    )
    return Event(
        RESPONSE, "id", "r", path, content_type, body if isinstance(body, bytes) else body.encode(), 0.0, status
    )


def predicted(answers: Answers, event: Event, count: int = 1):
    found = answers.decode([event], [count])
    return found.outcomes[0], found.values.tolist()


BINARY = (False, True)
DEFAULT = {"prediction": True, "probabilities": {"False": 0.2, "True": 0.8}}


@pytest.mark.parametrize(
    ("output", "count"),
    [
        ({"late": True, "probability": 0.8}, 1), ({"score": 0.8, "prediction": True}, 1), (0.8, 1), ([0.2, 0.8], 1), ([0.8], 1),
        (DEFAULT, 1), ([DEFAULT, DEFAULT], 2), ([0.8, 0.8], 2), ([[0.2, 0.8]] * 3, 3), ({"probabilities": [0.2, 0.8]}, 1),
    ],
)  # fmt: skip
def test_the_probability_of_the_second_of_two_classes(output, count):
    answers = Answers(BINARY)
    assert predicted(answers, said(output), count) == ("answered", [[0.8]] * count)
    instances = output if isinstance(output, list) and count > 1 else [output]
    assert predicted(answers, said({"predictions": instances}, V1), count) == ("answered", [[0.8]] * count)


def test_a_class_alone_counts_as_a_probability_of_one():
    assert predicted(Answers(BINARY), said({"prediction": True})) == ("answered", [[1.0]])
    assert predicted(Answers(["no", "yes"]), said({"prediction": "no"})) == ("answered", [[0.0]])
    assert predicted(Answers([3, 7]), said({"prediction": 7})) == ("answered", [[1.0]])
    assert predicted(Answers(["a", "b", "c"]), said("b")) == ("answered", [[0.0, 1.0, 0.0]])


def test_of_more_classes_each_has_its_probability():
    answers = Answers(["a", "b", "c"])
    expected = ("answered", [[0.1, 0.2, 0.7]])
    assert predicted(answers, said([0.1, 0.2, 0.7])) == expected
    assert predicted(answers, said([{"prediction": "c", "probabilities": {"c": 0.7, "a": 0.1, "b": 0.2}}])) == expected
    assert predicted(answers, said({"predictions": [[0.1, 0.2, 0.7]]}, V1)) == expected


def test_a_regression_has_its_value():
    answers = Answers(None)
    assert predicted(answers, said(12)) == ("answered", [[12.0]])
    assert predicted(answers, said([{"prediction": 3.5}, {"prediction": None}]), 2)[1][0] == [3.5]
    assert predicted(answers, said([1.0, 2.0]), 2) == ("answered", [[1.0], [2.0]])


def test_the_definition_names_the_key():
    answers = Answers(BINARY, "risk")
    assert predicted(answers, said({"probability": 0.1, "risk": 0.8})) == ("answered", [[0.8]])
    assert predicted(answers, said({"risk": [0.2, 0.8]})) == ("answered", [[0.8]])
    assert predicted(Answers(BINARY, "probability"), said({"probability": 0.8, "score": 1})) == ("answered", [[0.8]])
    assert math.isnan(predicted(answers, said({"probability": 0.1}))[1][0][0])


@pytest.mark.parametrize(
    "outputs",
    [
        [{"name": "probability", "shape": [2], "datatype": "FP64", "data": [0.8, 0.8]}],
        [{"name": "output", "shape": [2], "datatype": "FP64", "data": [0.8, 0.8]}],
        [{"name": "anything", "shape": [2, 2], "datatype": "FP64", "data": [0.2, 0.8, 0.2, 0.8]}],
        [
            {"name": "prediction", "shape": [2], "datatype": "BOOL", "data": [True, True]},
            {"name": "probabilities.False", "shape": [2], "datatype": "FP64", "data": [0.2, 0.2]},
            {"name": "probabilities.True", "shape": [2], "datatype": "FP64", "data": [0.8, 0.8]},
        ],
        [
            {"name": "prediction", "shape": [2], "datatype": "BOOL", "data": [True, True]},
            {"name": "probabilities", "shape": [2, 2], "datatype": "FP64", "data": [0.2, 0.8, 0.2, 0.8]},
        ],
    ],
)
def test_predictions_among_tensors(outputs):
    assert predicted(Answers(BINARY), said({"outputs": outputs}, V2), 2) == ("answered", [[0.8], [0.8]])


def test_predictions_over_grpc():
    message = pb.ModelInferResponse(model_name="m", raw_output_contents=[np.array([0.8]).tobytes()])
    message.outputs.add(name="probability", shape=[1], datatype="FP64")
    assert predicted(Answers(BINARY), said(message.SerializeToString(), V2, content_type=GRPC)) == ("answered", [[0.8]])


@pytest.mark.parametrize(
    "event",
    [
        said(b""), said(b'{"status":"starting"}', status=202), said({"a": 1, "b": 2}, V1), said([0.1, 0.2, 0.3]), said({"outputs": []}, V2),
        said(b"x" * (LARGEST + 1)),
    ],
)  # fmt: skip
def test_an_answer_without_a_prediction_is_unreadable(event):
    outcome, values = predicted(Answers(BINARY), event)
    assert outcome == "unreadable_answer"
    assert math.isnan(values[0][0])


@pytest.mark.parametrize("value", ["1e308", "-1e308", "1e400", '"x"', "null", "{}"])
def test_what_cannot_be_a_prediction_is_none(value):
    found = Answers(BINARY).decode([said(b'{"output":{"probability":%b},"status":"succeeded"}' % value.encode())], [1])
    assert not (np.abs(found.values) <= 1).any()


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (200, "answered"), (0, "answered"), (422, "refused"), (400, "refused"), (500, "failed"), (503, "failed"), (408, "failed"),
        (429, "failed"),
    ],
)  # fmt: skip
def test_what_became_of_a_request(status, outcome):
    assert outcome_of(said(0.5, status=status)) == outcome


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        (b'{"status":"failed","error":"no such carrier"}', "failed"),
        (b'{"status":"succeeded","output":"failed"}', "answered"),
        (b'event: start\ndata: {"status":"processing"}\n\nevent: completed\ndata: {"error":"x","status":"failed"}\n\n', "failed"),
        (b'event: completed\nid: 3\ndata: {"status":"failed"}\n\n', "failed"),
        (b'event: log\ndata: {"data":"\\"status\\":\\"failed\\""}\n\nevent: completed\ndata: {"status":"succeeded"}\n\n', "answered"),
        (b'event: output\ndata: {"status":"failed"}\n\n', "answered"),
        (b'event: completed\n "failed"', "answered"),
        (b'"failed"' + b"[" * 100_000, "answered"),
    ],
)  # fmt: skip
def test_a_prediction_that_failed_under_200_has_failed_in_a_stream_too(body, outcome):
    assert outcome_of(said(body)) == outcome
