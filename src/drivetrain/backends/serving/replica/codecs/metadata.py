"""What a model takes and gives, as the Open Inference Protocol tells it; and the status documents of V1 and V2.

Tensors follow from Cog's schema: a scalar is [-1], a list [-1, -1], with the rows first; the fields of an output object are tensors
of their own. Columns of row objects, and what runners that take tensors whole expect, are the model's own matter and not listed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from drivetrain import __version__
from drivetrain.backends.serving.replica.calls import Signature
from drivetrain.backends.serving.replica.codecs import rules

_DATATYPES = {"integer": "INT64", "number": "FP64", "boolean": "BOOL", "string": "BYTES"}


@dataclass(frozen=True, slots=True)
class TensorMetadata:
    """A tensor; -1 is a dimension of any size."""

    name: str
    datatype: str
    shape: Sequence[int]


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """`GET /v2/models/NAME`."""

    name: str
    platform: str
    inputs: Sequence[TensorMetadata]
    outputs: Sequence[TensorMetadata]


@dataclass(frozen=True, slots=True)
class ServerMetadata:
    """`GET /v2`."""

    name: str
    version: str
    extensions: Sequence[str]


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """`GET /v1/models/NAME` and `GET /v2/models/NAME/ready`."""

    name: str
    ready: bool


SERVER = ServerMetadata("drivetrain", __version__, ("binary_tensor_data",))


def as_json(document: ModelMetadata | ServerMetadata | ModelStatus) -> bytes:
    """The body of the document's route."""
    return msgspec.json.encode(document)


def model_metadata(signature: Signature) -> ModelMetadata:
    """What the runner takes and gives."""
    schemas: Mapping[str, Any] = signature.schema.get("components", {}).get("schemas", {})
    given, made = (rules.resolved(schemas.get(name, {}), schemas) for name in ("Input", "Output"))
    inputs = () if signature.infers else tuple(_inputs(given.get("properties", {})))
    outputs = () if signature.infers else tuple(_outputs(made, signature.array_input is not None))
    return ModelMetadata(signature.name, "cog", inputs, outputs)


def _inputs(properties: Mapping[str, Any]) -> Iterator[TensorMetadata]:
    for name, schema in sorted(properties.items(), key=lambda entry: entry[1].get("x-order", 0)):
        yield from _tensors(name, schema, (-1,))


def _outputs(schema: Mapping[str, Any], of_rows: bool) -> Iterator[TensorMetadata]:
    if of_rows and schema.get("type") == "array":
        schema = schema.get("items", {})
    if schema.get("type") == "object":
        yield from _fields(schema, "")
    else:
        yield from _tensors("output", schema, (-1,))


def _fields(schema: Mapping[str, Any], prefix: str) -> Iterator[TensorMetadata]:
    for name, entry in schema.get("properties", {}).items():
        if entry.get("type") == "object":
            yield from _fields(entry, f"{prefix}{name}.")
        else:
            yield from _tensors(f"{prefix}{name}", entry, (-1,))


def _tensors(name: str, schema: Mapping[str, Any], shape: tuple[int, ...]) -> Iterator[TensorMetadata]:
    """The tensor of a value; none where the schema does not say enough."""
    parts = schema.get("allOf")
    kind = (parts[0] if parts else schema).get("type")
    if kind == "array":
        yield from _tensors(name, schema.get("items", {}), (*shape, -1))
    elif kind in _DATATYPES:
        yield TensorMetadata(name, _DATATYPES[kind], shape)
