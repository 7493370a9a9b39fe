"""The part of JSON Schema that Cog's documents use: what is wrong with a value, and the msgspec type that says the same.

Messages and their order (keywords by name) are those of the validator in Cog's own server.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec

from drivetrain.errors import ServingError

Schema = Mapping[str, Any]

_LONGEST = 1000
"""Characters of a refused value that a message repeats."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with the inputs: `field` is `x`, `x/0` for an item of it, `__root__` for the inputs as a whole."""

    field: str
    message: str
    kind: str = "value_error"


def resolved(schema: Any, schemas: Mapping[str, Any]) -> Any:
    """The schema with what its references name in their place."""
    if isinstance(schema, list):
        return [resolved(entry, schemas) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    name = str(schema.get("$ref", "")).removeprefix("#/components/schemas/")
    if name in schemas:
        return resolved(schemas[name], schemas)
    return {key: resolved(value, schemas) for key, value in schema.items()}


def problems(value: Any, schema: Schema, field: str) -> Iterator[Problem]:
    """What is wrong with a value. A null is right where the schema says `nullable`."""
    if value is None and schema.get("nullable"):
        return
    for word in sorted(schema):
        check = _CHECKS.get(word)
        if check is not None:
            yield from check(value, schema[word], field)


def shown(value: Any) -> str:
    """A value as a message repeats it: compact JSON, its beginning alone if it is long."""
    try:
        text = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    except RecursionError:
        return "a value nested too deeply"
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "..."


def pattern(text: str) -> str:
    r"""The regular expression for `re`, with the meaning that it has in JSON Schema: `$` is the very end, `\d` is ASCII."""
    found = "(?a:" + re.sub(r"(\\.|\[\^?\]?(?:\\.|[^\]])*\])|\$", lambda part: part[1] or r"\Z", text, flags=re.S) + ")"
    try:
        re.compile(found)
    except re.error as error:
        raise ServingError(
            f"the schema's pattern {text!r} is no regular expression: {error}", hint="correct `regex=` in the runner"
        ) from error
    return found


def _is(kind: str, value: Any) -> bool:
    if kind == "integer":
        return (isinstance(value, int) and not isinstance(value, bool)) or (
            isinstance(value, float) and value.is_integer()
        )
    if kind == "number":
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, _TYPES.get(kind, object))


_TYPES: dict[str, Any] = {"string": str, "boolean": bool, "array": list, "object": dict, "null": type(None)}


def _type(value: Any, kind: Any, field: str) -> Iterator[Problem]:
    kinds = [kind] if isinstance(kind, str) else kind
    if not any(_is(one, value) for one in kinds):
        named = ", ".join(f'"{one}"' for one in kinds)
        yield Problem(field, f"{shown(value)} is not of type{'s' if len(kinds) > 1 else ''} {named}")


def _enum(value: Any, options: list[Any], field: str) -> Iterator[Problem]:
    if not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in options):
        yield Problem(field, f"{shown(value)} is not one of {shown(options)}")


def _all_of(value: Any, schemas: list[Schema], field: str) -> Iterator[Problem]:
    for schema in schemas:
        yield from problems(value, schema, field)


def _any_of(value: Any, schemas: list[Schema], field: str) -> Iterator[Problem]:
    if not any(next(problems(value, schema, field), None) is None for schema in schemas):
        yield Problem(field, f"{shown(value)} is not valid under any of the schemas listed in the 'anyOf' keyword")


def _items(value: Any, schema: Schema, field: str) -> Iterator[Problem]:
    if isinstance(value, list):
        for at, entry in enumerate(value):
            yield from problems(entry, schema, f"{field}/{at}")


def _bound(words: str, beyond: Callable[[Any, Any], bool]) -> Callable[[Any, Any, str], Iterator[Problem]]:
    def check(value: Any, limit: Any, field: str) -> Iterator[Problem]:
        if _is("number", value) and beyond(value, limit):
            yield Problem(field, f"{shown(value)} is {words} of {shown(limit)}")

    return check


