"""A request's body with the online features of its entities: the caller names keys, the runner gets features.

Where keys stand, and features are put:

    Cog   {"input": {KEY: ..}}                      beside the keys
          {"input": {"rows": [{KEY: ..}, ..]}}      in every object of a list, whatever the input is called
    V1    {"instances": [{KEY: ..}, ..]}            in every instance
    V2    {"inputs": [{"name": KEY, ..}, ..]}       as tensors of as many rows, in place of the keys, since a tensor that no
                                                    input is named after is refused; JSON alone, not the binary extension

A feature that the caller gives himself is kept. One that has no value gets its default, else null; as an input of its own in Cog's
form it is left out, since Cog takes a null for few inputs, and what is left out counts as the input's own default. A request without
any join key is passed on as it came. What is neither key nor feature is not decoded at all.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from drivetrain.backends.serving.gateway.contracts import OnlineFeatures
from drivetrain.backends.serving.gateway.settings import LookingUp
from drivetrain.backends.serving.http.messages import Response
from drivetrain.errors import DataError, DrivetrainError, SystemFault

_Object = dict[str, Any]
"""What was decoded of a JSON object: its values are `msgspec.Raw`, as they came, or values that were added."""
_read_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_read_objects = msgspec.json.Decoder(list[dict[str, msgspec.Raw]]).decode
_read = msgspec.json.Decoder().decode
_write = msgspec.json.Encoder(decimal_format="number").encode
_HEADER = 1024**2
"""Bytes in which the JSON at the head of a binary request has to end, for it to be looked into."""


@dataclass(frozen=True, slots=True)
class Enriched:
    """The body to pass on, and the features that had no value; or the `error` to answer with in its place.

    `looked_up` is how many entities were; `failed` says that the look-up did not succeed, whatever was made of it.
    """

    body: bytes
    missing: Sequence[str] = ()
    error: Response | None = None
    looked_up: int = 0
    failed: bool = False


async def enrich(path: str, content_type: str, body: bytes, features: OnlineFeatures, settings: LookingUp) -> Enriched:
    """The body with the features of its entities, one look-up for all of them."""
    form = _FORMS[_protocol(path)] if body else None
    if form is None:
        return Enriched(body)
    try:
        asked = form.read(content_type, body, features)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Enriched(body)  # the replica says what is wrong with it
    except _Mistake as mistake:
        return Enriched(body, error=form.refusal(mistake))
    if asked is None or not asked.entities:
        return Enriched(body)
    count, names = len(asked.entities), features.features
    try:
        async with asyncio.timeout(settings.timeout):
            found = await features.fetch(asked.entities)
    except DataError as error:
        return Enriched(body, error=form.refusal(_Mistake(error.where, error.message, error.hint)), looked_up=count)
    except (DrivetrainError, TimeoutError) as error:
        if settings.on_failure != "defaults":
            return Enriched(body, error=_failure(error, settings), looked_up=count, failed=True)
        nothing: Mapping[str, Any] = dict.fromkeys(names)
        filled, missing = asked.filled([nothing] * count, settings.defaults)
        return Enriched(filled, missing, looked_up=count, failed=True)
    filled, missing = asked.filled(found, settings.defaults)
    return Enriched(filled, missing, looked_up=count)


def _protocol(path: str) -> str:
    if path == "/predictions" or path.startswith("/predictions/"):
        return "cog"
    if path.startswith("/v1/models/") and path.endswith(":predict"):
        return "v1"
    return "v2" if path.startswith("/v2/models/") and path.endswith("/infer") else ""


def _failure(error: Exception, settings: LookingUp) -> Response:
    text = str(error) if isinstance(error, DrivetrainError) else f"no answer within {settings.timeout:g} s"
    passing = isinstance(error, SystemFault | TimeoutError)
    said = f"the online features cannot be looked up: {text}"
    headers = ((b"retry-after", b"1"),) if passing else ()
    # Under both names: Cog's callers look for `detail`, KServe's for `error`.
    return Response(503 if passing else 500, _write({"error": said, "detail": said}), headers)


class _Mistake(Exception):
    """Something the caller has to correct; `where` is the key."""

    def __init__(self, where: str, message: str, hint: str = "", status: int = 0) -> None:
        super().__init__(message)
        self.where, self.message, self.hint, self.status = where, message, hint, status


class _Asked(Protocol):
    """What of a request is to be looked up."""

    @property
    def entities(self) -> Sequence[Mapping[str, Any]]:
        """The keys of each."""
        ...

    def filled(self, found: Sequence[Mapping[str, Any]], defaults: Mapping[str, Any]) -> tuple[bytes, list[str]]:
        """The body with what was found for each entity, and the names of what was not."""
        ...


class _Form(Protocol):
    """How a protocol writes requests, and what it says of mistakes."""

    def read(self, content_type: str, body: bytes, features: OnlineFeatures) -> _Asked | None:
        """None if there is nothing to look up. Raises `msgspec.DecodeError` and `_Mistake`."""
        ...

    def refusal(self, mistake: _Mistake) -> Response: ...


# rows


class _Rows:
    """Objects that hold keys, wherever they stand in `whole`: they are changed in place, and `whole` is written again."""

    def __init__(self, features: OnlineFeatures) -> None:
        # As they are now: while the look-up is under way, a service may be defined anew.
        self._names, self._keys, self._joins = features.features, features.keys, features.entity_keys
        self._rows: list[tuple[_Object, bool]] = []
        self.entities: list[Mapping[str, Any]] = []
        self.whole: Any = None

    def add(self, row: _Object, place: str, nulls: bool) -> bool:
        """Takes a row in if it has a join key; `nulls` says that it may hold nulls. Raises `_Mistake` if it lacks another key."""
        if not any(key in row for key in self._joins):
            return False
        if any(name not in row for name in self._names):
            absent = [key for key in self._keys if key not in row]
            if absent:
                raise _Mistake(f"{place}{absent[0]}", "Field required", f"the look-up needs {', '.join(absent)}")
            self.entities.append({key: _read(row[key]) for key in self._keys})
            self._rows.append((row, nulls))
        return True

    def filled(self, found: Sequence[Mapping[str, Any]], defaults: Mapping[str, Any]) -> tuple[bytes, list[str]]:
        missing: dict[str, None] = {}
        for (row, nulls), values in zip(self._rows, found, strict=True):
            for name in self._names:
                if name in row:
                    continue
                value = values[name]
                if value is None:
                    missing[name] = None
                    value = defaults.get(name)
                if value is not None or nulls:
                    row[name] = value
        return _write(self.whole), list(missing)


class _Cog:
    """Cog's own API: inputs, some of which may be lists of objects."""

    def read(self, content_type: str, body: bytes, features: OnlineFeatures) -> _Asked | None:
        whole: _Object = _read_object(body)
        if "input" not in whole:
            return None
        inputs: _Object = _read_object(whole["input"])
        asked = _Rows(features)
        asked.whole = {**whole, "input": inputs}
        if asked.add(inputs, "", nulls=False):
            return asked
        for name, raw in inputs.items():
            rows = _objects(raw)
            for number, row in enumerate(rows):
                if asked.add(row, f"{name}.{number}.", nulls=True):
                    inputs[name] = rows
        return asked

    def refusal(self, mistake: _Mistake) -> Response:
        place = [int(part) if part.isdigit() else part for part in mistake.where.split(".")]
        kind = "missing" if mistake.message == "Field required" else "value_error"
        message = "; ".join(filter(None, (mistake.message, mistake.hint)))
        return Response(422, _write({"detail": [{"loc": ["body", "input", *place], "msg": message, "type": kind}]}))


