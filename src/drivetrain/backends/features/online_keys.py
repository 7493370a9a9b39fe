"""Where Feast 0.67 keeps an entity's values: its keys in bytes, the tables of SQLite, the hashes of Redis.

Written from Feast's own source (`key_encoding_utils`, `online_stores/{helpers,redis,sqlite}`): importing it takes seconds
and half a gigabyte.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import mmh3

from drivetrain.backends.features.description import DUMMY_KEY
from drivetrain.backends.features.online_plan import Key, View
from drivetrain.errors import DataError, DefinitionError, Problem

_TYPES = {"BYTES": 1, "STRING": 2, "INT32": 3, "INT64": 4, "UNIX_TIMESTAMP": 8}
_UNSIGNED, _PAIR = struct.Struct("<I"), struct.Struct("<II")
_LAYOUTS = {"INT32": struct.Struct("<i"), "INT64": struct.Struct("<q")}


class Source:
    """Views that are read by one key, and so in one step."""

    def __init__(self, keys: Sequence[Key], views: Sequence[View]) -> None:
        self.views = tuple(views)
        self.columns = tuple(feature.column for view in views for feature in view.features)
        ordered = sorted(keys, key=lambda key: key.name) or [Key("", DUMMY_KEY, "STRING")]
        names = [key.name.encode() for key in ordered]
        self._head = _UNSIGNED.pack(len(names)) + b"".join(
            _PAIR.pack(_TYPES["STRING"], len(name)) + name for name in names
        )
        self._parts = [(key.column, writer(key)) for key in ordered]
        # A view without keys: the value of Feast's stand-in is the empty text.
        self._constant = None if keys else self._head + _PAIR.pack(_TYPES["STRING"], 0)

    def key(self, entity: Mapping[str, Any]) -> bytes | None:
        """The entity's key in Feast's serialization version 3; None if a part of it is null, as nothing is known of that.

        Raises `KeyError` if one is missing, and `DataError` if one has the wrong type.
        """
        if self._constant is not None:
            return self._constant
        key = self._head
        for column, write in self._parts:
            value = entity[column]
            if value is None:
                return None
            key += write(value)
        return key


def sources(views: Sequence[View]) -> tuple[Source, ...]:
    """The views by their keys: those that share them are read together."""
    together: dict[tuple[Key, ...], list[View]] = {}
    for view in views:
        if view.features:
            together.setdefault(tuple(sorted(view.keys, key=lambda key: key.name)), []).append(view)
    return tuple(Source(keys, views) for keys, views in together.items())


def sqlite_table(project: str, view: str) -> str:
    """The view's table, as a quoted name."""
    return '"' + f"{project}_{view}".replace('"', '""') + '"'


def redis_field(view: str, feature: str) -> bytes:
    """The field of the entity's hash that holds the feature."""
    return _UNSIGNED.pack(mmh3.hash(f"{view}:{feature}", signed=False))


def writer(key: Key) -> Callable[[Any], bytes]:
    """What writes values of this key. Raises `DefinitionError` if Feast writes no keys of its type."""
    if key.type not in _TYPES:
        message = f"the join key {key.name} has the type {key.type}"
        raise DefinitionError([Problem("drivetrain.yaml", 0, "features.service", message, "use text or whole numbers")])
    kind = _TYPES[key.type]
    as_bytes = _WRITERS[key.type]

    def write(value: Any) -> bytes:
        try:
            written = as_bytes(value)
        except (TypeError, ValueError, OverflowError, struct.error) as error:
            raise DataError(
                f"{str(value)[:100]!r} is no {key.type}", hint=_HINTS[key.type], where=key.column
            ) from error
        return _PAIR.pack(kind, len(written)) + written

    return write


def _text(value: Any) -> bytes:
    if not isinstance(value, str):
        raise TypeError
    return value.encode()


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else _text(value)


def whole(value: Any) -> int:
    """A whole number, also where it is written as 5.0. Raises `TypeError` for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
        raise TypeError
    return int(value)


def _integer(type_: str) -> Callable[[Any], bytes]:
    layout = _LAYOUTS[type_]
    return lambda value: layout.pack(whole(value))


def _moment(value: Any) -> bytes:
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if isinstance(value, datetime):
        value = int((value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp())
    return _LAYOUTS["INT64"].pack(whole(value))


_WRITERS: Mapping[str, Callable[[Any], bytes]] = {
    "BYTES": _bytes,
    "STRING": _text,
    "INT32": _integer("INT32"),
    "INT64": _integer("INT64"),
    "UNIX_TIMESTAMP": _moment,
}
_HINTS = {
    "BYTES": "give text",
    "STRING": "give text",
    "INT32": "give a whole number below 2**31",
    "INT64": "give a whole number below 2**63",
    "UNIX_TIMESTAMP": "give seconds since 1970, or an ISO time",
}
