"""What the definition names, looked for: files, functions, the Feast service, without running any of the user's code."""

from __future__ import annotations

import ast
import contextlib
import difflib
import json
from collections.abc import Iterator
from pathlib import Path

from drivetrain.definition.load import Place, Source, suggestion
from drivetrain.definition.serving import DEFAULT_RUNNER
from drivetrain.definition.values import is_function, matching, split_function
from drivetrain.errors import DefinitionError, Problem
from drivetrain.records import digest


def check(project: Path, source: Source, memory: Path | None = None) -> None:
    """Raises `DefinitionError` with everything that the definition names and that is not there.

    `memory` is a file that keeps what was looked at when all was well: as long as no file's size or time has changed since, none is
    read again.
    """
    seen = digest([source.definition.model_dump(mode="json"), _looks(project, source)])
    if memory is not None and memory.is_file() and memory.read_text(encoding="utf-8") == seen:
        return
    problems = list(_missing(project, source))
    if problems:
        raise DefinitionError(sorted(problems, key=lambda problem: (problem.file, problem.line)))
    if memory is not None and memory.parent.is_dir():
        with contextlib.suppress(OSError):  # only time is lost
            memory.write_text(seen, encoding="utf-8")


def _looks(project: Path, source: Source) -> list[list[str | int]]:
    """Name, size and time of every file that `_missing` reads or looks for."""
    named = [split_function(name)[0] if is_function(name) else name for _, name in _named(source)]
    paths = [path for name in named if "://" not in name for path in matching(project, name)]
    paths += [inner for path in paths if path.is_dir() for inner in _python_files(path)]
    stats = [(path, path.stat()) for path in paths]
    return [[str(path), stat.st_size, stat.st_mtime_ns] for path, stat in stats]


def _missing(project: Path, source: Source) -> Iterator[Problem]:
    definition = source.definition
    for place, name in _named(source):
        if name.startswith("s3://"):
            continue
        if is_function(name):
            yield from _function_problems(project, source, place, name)
        elif not matching(project, name):
            yield source.problem(place, f"{name} does not exist", _near_file(project, name))
        elif place[-1] == "suite":
            yield from _suite_problems(project, source, place, name)
        elif place == ("serving", "cog"):
            yield from _runner_problems(project, source, place, name)
    if definition.features is not None and (project / definition.features.repo).is_dir():
        yield from _service_problems(project, source, definition.features.repo, definition.features.service)
    if "local" in definition.targets and definition.targets["local"].platform != "local":
        yield source.problem(
            ("targets", "local", "platform"), "the target local is this machine", "give it another name"
        )


def _named(source: Source) -> Iterator[tuple[Place, str]]:
    definition = source.definition
    yield ("data", "source"), definition.data.source
    for name, table in definition.data.tables.items():
        yield ("data", "tables", name, "source"), table.source
    if definition.features is not None:
        yield ("features", "repo"), definition.features.repo
    if definition.validation is not None:
        yield ("validate", "suite"), definition.validation.suite
    yield ("train", "function"), definition.train.function
    if definition.serving.runner:
        yield ("serving", "runner"), definition.serving.runner
    if definition.serving.cog:
        yield ("serving", "cog"), definition.serving.cog
    if definition.package and definition.package.base and definition.package.base.startswith((".", "/")):
        yield ("package", "base"), _folder(definition.package.base)
    if definition.package and definition.package.sign and definition.package.sign.public_key:
        yield ("package", "sign", "public_key"), definition.package.sign.public_key
    if definition.package and definition.package.advisories:
        yield ("package", "advisories"), definition.package.advisories
    if definition.serving.tls:
        yield ("serving", "tls", "certificate"), definition.serving.tls.certificate
        yield ("serving", "tls", "key"), definition.serving.tls.key


def _folder(base: str) -> str:
    """The path of a base, without the tag that it may end with."""
    head, slash, last = base.rpartition("/")
    return f"{head}{slash}{last.partition(':')[0]}"


