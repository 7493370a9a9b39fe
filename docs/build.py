"""Writes what the documentation takes from the code: `definition.md` and the JSON schema from the types that read
`drivetrain.yaml`, `cli.md` from the commands.

python docs/build.py            writes the files
python docs/build.py --check    exits with 1 if a file is not what would be written
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import types
import typing
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from drivetrain.definition.definition import Definition, json_schema
from drivetrain.definition.values import format_duration, parse_size
from drivetrain.lifecycle import STAGES

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS))
import commands  # noqa: E402 - beside this file, wherever it is run from

EXAMPLE = DOCS.parent / "examples" / "flights" / "drivetrain.yaml"

LEAST = """\
name: iris
data:
  source: iris.csv
  label: species
train:
  function: train.py:train
evaluate:
  metric: accuracy
"""

INTRO = """\
<!-- Written by docs/build.py from the types in src/drivetrain/definition; `make fix` writes it anew. -->

# drivetrain.yaml

One file states a lifecycle: where the rows come from, what has to hold of them, how a model is fitted, when it is good
enough, how it answers. It names the files of the project's own tools (Python functions, a Feast repository, a Great
Expectations suite, a Cog runner) and wires them together.

Every mistake in it is reported with file, line and key; `drivetrain doctor` reports them without a run. A key that is not
in this reference is a mistake too. [drivetrain.schema.json](drivetrain.schema.json) is the same reference for editors:
put `# yaml-language-server: $schema=PATH` on the first line to have keys completed and checked while typing.

`drivetrain run --param train.parameters.depth=4` changes a value for one run.

## The least that runs

```yaml
{least}```

## A whole file

That of [examples/flights](../examples/flights):

```yaml
{example}```

## Values

| Type | Written as |
|---|---|
| duration | A number with `ms`, `s`, `m`, `h`, `d` or `w`, also several: `90s`, `15m`, `1d12h`. |
| size | Bytes, or a number with `K`, `M`, `G`, `T` (powers of 1000) or `Ki`, `Mi`, `Gi`, `Ti` (of 1024): `512Mi`, `2Gi`. |
| instant | A date or a time in ISO form: `2013-04-01`, `2013-04-01T06:00:00Z`. Without a zone it is UTC. |
| name | Lower-case letters, digits, `-` and `_`; begins with a letter, ends with a letter or digit. |
| function | `FILE.py:FUNCTION`, the file relative to the project: `train.py:train`. |
"""

STAGES_NOTE = """\
The column *Stages* names the [stages](stages) that read a key: a change of it repeats those, and the later ones whose inputs
then differ. A key without stages takes effect without repeating any.

"""


def reference() -> str:
    """The text of `definition.md`."""
    intro = INTRO.format(least=LEAST, example=EXAMPLE.read_text(encoding="utf-8"))
    top = (
        "\n## All keys\n\n"
        + _table(Definition, "")
        + "\nFeatures, and a hold-out with a `start`, need `data.timestamp`."
    )
    parts = "".join(f"\n{text}" for text in _sections(Definition, "", 2))
    return f"{intro}{top}\n{parts}"


def schema() -> str:
    """The text of `drivetrain.schema.json`."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


def keys(part: type[BaseModel] = Definition, prefix: str = "") -> Iterator[str]:
    """Every key, dotted: `train.resources.cpu`, `data.tables.NAME.source`, `triggers[].name`."""
    for path, field in _fields(part, prefix):
        yield path
        inner = _part(field.annotation)
        if inner is not None:
            yield from keys(inner[0], path + inner[1])


def _fields(part: type[BaseModel], prefix: str) -> Iterator[tuple[str, FieldInfo]]:
    for name, field in part.model_fields.items():
        yield f"{prefix}.{field.alias or name}".lstrip("."), field


