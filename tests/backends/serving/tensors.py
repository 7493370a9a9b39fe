"""Signatures, requests and arrays of every datatype for the tests of the Open Inference Protocol."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from drivetrain.backends.serving.replica.calls import Answer, Call, Codec, Decoded, Outcome, Refused, Signature, Wire
from drivetrain.backends.serving.replica.codecs import codec_for
from drivetrain.backends.serving.replica.codecs.tensors import DATATYPES


def signature(required: Mapping[str, Any], **more: Any) -> Signature:
    schema = {"type": "object", "properties": dict(required), "required": list(required)}
    return Signature("model", {"components": {"schemas": {"Input": schema}}}, **more)


NUMBER, TEXT = {"type": "number"}, {"type": "string"}
PAIR = signature({"x": NUMBER, "s": TEXT | {"maxLength": 3}})
VECTOR = signature({"xs": {"type": "array", "items": NUMBER}, "n": {"type": "integer", "nullable": True}})
ROWS = signature({"rows": {"type": "array", "items": {"type": "object"}}}, array_input="rows")
WHOLE = signature({"rows": {"type": "array"}}, infers=True)


def tensor(name: str, datatype: str, shape: Sequence[int], data: Any, **more: Any) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": list(shape), "data": data, **more}


def request(*inputs: Mapping[str, Any], **more: Any) -> bytes:
    return json.dumps({"inputs": inputs, **more}).encode()


def decoded(found: Signature, body: bytes, header_length: int | None = None) -> Decoded:
    meta = b"" if header_length is None else json.dumps({"header_length": header_length}).encode()
    return codec_for(Wire.V2, found).decode(Call(Wire.V2, body, meta))


def refused(found: Signature, body: bytes, header_length: int | None = None) -> str:
    with pytest.raises(Refused) as refusal:
        decoded(found, body, header_length)
    assert refusal.value.answer.status == 400
    error: str = json.loads(refusal.value.answer.body)["error"]
    return error


NUMBERS = [name for name in DATATYPES if name != "BYTES"]
shapes = arrays.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=4)


def array_of(datatype: str) -> st.SearchStrategy[Any]:
    if datatype == "BYTES":
        texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=5).map(str.encode)
        return shapes.flatmap(
            lambda shape: st.lists(texts, min_size=math.prod(shape), max_size=math.prod(shape)).map(
                lambda found: np.array([*found, None], dtype=object)[:-1].reshape(shape)
            )
        )
    dtype = DATATYPES[datatype].dtype
    if dtype.kind == "f":
        return shapes.flatmap(lambda shape: arrays.arrays(dtype, shape, elements={"allow_infinity": False}))
    return shapes.flatmap(lambda shape: arrays.arrays(dtype, shape))


any_array = st.sampled_from(list(DATATYPES)).flatmap(lambda name: array_of(name).map(lambda array: (name, array)))


def same(one: Any, other: Any) -> bool:
    if one.dtype.kind == "O":
        return bool(one.shape == other.shape and one.ravel().tolist() == other.ravel().tolist())
    return bool(one.dtype == other.dtype and np.array_equal(one, other, equal_nan=one.dtype.kind == "f"))


def echoed(codec: Codec, call: Call) -> tuple[Any, Answer]:
    """The tensor `a` as the runner gets it, and the answer where it gives it back."""
    found = codec.decode(call)
    assert found.tensors is not None
    return found.tensors["a"], found.encode([Outcome("succeeded", {"a": found.tensors["a"]})])
