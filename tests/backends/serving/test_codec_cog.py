"""Cog's protocol: what the codec takes, refuses and answers, beside Cog's own server."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivetrain.backends.serving.replica.calls import Answer, Call, Codec, Outcome, Refused, Signature, Wire
from drivetrain.backends.serving.replica.codecs import codec_for
from drivetrain.backends.serving.replica.codecs.rules import kind_of, pattern, problems
from drivetrain.backends.serving.replica.codecs.validation import Invalid, inputs_of
from drivetrain.errors import ServingError
from tests.backends.serving import servers

RUNNER = """
from typing import Optional
from cog import BaseRunner, Input

class Runner(BaseRunner):
    def run(
        self,
        req: int,
        x: int = Input(default=1, ge=0, le=100),
        y: float = Input(default=0.5, ge=-1.5),
        s: str = Input(default="ab", min_length=2, max_length=4, regex="^[a-z]+$"),
        digits: str = Input(default="12", regex=".*[$]?\\\\d$"),
        flag: bool = False,
        maybe: Optional[int] = None,
        xs: list[int] = [1, 2],
        opts: Optional[list[str]] = None,
        pick: int = Input(default=1, choices=[1, 2, 3]),
        word: str = Input(default="a", choices=["a", "b", "c", "d"]),
    ) -> list:
        return [repr(v) for v in (req, x, y, s, digits, flag, maybe, xs, opts, pick, word)]
"""

BODIES = [
    b'{"input":{"req":1}}',
    b'{"input":{"req":1.0}}',
    b'{"input":{}}',
    b'{"input":null}',
    b"{}",
    b'{"input":[1]}',
    b'{"input":3}',
    b'{"input":{"req":"1"}}',
    b'{"input":{"req":true}}',
    b'{"input":{"req":null}}',
    b'{"input":{"req":{"b":[1,null],"a":"\xc3\xa9"}}}',
    b'{"input":{"req":1,"x":101,"y":-2,"s":"A"}}',
    b'{"input":{"x":-1,"y":"q","flag":"no","word":3}}',
    b'{"input":{"req":1,"s":"abcde"}}',
    b'{"input":{"req":1,"s":"ab\\n"}}',
    b'{"input":{"req":1,"s":"\xc3\xa9\xc3\xa9"}}',
    b'{"input":{"req":1,"digits":"a\\u0663"}}',
    b'{"input":{"req":1,"digits":"$7"}}',
    b'{"input":{"req":1,"xs":["a",1,true,1.5]}}',
    b'{"input":{"req":1,"xs":"a"}}',
    b'{"input":{"req":1,"xs":[]}}',
    b'{"input":{"req":1,"opts":["a",1,{}]}}',
    b'{"input":{"req":1,"pick":4}}',
    b'{"input":{"req":1,"pick":"1"}}',
    b'{"input":{"req":1,"pick":1.0}}',
    b'{"input":{"req":1,"word":"z"}}',
    b'{"input":{"req":1,"flag":1}}',
    b'{"input":{"req":1,"x":0.5}}',
    b'{"input":{"req":1,"x":1e2,"y":3}}',
    b'{"input":{"req":1,"unknown":3},"other":1}',
    b'{"input":{"req":1,"req":2}}',
    b'{"input":{"req":"x","req":2}}',
]

ENVELOPES = [
    (b"[]", 422),
    (b"5", 422),
    (b'{"input":{"req":1},"id":5}', 422),
    (b'{"input":{"req":1},"context":{"a":1}}', 422),
    (b'{"input":{"req":1},"webhook":3}', 422),
    (b'{"input":{"req":1},"webhook_events_filter":["zz"]}', 422),
    (b'{"input":{"req":1}', 400),
    (b'{"input":{"req":1}} x', 400),
    (b'{"input":{"req":NaN}}', 400),
    (b'{"input":{"req":1,"y":1e999}}', 400),
    (b'{"input":{"req":1,"s":"\xff\xfe"}}', 400),
    (b'{"input":{"req":1,"s":"\\ud800a"}}', 400),
    (b'{"input":{"req":' + b"[" * 5000 + b"]" * 5000 + b"}}", 400),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return servers.bundle(tmp_path_factory.mktemp("cog") / "bundle", RUNNER)


@pytest.fixture(scope="module")
def cog(place: Path) -> Iterator[servers.Server]:
    with servers.running("cog", place) as server:
        yield server


@pytest.fixture(scope="module")
def document(place: Path) -> dict[str, Any]:
    return json.loads((place / ".cog" / "openapi_schema.json").read_text())


@pytest.fixture(scope="module")
def codec(document: dict[str, Any]) -> Codec:
    return codec_for(Wire.COG, Signature("model", document))


def asked(server: servers.Server, body: bytes) -> servers.Reply:
    """Cog's answer. It says 409 for a moment after each prediction."""
    deadline = time.monotonic() + 10
    while (reply := server.request("POST", "/predictions", body)).status == 409:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return reply


