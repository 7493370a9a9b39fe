"""Between tensors and a runner's inputs and outputs, for runners that do not take tensors themselves.

In: a tensor is named as an input. For a scalar input its shape is [N] or [N, 1], for a list input [N, k...]: N items (one list is
also [k]). Where the runner has one required list (`Signature.array_input`), tensors of other names are the columns of N row objects,
one call. NaN becomes null, an unknown value; the schema then decides whether that may be.

Out: a row for each item; one tensor for each field of the objects that the runner gave, nested ones joined with dots, or a
tensor `output` for anything else. The datatype follows from the values: BOOL, INT64 (UINT64 above it), FP64, BYTES. A null, or a field
that a row lacks, is NaN among numbers and empty among texts. Lists of one length are further dimensions. The rest is JSON text.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from drivetrain.backends.serving.replica.codecs.tensors import Misshapen, Tensor, tensor_of
from drivetrain.backends.serving.replica.codecs.validation import Inputs, Invalid

_Items = Sequence[Mapping[str, Any]]


def items_of(tensors: Sequence[Tensor], inputs: Inputs, array_input: str | None) -> tuple[_Items, bool]:
    """The checked items, and whether they are one call for all rows. Raises `Misshapen`."""
    unknown = [tensor.name for tensor in tensors if tensor.name not in inputs.properties]
    if unknown and array_input is not None:
        rows = _rows({tensor.name: _column(tensor, scalar=tensor.array.ndim < 2) for tensor in tensors})
        if not rows:
            return [], False  # nothing to compute: most models could not
        return _checked([{array_input: rows}], inputs, "{}"), True
    if unknown:
        raise Misshapen(f"there is no input '{unknown[0]}'; there are {', '.join(inputs.properties)}")
    columns = {
        tensor.name: _column(tensor, scalar=inputs.properties[tensor.name].get("type") != "array") for tensor in tensors
    }
    return _checked(_rows(columns), inputs, "row {at}: {}"), False


def _checked(rows: Sequence[Mapping[str, Any]], inputs: Inputs, words: str) -> list[dict[str, Any]]:
    """The rows as the runner gets them, checked in one pass where msgspec has a type for them."""
    if inputs.kind is not None:
        try:
            return [inputs.completed(row) for row in msgspec.convert(rows, list[inputs.kind])]  # type: ignore[name-defined]
        except msgspec.ValidationError:
            pass  # the slow path says what is wrong, or finds that it is right after all
    found = []
    for at, row in enumerate(rows):
        try:
            found.append(inputs.checked(row))
        except Invalid as invalid:
            raise Misshapen(words.format(invalid, at=at)) from invalid
    return found


def _column(tensor: Tensor, *, scalar: bool) -> list[Any]:
    """A value for each row."""
    shape = tensor.array.shape
    if scalar and math.prod(shape[1:]) != 1:
        raise Misshapen(f"input '{tensor.name}' is one value a row: its shape is [N] or [N, 1], not {list(shape)}")
    values = tensor.flat() if scalar else tensor.values()
    if tensor.array.dtype.kind == "f" and np.isnan(tensor.array).any():
        values = _nulls(values)
    found: list[Any] = values if scalar or len(shape) > 1 else [values]
    return found


def _nulls(value: Any) -> Any:
    if isinstance(value, list):
        return [_nulls(entry) for entry in value]
    return None if value != value else value  # NaN alone differs from itself


def _rows(columns: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise Misshapen(
            "the inputs differ in their number of rows: " + ", ".join(f"{k} {n}" for k, n in lengths.items())
        )
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def tensors_of(rows: Sequence[Any]) -> list[Tensor]:
    """The outputs of N items, a row each."""
    if not rows:
        return []
    if not all(isinstance(row, dict) for row in rows):
        return [_tensor("output", rows)]
    flat = [dict(_fields(row)) for row in rows]
    names = dict.fromkeys(name for row in flat for name in row)
    return [_tensor(name, [row.get(name) for row in flat]) for name in names]


def _fields(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in row.items():
        if isinstance(value, dict):
            yield from _fields(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _tensor(name: str, rows: Sequence[Any]) -> Tensor:
    shape, elements = [len(rows)], list(rows)
    while elements and all(isinstance(element, list) for element in elements):
        if len({len(element) for element in elements}) > 1:
            break  # ragged: JSON text
        shape.append(len(elements[0]))
        elements = [entry for element in elements for entry in element]
    dtype = _dtype({type(element) for element in elements}, elements)
    if dtype is None:
        return tensor_of(name, np.array([_json(row) for row in rows], dtype=object))
    if dtype is object:
        elements = ["" if element is None else element for element in elements]
    array = np.empty(len(elements), dtype=dtype)
    array[:] = elements
    return tensor_of(name, array.reshape(shape))


def _dtype(kinds: set[type], elements: Sequence[Any]) -> Any:
    """The array's type for elements of these kinds; None where one array cannot hold them."""
    known = kinds - {type(None)}
    if known == {str}:
        return object
    if known == {bool} and known == kinds:
        return np.bool_
    if known == {int} and known == kinds:
        low, high = min(elements), max(elements)
        if low >= -(2**63) and high < 2**63:
            return np.int64
        return np.uint64 if low >= 0 and high < 2**64 else np.float64
    if known <= {int, float}:
        return np.float64
    return None


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