def _objects(raw: msgspec.Raw) -> list[_Object]:
    """The objects of a list of objects; none of anything else."""
    if memoryview(raw)[0] != ord("["):
        return []
    try:
        return _read_objects(raw)
    except msgspec.DecodeError:
        return []


class _V1:
    """KServe's V1: instances, objects of inputs."""

    def read(self, content_type: str, body: bytes, features: OnlineFeatures) -> _Asked | None:
        whole: _Object = _read_object(body)
        if "instances" not in whole:
            return None
        asked = _Rows(features)
        instances: list[_Object] = _read_objects(whole["instances"])
        for number, row in enumerate(instances):
            asked.add(row, f"instances.{number}.", nulls=True)
        asked.whole = {**whole, "instances": instances}
        return asked

    def refusal(self, mistake: _Mistake) -> Response:
        return _kserve(mistake)


def _kserve(mistake: _Mistake) -> Response:
    message = "; ".join(filter(None, (f"{mistake.where}: {mistake.message}", mistake.hint)))
    return Response(mistake.status or 400, _write({"error": message}))


# tensors


class _V2:
    """The Open Inference Protocol as JSON: keys are tensors of one value a row."""

    def read(self, content_type: str, body: bytes, features: OnlineFeatures) -> _Asked | None:
        if content_type.partition(";")[0].strip().lower() == "application/octet-stream":
            self._refuse_binary(body, features)
            return None
        whole: _Object = _read_object(body)
        if "inputs" not in whole:
            return None
        tensors: list[_Object] = _read_objects(whole["inputs"])
        named = {str(_read(tensor["name"])): tensor for tensor in tensors if "name" in tensor}
        if not any(key in named for key in features.entity_keys) or all(name in named for name in features.features):
            return None
        absent = [key for key in features.keys if key not in named]
        if absent:
            raise _Mistake(absent[0], "the tensor is missing", f"the look-up needs {', '.join(absent)}")
        columns = {key: _column(key, named[key]) for key in features.keys}
        if len({len(values) for values in columns.values()}) > 1:
            counts = ", ".join(f"{key} {len(values)}" for key, values in columns.items())
            raise _Mistake("inputs", f"the tensors differ in their number of rows: {counts}")
        kept = [tensor for tensor in tensors if "name" not in tensor or _read(tensor["name"]) not in columns]
        return _Tensors(whole, kept, columns, [name for name in features.features if name not in named])

    def _refuse_binary(self, body: bytes, features: OnlineFeatures) -> None:
        try:
            header, _ = json.JSONDecoder().raw_decode(body[:_HEADER].decode(errors="replace"))
            named = {tensor["name"] for tensor in header["inputs"]}
        except (ValueError, LookupError, TypeError, RecursionError):
            return
        if any(key in named for key in features.entity_keys):
            hint = "send the tensors as JSON, or the features themselves"
            raise _Mistake("inputs", "online features are not looked up for binary tensors", hint, status=415)

    def refusal(self, mistake: _Mistake) -> Response:
        return _kserve(mistake)


