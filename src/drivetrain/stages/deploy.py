"""Deploy: the model, its runner and what both need become a bundle; the bundle answers; the version is the champion."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from drivetrain import champion, service
from drivetrain.backends.serving import Serving
from drivetrain.backends.tracking import Tracking
from drivetrain.definition.values import split_function
from drivetrain.errors import ServingError, StageError
from drivetrain.records import Artifact, DeployOutputs, Reference, Scalar
from drivetrain.stages import StageContext
from drivetrain.usercode import closure

_DEFAULT_RUNNER = "run.py:Runner"
_OWN = ("model", ".cog", ".drivetrain")
"""Directories of a bundle that are not the user's."""
_EXAMPLE_ROWS = 3
_TYPES: Mapping[str, tuple[type, ...]] = {
    "number": (int, float),
    "integer": (int,),
    "string": (str,),
    "boolean": (bool,),
}


@dataclass(frozen=True, slots=True)
class Inputs:
    """What is served: the model with what its features mean, and the version that it was registered as."""

    model: Artifact
    definitions: Artifact
    version: Reference


def run(context: StageContext, inputs: Inputs, *, serving: Serving, tracking: Tracking) -> DeployOutputs:
    """The revision that answers now, and its bundle.

    The endpoint comes first, the alias second, the champion's record last: a deployment that was cut off is completed by
    doing it again. A candidate comes up beside the champion, gets no traffic, and moves neither alias nor record. Raises
    `StageError` if the runner cannot be loaded, `ServingError` if it does not come up or does not answer its first request; the
    former champion serves on then.
    """
    name, part = context.definition.name, context.definition.serving
    number = inputs.version.id.rpartition("/")[2]
    runner = part.runner or _DEFAULT_RUNNER
    place = _lay_out(context, inputs)
    schema = serving.schema(place, runner)
    _write_json(place / ".cog" / "openapi_schema.json", schema)
    example = _first_request(place / "model", schema, is_default=part.runner is None)
    if example is not None:
        _write_json(place / "example.json", example)
    bundle = context.objects.put("bundle", place, {"runner": runner, "version": number})
    # Named for the bundle, which holds the model: a changed runner is a new revision of the same version.
    revision = f"{name}-{number}-{bundle.digest[:8]}"
    context.say(f"bringing up {revision}")
    settings = service.settings(context.definition, context.project, context.state)
    endpoint = serving.deploy(settings, revision, place, runner, example, promote=not context.candidate)
    detail: dict[str, Scalar] = {"url": endpoint.url, "version": number, "pid": endpoint.pid}
    if context.candidate:
        _stand_beside(serving, name)
        detail["candidate"] = True
    else:
        _promote(context, inputs, tracking, number)
    proof = "and answered its first request" if example else "(no first request: its inputs are not the features)"
    where = "beside the champion" if context.candidate else f"at {endpoint.url}"
    context.say(f"{revision} is ready {where} {proof}")
    return DeployOutputs(Reference("revision", revision, detail), bundle)


def _stand_beside(serving: Serving, name: str) -> None:
    """Raises `ServingError` if nothing serves that the candidate could stand beside."""
    if not any(found.weight for found in serving.status(name).revisions):
        hint = "`drivetrain deploy` brings the champion up"
        raise ServingError("no champion serves that a candidate could be compared with", hint=hint)


def _promote(context: StageContext, inputs: Inputs, tracking: Tracking, number: str) -> None:
    name = context.definition.name
    tracking.set_alias(name, "champion", number)
    challenger = tracking.version(name, "challenger")
    if challenger is not None and challenger.version == number:
        tracking.drop_alias(name, "challenger")
    former = champion.read(context.objects, name)
    champion.write(context.objects, champion.succeed(former, inputs.model, inputs.version, context.run_id))


# The bundle


def _lay_out(context: StageContext, inputs: Inputs) -> Path:
    """The bundle without schema and example: runner and user code, `cog.yaml`, requirements, `model/`, what its features
    mean."""
    part = context.definition.serving
    place = context.work / "bundle"
    place.mkdir()
    if part.runner is None:
        source = files("drivetrain.backends.serving").joinpath("default_runner.py")
        (place / "run.py").write_bytes(source.read_bytes())
    else:
        # What the training function is made of goes along: a pickled model may refer to classes of its module.
        starts = [split_function(name)[0] for name in (part.runner, context.definition.train.function)]
        _copy_code(context.project, closure(context.project, starts), place)
    context.objects.get(inputs.model, place / "model")
    context.objects.get(inputs.definitions, place / ".drivetrain" / "definitions")
    if part.cog is None:
        _write_cog(place, part.runner or _DEFAULT_RUNNER)
    else:
        _copy_cog(context.project, part.cog, place)
    return place


