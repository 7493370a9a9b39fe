"""JSON as the codecs read and write it: strict, so that no NaN turns into a null unnoticed."""

from __future__ import annotations

import json
from typing import Any

import msgspec

UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for a body that is not what was asked for."""

_encode = msgspec.json.Encoder().encode


class Unwritable(Exception):
    """The output has no JSON form; the words say why."""


def encode(value: Any) -> bytes:
    """The value as JSON. Raises `Unwritable` for NaN and infinities, as Cog's own server fails such a prediction, and for objects."""
    try:
        body = _encode(value)
    except (TypeError, ValueError, RecursionError, OverflowError) as error:
        raise Unwritable(f"Failed to serialize output: {type(error).__name__}: {error}") from error
    if b"null" in body:  # msgspec writes NaN so, and nothing else that takes time to look for
        _refuse_not_a_number(msgspec.to_builtins(value))
    return body


def _refuse_not_a_number(value: Any) -> None:
    try:
        json.dumps(value, allow_nan=False)
    except (ValueError, RecursionError) as error:
        raise Unwritable(f"Failed to serialize output: {type(error).__name__}: {error}") from error