def _column(name: str, tensor: _Object) -> list[Any]:
    """The tensor's values, one a row."""
    values = _read(tensor["data"]) if "data" in tensor else None
    if not isinstance(values, list):
        raise _Mistake(name, "the tensor has no data", "its shape is [N], its data a list of N values")
    if all(isinstance(value, list) and len(value) == 1 for value in values):
        values = [value[0] for value in values]
    if any(isinstance(value, list) for value in values):
        raise _Mistake(name, "a key is one value a row", "its shape is [N] or [N, 1]")
    return values


class _Tensors:
    """Tensors to which others are added, and the columns of keys that ask for them."""

    def __init__(
        self, whole: _Object, tensors: list[_Object], columns: Mapping[str, list[Any]], wanted: Sequence[str]
    ) -> None:
        self._whole, self._tensors, self._wanted = whole, tensors, wanted
        self.entities = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def filled(self, found: Sequence[Mapping[str, Any]], defaults: Mapping[str, Any]) -> tuple[bytes, list[str]]:
        missing = []
        for name in self._wanted:
            values = [row[name] for row in found]
            if None in values:
                missing.append(name)
                values = [defaults.get(name) if value is None else value for value in values]
            self._tensors.append(_tensor(name, values))
        return _write({**self._whole, "inputs": self._tensors}), missing


def _tensor(name: str, values: list[Any]) -> _Object:
    """A tensor of a feature's values. A null is one among numbers, which the replica reads as NaN, and empty among texts;
    lists of one length are a further dimension."""
    shape = [len(values)]
    while values and all(isinstance(value, list) and len(value) == len(values[0]) for value in values):
        shape.append(len(values[0]))
        values = [element for value in values for element in value]
    kinds = {type(value) for value in values}
    known = kinds - {type(None)}
    if known == {bool} == kinds:
        datatype = "BOOL"
    elif known == {int} == kinds:
        datatype = "INT64"
    elif known <= {bool, int, float}:
        datatype, values = "FP64", [None if value is None else float(value) for value in values]
    else:
        datatype, values = "BYTES", ["" if value is None else _as_text(value) for value in values]
    return {"name": name, "shape": shape, "datatype": datatype, "data": values}


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else _write(value).decode().strip('"')


_FORMS: Mapping[str, _Form | None] = {"cog": _Cog(), "v1": _V1(), "v2": _V2(), "": None}
