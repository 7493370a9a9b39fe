"""The Open Inference Protocol (V2) over REST, with the binary tensor data extension.

A request is JSON, or JSON followed by the raw bytes of those tensors that name their `binary_data_size`; `Call.meta` has the
length of the JSON then (`{"header_length": n}`, the header `Inference-Header-Content-Length`), and so has the answer's. Outputs are
written raw where `binary_data_output` asks for it, or `binary_data` of a requested output. See `tensors` for the elements, and
`tables` for what becomes of them. A bad request is 400, a failed prediction 500, both `{"error": ...}`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import msgspec

from drivetrain.backends.serving.replica.calls import Answer, Call, Decoded, Outcome, Refused, Signature
from drivetrain.backends.serving.replica.codecs import jsons, tables, tensors
from drivetrain.backends.serving.replica.codecs.tensors import Misshapen, Tensor
from drivetrain.backends.serving.replica.codecs.v1 import error, first_failure
from drivetrain.backends.serving.replica.codecs.validation import Inputs, inputs_of

_Parameters = Mapping[str, str | float | int | bool]


class _Meta(msgspec.Struct):
    id: str | None = None
    header_length: int | None = None


class _Input(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str
    parameters: _Parameters | None = None
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _Output(msgspec.Struct):
    name: str
    parameters: _Parameters | None = None


class _Request(msgspec.Struct):
    inputs: list[_Input]
    id: str | None = None
    parameters: _Parameters | None = None
    outputs: list[_Output] | None = None


class _Written(msgspec.Struct, omit_defaults=True):
    """An output tensor in an answer."""

    name: str
    shape: list[int]
    datatype: str
    parameters: Mapping[str, int] | None = None
    data: list[Any] | msgspec.UnsetType = msgspec.UNSET


class _Answer(msgspec.Struct):
    model_name: str
    id: str
    outputs: list[_Written]


_Outputs = Callable[[Sequence[Outcome]], list[Tensor]]
_Answering = Callable[[Sequence[Tensor]], Answer]

_NO_META = _Meta()
_read_meta = msgspec.json.Decoder(_Meta).decode
_read_request = msgspec.json.Decoder(_Request).decode
_write = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Wanted:
    """What an answer has: `binary` is whether an output is written raw, None among `outputs` for all of them."""

    id: str
    outputs: Mapping[str, bool] | None
    binary: bool


@dataclass(frozen=True, slots=True)
class Model:
    """A runner, as the codecs of the protocol need it: what REST and gRPC share."""

    signature: Signature
    inputs: Inputs

    def decoded(self, found: Sequence[Tensor], answer: _Answering) -> Decoded:
        """The call for the tensors; `answer` makes the answer from output tensors. Raises `Refused` with 400."""
        names = [tensor.name for tensor in found]
        if not found or len(set(names)) < len(names):
            raise Refused(error(400, f"no inputs, or one of them twice: {', '.join(names)}"))
        if self.signature.infers:
            return Decoded((), _encoder(answer, _whole), {tensor.name: tensor.array for tensor in found})
        try:
            items, whole = tables.items_of(found, self.inputs, self.signature.array_input)
        except Misshapen as wrong:
            raise Refused(error(400, str(wrong))) from wrong
        return Decoded(items, _encoder(answer, _list if whole else _rows))


def model_of(signature: Signature) -> Model:
    """Raises `ServingError` if the runner's schema cannot be checked against."""
    return Model(signature, inputs_of(signature.schema))


def _encoder(answer: _Answering, outputs: _Outputs) -> Callable[[Sequence[Outcome]], Answer]:
    def encode(outcomes: Sequence[Outcome]) -> Answer:
        failed = first_failure(outcomes)
        if failed is not None:
            return failed
        try:
            return answer(outputs(outcomes))
        except Refused as refused:
            return refused.answer
        except (Misshapen, ValueError, TypeError, ArithmeticError) as wrong:
            return error(500, f"the output cannot be written as tensors: {wrong}")

    return encode


def _whole(outcomes: Sequence[Outcome]) -> list[Tensor]:
    return [tensors.tensor_of(name, array) for name, array in outcomes[0].output.items()]


def _list(outcomes: Sequence[Outcome]) -> list[Tensor]:
    output = outcomes[0].output
    return tables.tensors_of(output if isinstance(output, list) else [output])