def _part(annotation: Any) -> tuple[type[BaseModel], str] | None:
    """The part that a key holds, with what its own keys are prefixed by: nothing, `.NAME` or `[]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, ""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    for argument in arguments:
        found = _part(argument)
        if found is not None:
            return found[0], {dict: ".NAME", list: "[]"}.get(origin, "") + found[1]
    return None


def _sections(part: type[BaseModel], prefix: str, level: int) -> Iterator[str]:
    for path, field in _fields(part, prefix):
        inner = _part(field.annotation)
        if inner is not None:
            model, suffix = inner
            yield f"{'#' * level} {path}{suffix}\n\n{field.description}\n\n{_table(model, path + suffix)}"
            yield from _sections(model, path + suffix, level + 1)


def _table(part: type[BaseModel], prefix: str) -> str:
    rows = ["| Key | Type | Default | Stages | |", "|---|---|---|---|---|"]
    for path, field in _fields(part, prefix):
        default = "**required**" if field.is_required() else _default(field)
        kind, text = _type(field.annotation, tuple(field.metadata), path), (field.description or "").replace("|", r"\|")
        rows.append(f"| `{path}` | {kind} | {default} | {', '.join(_readers(path))} | {text} |")
    return "\n".join(rows) + "\n"


def _readers(path: str) -> list[str]:
    """The stages that read a key. The table of stages knows the parts by their attributes' names."""
    if path == "lock":
        return ["all"]
    names = {field.alias: name for name, field in Definition.model_fields.items() if field.alias}
    first, dot, rest = path.replace(".NAME", "").replace("[]", "").partition(".")
    key = f"{names.get(first, first)}{dot}{rest}."
    return [
        row.name
        for row in STAGES
        if any(key.startswith(f"{read}.") or f"{read}.".startswith(key) for read in row.reads)
    ]


def _type(annotation: Any, metadata: tuple[Any, ...], path: str) -> str:
    if typing.get_origin(annotation) is typing.Annotated:
        annotation, *inner = typing.get_args(annotation)
        return _type(annotation, (*metadata, *inner), path)
    found = _part(annotation)
    if found is not None:
        form = {"": "[{}](#{})", "[]": "list of [{}](#{})", ".NAME": "mapping of names to [{}](#{})"}[found[1]]
        title = path + found[1]
        return form.format(title, re.sub(r"[^a-z0-9_-]", "", title.lower()))
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return _type(next(one for one in typing.get_args(annotation) if one is not type(None)), metadata, path)
    return _plain_type(annotation, metadata, path) + _limits(metadata)


def _plain_type(annotation: Any, metadata: tuple[Any, ...], path: str) -> str:
    arguments = typing.get_args(annotation)
    match typing.get_origin(annotation) or annotation:
        case typing.Literal:
            return _listed([f"`{value}`" for value in arguments], "or")
        case kind if kind is list:
            return f"list of {_type(arguments[0], (), path)}"
        case kind if kind is dict:
            return "mapping"
        case kind if kind is timedelta:
            return "duration"
        case kind if kind is datetime:
            return "instant"
        case kind if kind is int:
            return "size" if any(getattr(entry, "func", None) is parse_size for entry in metadata) else "whole number"
        case kind if kind is str:
            return "name" if _limit(metadata, "pattern") else "text"
        case kind:
            return {bool: "`true` or `false`", float: "number"}[kind]


def _limit(metadata: tuple[Any, ...], name: str) -> Any:
    return next((value for entry in metadata if (value := getattr(entry, name, None)) is not None), None)


def _limits(metadata: tuple[Any, ...]) -> str:
    words = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most", "max_length": "at most"}
    found = [(name, word, _limit(metadata, name)) for name, word in words.items()]
    texts = [
        f"{word} {value:,}{' characters' if 'length' in name else ''}"
        for name, word, value in found
        if value is not None
    ]
    return "".join(f", {text}" for text in texts)


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True, validated_data={})
    if isinstance(value, BaseModel):
        return "its own"
    if value is None:
        return "none"
    if value in ([], {}):
        return "empty"
    if isinstance(value, timedelta):
        value = format_duration(value)
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def _listed(names: list[str], word: str = "and") -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {word} {names[-1]}"


def main() -> int:
    """Writes the files, or with `--check` compares them; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a file is out of date")
    arguments = parser.parse_args()
    stale = []
    for name, text in (
        ("definition.md", reference()),
        ("drivetrain.schema.json", schema()),
        ("cli.md", commands.text()),
    ):
        path = DOCS / name
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(name)
        if not arguments.check:
            path.write_text(text, encoding="utf-8")
    if stale and arguments.check:
        print(f"out of date: {', '.join(stale)}; `python docs/build.py` writes them anew", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