def _copy_code(project: Path, found: Sequence[Path], place: Path) -> None:
    for path in found:
        if path.is_absolute() or path.parts[0] in _OWN:
            raise StageError(
                f"{path} cannot go into the bundle: " + ("it lies outside the project" if path.is_absolute() else
                f"`{path.parts[0]}/` is where the model's own files are"),
                hint="move or rename it",
            )  # fmt: skip
        _copy(project / path, place / path)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _write_cog(place: Path, runner: str) -> None:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    build = f'build:\n  python_version: "{version}"\n  python_requirements: requirements.txt\n'
    (place / "cog.yaml").write_text(f'{build}run: "{runner}"\n')
    _copy(place / "model" / "requirements.txt", place / "requirements.txt")


def _copy_cog(project: Path, cog: str, place: Path) -> None:
    """The user's `cog.yaml`, and the requirements file that it names."""
    _copy(project / cog, place / "cog.yaml")
    try:
        found = YAML(typ="safe").load(project / cog)
    except YAMLError as error:
        raise StageError(f"it is no YAML: {error}", where=cog) from error
    build = found.get("build") if isinstance(found, dict) else None
    named = build.get("python_requirements") if isinstance(build, dict) else None
    if named is None:
        return
    if not (project / str(named)).is_file():
        raise StageError(f"build.python_requirements names {named}, which is not in the project", where=cog)
    _copy(project / str(named), place / str(named))


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, sort_keys=True, indent=1) + "\n")


# The first request


def _first_request(model: Path, schema: Mapping[str, Any], *, is_default: bool) -> Mapping[str, Any] | None:
    """Inputs that the new revision has to answer before it replaces the old one, from the model's own input example.

    The default runner takes the rows as they are. A user's runner is asked if the example's columns fill its required
    inputs by name, with values of their types, or if its one required input is a list of numbers (a row's features, in
    their order); otherwise None: then only its health is known.
    """
    rows = _example_rows(model)
    if is_default:
        return {"rows": rows[:_EXAMPLE_ROWS]} if rows else None
    schemas = schema["components"]["schemas"]
    wanted = schemas["Input"]
    whole = _numbers_input(wanted)
    for row in rows:
        if whole is not None and all(_fits(value, {"type": "number"}, schemas) for value in row.values()):
            return {whole: list(row.values())}
        filled = {
            name: row[name]
            for name, field in wanted["properties"].items()
            if name in row and _fits(row[name], field, schemas)
        }
        if filled and set(wanted.get("required", [])) <= set(filled):
            return filled
    return None


def _numbers_input(wanted: Mapping[str, Any]) -> str | None:
    """The runner's one required input, if that is a list of numbers."""
    match wanted.get("required", []):
        case [name]:
            field = wanted["properties"][name]
            is_list = field.get("type") == "array" and field.get("items", {}).get("type") == "number"
            return str(name) if is_list else None
    return None


def _example_rows(model: Path) -> list[dict[str, Any]]:
    """The rows of the input example that MLflow stored: a table, or for a neural network a matrix of the features."""
    path = model / "input_example.json"
    if not path.is_file():
        return []
    example = json.loads(path.read_bytes())
    if isinstance(example, list):  # a neural network's matrix, without a name
        example = {"inputs": example}
    columns = example.get("columns") or json.loads((model / "drivetrain.json").read_bytes())["features"]
    rows = example.get("data") or example.get("inputs", [])
    return [{name: _known(value) for name, value in zip(columns, row, strict=True)} for row in rows]


def _known(value: Any) -> Any:
    """JSON has no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _fits(value: Any, field: Mapping[str, Any], schemas: Mapping[str, Any]) -> bool:
    """Whether the value may be the input: of its type, and one of its choices. Cog refuses null for any input."""
    if "allOf" in field:
        choices = schemas[field["allOf"][0]["$ref"].rpartition("/")[2]]["enum"]
        return value in choices
    kind = field.get("type", "")
    if isinstance(value, bool) != (kind == "boolean"):
        return False
    return isinstance(value, _TYPES.get(kind, ()))
