"""`drivetrain doctor` on machines with and without a GPU: what the definition asks for, and what comes of it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Command = Callable[..., subprocess.CompletedProcess[str]]
States = dict[str, tuple[str, str]]

SMI = """#!/bin/sh
case "$1" in
--query-gpu=*) printf '%s\n' '{driver}, NVIDIA H100 80GB HBM3, 81559, 81079, 9.0' ;;
*) echo '| NVIDIA-SMI {driver}    Driver Version: {driver}    CUDA Version: {cuda}   |' ;;
esac
"""
TORCH = """
__version__ = "2.13.0+cu{digits}"
class version:
    cuda = "{cuda}"
class cuda:
    def init():
        {init}
    def device_count():
        return 1
    def get_device_name(number):
        return "NVIDIA H100 80GB HBM3"
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    place = tmp_path / "project"
    place.mkdir()
    (place / "drivetrain.yaml").write_text(
        "name: wine\ndata: {source: rows.csv, label: target}\nevaluate: {metric: accuracy}\n"
        "train: {function: 'train.py:train', resources: {gpu: 2}}\nserving: {cog: cog.yaml, port: 0}\n".replace(
            "\\\n", "\n"
        )
    )
    (place / "rows.csv").write_text("a,target\n1,0\n")
    (place / "train.py").write_text("def train(features, label): ...\n")
    (place / "cog.yaml").write_text('build: {gpu: true, cuda: "12.6", cudnn: "9"}\n')
    return place


@pytest.fixture
def ask(drivetrain: Command, project: Path, tmp_path: Path) -> Callable[..., tuple[int, States]]:
    """Exit code and findings of doctor, where the machine has that driver (None: none) and that PyTorch."""

    def call(driver: str | None, knows: str = "", torch: str = "12.6", init: str = "pass") -> tuple[int, States]:
        programs, modules = tmp_path / "bin", tmp_path / "modules"
        programs.mkdir()
        if driver is not None:
            (programs / "nvidia-smi").write_text(SMI.format(driver=driver, cuda=knows))
            (programs / "nvidia-smi").chmod(0o755)
        (modules / "torch").mkdir(parents=True)
        (modules / "torch" / "__init__.py").write_text(
            TORCH.format(cuda=torch, digits=torch.replace(".", ""), init=init)
        )
        path = f"{programs}:/usr/bin:/bin" if driver is None else f"{programs}:{os.environ['PATH']}"
        found = drivetrain("doctor", "--json", directory=project, env={"PATH": path, "PYTHONPATH": str(modules)})
        assert found.stdout, found.stderr
        return found.returncode, {entry["what"]: (entry["state"], entry["text"]) for entry in json.loads(found.stdout)}

    return call


def test_a_gpu_is_told_with_driver_memory_and_what_torch_sees(ask: Callable[..., tuple[int, States]]) -> None:
    code, found = ask("580.159.04", "13.0")
    assert code == 0
    assert found["NVIDIA driver"] == ("ok", "580.159.04, for CUDA up to 13.0")
    assert found["GPU 0"] == ("ok", "NVIDIA H100 80GB HBM3, 79.6 GiB, 79.2 GiB free, compute capability 9.0")
    assert found["torch sees"] == ("ok", "NVIDIA H100 80GB HBM3 (built for CUDA 12.6)")
    assert found["cog.yaml"] == ("ok", "asks for a GPU with CUDA 12.6 and cuDNN 9")
    assert found["train.resources.gpu"][0] == "note"
    assert found["train.resources.gpu"][1].startswith("2 asked for, 1 here;")


def test_no_gpu_is_no_fault_and_what_follows_is_told(ask: Callable[..., tuple[int, States]]) -> None:
    code, found = ask(None)
    assert code == 0
    assert found["GPU"][0] == found["cog.yaml"][0] == found["train.resources.gpu"][0] == "note"
    assert "no NVIDIA driver" in found["GPU"][1]
    assert "there is none here" in found["cog.yaml"][1]
    assert "driver 525 or newer" in found["cog.yaml"][1]


def test_a_driver_too_old_for_the_image_and_for_torch_is_bad(ask: Callable[..., tuple[int, States]]) -> None:
    refuses = "raise RuntimeError('The NVIDIA driver on your system is too old (found version 11040).')"
    code, found = ask("470.256.02", "11.4", init=refuses)
    assert code == 1
    assert found["cog.yaml"][0] == found["torch sees"][0] == "bad"
    for what in ("cog.yaml", "torch sees"):
        assert "driver 525 or newer, and this is 470.256.02" in found[what][1]


def test_torch_that_sees_no_gpu_says_why(ask: Callable[..., tuple[int, States]]) -> None:
    code, found = ask("580.159.04", "13.0", init="raise RuntimeError('No CUDA GPUs are available')")
    assert code == 1
    assert found["torch sees"][0] == "bad"
    assert "'No CUDA GPUs are available'" in found["torch sees"][1]


def test_a_definition_that_asks_for_no_gpu(ask: Callable[..., tuple[int, States]], project: Path) -> None:
    text = (project / "drivetrain.yaml").read_text()
    (project / "drivetrain.yaml").write_text(text.replace("gpu: 2", "cpu: 1"))
    (project / "cog.yaml").write_text("build: {gpu: false}\n")
    code, found = ask(None)
    assert code == 0
    assert "train.resources.gpu" not in found
    assert found["cog.yaml"] == ("ok", "asks for no GPU")


def test_a_cog_yaml_that_cannot_be_read_is_bad(ask: Callable[..., tuple[int, States]], project: Path) -> None:
    (project / "cog.yaml").write_text("build: [")
    code, found = ask(None)
    assert code == 1
    assert found["cog.yaml"][0] == "bad"
