"""A repository of the user's as a place to work in: its modules can be imported, and its lines are found in errors."""

from __future__ import annotations

import contextlib
import io
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType


@contextlib.contextmanager
def working_in(repo: Path) -> Iterator[None]:
    """With `repo` as the working directory and first on the import path, as under Feast's own command line.

    Its modules are forgotten afterwards, so that a second repository may have modules of the same names.
    """
    before = set(sys.modules)
    sys.path.insert(0, str(repo))
    try:
        with contextlib.chdir(repo):
            yield
    finally:
        sys.path.remove(str(repo))
        for name in set(sys.modules) - before:
            if _lies_in(repo, sys.modules[name]):
                del sys.modules[name]


def _lies_in(repo: Path, module: ModuleType) -> bool:
    homes = [getattr(module, "__file__", None), *getattr(module, "__path__", ())]
    return any(home and Path(home).is_relative_to(repo) for home in homes)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what a library prints: Feast colours its progress whether or not anyone looks."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def place_of(repo: Path, error: BaseException) -> str:
    """`REPO/FILE:LINE` of the innermost of the repository's lines that an error passed through; empty if there is none."""
    places = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError) and error.filename:
        places.append((error.filename, error.lineno))
    inside = [(name, line) for name, line in places if Path(name).is_relative_to(repo)]
    if not inside:
        return ""
    name, line = inside[-1]
    return f"{repo.name}/{Path(name).relative_to(repo).as_posix()}:{line}"


def portable(path: str, repo: Path) -> str:
    """A path as it means the same on every machine: relative to the repository; of another absolute one the last part."""
    if "://" in path or not Path(path).is_absolute():
        return path
    return Path(path).relative_to(repo).as_posix() if Path(path).is_relative_to(repo) else Path(path).name
