"""The user's own Python: which files a function is made of, their digest, and the function itself.

The digest follows imports within the project by reading the source, never by running it: that is how a cached run
knows that nothing has changed without importing anything.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from drivetrain.errors import MissingLibrary, StageError

_EXTRAS = {"torch": "torch", "tensorflow": "tensorflow", "keras": "tensorflow"}
"""Libraries that are left to the user to install, and the extra that brings each."""

_SKIP = {"__pycache__", "data", "node_modules"}


def closure(project: Path, starts: Iterable[str]) -> list[Path]:
    """The files named by `starts` with every project file that they import, sorted, relative to the project.

    A directory stands for all files below it but data and caches. Files that do not exist are left out: the definition's own checks
    report those.
    """
    todo, found = [project / start for start in starts], set[Path]()
    # As `load_function` puts them on Python's path.
    homes = tuple(dict.fromkeys((project, *(path.parent for path in todo))))
    while todo:
        path = todo.pop()
        if path.is_dir():
            todo += [Path(root) / name for root, names in _walk(path) for name in names]
        elif path.is_file() and path not in found:
            found.add(path)
            if path.suffix == ".py":
                stat = path.stat()
                todo += _imports(homes, path, stat.st_mtime_ns, stat.st_size)
    return sorted(path.relative_to(project) if path.is_relative_to(project) else path for path in found)


def _walk(directory: Path) -> Iterable[tuple[str, list[str]]]:
    for root, directories, names in os.walk(directory):
        directories[:] = [d for d in directories if d not in _SKIP and not d.startswith(".")]
        yield root, [name for name in names if not name.startswith(".")]


@functools.lru_cache(maxsize=1000)  # a run asks for the same files once for each stage
def _imports(homes: tuple[Path, ...], path: Path, mtime_ns: int, size: int) -> tuple[Path, ...]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return ()
    names: list[tuple[tuple[Path, ...], str]] = []
    homes = tuple(dict.fromkeys((*homes, path.parent)))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [(homes, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            places = (path.parents[min(node.level, len(path.parents)) - 1],) if node.level else homes
            names += [(places, base), *((places, f"{base}.{alias.name}".lstrip(".")) for alias in node.names)]
    found: list[Path] = []
    for places, name in names:
        for home in places if name else ():
            parts = name.split(".")
            spot = home.joinpath(*parts)
            packages = [home.joinpath(*parts[: count + 1], "__init__.py") for count in range(len(parts))]
            found += [file for file in (spot.with_suffix(".py"), *packages) if file.is_file()]
    return tuple(found)


def code_digest(project: Path, starts: Iterable[str]) -> str:
    """SHA-256 over the names and contents of `closure(project, starts)`."""
    total = hashlib.sha256()
    for path in closure(project, starts):
        content = hashlib.sha256((project / path).read_bytes()).hexdigest()
        total.update(f"{path.as_posix()}\0{content}\n".encode())
    return total.hexdigest()


def load_function(project: Path, name: str) -> Callable[..., Any]:
    """The function named `FILE.py:FUNCTION`, its module imported with the project first on the path.

    Raises `StageError` if importing the file raises or the function is not in it, `MissingLibrary` if it imports PyTorch,
    TensorFlow or Keras and that is not installed.
    """
    file, _, function = name.rpartition(":")
    path = project / file
    for home in (str(project), str(path.parent)):
        if home not in sys.path:
            sys.path.insert(0, home)
    module_name = ".".join(Path(file).with_suffix("").parts)
    module = sys.modules.get(module_name)
    if module is None or getattr(module, "__file__", None) != str(path):
        spec = importlib.util.spec_from_file_location(module_name, path)
        if spec is None or spec.loader is None or not path.is_file():
            raise StageError(f"{file} cannot be imported", where=name)
        module = importlib.util.module_from_spec(spec)
        # Registered under its own name, so that what it pickles can be found again by a plain import.
        sys.modules[module_name] = module
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[module_name]
            if isinstance(error, ModuleNotFoundError) and error.name in _EXTRAS:
                raise MissingLibrary(error.name, _EXTRAS[error.name]) from error
            raise StageError(f"importing {file} raised {type(error).__name__}: {error}", where=name) from error
    found = getattr(module, function, None)
    if not callable(found):
        raise StageError(f"{file} has no function {function}", where=name)
    return found  # type: ignore[no-any-return]
