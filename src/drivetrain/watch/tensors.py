"""Tensors in captured bodies of the Open Inference Protocol: as JSON, as JSON with binary data behind it, and as gRPC's messages."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from google.protobuf.message import DecodeError

from drivetrain.backends.serving.replica import open_inference_pb2 as pb
from drivetrain.backends.serving.replica.codecs import tensors
from drivetrain.backends.serving.replica.codecs.tensors import Misshapen, Tensor

REFUSED = (Misshapen, DecodeError, ValueError, LookupError, TypeError, AttributeError)
"""What is raised for a body that holds no tensors."""

_GRPC = "application/vnd.open-inference+protobuf"
_BINARY = b'"binary_data_size"'
_CONTENTS = ("bool", "int", "int64", "uint", "uint64", "fp32", "fp64", "bytes")


class _Tensor(msgspec.Struct, gc=False):
    name: str
    shape: list[int]
    datatype: str
    parameters: Mapping[str, Any] | None = None
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _Request(msgspec.Struct):
    inputs: list[_Tensor]


class _Answer(msgspec.Struct):
    outputs: list[_Tensor]


_read_request = msgspec.json.Decoder(_Request).decode
_read_answer = msgspec.json.Decoder(_Answer).decode


def request(content_type: str, body: bytes) -> dict[str, np.ndarray]:
    """The input tensors by name; texts are objects. Raises one of `REFUSED`, or msgspec's own for what is no JSON."""
    if content_type == _GRPC:
        message = pb.ModelInferRequest.FromString(body)
        return _of_message(message.inputs, message.raw_input_contents)
    head, rest = _split(body)
    return _of_json(_read_request(head).inputs, rest)


def answer(content_type: str, body: bytes) -> dict[str, np.ndarray]:
    """The output tensors by name. Raises as `request` does."""
    if content_type == _GRPC:
        message = pb.ModelInferResponse.FromString(body)
        return _of_message(message.outputs, message.raw_output_contents)
    head, rest = _split(body)
    return _of_json(_read_answer(head).outputs, rest)


def _split(body: bytes) -> tuple[bytes, memoryview]:
    """The JSON and what follows it: how long it is stands in a header, and headers are not captured."""
    if _BINARY not in body:
        return body, memoryview(b"")
    # One character a byte, so that positions are those of the bytes.
    _, end = json.JSONDecoder().raw_decode(body.decode("latin-1"))
    return body[:end], memoryview(body)[end:]


def _of_json(entries: Sequence[_Tensor], rest: memoryview) -> dict[str, np.ndarray]:
    found, at = {}, 0
    for entry in entries:
        if isinstance(entry.data, msgspec.Raw):
            found[entry.name] = _plain(tensors.from_json(entry.name, entry.datatype, entry.shape, entry.data))
            continue
        size = int((entry.parameters or {})["binary_data_size"])
        if not 0 <= size <= len(rest) - at:
            raise Misshapen(f"'{entry.name}' has {size} bytes, of which {len(rest) - at} are there")
        raw = rest[at : at + size]
        found[entry.name] = _plain(tensors.from_raw(entry.name, entry.datatype, entry.shape, raw))
        at += size
    return found


def _of_message(entries: Sequence[Any], raw: Sequence[bytes]) -> dict[str, np.ndarray]:
    if raw and len(raw) != len(entries):
        raise Misshapen(f"there are {len(entries)} tensors and {len(raw)} raw contents")
    found = {}
    for place, entry in enumerate(entries):
        if raw:
            tensor = tensors.from_raw(entry.name, entry.datatype, entry.shape, raw[place])
        else:
            filled = [getattr(entry.contents, f"{kind}_contents") for kind in _CONTENTS]
            elements = next((list(values) for values in filled if values), [])
            tensor = tensors.from_elements(entry.name, entry.datatype, entry.shape, elements)
        found[entry.name] = _plain(tensor)
    return found


def _plain(tensor: Tensor) -> np.ndarray:
    """Texts as text, whatever bytes they are."""
    if tensor.array.dtype.kind != "O":
        return tensor.array
    texts = np.empty(tensor.array.size, dtype=object)
    texts[:] = [one.decode("utf-8", "replace") for one in tensor.array.ravel().tolist()]
    return texts.reshape(tensor.array.shape)
