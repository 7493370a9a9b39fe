"""A runner's output in values that JSON knows, by Cog's rules: files become data URIs, models and arrays plain values."""

from __future__ import annotations

import base64
import dataclasses
import datetime
import enum
import io
import mimetypes
import os
import sys
import types
from typing import Any

_PLAIN = frozenset({str, int, float, bool, type(None)})
_LISTS = (list, tuple, set, frozenset, types.GeneratorType)


def jsonable(value: Any) -> Any:
    """The value as JSON has it. Bytes have no form there (`TypeError`, as in Cog's server); anything else that has none is left as it
    is, and the codec refuses it."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is list:
        return value if _PLAIN.issuperset(map(type, value)) else [jsonable(item) for item in value]
    if kind is dict:
        return value if _PLAIN.issuperset(map(type, value.values())) else {k: jsonable(v) for k, v in value.items()}
    return _other(value)


def _other(value: Any) -> Any:
    if isinstance(value, type):
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")
    for name in ("model_dump", "dict"):  # pydantic 2 and 1
        dump = getattr(value, name, None)
        if callable(dump):
            return jsonable(dump())
    if dataclasses.is_dataclass(value):
        return jsonable(dataclasses.asdict(value))  # type: ignore[arg-type]
    if isinstance(value, dict):
        return {key: jsonable(item) for key, item in value.items()}
    if isinstance(value, _LISTS):
        return [jsonable(item) for item in value]
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, datetime.datetime):
        return value.isoformat()
    if isinstance(value, os.PathLike):
        with open(value, "rb") as file:
            return data_uri(file)
    if isinstance(value, io.IOBase):
        return data_uri(value)
    return _number(value)


def _number(value: Any) -> Any:
    """NumPy's numbers and arrays as Python's; anything else as it is."""
    numpy = sys.modules.get("numpy")  # where nobody has imported it, this is none of its values
    if numpy is not None and isinstance(value, numpy.integer | numpy.floating | numpy.bool_):
        return value.item()
    if numpy is not None and isinstance(value, numpy.ndarray):
        return value.tolist()
    return value


def data_uri(file: Any) -> str:
    """A file's content with the type that its name tells, read from its beginning where that can be."""
    if file.seekable():
        file.seek(0)
    content = file.read()
    name = getattr(file, "name", None)
    kind = mimetypes.guess_type(name)[0] if isinstance(name, str) else None
    encoded = base64.b64encode(content.encode() if isinstance(content, str) else content).decode()
    return f"data:{kind or 'application/octet-stream'};base64,{encoded}"
