"""`drivetrain.yaml` read: types checked, parameters overridden, every mistake placed on its line."""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from drivetrain import __version__
from drivetrain.definition.definition import FILE_NAME, Definition
from drivetrain.errors import DefinitionError, Problem
from drivetrain.records import digest

if TYPE_CHECKING:
    from ruamel.yaml.comments import CommentedMap

# ruamel.yaml is imported where a file is parsed: a definition that was read before needs no parser.

Place = tuple[str | int, ...]


@dataclass(frozen=True)
class Source:
    """A definition with the file that it was read from."""

    definition: Definition
    project: Path

    @cached_property
    def tree(self) -> Any:
        """The file's own tree, which knows lines; read again only when there is a mistake to place."""
        return _parse(self.project / FILE_NAME)

    def problem(self, place: Place, message: str, hint: str = "") -> Problem:
        """A mistake at a key of the file."""
        return Problem(FILE_NAME, line_of(self.tree, place), dotted(place), message, hint)


def read(project: Path, parameters: Mapping[str, str] | None = None, memory: Path | None = None) -> Source:
    """The definition of the project, `parameters` (`train.parameters.depth` -> "4") put in.

    `memory` is a file that keeps the last definition read: the same text is then not parsed again, which takes longer than
    everything else in a run that finds all cached. Raises `DefinitionError` with every mistake of syntax, keys and types.
    """
    wanted = digest([__version__, sha256((project / FILE_NAME).read_bytes()).hexdigest(), dict(parameters or {})])
    known = _recall(memory, wanted)
    if known is not None:
        return Source(known, project)
    tree = _parse(project / FILE_NAME)
    problems = [found for name, text in (parameters or {}).items() if (found := _override(tree, name, text))]
    if problems:
        raise DefinitionError(problems)
    try:
        source = Source(Definition.model_validate(_plain(tree)), project)
    except ValidationError as error:
        raise DefinitionError(_problems(tree, error, parameters or {})) from error
    if memory is not None and memory.parent.is_dir():
        document = {"of": wanted, "definition": source.definition.model_dump(mode="json", by_alias=True)}
        with contextlib.suppress(OSError):  # only time is lost
            temporary = memory.with_name(f"{memory.name}.{os.getpid()}")
            temporary.write_text(json.dumps(document))
            temporary.replace(memory)
    return source


def _recall(memory: Path | None, wanted: str) -> Definition | None:
    try:
        document = json.loads(memory.read_bytes()) if memory is not None else {}
        return Definition.model_validate(document["definition"]) if document.get("of") == wanted else None
    except (OSError, ValueError, KeyError, AttributeError):
        return None


def dotted(place: Place) -> str:
    """`("triggers", 0, "name")` as `triggers[0].name`."""
    text = ""
    for step in place:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def line_of(tree: Any, place: Place) -> int:
    """The line (from 1) of a key, or of the nearest thing around it that is in the file."""
    from ruamel.yaml.comments import CommentedMap, CommentedSeq

    line, node = 1, tree
    for step in place:
        try:
            if isinstance(node, CommentedMap) and step in node:
                line = node.lc.key(step)[0] + 1
            elif isinstance(node, CommentedSeq) and isinstance(step, int) and step < len(node):
                line = node.lc.item(step)[0] + 1
            else:
                break
        except (KeyError, TypeError):  # put in by --param: it has no line
            break
        node = node[step]
    return line


def _parse(path: Path) -> CommentedMap:
    from ruamel.yaml import YAML
    from ruamel.yaml.comments import CommentedMap
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise DefinitionError([Problem(FILE_NAME, 0, "", f"not UTF-8 at byte {error.start}")]) from error
    try:
        tree = YAML(typ="rt").load(text)
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise DefinitionError([Problem(FILE_NAME, line, "", f"not YAML: {error.problem}")]) from error
    except YAMLError as error:
        raise DefinitionError([Problem(FILE_NAME, 0, "", f"not YAML: {error}")]) from error
    if not isinstance(tree, CommentedMap):
        raise DefinitionError([Problem(FILE_NAME, 1, "", "a mapping of keys is wanted, such as `name: my-model`")])
    return tree


