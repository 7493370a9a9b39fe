"""Bytecode from several releases of one Python: each image has its own, and no store mixes them."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from drivetrain.backends.images import Built, unpacked
from tests.backends.images import made
from tests.backends.images.test_builder import Build, changed, digests

OTHERWISE = b"""
def f(kind, kinds):
    match kind:
        case kinds.A:
            kind = 1
        case kinds.B:
            kind = 2
    return kind
"""
"""What 3.11.2 and 3.11.7 make different bytecode of."""
HERE = unpacked.Interpreter(sys.executable, platform.python_version())


def another_release() -> unpacked.Interpreter:
    """A Python like that which runs, of another patch release."""
    for folder in os.environ["PATH"].split(os.pathsep):
        path = Path(folder, f"python{made.PYTHON}")
        ask = [path, "-c", "import platform, sys; print(sys.executable, platform.python_version())"]
        told = subprocess.run(ask, capture_output=True, text=True, check=False).stdout.split() if path.is_file() else []
        if told and told[1] != HERE.release:
            return unpacked.Interpreter(*told)
    pytest.skip(f"there is one Python {made.PYTHON} here, and no other release of it")


def test_two_releases_of_python_share_a_store_and_no_bytecode(
    tmp_path: Path, build: Build, packages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.wheel(packages, "otherwise", files={"otherwise.py": OTHERWISE})
    bundle = made.bundle(tmp_path / "bundle", "otherwise\n")
    found: list[Built] = []
    for python in (HERE, another_release()):
        monkeypatch.setattr(unpacked, "interpreter", lambda _, python=python: python)
        alone, shared = build(bundle, store=f"of-{python.release}"), build(bundle)
        assert digests(shared) == digests(alone)
        found.append(shared)
    assert {"packages"} <= changed(*found) <= {"packages", "replica", "code"}


def test_the_next_release_of_python_compiles_anew_and_keeps_what_stays_the_same(
    tmp_path: Path, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = made.bundle(tmp_path / "bundle")
    before = build(bundle)
    monkeypatch.setattr(unpacked, "interpreter", lambda _: unpacked.Interpreter(HERE.program, "3.11.99"))
    compiled = tmp_path / "store" / "compiled"
    count = len(list(compiled.iterdir()))
    after = build(bundle)
    assert len(list(compiled.glob("*.3.11.99.zip"))) == len(after.packages) == count
    # The same bytes, and so the same image: the release counts for what is found again, and is not itself in the image.
    assert after.image.digest == before.image.digest
