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
    assert found == bases.Choice(bases.CUDA["12.6"].reference, ("python3.12",))


@pytest.mark.parametrize(("cuda", "cudnn", "python"), [("12.6", "9", "3.12"), ("12.1.1", "8.9.2", "3.10")])
def test_the_cudnn_that_is_asked_for_may_be_that_of_the_base(
    tmp_path: Path, cuda: str, cudnn: str, python: str
) -> None:
    build = f"gpu: true, cuda: '{cuda}', cudnn: '{cudnn}', python_version: '{python}'"
    assert bases.choose(read(tmp_path, build), []).system_packages == (f"python{python}",)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        ("gpu: true, cuda: '9.0'", "no base for CUDA 9.0"),
        ("gpu: true, cuda: '12.6', python_version: '3.11'", "has Python 3.12, and cog.yaml asks for 3.11"),
        ("gpu: true", "names no build.cuda"),
        ("gpu: true, cuda: '12.6', cudnn: '8', python_version: '3.12'", "has cuDNN 9, and cog.yaml asks for 8"),
        ("gpu: true, cuda: '11.8', cudnn: '9.1', python_version: '3.10'", "has cuDNN 8, and cog.yaml asks for 9.1"),
    ],
)
def test_what_no_image_has_is_said(tmp_path: Path, build: str, message: str) -> None:
    with pytest.raises(StageError, match=re.escape(message)):
        bases.choose(read(tmp_path, build), [])


def test_every_base_is_a_reference_that_names_its_ubuntu(tmp_path: Path) -> None:
    for version, base in bases.CUDA.items():
        reference = base.reference
        assert _REFERENCE.fullmatch(reference)
        # NVIDIA's tags name cuDNN's number up to 8; those without one have 9.
        assert f"-cudnn{base.cudnn.removesuffix('9')}-runtime-" in reference
        assert f":{version}." in reference
        assert reference.rpartition("ubuntu")[2] in bases._UBUNTU_PYTHON
