"""Captured requests as columns: what the model was asked, whichever protocol it was asked in.

    Cog   {"input": {FEATURE: ..}}    {"input": {ANY: [{FEATURE: ..}, ..]}}    {"input": {ANY: [1.0, ..]}}, one row or several
    V1    {"instances": [{FEATURE: ..} or [1.0, ..] or {ANY: [1.0, ..]}, ..]}
    V2    a tensor for each feature, or one of shape [rows, features]; as JSON, binary, or over gRPC

Bare numbers are the features in their order. What a request does not have is missing; what is no number among numbers too. Nothing
that a caller sends raises, takes more memory than its own size, or is kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from drivetrain.backends.serving.gateway.events import Event
from drivetrain.backends.serving.replica.codecs.jsons import UNREADABLE
from drivetrain.engines.reference import numbers_of
from drivetrain.watch import tensors

LARGEST = 4 * 1024**2
"""Bytes of a body that is looked into: some ten thousand rows. A larger one is counted, and left alone."""
MOST_ROWS = 10_000
"""Rows of one request that are looked at."""

TOO_LARGE, UNREADABLE_BODY = "too_large", "unreadable"

Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Columns:
    """The rows of several requests, one after the other. `values` are float64 for numbers and objects for texts; `rows` says for each
    request how many of them are its own, `faults` why it has none (empty where it has)."""

    values: Mapping[str, np.ndarray]
    rows: np.ndarray
    faults: Sequence[str]


class Requests:
    """Decodes requests for one revision.

    `numbers` says of each column, in the order of the model's features and whatever else is wanted after them, whether it is numeric;
    the first `features` of them are what bare numbers are.
    """

    def __init__(self, numbers: Mapping[str, bool], features: int) -> None:
        self._numbers = dict(numbers)
        self._names = list(numbers)
        self._features = features
        self._rest: Row = (None,) * (len(self._names) - features)
        self._ways = {"cog": _Ways(self._cog()), "v1": _Ways(self._v1())}

    def decode(self, events: Iterable[Event]) -> Columns:
        """The columns of the requests, in the order given."""
        rows: list[Row] = []
        counts: list[int] = []
        faults: list[str] = []
        for event in events:
            fault, found = self._rows(event)
            rows += found
            counts.append(len(found))
            faults.append(fault)
        return Columns(self._columns(rows), np.array(counts, dtype=np.int64), faults)

    def _rows(self, event: Event) -> tuple[str, Sequence[Row]]:
        body = event.body
        if len(body) > LARGEST:
            return TOO_LARGE, ()
        try:
            form = protocol(event.path, body)
            found = self._tensors(event) if form == "v2" else self._ways[form].read(body)
        except (*UNREADABLE, *tensors.REFUSED, KeyError):
            found = None
        if not found:
            return UNREADABLE_BODY, ()
        return ("", found) if len(found) <= MOST_ROWS else (TOO_LARGE, ())

    def _columns(self, rows: Sequence[Row]) -> dict[str, np.ndarray]:
        columns: Iterable[Sequence[Any]] = zip(*rows, strict=True) if rows else ((),) * len(self._names)
        return {
            name: _numeric(values) if self._numbers[name] else _objects(values)
            for name, values in zip(self._names, columns, strict=True)
        }

    # JSON

    def _cog(self) -> Sequence[Callable[[bytes], Sequence[Row] | None]]:
        row, astuple = self._row_type(), msgspec.structs.astuple
        nothing = row()
        one = _decoder(("input", row))
        several = _decoder(("input", dict[str, list[row]]))  # type: ignore[valid-type]
        vector = _decoder(("input", dict[str, list[float | None]]))
        matrix = _decoder(("input", dict[str, list[list[float | None]]]))
        generic = msgspec.json.Decoder(dict[str, Any])

        def named(body: bytes) -> Sequence[Row] | None:
            found = one(body).input
            return None if found == nothing else (astuple(found),)

        def listed(body: bytes) -> Sequence[Row] | None:
            found = _only(several(body).input)
            return None if not found or all(entry == nothing for entry in found) else [astuple(e) for e in found]

        def loose(body: bytes) -> Sequence[Row] | None:
            given = generic.decode(body).get("input")
            if not isinstance(given, dict):
                return None
            return self._loosely([given]) or self._loosely(_only(given))

        return (
            named,
            listed,
            lambda body: self._matrix([_only(vector(body).input)]),
            lambda body: self._matrix(_only(matrix(body).input)),
            loose,
        )

    def _v1(self) -> Sequence[Callable[[bytes], Sequence[Row] | None]]:
        row, astuple = self._row_type(), msgspec.structs.astuple
        nothing = row()
        objects = _decoder(("instances", list[row], None), ("inputs", list[row], None))  # type: ignore[valid-type]
        lists = _decoder(("instances", list[list[float | None]], None), ("inputs", list[list[float | None]], None))
        keyed = dict[str, list[float | None]]
        boxed = _decoder(("instances", list[keyed], None), ("inputs", list[keyed], None))
        generic = msgspec.json.Decoder(dict[str, Any])

        def named(body: bytes) -> Sequence[Row] | None:
            found = _instances(objects(body))
            return None if all(entry == nothing for entry in found) else [astuple(entry) for entry in found]

        def loose(body: bytes) -> Sequence[Row] | None:
            given = generic.decode(body)
            return self._loosely(given.get("instances") or given.get("inputs"))

        return (
            named,
            lambda body: self._matrix(_instances(lists(body))),
            lambda body: self._matrix([_only(entry) for entry in _instances(boxed(body))]),
            loose,
        )

    def _row_type(self) -> Any:
        """A struct with a field for each column, so that nothing else of a body is made into objects. It has none where a name
        is written in JSON with escapes, which structs do not allow: rows are read loosely then."""
        if any(json.dumps(name, ensure_ascii=False) != f'"{name}"' for name in self._names):
            return msgspec.defstruct("Row", [], gc=False)
        fields: list[tuple[str, Any, Any]] = [
            (f"c{place}", (float | bool | None) if self._numbers[name] else (str | None), None)
            for place, name in enumerate(self._names)
        ]
        renamed = {f"c{place}": name for place, name in enumerate(self._names)}
        return msgspec.defstruct("Row", fields, rename=renamed, gc=False)

    def _loosely(self, entries: Any) -> Sequence[Row] | None:
        """Rows of objects whose values need not be of the right type."""
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            return None
        names = set(self._names)
        if not any(names & entry.keys() for entry in entries):
            return None
        return [tuple([entry.get(name) for name in self._names]) for entry in entries]

    def _matrix(self, rows: Sequence[Sequence[Any] | None]) -> Sequence[Row] | None:
        if not rows or any(row is None or len(row) != self._features for row in rows):
            return None
        return [(*row, *self._rest) for row in rows if row is not None]

    # tensors

    def _tensors(self, event: Event) -> Sequence[Row] | None:
        found = tensors.request(event.content_type, event.body)
        named = {name: array.reshape(-1) for name, array in found.items() if name in self._numbers}
        if named:
            lengths = {len(array) for array in named.values()}
            if len(lengths) > 1:
                return None
            nothing = [None] * lengths.pop()
            columns = [named[name].tolist() if name in named else nothing for name in self._names]
            return list(zip(*columns, strict=True))
        if len(found) != 1:
            return None
        (array,) = found.values()
        if array.ndim < 2 or array[:1].size != self._features * len(array[:1]):
            return None
        return self._matrix(array.reshape(len(array), -1).tolist())


class _Ways:
    """Ways to read a body, the one that has worked last first: a service's requests are all alike."""

    def __init__(self, ways: Sequence[Callable[[bytes], Sequence[Row] | None]]) -> None:
        self._ways = ways
        self._last = 0

    def read(self, body: bytes) -> Sequence[Row] | None:
        """The rows by the first way that has any. Raises what msgspec does if that is none of them."""
        try:
            if found := self._ways[self._last](body):
                return found
        except UNREADABLE:
            pass
        for place, way in enumerate(self._ways):
            try:
                found = way(body)
            except UNREADABLE:
                continue
            if found:
                # The loose way takes everything: it must not stay in front of the quick ones.
                self._last = place if place < len(self._ways) - 1 else self._last
                return found
        return None


