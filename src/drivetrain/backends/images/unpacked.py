"""Wheels unpacked into a layer as an installer would, with their compiled form, straight from the zip file."""

from __future__ import annotations

import configparser
import os
import platform
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO
from zipfile import BadZipFile, ZipFile, ZipInfo

from drivetrain.backends.images import bytecode
from drivetrain.backends.images.layers import Entry, content
from drivetrain.errors import StageError, SystemFault

HOME = "opt/venv"
"""The image's virtual environment, relative to its root: it belongs to the image whatever Python the base has."""
_WHO = "import platform, sys; print(sys.executable); print(platform.python_version())"
"""What is found on the PATH may be a shim, which needs the whole environment and may stand for another Python."""


def site_packages(python: str) -> str:
    """Where packages lie, relative to the image's root."""
    return f"{HOME}/lib/python{python}/site-packages"


def entries(wheel: ZipFile, name: str, python: str, compiled: ZipFile | None) -> Iterator[Entry]:
    """The wheel's files where they belong, its console scripts, and the compiled form of its Python files.

    Raises `StageError` for a wheel that names places outside of the environment.
    """
    site = site_packages(python)
    for info in wheel.infolist():
        if info.is_dir():
            continue
        place, script = _place(info.filename, name, site)
        data = _script(wheel.read(info)) if script else None
        executable = script or bool(info.external_attr >> 16 & stat.S_IXUSR)
        yield content(place, data, executable=True) if data is not None else _member(wheel, info, place, executable)
    yield from _scripts_of(wheel)
    for info in compiled.infolist() if compiled is not None else ():
        yield _member(compiled, info, _place(info.filename, name, site)[0], False)  # type: ignore[arg-type]


def _member(file: ZipFile, info: ZipInfo, place: str, executable: bool) -> Entry:
    def opened() -> IO[bytes]:
        return file.open(info)

    return Entry(place, info.file_size, opened, executable)


def _place(member: str, wheel: str, site: str) -> tuple[str, bool]:
    """Where a member goes, and whether it is a script."""
    path = PurePosixPath(member)
    if path.is_absolute() or ".." in path.parts or "\\" in member:
        raise StageError(f"{wheel} has a file {member!r}, which lies outside of it")
    head = path.parts[0]
    if not head.endswith(".data") or len(path.parts) < 3:
        return f"{site}/{path}", False
    rest = "/".join(path.parts[2:])
    homes = {"purelib": site, "platlib": site, "scripts": f"{HOME}/bin", "data": HOME, "headers": f"{HOME}/include"}
    kind = path.parts[1]
    if kind not in homes:
        raise StageError(f"{wheel} has a file {member!r}, and nothing says where that goes")
    return f"{homes[kind]}/{rest}", kind == "scripts"


def _script(data: bytes) -> bytes:
    """A script that begins with the mark for "this environment's Python", with that in its place."""
    first, newline, rest = data.partition(b"\n")
    return f"#!/{HOME}/bin/python".encode() + newline + rest if first.startswith(b"#!python") else data


def _scripts_of(wheel: ZipFile) -> Iterator[Entry]:
    for name in wheel.namelist():
        if name.endswith(".dist-info/entry_points.txt"):
            yield from console_scripts(wheel.read(name).decode())


def console_scripts(entry_points: str) -> Iterator[Entry]:
    """The programs that an `entry_points.txt` names, as an installer writes them."""
    found = configparser.ConfigParser(delimiters=("=",), interpolation=None, strict=False)
    found.optionxform = str  # type: ignore[assignment,method-assign]
    found.read_string(entry_points)
    for script, target in found.items("console_scripts") if found.has_section("console_scripts") else ():
        module, _, attribute = ("".join(target.partition("[")[0].split())).partition(":")
        top = attribute.partition(".")[0]
        text = (
            f"#!/{HOME}/bin/python\nimport sys\nfrom {module} import {top}\n"
            f"if __name__ == '__main__':\n    sys.exit({attribute}())\n"
        )
        yield content(f"{HOME}/bin/{script}", text.encode(), executable=True)


# compiled


@dataclass(frozen=True, slots=True)
class Interpreter:
    """A Python of this machine. `release` is its whole version, such as `3.11.7`: some files become other bytecode with the next."""

    program: str
    release: str


def interpreter(python: str) -> Interpreter | None:
    """A Python of that version (`MAJOR.MINOR`) on this machine: that which runs, or else the first on the PATH.

    None where there is none, or where it does not start: then nothing can be compiled for it.
    """
    if python == f"{sys.version_info.major}.{sys.version_info.minor}":
        return Interpreter(sys.executable, platform.python_version())
    found = shutil.which(f"python{python}")
    if found is None:
        return None
    try:
        told = subprocess.run([found, "-I", "-S", "-c", _WHO], capture_output=True, text=True, check=True, timeout=60)
        program, release = told.stdout.splitlines()
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return Interpreter(program, release) if release.startswith(f"{python}.") else None


def compile_all(sources: list[tuple[Path, Path]], by: Interpreter, prefix: str) -> None:
    """For each (zip file, target) the compiled form of its Python files, a process for each, several at once.

    Raises `SystemFault` if the interpreter fails at one.
    """
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        for done in [pool.submit(_compile, by.program, source, target, prefix) for source, target in sources]:
            done.result()


def _compile(program: str, source: Path, target: Path, prefix: str) -> None:
    command = [program, "-S", "-s", bytecode.__file__, str(source), str(target), f"/{prefix}"]
    ended = subprocess.run(
        command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, env={"PYTHONHASHSEED": "0"}
    )
    if ended.returncode != 0:
        raise SystemFault(f"{source.name} could not be compiled: {ended.stderr.strip()[-500:]}")


def opened(path: Path) -> ZipFile:
    """The wheel as a zip file. Raises `StageError` if it is none."""
    try:
        return ZipFile(path)
    except BadZipFile as error:
        raise StageError(f"{path.name} is no wheel: {error}", hint="remove it from the builder's store") from error
