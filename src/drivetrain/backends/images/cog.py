"""What `cog.yaml` says of the image: Cog's own file, read by Cog's own rules."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from drivetrain.errors import StageError

_KEYS = {"build", "image", "model", "run", "predict", "train", "concurrency", "environment", "weights"}
_BUILD = {
    "gpu", "cuda", "cudnn", "python_version", "python_requirements", "python_packages", "system_packages", "pre_install", "run",
    "sdk_version",
}  # fmt: skip
_PYTHONS = ("3.10", "3.11", "3.12", "3.13")
DEFAULT_PYTHON = "3.13"
"""What Cog takes where the file names none."""


@dataclass(frozen=True, slots=True)
class CogFile:
    """A `cog.yaml`. `python` is `MAJOR.MINOR`; `requirements` are lines as pip reads them; `commands` are `build.run`, which Cog carries
    out after the Python packages are there, `pre_install` before."""

    runner: str
    python: str
    requirements: Sequence[str]
    system_packages: Sequence[str]
    pre_install: Sequence[str]
    commands: Sequence[str]
    gpu: bool
    cuda: str | None
    cudnn: str | None
    environment: Mapping[str, str]
    concurrency: int | None
    told: Mapping[str, Any]
    """The whole file, for the label that Cog puts on its images."""


def without(python: str) -> CogFile:
    """What holds where there is no `cog.yaml`: nothing but a Python of that version is wanted."""
    return CogFile("", python, (), (), (), (), False, None, None, {}, None, {})


def read(directory: Path, name: str = "cog.yaml") -> CogFile:
    """The `cog.yaml` of the directory, with the requirements that it names. Raises `StageError` if Cog would refuse it."""
    path = directory / name
    try:
        # Every scalar as text: `python_version: 3.10` is a version, and no number.
        found = YAML(typ="base", pure=True).load(path)
    except FileNotFoundError as error:
        raise StageError("there is no cog.yaml", where=str(directory)) from error
    except (YAMLError, UnicodeDecodeError) as error:
        raise StageError(f"it is no YAML: {error}", where="cog.yaml") from error
    told = _mapping(found, "", _KEYS)
    build = _mapping(told.get("build"), "build", _BUILD)
    concurrency = _mapping(told.get("concurrency"), "concurrency", {"max", "default_target"})
    return CogFile(
        runner=_text(told.get("run", told.get("predict", "")), "run"),
        python=_python(_text(build.get("python_version", DEFAULT_PYTHON), "build.python_version")),
        requirements=_requirements(directory, build),
        system_packages=_texts(build.get("system_packages"), "build.system_packages"),
        pre_install=_commands(build.get("pre_install"), "build.pre_install"),
        commands=_commands(build.get("run"), "build.run"),
        gpu=_flag(build.get("gpu", "false"), "build.gpu"),
        cuda=_optional(build.get("cuda"), "build.cuda"),
        cudnn=_optional(build.get("cudnn"), "build.cudnn"),
        environment=_environment(told.get("environment")),
        concurrency=_number(concurrency.get("max"), "concurrency.max"),
        told=told,
    )


def _mapping(value: Any, key: str, known: set[str]) -> Mapping[str, Any]:
    if value is None or value == "":
        return {}
    if not isinstance(value, dict):
        raise _wrong(key or "the file", "is not a mapping")
    unknown = sorted(str(name) for name in value if name not in known)
    if unknown:
        raise _wrong(f"{key}.{unknown[0]}".lstrip("."), "is no key that Cog knows")
    return value


def _text(value: Any, key: str) -> str:
    if not isinstance(value, str):
        raise _wrong(key, "is not a text")
    return value


def _optional(value: Any, key: str) -> str | None:
    return None if value is None else _text(value, key)


def _texts(value: Any, key: str) -> tuple[str, ...]:
    if value is None or value == "":
        return ()
    if not isinstance(value, list):
        raise _wrong(key, "is not a list")
    return tuple(_text(entry, key) for entry in value)


def _commands(value: Any, key: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        return _texts(value, key)
    return tuple(_command(entry, key) for entry in value)


def _command(entry: Any, key: str) -> str:
    if not isinstance(entry, dict):
        return _text(entry, key)
    told = _mapping(entry, key, {"command", "mounts"})
    if told.get("mounts"):
        raise StageError(
            f"{key} has mounts, and secret mounts are not supported",
            where="cog.yaml",
            hint="do what needs the secret beforehand: in a base of your own (package.base), or as wheels that `lock` names",
        )
    return _text(told.get("command"), key)


def _flag(value: Any, key: str) -> bool:
    if value in ("true", "True", "TRUE", "false", "False", "FALSE"):
        return str(value).lower() == "true"
    raise _wrong(key, "is neither true nor false")


def _number(value: Any, key: str) -> int | None:
    if value is None:
        return None
    if isinstance(value, str) and re.fullmatch(r"[1-9][0-9]{0,5}", value):
        return int(value)
    raise _wrong(key, "is no whole number above zero")


def _python(version: str) -> str:
    short = ".".join(version.split(".")[:2])
    if short not in _PYTHONS:
        raise _wrong("build.python_version", f"is {version}; Cog takes {', '.join(_PYTHONS)}")
    return short


def _environment(value: Any) -> dict[str, str]:
    pairs = [entry.partition("=") for entry in _texts(value, "environment")]
    for name, equals, _ in pairs:
        if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise _wrong("environment", f"has {name!r}, which is not of the form NAME=VALUE")
    return {name: text for name, _, text in pairs}


def _requirements(directory: Path, build: Mapping[str, Any]) -> tuple[str, ...]:
    named = build.get("python_requirements")
    if named is None:
        return _texts(build.get("python_packages"), "build.python_packages")
    if build.get("python_packages"):
        raise _wrong("build.python_packages", "and build.python_requirements exclude each other")
    path = PurePosixPath(_text(named, "build.python_requirements"))
    if path.is_absolute() or ".." in path.parts:
        raise _wrong("build.python_requirements", f"names {named}, which lies outside of the project")
    try:
        text = (directory / path).read_text(encoding="utf-8")
    except OSError as error:
        raise _wrong("build.python_requirements", f"names {named}, which cannot be read: {error.strerror}") from error
    return tuple(line for line in (_bare(line) for line in _joined(text)) if line)


def _joined(text: str) -> list[str]:
    """The lines, those that end with a backslash put together."""
    return re.sub(r"\\\r?\n", " ", text).splitlines()


def _bare(line: str) -> str:
    return re.sub(r"(^|\s)#.*$", "", line).strip()


def _wrong(key: str, what: str) -> StageError:
    return StageError(f"{key} {what}", where="cog.yaml", hint="https://cog.run/yaml says what may stand there")