def seen(codec: Codec, body: bytes) -> tuple[int, Any]:
    """The status, and what the runner of this test gives for the inputs, or the problems."""
    try:
        item = codec.decode(Call(Wire.COG, body)).items[0]
    except Refused as refused:
        return refused.answer.status, json.loads(refused.answer.body)["detail"]
    defaults = {"x": 1, "y": 0.5, "s": "ab", "digits": "12", "flag": False, "maybe": None, "xs": [1, 2], "opts": None}
    values = defaults | {"pick": 1, "word": "a"} | item
    order = ("req", "x", "y", "s", "digits", "flag", "maybe", "xs", "opts", "pick", "word")
    return 200, [repr(values[name]) for name in order]


def told(reply: servers.Reply) -> tuple[int, Any]:
    return reply.status, reply.json()["output" if reply.status == 200 else "detail"]


def test_inputs_are_taken_and_refused_in_the_words_of_cogs_own_server(cog: servers.Server, codec: Codec) -> None:
    for body in BODIES:
        assert seen(codec, body) == told(asked(cog, body)), body


@pytest.mark.parametrize(("body", "status"), ENVELOPES, ids=lambda value: repr(value)[:50])
def test_what_is_no_request_has_the_status_of_cogs_own_server_and_the_form_of_bad_inputs(
    cog: servers.Server, codec: Codec, body: bytes, status: int
) -> None:
    assert asked(cog, body).status == status
    with pytest.raises(Refused) as refused:
        codec.decode(Call(Wire.COG, body))
    assert refused.value.answer.status == status
    (problem,) = json.loads(refused.value.answer.body)["detail"]
    assert problem["loc"][0] == "body"
    assert problem["msg"]


def test_a_null_for_a_nullable_input_is_taken_where_cogs_own_server_refuses_it(
    cog: servers.Server, codec: Codec
) -> None:
    body = b'{"input":{"req":1,"maybe":null,"opts":null}}'
    assert asked(cog, body).status == 422
    assert codec.decode(Call(Wire.COG, body)).items[0] == {"req": 1, "maybe": None, "opts": None}


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.sampled_from([0.5, -2.25, 1.0, 100.0])
    | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
likely = st.fixed_dictionaries(
    {},
    optional={
        "req": st.integers(-5, 5) | anything,
        "x": st.integers(-1, 101) | anything,
        "y": st.floats(-3, 3, width=16) | st.integers(-3, 3) | anything,
        "s": st.text("abZ1\n", max_size=6) | anything,
        "digits": st.text("1$\u0663a", max_size=3) | anything,
        "flag": st.booleans() | anything,
        "maybe": st.integers() | anything,
        "xs": st.lists(st.integers(-3, 3) | st.just(1.0), max_size=3) | anything,
        "opts": st.lists(st.text(max_size=2), max_size=3) | anything,
        "pick": st.integers(0, 4) | anything,
        "word": st.sampled_from("abcde") | anything,
        "other": anything,
    },
)


@settings(max_examples=150, deadline=None)
@given(inputs=likely)
def test_any_inputs_are_judged_as_by_cogs_own_server(cog: servers.Server, codec: Codec, inputs: dict[str, Any]) -> None:
    inputs = {name: value for name, value in inputs.items() if not (name in ("maybe", "opts") and value is None)}
    inputs = {name: value for name, value in inputs.items() if not (type(value) is int and abs(value) > 2**63)}
    body = json.dumps({"input": inputs}, ensure_ascii=False).encode()
    assert seen(codec, body) == told(asked(cog, body))


