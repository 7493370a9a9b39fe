"""Tensors of the Open Inference Protocol: datatypes, and their elements as JSON, as raw bytes and as arrays.

Strict both ways: the number of elements is the product of the shape, every element is of the datatype and fits it. Two agreements where
the protocol is silent: a JSON null among floats is NaN, and NaN and infinities are written as null; an element of BYTES is text
in JSON (UTF-8), any bytes elsewhere. FP16 is taken in JSON too.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from drivetrain.backends.serving.replica.codecs.jsons import UNREADABLE

Array = NDArray[Any]

_MOST_DIMENSIONS = 32
_MOST_EMPTY = 65_536
"""Product of the other dimensions of a tensor without elements: they would cost nothing to send, and much to carry out."""


class Misshapen(Exception):
    """A tensor is not what it says it is; the words name it and say why."""


@dataclass(frozen=True, slots=True)
class Datatype:
    """One datatype: the array's type (little-endian), and the msgspec type of its JSON elements."""

    name: str
    dtype: np.dtype[Any]
    elements: Any


def _whole(low: int | None, high: int | None) -> Any:
    return list[Annotated[int, msgspec.Meta(ge=low, le=high)]]


_FLOATS = list[float | None]

DATATYPES: Mapping[str, Datatype] = {
    name: Datatype(name, np.dtype(code), elements)
    for name, code, elements in (
        ("BOOL", "?", list[bool]),
        ("UINT8", "<u1", _whole(0, 2**8 - 1)),
        ("UINT16", "<u2", _whole(0, 2**16 - 1)),
        ("UINT32", "<u4", _whole(0, 2**32 - 1)),
        ("UINT64", "<u8", _whole(0, None)),
        ("INT8", "<i1", _whole(-(2**7), 2**7 - 1)),
        ("INT16", "<i2", _whole(-(2**15), 2**15 - 1)),
        ("INT32", "<i4", _whole(-(2**31), 2**31 - 1)),
        ("INT64", "<i8", _whole(None, None)),
        ("FP16", "<f2", _FLOATS),
        ("FP32", "<f4", _FLOATS),
        ("FP64", "<f8", _FLOATS),
        ("BYTES", "O", list[str]),
    )
}