def _plain(node: Any) -> Any:
    """The tree without the reader's own types, which would otherwise travel into other processes and JSON."""
    match node:
        case Mapping():
            return {str(key): _plain(value) for key, value in node.items()}
        case list():
            return [_plain(value) for value in node]
        case bool():  # before int, of which it is one
            return node
        case float():
            return float(node)
        case int():
            return int(node)
        case str():
            return str(node)
        case _:
            return node


def _override(tree: CommentedMap, name: str, text: str) -> Problem | None:
    from ruamel.yaml import YAML
    from ruamel.yaml.comments import CommentedMap
    from ruamel.yaml.error import YAMLError

    *path, last = name.split(".")
    node: Any = tree
    for step in path:
        if not isinstance(node, CommentedMap):
            return Problem("--param", 0, name, f"{step} is not a mapping")
        if node.get(step) is None:
            node[step] = CommentedMap()
        node = node[step]
    if not isinstance(node, CommentedMap):
        return Problem("--param", 0, name, "does not name a key of the definition")
    try:
        node[last] = YAML(typ="safe").load(text)
    except YAMLError as error:
        return Problem("--param", 0, name, f"{text!r} is not YAML: {getattr(error, 'problem', error)}")
    return None


def _problems(tree: CommentedMap, error: ValidationError, parameters: Mapping[str, str]) -> list[Problem]:
    problems = []
    for found in error.errors(include_url=False):
        place = tuple(step for step in found["loc"] if not (isinstance(step, str) and step.startswith("function-")))
        message, hint = _explain(place, found)
        key = dotted(place)
        given = any(f"{name}.".startswith(f"{key}.") or f"{key}.".startswith(f"{name}.") for name in parameters)
        file, line = ("--param", 0) if given and key else (FILE_NAME, line_of(tree, place))
        problems.append(Problem(file, line, key, message, hint))
    return sorted(problems, key=lambda problem: problem.line)


def _explain(place: Place, found: Mapping[str, Any]) -> tuple[str, str]:
    key = str(place[-1]) if place else ""
    match found["type"]:
        case "extra_forbidden":
            known = _keys_at(place[:-1])
            return "unknown key", suggestion(key, known)
        case "missing":
            return "is missing", _description(place)
        case "literal_error":
            wanted = _options(str(found["ctx"]["expected"]))
            return f"{found['input']!r} is not one of {', '.join(wanted)}", suggestion(
                str(found["input"]), wanted, False
            )
        case "value_error":
            return str(found["ctx"]["error"]), ""
        case "string_pattern_mismatch":
            return f"{found['input']!r} is no name", "lower-case letters, digits and `-`, beginning with a letter"
        case _:
            message = str(found["msg"])
            return f"{message[0].lower()}{message[1:]}, not {found['input']!r}", ""


def _options(expected: str) -> list[str]:
    return [part.strip().strip("'") for part in expected.replace(" or ", ", ").split(",")]


def suggestion(word: str, known: Sequence[str], show_all: bool = True) -> str:
    """ "did you mean ...?" if something known is close; else, if asked, what is known."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]}?"
    return f"known here: {', '.join(sorted(known))}" if show_all and known else ""


def _keys_at(place: Place) -> list[str]:
    part = _part_at(place)
    return [field.alias or name for name, field in part.model_fields.items()] if part else []


def _description(place: Place) -> str:
    part = _part_at(place[:-1])
    fields = {field.alias or name: field for name, field in part.model_fields.items()} if part else {}
    field = fields.get(str(place[-1]))
    return field.description or "" if field else ""


def _part_at(place: Place) -> type[BaseModel] | None:
    part: type[BaseModel] | None = Definition
    for step in place:
        if isinstance(step, int) or part is None:
            continue
        fields = {field.alias or name: field for name, field in part.model_fields.items()}
        if step in fields:
            part = _model_in(fields[step].annotation)
        # A name in a mapping (`targets.eks`) leads to the same part.
    return part


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for option in typing.get_args(annotation) if (found := _model_in(option))), None)
