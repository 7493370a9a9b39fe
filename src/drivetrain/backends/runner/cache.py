"""Results by key, kept beside the artifacts: one cache for the local run and for the cluster's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from importlib import import_module
from typing import Any

from drivetrain.backends.objects import Objects
from drivetrain.records import Artifact, Verdict, decode


def load(name: str) -> Any:
    """What "module:name" names."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)


def keep(objects: Objects, key: str, stage: str, run_id: str, encoded: Mapping[str, Any]) -> None:
    """Keeps the encoded outputs of a stage under its key."""
    objects.set_ref(
        f"cache/{key}", json.dumps({"stage": stage, "run": run_id, "outputs": encoded}, sort_keys=True).encode()
    )


def find(objects: Objects, key: str, kind: str) -> Any:
    """The outputs (a record of the class "module:name") kept under the key, or None. A damaged entry, or one whose
    artifacts are not all there, is none."""
    held = objects.ref(f"cache/{key}")
    if held is None:
        return None
    try:
        encoded = json.loads(held)["outputs"]
    except (ValueError, KeyError, TypeError):
        return None
    return whole(objects, encoded, kind)


def whole(objects: Objects, encoded: Mapping[str, Any], kind: str) -> Any:
    """The outputs decoded, or None if they are of another form or one of their artifacts is not all there."""
    try:
        outputs = decode(load(kind), encoded)
    except (ValueError, TypeError):
        return None
    return outputs if all(objects.holds(artifact) for artifact in artifacts(outputs)) else None


def artifacts(outputs: Any) -> list[Artifact]:
    """The artifacts among a record's fields."""
    values = [getattr(outputs, entry.name) for entry in fields(outputs)]
    return [value for value in values if isinstance(value, Artifact)]


def verdict(outputs: Any) -> Verdict | None:
    """The verdict among a record's fields."""
    values = [getattr(outputs, entry.name) for entry in fields(outputs)]
    return next((value for value in values if isinstance(value, Verdict)), None)