@settings(max_examples=300, deadline=None)
@given(inputs=likely)
def test_what_the_fast_path_takes_the_complete_one_takes_with_the_same_values(
    document: dict[str, Any], codec: Any, inputs: dict[str, Any]
) -> None:
    body = json.dumps({"input": inputs}).encode()
    try:
        fast = codec._decoder.decode(body).input
    except (ValueError, TypeError):
        return
    slow = inputs_of(document).checked(json.loads(body)["input"])
    assert repr(inputs_of(document).completed(fast)) == repr({name: slow[name] for name in fast} | slow)


@settings(max_examples=300, deadline=None)
@given(
    body=st.binary(max_size=60)
    | st.text(max_size=40).map(str.encode)
    | anything.map(lambda one: json.dumps(one).encode())
)
def test_any_bytes_are_either_inputs_or_refused(codec: Codec, body: bytes) -> None:
    status, found = seen_or_refused(codec, body)
    assert found
    assert status in (200, 400, 422)


def seen_or_refused(codec: Codec, body: bytes) -> tuple[int, Any]:
    try:
        return 200, codec.decode(Call(Wire.COG, body)).items
    except Refused as refused:
        return refused.answer.status, json.loads(refused.answer.body)["detail"]


def answered(codec: Codec, outcome: Outcome, meta: dict[str, Any] | None = None) -> Answer:
    call = Call(Wire.COG, b'{"id":"p1","input":{"req":1}}', json.dumps(meta).encode() if meta else b"")
    return codec.decode(call).encode([outcome])


def test_a_succeeded_prediction_has_the_fields_of_cogs_own_server_in_their_order(
    cog: servers.Server, codec: Codec
) -> None:
    theirs = asked(cog, b'{"id":"p1","input":{"req":1}}')
    ours = answered(codec, Outcome("succeeded", theirs.json()["output"], logs="", started=5.0, completed=5.25))
    assert list(json.loads(ours.body)) == list(theirs.json()) == ["id", "logs", "metrics", "output", "status"]
    assert json.loads(ours.body) == theirs.json() | {"metrics": {"predict_time": 0.25}}
    assert (ours.status, ours.meta) == (200, b"")


def test_a_failed_prediction_is_200_with_its_outcome_beside_the_body(codec: Codec) -> None:
    answer = answered(codec, Outcome("failed", error="no such carrier", logs="looking\n", started=1.0, completed=2.0))
    assert (answer.status, json.loads(answer.meta)) == (200, {"outcome": "failed"})
    assert json.loads(answer.body) == {
        "error": "no such carrier",
        "id": "p1",
        "logs": "looking\n",
        "metrics": {"predict_time": 1.0},
        "status": "failed",
    }


def test_a_canceled_prediction_has_neither_output_nor_error(codec: Codec) -> None:
    answer = answered(codec, Outcome("canceled", output=1, started=1.0, completed=2.0, metrics={"steps": 3}))
    assert json.loads(answer.meta) == {"outcome": "canceled"}
    assert json.loads(answer.body) == {
        "id": "p1",
        "logs": "",
        "metrics": {"steps": 3, "predict_time": 1.0},
        "status": "canceled",
    }


def test_an_output_of_none_is_written_as_null(codec: Codec) -> None:
    assert json.loads(answered(codec, Outcome("succeeded", None)).body)["output"] is None


@pytest.mark.parametrize("output", [math.nan, [1, math.inf, None], {"a": [-math.inf]}, object()])
def test_an_output_without_a_json_form_fails_the_prediction_as_in_cogs_own_server(codec: Codec, output: object) -> None:
    answer = answered(codec, Outcome("succeeded", output, logs="kept", started=1.0, completed=2.0))
    body = json.loads(answer.body)
    assert (answer.status, json.loads(answer.meta)) == (200, {"outcome": "failed"})
    assert (body["status"], body["logs"]) == ("failed", "kept")
    assert body["error"].startswith("Failed to serialize output: ")


def test_integers_beyond_64_bits_and_the_word_null_in_a_text_are_outputs(codec: Codec) -> None:
    assert json.loads(answered(codec, Outcome("succeeded", [2**70, "null", None])).body)["output"] == [
        2**70,
        "null",
        None,
    ]