def _near_file(project: Path, name: str) -> str:
    directory = (project / name).parent
    kind = Path(name).suffix
    names = [path.name for path in directory.iterdir() if path.suffix == kind] if directory.is_dir() else []
    close = difflib.get_close_matches(Path(name).name, names, n=1)
    return f"did you mean {Path(name).with_name(close[0])}?" if close else ""


def _function_problems(project: Path, source: Source, place: Place, name: str) -> Iterator[Problem]:
    file, function = split_function(name)
    path = project / file
    if not path.is_file():
        yield source.problem(place, f"{file} does not exist", _near_file(project, file))
        return
    try:
        tree = ast.parse(path.read_bytes())
    except SyntaxError as error:
        yield Problem(file, error.lineno or 0, "", f"not Python: {error.msg}")
        return
    defined = list(_defined(tree))
    if function not in defined and "*" not in defined:
        yield source.problem(
            place, f"{file} has no {function}", suggestion(function, [n for n in defined if n[0] != "_"])
        )


def _defined(tree: ast.Module) -> Iterator[str]:
    """Names bound at a module's top level, also below `if` and `try`."""
    todo: list[ast.stmt] = list(tree.body)
    while todo:
        node = todo.pop(0)
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield node.name
            case ast.Assign():
                yield from (t.id for t in node.targets if isinstance(t, ast.Name))
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name
            case ast.Import() | ast.ImportFrom():
                yield from (alias.asname or alias.name for alias in node.names)
            case ast.If():
                todo += node.body + node.orelse
            case ast.Try():
                todo += node.body + node.orelse + [s for handler in node.handlers for s in handler.body]


def _suite_problems(project: Path, source: Source, place: Place, name: str) -> Iterator[Problem]:
    try:
        suite = json.loads((project / name).read_bytes())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        yield Problem(name, getattr(error, "lineno", 0), "", f"not JSON: {error}")
        return
    if not isinstance(suite, dict) or not isinstance(suite.get("expectations"), list):
        yield source.problem(
            place, f"{name} is no Great Expectations suite", 'it needs {"name": ..., "expectations": [...]}'
        )


def _runner_problems(project: Path, source: Source, place: Place, name: str) -> Iterator[Problem]:
    """An image starts what `cog.yaml` names, and a service on this machine what the definition does."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        told = YAML(typ="safe").load(project / name)
    except (YAMLError, UnicodeDecodeError):
        return  # the stages say what is wrong with it
    named = told.get("run", told.get("predict")) if isinstance(told, dict) else None
    wanted = source.definition.serving.runner or DEFAULT_RUNNER
    if named is not None and named != wanted:
        yield source.problem(place, f"{name} runs {named}, and serving.runner is {wanted}", "name the same in both")


def _service_problems(project: Path, source: Source, repo: str, service: str) -> Iterator[Problem]:
    names: list[str] = []
    for path in _python_files(project / repo):
        try:
            tree = ast.parse(path.read_bytes())
        except SyntaxError as error:
            yield Problem(str(path.relative_to(project)), error.lineno or 0, "", f"not Python: {error.msg}")
            return
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and _called(node) == "FeatureService":
                name = _argument(node, "name")
                if name is None:
                    return  # a computed name: only Feast itself can tell, in the stage
                names.append(name)
    if service not in names:
        hint = suggestion(service, names) if names else "there is no FeatureService in the repository"
        yield source.problem(("features", "service"), f"{repo} has no feature service {service}", hint)


def _python_files(directory: Path) -> list[Path]:
    """Its Python files; an editor's lock files are links named so that lead nowhere."""
    return sorted(path for path in directory.rglob("*.py") if path.is_file())


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _argument(node: ast.Call, name: str) -> str | None:
    values = [keyword.value for keyword in node.keywords if keyword.arg == name] or node.args[:1]
    value = values[0] if values else None
    return value.value if isinstance(value, ast.Constant) and isinstance(value.value, str) else None