def protocol(path: str, body: bytes) -> str:
    """`cog`, `v1` or `v2`: what a path is of; what a body is of where there is no path, as in the events of KServe's own logger. Raises
    `KeyError` for any other path."""
    if path.startswith("/predictions"):
        return "cog"
    if path.startswith("/v2/"):
        return "v2"
    if path.startswith("/v1/"):
        return "v1"
    if path in ("", "/"):
        keys = body[:_HEAD]
        return next((form for form, words in _WORDS if any(word in keys for word in words)), "v2")
    raise KeyError(path)


_HEAD = 4096
_WORDS = (
    ("v1", (b'"instances"', b'"predictions"')),
    ("v2", (b'"inputs"', b'"outputs"')),
    ("cog", (b'"input"', b'"output"')),
)


def _decoder(*fields: tuple[str, Any] | tuple[str, Any, Any]) -> Callable[[bytes], Any]:
    return msgspec.json.Decoder(msgspec.defstruct("Body", fields, gc=False)).decode


def _only(given: Mapping[str, Any]) -> Any:
    """The one value that is a list, if there is just one."""
    lists = [value for value in given.values() if isinstance(value, list)]
    return lists[0] if len(lists) == 1 else None


def _instances(found: Any) -> Sequence[Any]:
    return found.instances or found.inputs or ()


def _numeric(values: Sequence[Any]) -> np.ndarray:
    try:
        return np.array(values, dtype=np.float64)  # None becomes NaN
    except (TypeError, ValueError, OverflowError):
        return numbers_of(_objects(values))


def _objects(values: Sequence[Any]) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array