_BY_DTYPE = {kind.dtype: name for name, kind in DATATYPES.items()}


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor: `array` has the shape; elements of BYTES are `bytes`. It may be read-only."""

    name: str
    array: Array

    @property
    def datatype(self) -> str:
        """The protocol's name of the array's type."""
        return _BY_DTYPE[self.array.dtype.newbyteorder("<")]

    @property
    def shape(self) -> list[int]:
        """The dimensions."""
        return list(self.array.shape)

    def values(self) -> Any:
        """Nested lists of JSON values. Raises `Misshapen` for BYTES that are not UTF-8, the one thing that has no JSON form."""
        if self.array.dtype.kind == "O":
            return _objects(self.flat()).reshape(self.array.shape).tolist()
        return self.array.tolist()

    def flat(self) -> list[Any]:
        """The elements in row-major order, as JSON values. Raises `Misshapen` as `values` does."""
        if self.array.dtype.kind == "O":
            return [_text(self.name, one) for one in self.array.ravel()]
        found: list[Any] = self.array.ravel().tolist()
        return found

    def raw(self) -> bytes:
        """The elements in row-major order, little-endian; those of BYTES after their length in four bytes."""
        if self.array.dtype.kind == "O":
            return b"".join(struct.pack("<I", len(one)) + one for one in self.array.ravel())
        return self.array.astype(self.array.dtype.newbyteorder("<"), copy=False).tobytes()


def tensor_of(name: str, values: Any) -> Tensor:
    """The tensor of an array that a runner gave. Raises `Misshapen` for a type that the protocol does not have."""
    array = np.asarray(values)
    if array.dtype.kind in "SU" or array.dtype == object:
        elements = np.empty(array.size, dtype=object)
        elements[:] = [_as_bytes(name, one) for one in array.ravel().tolist()]
        return Tensor(name, elements.reshape(array.shape))
    if array.dtype.newbyteorder("<") not in _BY_DTYPE:
        raise Misshapen(f"output '{name}' is of type {array.dtype}, which the protocol does not have")
    return Tensor(name, array)


def from_json(name: str, datatype: str, shape: Sequence[int], data: msgspec.Raw) -> Tensor:
    """A tensor from the JSON of its elements, flat or nested as the shape is. Raises `Misshapen`."""
    kind, count = _checked(name, datatype, shape)
    try:
        elements: list[Any] = msgspec.json.decode(data, type=kind.elements)
    except UNREADABLE:
        elements = _nested(name, kind, shape, data)
    if len(elements) != count:
        raise Misshapen(f"input '{name}' has {len(elements)} elements, but shape {list(shape)} needs {count}")
    return Tensor(name, _array(name, kind, elements).reshape(tuple(shape)))


def from_elements(name: str, datatype: str, shape: Sequence[int], elements: Sequence[Any]) -> Tensor:
    """A tensor from elements that are of the right kind, but may not fit. Raises `Misshapen`."""
    kind, count = _checked(name, datatype, shape)
    if len(elements) != count:
        raise Misshapen(f"input '{name}' has {len(elements)} elements, but shape {list(shape)} needs {count}")
    return Tensor(name, _array(name, kind, elements).reshape(tuple(shape)))


def from_raw(name: str, datatype: str, shape: Sequence[int], data: memoryview | bytes) -> Tensor:
    """A tensor from raw bytes, without copying them (but for BYTES). Raises `Misshapen`."""
    kind, count = _checked(name, datatype, shape)
    if kind.name == "BYTES":
        return Tensor(name, _objects(_split(name, data, count, shape)).reshape(tuple(shape)))
    if len(data) != count * kind.dtype.itemsize:
        needed = f"{count * kind.dtype.itemsize} bytes are needed for {datatype} of shape {list(shape)}"
        raise Misshapen(f"input '{name}' has {len(data)} bytes of data, but {needed}")
    if not count:
        return Tensor(name, np.empty(tuple(shape), dtype=kind.dtype))
    array = np.frombuffer(data, dtype=kind.dtype)
    if kind.name == "BOOL" and np.frombuffer(data, dtype=np.uint8).max() > 1:
        raise Misshapen(f"input '{name}' has a byte that is neither 0 nor 1 as BOOL")
    return Tensor(name, array.reshape(tuple(shape)))


def _checked(name: str, datatype: str, shape: Sequence[int]) -> tuple[Datatype, int]:
    kind = DATATYPES.get(datatype)
    if kind is None:
        raise Misshapen(f"input '{name}' has the datatype '{datatype}'; there are {', '.join(DATATYPES)}")
    if len(shape) > _MOST_DIMENSIONS or any(size < 0 for size in shape):
        raise Misshapen(f"input '{name}' has a shape of more than {_MOST_DIMENSIONS} dimensions, or a negative one")
    count = math.prod(shape)
    if not count and math.prod(size for size in shape if size) > _MOST_EMPTY:
        raise Misshapen(f"input '{name}' has no elements, and other dimensions of more than {_MOST_EMPTY} together")
    return kind, count


def _nested(name: str, kind: Datatype, shape: Sequence[int], data: msgspec.Raw) -> list[Any]:
    """The elements of nested lists that have the shape exactly."""
    try:
        level = [msgspec.json.decode(data)]
        if _is_flat(level[0], shape):
            level = level[0]
        else:
            for size in shape:
                if not all(isinstance(entry, list) and len(entry) == size for entry in level):
                    raise Misshapen(f"input '{name}' is neither flat nor nested {kind.name} of shape {list(shape)}")
                level = [element for entry in level for element in entry]
        found: list[Any] = msgspec.convert(level, kind.elements)
        return found
    except UNREADABLE as error:
        raise Misshapen(f"input '{name}' has an element that is no {kind.name}: {error}") from error


def _is_flat(value: Any, shape: Sequence[int]) -> bool:
    return len(shape) != 1 and isinstance(value, list) and not any(isinstance(entry, list) for entry in value)


def _array(name: str, kind: Datatype, elements: Sequence[Any]) -> Array:
    if kind.name == "BYTES":
        return _objects([one.encode() if isinstance(one, str) else one for one in elements])
    try:
        if kind.dtype.kind != "f" or kind.dtype.itemsize == 8:
            return np.array(elements, dtype=kind.dtype)
        with np.errstate(over="raise"):
            return np.array(elements, dtype=np.float64).astype(kind.dtype)
    except (OverflowError, FloatingPointError, ValueError) as error:
        raise Misshapen(f"input '{name}' has an element that does not fit {kind.name}") from error


def _objects(elements: Sequence[bytes | str]) -> Array:
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    return array


def _split(name: str, data: memoryview | bytes, count: int, shape: Sequence[int]) -> list[bytes]:
    """The elements of BYTES."""
    found: list[bytes] = []
    at, end = 0, len(data)
    while at < end and len(found) < count:
        after = at + 4
        length = int.from_bytes(data[at:after], "little")
        if after > end or after + length > end:
            raise Misshapen(f"input '{name}' ends within element {len(found)}")
        found.append(bytes(data[after : after + length]))
        at = after + length
    if len(found) != count or at != end:
        raise Misshapen(
            f"input '{name}' does not have the {count} elements of shape {list(shape)}, no more and no less"
        )
    return found


def _text(name: str, element: bytes) -> str:
    try:
        return element.decode()
    except UnicodeDecodeError as error:
        raise Misshapen(f"'{name}' has an element that is not UTF-8") from error


def _as_bytes(name: str, element: Any) -> bytes:
    if isinstance(element, str):
        return element.encode()
    if isinstance(element, bytes):
        return element
    raise Misshapen(f"output '{name}' has an element of type {type(element).__name__} among text")
