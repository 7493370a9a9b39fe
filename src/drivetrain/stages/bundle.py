"""The bundle: what is served and packaged alike, laid out as a directory."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from drivetrain.backends.serving import Serving
from drivetrain.definition.serving import DEFAULT_RUNNER
from drivetrain.definition.values import split_function
from drivetrain.errors import StageError
from drivetrain.records import Artifact
from drivetrain.stages import StageContext
from drivetrain.usercode import closure

_OWN = ("model", ".cog", ".drivetrain")
"""Directories of a bundle that are not the user's."""
_EXAMPLE_ROWS = 3
_TYPES: Mapping[str, tuple[type, ...]] = {
    "number": (int, float),
    "integer": (int,),
    "string": (str,),
    "boolean": (bool,),
}


def runner(context: StageContext) -> str:
    """The runner that the definition names, or the one for any model: `FILE.py:CLASS` in the bundle."""
    return context.definition.serving.runner or DEFAULT_RUNNER


def lay_out(context: StageContext, model: Artifact, definitions: Artifact, serving: Serving) -> Path:
    """The bundle's directory: runner and user code, `cog.yaml`, requirements, `model/`, what its features mean, the runner's OpenAPI
    document, and `example.json` with inputs that it has to answer, where the model's own example gives any.

    Raises `StageError` if the runner cannot be loaded, or something does not belong into a bundle.
    """
    place = _lay_out(context, model, definitions)
    schema = serving.schema(place, runner(context))
    _write_json(place / ".cog" / "openapi_schema.json", schema)
    example = _first_request(place / "model", schema, is_default=context.definition.serving.runner is None)
    if example is not None:
        _write_json(place / "example.json", example)
    return place


def example(place: Path) -> Mapping[str, Any] | None:
    """The inputs of a first request, if the bundle has any."""
    path = place / "example.json"
    return json.loads(path.read_bytes()) if path.is_file() else None


def _lay_out(context: StageContext, model: Artifact, definitions: Artifact) -> Path:
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
    context.objects.get(model, place / "model")
    context.objects.get(definitions, place / ".drivetrain" / "definitions")
    if part.cog is None:
        _write_cog(place, part.runner or DEFAULT_RUNNER)
    else:
        _copy_cog(context.project, part.cog, place)
    return place


def _copy_code(project: Path, found: Sequence[Path], place: Path) -> None:
    for path in found:
        _refuse_outside(project, path)
        if path.parts[0] in _OWN:
            raise StageError(
                f"{path} cannot go into the bundle: `{path.parts[0]}/` is where the model's own files are",
                hint="rename it",
            )
        _copy(project / path, place / path)


def _refuse_outside(project: Path, path: Path, where: str = "") -> None:
    """Raises `StageError` for what is not the project's own: a bundle is served and published. `where` names it."""
    target = (project / path).resolve()
    if path.is_absolute() or ".." in path.parts:
        why, hint = "it lies outside the project", "move it into the project"
    elif not target.is_relative_to(project.resolve()):
        why, hint = f"a link leads out of the project, to {target}", "put a copy in the link's place"
    else:
        return
    raise StageError(f"{path} cannot go into the bundle: {why}", hint=hint, where=where)


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
    _refuse_outside(project, Path(cog))
    _copy(project / cog, place / "cog.yaml")
    try:
        found = YAML(typ="safe").load(project / cog)
    except YAMLError as error:
        raise StageError(f"it is no YAML: {error}", where=cog) from error
    build = found.get("build") if isinstance(found, dict) else None
    named = build.get("python_requirements") if isinstance(build, dict) else None
    if named is None:
        return
    _refuse_outside(project, Path(str(named)), cog)
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
