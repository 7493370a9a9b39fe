"""Which base a cog.yaml comes to."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from drivetrain.backends.images import bases, cog
from drivetrain.definition.packaging import _REFERENCE
from drivetrain.errors import StageError


def read(folder: Path, build: str) -> cog.CogFile:
    (folder / "cog.yaml").write_text(f"build: {{{build}}}\nrun: run.py:Runner\n")
    return cog.read(folder)


def test_without_a_gpu_it_is_pythons_own_image(tmp_path: Path) -> None:
    found = bases.choose(read(tmp_path, "python_version: '3.12'"), ["numpy"])
    assert found == bases.Choice("docker.io/library/python:3.12-slim-bookworm")


@pytest.mark.parametrize("name", ["nvidia-cuda-runtime", "nvidia-cuda-runtime-cu12"])
def test_wheels_that_bring_cuda_need_no_base_with_it(tmp_path: Path, name: str) -> None:
    found = bases.choose(read(tmp_path, "gpu: true, cuda: '12.6', python_version: '3.11'"), ["torch", name])
    assert found.reference == "docker.io/library/python:3.11-slim-bookworm"


def test_other_packages_get_nvidias_image_and_its_python(tmp_path: Path) -> None:
    found = bases.choose(read(tmp_path, "gpu: true, cuda: '12.6.3', python_version: '3.12'"), ["cupy-cuda12x"])
    assert found == bases.Choice(bases.CUDA["12.6"], ("python3.12",))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        ("gpu: true, cuda: '9.0'", "no base for CUDA 9.0"),
        ("gpu: true, cuda: '12.6', python_version: '3.11'", "has Python 3.12, and cog.yaml asks for 3.11"),
        ("gpu: true", "names no build.cuda"),
    ],
)
def test_what_no_image_has_is_said(tmp_path: Path, build: str, message: str) -> None:
    with pytest.raises(StageError, match=re.escape(message)):
        bases.choose(read(tmp_path, build), [])


def test_every_base_is_a_reference_that_names_its_ubuntu(tmp_path: Path) -> None:
    for version, reference in bases.CUDA.items():
        assert _REFERENCE.fullmatch(reference)
        assert f":{version}." in reference
        assert reference.rpartition("ubuntu")[2] in bases._UBUNTU_PYTHON
