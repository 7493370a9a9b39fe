"""The OpenAPI document of a Cog runner, as `cog build` bakes it into an image: `python -m ... schema run.py:Runner`.

Cog's own generator is part of its command line (Go). What it reads of a runner is also in Cog's Python package, so the
types come from there; only the document around them is put together here. Runs as a process of its own in the bundle's
directory, since it imports the user's code. The last line that it prints is the document, or `{"error": ...}`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from cog import _inspector
from cog._adt import InputField, PredictorInfo, PrimitiveType, Repetition
from cog.predictor import load_predictor_from_ref

_NULLABLE = (Repetition.OPTIONAL, Repetition.OPTIONAL_REPEATED)
_LIMITS = {"ge": "minimum", "le": "maximum", "min_length": "minLength", "max_length": "maxLength", "regex": "pattern"}


def document(runner: str) -> dict[str, Any]:
    """The OpenAPI document of `FILE.py:CLASS` in the current directory.

    Raises whatever importing the file raises, and `ValueError` for a signature that Cog does not take.
    """
    file, _, name = runner.partition(":")
    load_predictor_from_ref(runner)  # registers the module under the name that the server gives it
    return describe(_inspector.create_predictor(Path(file).stem, name))


def describe(info: PredictorInfo) -> dict[str, Any]:
    """The OpenAPI document of a runner that Cog has looked into."""
    schemas: dict[str, Any] = {"Input": _input(list(info.inputs.values())), "Output": info.output.json_type()}
    schemas |= {field.name: _choices(field) for field in info.inputs.values() if field.choices}
    return {
        "openapi": "3.0.2",
        "info": {"title": "Cog", "version": "0.1.0"},
        "paths": _paths(),
        "components": {"schemas": schemas | _envelope()},
    }


def _input(fields: list[InputField]) -> dict[str, Any]:
    required = [field.name for field in fields if not _has_default(field)]
    found: dict[str, Any] = {
        "title": "Input",
        "type": "object",
        "properties": {field.name: _property(field) for field in fields},
    }
    return found | ({"required": required} if required else {})


def _property(field: InputField) -> dict[str, Any]:
    found: dict[str, Any] = {"x-order": field.order}
    if field.choices:
        found["allOf"] = [_ref(field.name)]
    else:
        found |= {"title": field.name.replace("_", " ").title(), **field.type.json_type()}
    if _default(field) is not None:
        found["default"] = _default(field)
    if field.type.repetition in _NULLABLE:
        found["nullable"] = True
    if field.description is not None:
        found["description"] = field.description
    if field.deprecated:
        found["deprecated"] = True
    limits = {word: getattr(field, limit) for limit, word in _LIMITS.items() if getattr(field, limit) is not None}
    return found | limits


def _has_default(field: InputField) -> bool:
    """Whether the input may be left out. A default of None makes only an optional type so, as Cog has it."""
    return field.default is not None or field.type.repetition in _NULLABLE


def _default(field: InputField) -> Any:
    """The default in JSON; None where there is none, or none that a schema should show."""
    if field.default is None or field.type.primitive in (PrimitiveType.FILE, PrimitiveType.SECRET):
        return None
    if field.type.primitive is PrimitiveType.PATH:
        return str(field.default)
    return field.type.json_encode(field.default)


def _choices(field: InputField) -> dict[str, Any]:
    return {
        "title": field.name,
        "description": "An enumeration.",
        "enum": field.choices,
        "type": field.type.primitive.json_type()["type"],
    }


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(title: str, **properties: dict[str, Any]) -> dict[str, Any]:
    return {"title": title, "type": "object", "properties": properties}


def _envelope() -> dict[str, Any]:
    """The schemas that are the same for every runner."""
    text, time = {"type": "string"}, {"type": "string", "format": "date-time"}
    answer = {
        "id": text, "version": text, "input": _ref("Input"), "output": _ref("Output"), "status": _ref("Status"),
        "error": text, "logs": text, "metrics": {"type": "object"},
        "created_at": time, "started_at": time, "completed_at": time,
    }  # fmt: skip
    problem = _object(
        "ValidationError",
        loc={"type": "array", "items": {"anyOf": [text, {"type": "integer"}]}}, msg=text, type=text,
    )  # fmt: skip
    status = ["starting", "processing", "succeeded", "canceled", "failed"]
    return {
        "PredictionRequest": _object("PredictionRequest", id=text, input=_ref("Input")),
        "PredictionResponse": _object("PredictionResponse", **answer),
        "Status": {"title": "Status", "type": "string", "enum": status},
        "ValidationError": problem | {"required": ["loc", "msg", "type"]},
        "HTTPValidationError": _object(
            "HTTPValidationError", detail={"type": "array", "items": _ref("ValidationError")}
        ),
    }


def _paths() -> dict[str, Any]:
    anything = {"200": _answer("Successful Response", {})}
    refused = {"422": _answer("Validation Error", _ref("HTTPValidationError"))}
    one = {"name": "prediction_id", "in": "path", "required": True, "schema": {"type": "string"}}
    predict = {
        "requestBody": {"content": {"application/json": {"schema": _ref("PredictionRequest")}}},
        "responses": {"200": _answer("Successful Response", _ref("PredictionResponse"))} | refused,
    }
    return {
        "/": {"get": {"operationId": "root__get", "responses": anything}},
        "/health-check": {"get": {"operationId": "healthcheck_health_check_get", "responses": anything}},
        "/predictions": {"post": {"operationId": "predict_predictions_post"} | predict},
        "/predictions/{prediction_id}": {
            "put": {"operationId": "predict_idempotent_predictions__prediction_id__put", "parameters": [one]} | predict
        },
        "/predictions/{prediction_id}/cancel": {
            "post": {
                "operationId": "cancel_predictions__prediction_id__cancel_post",
                "parameters": [one],
                "responses": anything | refused,
            }
        },
    }


def _answer(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def main() -> int:
    """Prints the document of the runner named on the command line; 1 if there is none."""
    try:
        answer, code = document(sys.argv[1]), 0
    except Exception as error:  # noqa: BLE001 - the user's own code is imported here: it may raise anything
        answer, code = {"error": f"{type(error).__name__}: {error}"}, 1
    print()
    print(json.dumps(answer, sort_keys=True))
    return code


if __name__ == "__main__":
    sys.exit(main())
