"""Small things of the real kinds: wheels, a base, a bundle, an index folder that pip takes packages from."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from zipfile import ZipFile

PYTHON = "3.11"


def wheel(
    folder: Path, name: str, version: str = "1.0", files: Mapping[str, bytes] | None = None, tags: str = "py3-none-any",
    requires: tuple[str, ...] = (), entry_points: str = "",
) -> Path:  # fmt: skip
    """A wheel with one module, or with the given files."""
    folder.mkdir(parents=True, exist_ok=True)
    module = name.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    needs = "".join(f"Requires-Dist: {entry}\n" for entry in requires)
    found = {f"{module}.py": f"VERSION = {version!r}\n".encode()} if files is None else dict(files)
    found[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}".encode()
    found[f"{info}/WHEEL"] = f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tags}\n".encode()
    if entry_points:
        found[f"{info}/entry_points.txt"] = entry_points.encode()
    found[f"{info}/RECORD"] = b""
    path = folder / f"{module}-{version}-{tags}.whl"
    with ZipFile(path, "w") as file:
        for member, data in found.items():
            file.writestr(member, data)
    return path


def index(folder: Path) -> Path:
    """Stand-ins for the libraries that the replica imports, in the versions that it wants."""
    for name in ("cog", "coglet", "httptools", "msgspec", "uvloop", "grpcio"):
        wheel(folder, name, metadata.version(name))
    wheel(folder, "numpy", "2.0")
    wheel(folder, "protobuf", "6.33")
    return folder


def base(path: Path, pythons: tuple[str, ...] = (PYTHON,), mode: str = "w") -> Path:
    """A root file system as a tar archive: hardly more than an interpreter's name."""
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name in ("etc/debian_version", *(f"usr/bin/python{version}" for version in pythons)):
            info = tarfile.TarInfo(f"./{name}")
            data = f"{name}\n".encode() * 100
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def bundle(
    folder: Path, requirements: str = "wanted==1.0\n", weights: bytes = b"weights" * 1000, cog: str = ""
) -> Path:
    """What the stages lay out: cog.yaml, runner, schema, model."""
    (folder / "model").mkdir(parents=True)
    (folder / ".cog").mkdir()
    text = f'build:\n  python_version: "{PYTHON}"\n  python_requirements: requirements.txt\n{cog}run: "run.py:Runner"\n'
    (folder / "cog.yaml").write_text(text)
    (folder / "requirements.txt").write_text(requirements)
    (folder / "run.py").write_text("class Runner:\n    def run(self, x: int) -> int:\n        return x\n")
    (folder / "model" / "model.bin").write_bytes(weights)
    (folder / ".cog" / "openapi_schema.json").write_text('{"openapi": "3.0.2"}')
    return folder


def names(path: Path) -> list[str]:
    """The files and links of a layer."""
    with tarfile.open(path) as tar:
        return [info.name for info in tar if not info.isdir()]


def member(path: Path, name: str) -> bytes:
    """A file of a layer."""
    with tarfile.open(path) as tar:
        found = tar.extractfile(name)
        assert found is not None
        return found.read()