def _rows(outcomes: Sequence[Outcome]) -> list[Tensor]:
    return tables.tensors_of([outcome.output for outcome in outcomes])


@dataclass(slots=True)
class V2Codec:
    """`/v2/models/NAME/infer`."""

    signature: Signature
    _model: Model = field(init=False)

    def __post_init__(self) -> None:
        self._model = model_of(self.signature)

    def decode(self, call: Call) -> Decoded:
        """An item for each row, one for all of them, or the tensors as they are. Raises `Refused` with 400."""
        meta = _read_meta(call.meta) if call.meta else _NO_META
        request, found = _read(call.body, meta.header_length)
        wanted = _wanted(request, meta)
        return self._model.decoded(found, lambda outputs: self._answer(wanted, outputs))

    def failed(self, call: Call, outcome: Outcome, status: int) -> Answer:
        """`{"error": ...}` with the status given."""
        return error(status, outcome.error or f"the prediction was {outcome.kind}")

    def _answer(self, wanted: Wanted, found: Sequence[Tensor]) -> Answer:
        written, raw = [], []
        for tensor, binary in chosen(wanted, found):
            entry = _Written(tensor.name, tensor.shape, tensor.datatype)
            if binary:
                raw.append(tensor.raw())
                entry.parameters = {"binary_data_size": len(raw[-1])}
            else:
                entry.data = tensor.flat()
            written.append(entry)
        head = _write(_Answer(self.signature.name, wanted.id, written))
        if not raw:
            return Answer(200, head)
        return Answer(200, b"".join((head, *raw)), _write({"header_length": len(head)}))


def chosen(wanted: Wanted, found: Sequence[Tensor]) -> list[tuple[Tensor, bool]]:
    """The outputs that are asked for, and whether each is written raw. Raises `Refused` if there is no such output."""
    if wanted.outputs is None or not found:
        return [(tensor, wanted.binary) for tensor in found]
    there = {tensor.name: tensor for tensor in found}
    for name in wanted.outputs:
        if name not in there:
            raise Refused(error(400, f"there is no output '{name}'; there are {', '.join(there)}"))
    return [(there[name], binary) for name, binary in wanted.outputs.items()]


def _wanted(request: _Request, meta: _Meta) -> Wanted:
    binary = (request.parameters or {}).get("binary_data_output") is True
    outputs = None
    if request.outputs:
        outputs = {
            output.name: (output.parameters or {}).get("binary_data", binary) is True for output in request.outputs
        }
    return Wanted(request.id or meta.id or uuid4().hex, outputs, binary)


def _read(body: bytes, header_length: int | None) -> tuple[_Request, list[Tensor]]:
    if header_length is not None and not 0 <= header_length <= len(body):
        raise Refused(error(400, f"Inference-Header-Content-Length is {header_length}, the body has {len(body)} bytes"))
    head = body if header_length is None else body[:header_length]
    try:
        request = _read_request(head)
    except jsons.UNREADABLE as unreadable:
        raise Refused(error(400, f"Unrecognized request format: {unreadable}")) from unreadable
    rest = memoryview(body)[len(head) :]
    found, at = [], 0
    try:
        for entry in request.inputs:
            tensor, size = _tensor(entry, rest[at:])
            found.append(tensor)
            at += size
    except Misshapen as wrong:
        raise Refused(error(400, str(wrong))) from wrong
    if at != len(rest):
        raise Refused(error(400, f"{len(rest) - at} bytes of binary data belong to no input"))
    return request, found


def _tensor(entry: _Input, rest: memoryview) -> tuple[Tensor, int]:
    """A tensor, and how many bytes of the binary data are its own."""
    size = (entry.parameters or {}).get("binary_data_size")
    if isinstance(entry.data, msgspec.Raw):
        if size is not None:
            raise Misshapen(f"input '{entry.name}' has both data and binary_data_size")
        return tensors.from_json(entry.name, entry.datatype, entry.shape, entry.data), 0
    if size is None:
        raise Misshapen(f"'data' field is missing for input '{entry.name}'")
    if type(size) is not int or not 0 <= size <= len(rest):
        raise Misshapen(f"binary_data_size of input '{entry.name}' is {size}, but {len(rest)} bytes are left")
    return tensors.from_raw(entry.name, entry.datatype, entry.shape, rest[:size]), size