def test_the_front_adds_id_times_and_inputs_by_its_meta(codec: Codec) -> None:
    meta = {"id": "p9", "created_at": "2013-01-01T10:00:00+00:00", "input": True}
    body = json.loads(answered(codec, Outcome("succeeded", 1, started=1.5, completed=2.0), meta).body)
    assert body == {
        "completed_at": "1970-01-01T00:00:02+00:00",
        "created_at": "2013-01-01T10:00:00+00:00",
        "id": "p9",
        "input": {"req": 1, "maybe": None, "opts": None},
        "logs": "",
        "metrics": {"predict_time": 0.5},
        "output": 1,
        "started_at": "1970-01-01T00:00:01.500000+00:00",
        "status": "succeeded",
    }


def test_a_prediction_without_an_id_is_given_one(codec: Codec) -> None:
    call = Call(Wire.COG, b'{"input":{"req":1}}')
    assert len(json.loads(codec.decode(call).encode([Outcome("succeeded", 1)]).body)["id"]) == 32


@pytest.mark.parametrize("body", [b'{"id":"p1","input":{"req":1}}', b'{"id":"p1","input":{}}', b"{"])
def test_a_call_that_never_ran_is_answered_in_the_same_form(codec: Codec, body: bytes) -> None:
    answer = codec.failed(Call(Wire.COG, body), Outcome("failed", error="the worker died"), 500)
    found = json.loads(answer.body)
    assert (answer.status, json.loads(answer.meta)) == (500, {"outcome": "failed"})
    assert (found["status"], found["error"], found["metrics"]) == ("failed", "the worker died", {"predict_time": 0.0})


@pytest.mark.parametrize("depth", [900, 980, 990, 2000, 100_000])
def test_a_value_nested_deeply_is_refused(codec: Codec, depth: int) -> None:
    with pytest.raises(Refused) as refused:
        codec.decode(Call(Wire.COG, b'{"input":{"x":' + b"[" * depth + b"]" * depth + b"}}"))
    assert refused.value.answer.status in (400, 422)


def test_a_long_value_is_not_repeated_whole_in_the_message(codec: Codec) -> None:
    with pytest.raises(Refused) as refused:
        codec.decode(Call(Wire.COG, json.dumps({"input": {"req": "a" * 10_000}}).encode()))
    assert len(refused.value.answer.body) < 1200


def document_of(**properties: Any) -> dict[str, Any]:
    return {"components": {"schemas": {"Input": {"type": "object", "properties": properties}}}}


def test_a_schema_that_no_msgspec_type_can_say_is_checked_by_the_complete_path_alone() -> None:
    document = document_of(x={"anyOf": [{"type": "integer"}, {"type": "string", "maxLength": 2}], "x-order": 0})
    codec = codec_for(Wire.COG, Signature("model", document))
    assert codec.decode(Call(Wire.COG, b'{"input":{"x":"ab"}}')).items == ({"x": "ab"},)
    with pytest.raises(Refused, match="is not valid under any of the schemas listed in the 'anyOf' keyword"):
        codec.decode(Call(Wire.COG, b'{"input":{"x":"abc"}}'))


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "number", "enum": [0.5]},
        {"type": "boolean", "enum": [True]},
        {"type": ["integer", "string"]},
        {"type": "object", "anyOf": []},
        {},
    ],
)
def test_there_is_no_msgspec_type_for_a_schema_beyond_it(schema: dict[str, Any]) -> None:
    assert kind_of(schema) is None


def test_a_dollar_sign_ends_the_text_and_digits_are_ascii_as_in_json_schema() -> None:
    schema = {"type": "string", "pattern": r"^[$]\d\$$"}
    assert pattern(schema["pattern"]) == r"(?a:^[$]\d\$\Z)"
    assert not list(problems("$1$", schema, "s"))
    assert [problem.message for problem in problems("$1$\n", schema, "s")] == ['"$1$\\n" does not match "^[$]\\d\\$$"']


def test_a_pattern_that_is_none_is_an_error_when_the_codec_is_made() -> None:
    with pytest.raises(ServingError, match="is no regular expression"):
        codec_for(Wire.COG, Signature("model", document_of(s={"type": "string", "pattern": "("})))


def test_a_document_without_inputs_is_an_error() -> None:
    with pytest.raises(ServingError, match=r"components\.schemas\.Input"):
        codec_for(Wire.COG, Signature("model", {}))


def test_problems_read_as_one_line() -> None:
    with pytest.raises(Invalid, match="x: Field required"):
        inputs_of({"components": {"schemas": {"Input": {"properties": {"x": {}}, "required": ["x"]}}}}).checked({})
