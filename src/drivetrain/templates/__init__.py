"""The projects that `drivetrain init` starts from: one directory each, whose files are copied as they are.

Only `{{name}}` in them is replaced, by the lifecycle's name. A file called `gitignore` is written as `.gitignore`, since
a real one in here would act on this repository.
"""

from __future__ import annotations

import re
from pathlib import Path

from drivetrain.errors import SystemFault, UsageError

_HOME = Path(__file__).parent
# As the definition has it (`definition.parts.Name`), whose import would cost more than the rest of `init`.
_NAME = re.compile(r"[a-z]([-a-z0-9_]*[a-z0-9])?")
_LONGEST_NAME = 52


def names() -> list[str]:
    """The templates, sorted."""
    return sorted(path.name for path in _HOME.iterdir() if (path / "drivetrain.yaml").is_file())


def write(template: str, target: Path, name: str) -> list[Path]:
    """Writes the template's files to the directory `target` for a lifecycle called `name`; gives their paths, sorted.

    Raises `UsageError` if there is no such template, the name cannot be one of a lifecycle, or the directory holds
    anything already; `SystemFault` if it cannot be written.
    """
    if template not in names():
        raise UsageError(f"there is no template {template!r}", hint=f"there are {', '.join(names())}")
    if not _NAME.fullmatch(name) or len(name) > _LONGEST_NAME:
        hint = f"a letter, then letters, digits, - and _, in lower case, at most {_LONGEST_NAME}"
        raise UsageError(f"{name!r} cannot be the name of a lifecycle", hint=hint)
    try:
        _refuse_contents(target)
        return sorted(_write_file(source, _HOME / template, target, name) for source in _files(_HOME / template))
    except OSError as error:
        raise SystemFault(f"cannot be written: {error.strerror}", where=str(error.filename or target)) from error


def _refuse_contents(target: Path) -> None:
    if target.exists() and not target.is_dir():
        raise UsageError(f"{target} is a file", hint="name a directory that does not exist yet")
    if target.is_dir() and any(target.iterdir()):
        raise UsageError(f"{target} is not empty", hint="name a directory that does not exist yet, or an empty one")


def _files(home: Path) -> list[Path]:
    return [path for path in home.rglob("*") if path.is_file() and "__pycache__" not in path.parts]


def _write_file(source: Path, home: Path, target: Path, name: str) -> Path:
    path = target / source.relative_to(home)
    if path.name == "gitignore":
        path = path.with_name(".gitignore")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source.read_text(encoding="utf-8").replace("{{name}}", name), encoding="utf-8")
    return path
