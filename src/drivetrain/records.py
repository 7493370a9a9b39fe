"""What passes between stages: frozen values and digests, nothing that needs a library to read.

A record goes to the journal, to the cache and over a pipeline's parameters as JSON (`encode`, `decode`).
"""

from __future__ import annotations

import hashlib
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, TypeVar

Scalar = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Artifact:
    """An immutable stage output: a small tree of files, named by the digest of its manifest.

    `size` is in bytes, over all files. `metadata` (row counts, metric values) describes and does not count towards
    the digest or any cache key.
    """

    kind: str
    digest: str
    size: int
    metadata: Mapping[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reference:
    """Something that lives in another system (an MLflow run, a registered version, an endpoint) and so has no digest.

    References are carried and shown; they never count towards a cache key, because their ids differ in every run.
    """

    kind: str
    id: str
    detail: Mapping[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A stage's judgement. A run stops after a stage whose verdict has not passed, with `exit_code` (3 gate, 4 data)."""

    passed: bool
    reason: str
    exit_code: int = 0


@dataclass(frozen=True, slots=True)
class IngestOutputs:
    snapshot: Artifact
    """`rows/*.parquet`, the training rows; `tables/NAME/*.parquet`, the history behind the features; `snapshot.json`."""


@dataclass(frozen=True, slots=True)
class FeaturesOutputs:
    frame: Artifact
    """`frame.parquet`: every training row with its features as of its time; `frame.json`: which column is what."""
    definitions: Artifact
    """The Feast objects as JSON, with each feature's type: what the frame's columns mean."""
    online: Reference
    """The online store that now holds the newest values."""


@dataclass(frozen=True, slots=True)
class ValidateOutputs:
    verdict: Verdict
    result: Artifact
    """`result.json` (Great Expectations' own form), `result.html`, and `offending.parquet` if rows failed."""


@dataclass(frozen=True, slots=True)
class TrainOutputs:
    model: Artifact
    """An MLflow model directory, without the ids and times that would differ from run to run."""
    tracked: Reference
    """The MLflow run."""


@dataclass(frozen=True, slots=True)
class EvaluateOutputs:
    verdict: Verdict
    report: Artifact
    """`evaluation.json` (metric, interval, champion, slices), `reference.json`, plots as PNG, `predictions.parquet`."""


@dataclass(frozen=True, slots=True)
class RegisterOutputs:
    version: Reference
    """MLflow's registered version; `id` is `NAME/NUMBER`."""


@dataclass(frozen=True, slots=True)
class PackageOutputs:
    image: Reference | None
    """The image that the version was packaged into; `id` ends with its digest. None: the definition asks for none."""
    signature: Artifact | None
    """`model.sig`, the model's signature, as model-signing writes it. None: nobody signs."""


@dataclass(frozen=True, slots=True)
class DeployOutputs:
    revision: Reference
    """The endpoint that answers; `id` is the revision's name, `detail["url"]` where it answers."""
    bundle: Artifact
    """What is served: runner, cog.yaml, model, OpenAPI schema."""


Record = TypeVar("Record")


def encode(record: object) -> dict[str, Any]:
    """The record as JSON-ready values."""
    return {entry.name: _encode_value(getattr(record, entry.name)) for entry in fields(record)}  # type: ignore[arg-type]


def _encode_value(value: object) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return encode(value)
    if isinstance(value, Mapping):
        return {str(key): _encode_value(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [_encode_value(entry) for entry in value]
    return value


def decode(kind: type[Record], values: Mapping[str, Any]) -> Record:
    """The record back from what `encode` gave.

    Raises `ValueError` if a field is missing or not known, so that an old cache entry is a miss, never a half record.
    """
    hints = typing.get_type_hints(kind)
    names = {entry.name for entry in fields(kind)}  # type: ignore[arg-type]
    if names != set(values):
        raise ValueError(f"{kind.__name__} has the fields {sorted(names)}, not {sorted(values)}")
    return kind(**{name: _decode_value(hints[name], values[name]) for name in names})


def decode_value(kind: type, name: str, value: Any) -> Any:
    """One field of a record of the class `kind`, back from its JSON form. Raises `ValueError` as `decode` does."""
    return _decode_value(typing.get_type_hints(kind)[name], value)


def _decode_value(hint: Any, value: Any) -> Any:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        if value is None:
            return None
        hint = next(option for option in typing.get_args(hint) if option is not type(None))
    if is_dataclass(hint) and isinstance(hint, type):
        return decode(hint, value)
    return value


def identity(value: object) -> Any:
    """What of a value counts towards a cache key: an artifact's digest, a verdict's `passed`, plain values whole,
    references not at all."""
    if isinstance(value, Artifact):
        return value.digest
    if isinstance(value, Verdict):
        return value.passed
    if isinstance(value, Reference):
        return None
    return value


def digest(value: object) -> str:
    """SHA-256 over the canonical JSON form (sorted keys, no spaces), as hexadecimal digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
