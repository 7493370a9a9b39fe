"""The Open Inference Protocol (V2) over gRPC: a serialized ModelInferRequest in, a serialized ModelInferResponse out.

Requests that bring raw contents get raw contents, others get them by type; FP16 has no type of its own and makes the whole answer
raw. What is not answered with 200 has the body `{"error": ...}`, as over REST; the server makes a gRPC status of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import msgspec
from google.protobuf.message import DecodeError

from drivetrain.backends.serving.replica import open_inference_pb2 as pb
from drivetrain.backends.serving.replica.calls import Answer, Call, Decoded, Outcome, Refused, Signature
from drivetrain.backends.serving.replica.codecs import tensors
from drivetrain.backends.serving.replica.codecs.tensors import Misshapen, Tensor
from drivetrain.backends.serving.replica.codecs.v1 import error
from drivetrain.backends.serving.replica.codecs.v2 import Model, Wanted, chosen, model_of

_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


class _Meta(msgspec.Struct):
    id: str | None = None


_NO_META = _Meta()
_read_meta = msgspec.json.Decoder(_Meta).decode


@dataclass(slots=True)
class GrpcCodec:
    """`inference.GRPCInferenceService/ModelInfer`."""

    signature: Signature
    _model: Model = field(init=False)

    def __post_init__(self) -> None:
        self._model = model_of(self.signature)

    def decode(self, call: Call) -> Decoded:
        """An item for each row, one for all of them, or the tensors as they are. Raises `Refused` with 400, 404."""
        meta = _read_meta(call.meta) if call.meta else _NO_META
        try:
            request = pb.ModelInferRequest.FromString(call.body)
            if request.model_name != self.signature.name:
                raise Refused(error(404, f"Model with name {request.model_name} does not exist."))
            found = _tensors(request)
        except DecodeError as unreadable:
            raise Refused(error(400, f"Unrecognized request format: {unreadable}")) from unreadable
        except Misshapen as wrong:
            raise Refused(error(400, str(wrong))) from wrong
        raw = bool(request.raw_input_contents)
        outputs = {output.name: raw for output in request.outputs} or None
        wanted = Wanted(request.id or meta.id or uuid4().hex, outputs, raw)
        return self._model.decoded(found, lambda outputs: self._answer(wanted, outputs))

    def failed(self, call: Call, outcome: Outcome, status: int) -> Answer:
        """`{"error": ...}` with the status given."""
        return error(status, outcome.error or f"the prediction was {outcome.kind}")

    def _answer(self, wanted: Wanted, found: Sequence[Tensor]) -> Answer:
        answer = pb.ModelInferResponse(model_name=self.signature.name, id=wanted.id)
        written = [tensor for tensor, _ in chosen(wanted, found)]
        raw = wanted.binary or any(tensor.datatype == "FP16" for tensor in written)
        for tensor in written:
            entry = answer.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
            if raw:
                answer.raw_output_contents.append(tensor.raw())
            else:
                getattr(entry.contents, _CONTENTS[tensor.datatype]).extend(tensor.array.ravel().tolist())
        return Answer(200, answer.SerializeToString())


def _tensors(request: Any) -> list[Tensor]:
    raw = request.raw_input_contents
    if not raw:
        return [_typed(entry) for entry in request.inputs]
    if len(raw) != len(request.inputs):
        raise Misshapen(f"there are {len(request.inputs)} inputs and {len(raw)} raw input contents")
    for entry in request.inputs:
        if entry.HasField("contents"):
            raise Misshapen(f"contents of input '{entry.name}' must not be given together with raw input contents")
    return [
        tensors.from_raw(entry.name, entry.datatype, entry.shape, data)
        for entry, data in zip(request.inputs, raw, strict=True)
    ]


def _typed(entry: Any) -> Tensor:
    contents = _CONTENTS.get(entry.datatype)
    if contents is None and entry.datatype in tensors.DATATYPES:
        raise Misshapen(f"input '{entry.name}' is {entry.datatype}: it has to be given as raw input contents")
    elements = list(getattr(entry.contents, contents)) if contents is not None else []
    return tensors.from_elements(entry.name, entry.datatype, entry.shape, elements)
