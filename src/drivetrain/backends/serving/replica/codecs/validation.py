"""Inputs checked against the schema of a Cog runner, with the messages that Cog's own server gives.

Two paths give the same answer. `Inputs.kind` is a msgspec type made from the schema, so that a codec decodes and checks a
request in one pass; when that refuses, `Inputs.checked` goes over the decoded values and names every problem. What is accepted:

- JSON Schema's types without coercion: `1.0` is an integer and reaches the runner as the float that it is, `true` and `"1"` are not;
- unknown fields are dropped, optional ones that are left out and have no default become None;
- a null for an input that the schema calls nullable. Cog's own server refuses it; this is the one difference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, Required, TypedDict

from drivetrain.backends.serving.replica.codecs import rules
from drivetrain.backends.serving.replica.codecs.rules import Problem, Schema
from drivetrain.errors import ServingError


class Invalid(Exception):
    """The inputs are not what the schema asks for."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("; ".join(f"{problem.field}: {problem.message}" for problem in problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a runner takes. `kind` is the msgspec type of its inputs, None where the schema says what no such type can."""

    properties: Mapping[str, Schema]
    required: Sequence[str]
    nulls: Sequence[str]
    """Inputs that become None where they are left out."""
    kind: Any

    def checked(self, value: object) -> dict[str, Any]:
        """The inputs as the runner gets them. Raises `Invalid` with every problem, in the order in which Cog's server lists them."""
        if not isinstance(value, dict):
            raise Invalid([Problem("__root__", f'{rules.shown(value)} is not of type "object"')])
        found = {name: entry for name, entry in value.items() if name in self.properties}
        problems = [
            problem for name in sorted(found) for problem in rules.problems(found[name], self.properties[name], name)
        ]
        problems += [
            Problem(name, "Field required", "value_error.missing") for name in self.required if name not in found
        ]
        if problems:
            raise Invalid(problems)
        return self.completed(found)

    def completed(self, found: dict[str, Any]) -> dict[str, Any]:
        """The same inputs, with None for those that may be left out and have been."""
        for name in self.nulls:
            if name not in found:
                found[name] = None
        return found


def inputs_of(document: Mapping[str, Any]) -> Inputs:
    """The checks that a runner's OpenAPI document asks for. Raises `ServingError` if it has no inputs, or a pattern that is none."""
    schemas: Mapping[str, Any] = document.get("components", {}).get("schemas", {})
    if "Input" not in schemas:
        raise ServingError(
            "the runner's OpenAPI document has no components.schemas.Input", hint="deploy the model again to build it"
        )
    schema = rules.resolved(schemas["Input"], schemas)
    properties: Mapping[str, Schema] = schema.get("properties", {})
    required = tuple(schema.get("required", ()))
    nulls = tuple(
        name
        for name, entry in properties.items()
        if entry.get("nullable") and "default" not in entry and name not in required
    )
    return Inputs(properties, required, nulls, _kind(properties, required))


def _kind(properties: Mapping[str, Schema], required: Sequence[str]) -> Any:
    """A `TypedDict`: msgspec decodes it to a dict, drops unknown keys and leaves out what is not given."""
    kinds = {name: rules.kind_of(entry) for name, entry in properties.items()}
    if any(kind is None for kind in kinds.values()):
        return None
    return TypedDict(  # type: ignore[operator]
        "Input", {name: Required[kind] if name in required else NotRequired[kind] for name, kind in kinds.items()}
    )