def _length(words: str, beyond: Callable[[int, Any], bool]) -> Callable[[Any, Any, str], Iterator[Problem]]:
    def check(value: Any, limit: Any, field: str) -> Iterator[Problem]:
        if isinstance(value, str) and beyond(len(value), limit):
            yield Problem(field, f"{shown(value)} is {words} than {limit} character{'' if limit == 1 else 's'}")

    return check


def _pattern(value: Any, text: str, field: str) -> Iterator[Problem]:
    if isinstance(value, str) and re.search(pattern(text), value) is None:
        yield Problem(field, f'{shown(value)} does not match "{text}"')


_CHECKS: dict[str, Callable[[Any, Any, str], Iterator[Problem]]] = {
    "type": _type,
    "enum": _enum,
    "allOf": _all_of,
    "anyOf": _any_of,
    "items": _items,
    "minimum": _bound("less than the minimum", lambda value, limit: bool(value < limit)),
    "maximum": _bound("greater than the maximum", lambda value, limit: bool(value > limit)),
    "minLength": _length("shorter", lambda length, limit: bool(length < limit)),
    "maxLength": _length("longer", lambda length, limit: bool(length > limit)),
    "pattern": _pattern,
}


def kind_of(schema: Schema) -> Any:
    """A msgspec type that takes no more than the schema does, and gives the same values; None if there is none.

    It may take less (`1.0` for an integer): what it refuses is looked at again, by `problems`.
    """
    found = _Kinds.get(_single(schema.get("type")), _nothing)(schema)
    if found is None or not schema.get("nullable"):
        return found
    return found | None


def _single(kind: Any) -> str:
    return kind if isinstance(kind, str) else ""


def _nothing(schema: Schema) -> Any:
    """The type of a choice (`allOf` one enumeration); None for anything else that names no type of its own."""
    parts = schema.get("allOf")
    return kind_of(parts[0]) if isinstance(parts, list) and len(parts) == 1 and not _words(schema) - {"allOf"} else None


def _words(schema: Schema) -> set[str]:
    return set(schema) & set(_CHECKS)


def _text(schema: Schema) -> Any:
    if "enum" in schema:
        return _literal(schema, str)
    limits: dict[str, Any] = {"min_length": schema.get("minLength"), "max_length": schema.get("maxLength")}
    if "pattern" in schema:
        limits["pattern"] = pattern(schema["pattern"])
    return Annotated[str, msgspec.Meta(**limits)]


def _literal(schema: Schema, kind: type) -> Any:
    options = schema["enum"]
    return Literal[tuple(options)] if options and all(type(one) is kind for one in options) else None


def _integer(schema: Schema) -> Any:
    return _literal(schema, int) if "enum" in schema else Annotated[int, _limits(schema, math.ceil, math.floor)]


def _number(schema: Schema) -> Any:
    if "enum" in schema:
        return None
    return Annotated[int, _limits(schema, math.ceil, math.floor)] | Annotated[float, _limits(schema, float, float)]


def _limits(schema: Schema, least: Callable[[Any], Any], most: Callable[[Any], Any]) -> msgspec.Meta:
    low, high = schema.get("minimum"), schema.get("maximum")
    return msgspec.Meta(ge=None if low is None else least(low), le=None if high is None else most(high))


def _plain(kind: Any) -> Callable[[Schema], Any]:
    return lambda schema: kind if _words(schema) == {"type"} else None


def _array(schema: Schema) -> Any:
    if _words(schema) - {"items"} != {"type"}:
        return None
    entry = kind_of(schema["items"]) if schema.get("items") else Any
    return None if entry is None else list[entry]  # type: ignore[valid-type]


_Kinds: dict[str, Callable[[Schema], Any]] = {
    "string": _text,
    "integer": _integer,
    "number": _number,
    "boolean": _plain(bool),
    "object": _plain(dict[str, Any]),
    "array": _array,
}
