"""The driver and its GPUs, read from what `nvidia-smi` prints."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import stat
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivetrain import machine
from drivetrain.errors import SystemFault
from drivetrain.machine import Driver, Gpu

H100 = "580.159.04, NVIDIA H100 80GB HBM3, 81559, 81079, 9.0\n"
T4S = "535.183.01, Tesla T4, 15360, 14923, 7.5\n535.183.01, Tesla T4, 15360, 103, 7.5\n"
SHARED = "580.95.05, NVIDIA GB10, [N/A], [N/A], 12.1\n"
HEADER = """\
+-----------------------------------------------------------------------------------------+
| NVIDIA-SMI {0}             Driver Version: {0}     {1}: {2}     |
|-----------------------------------------+------------------------+----------------------+
"""
MIB = 1 << 20


def header(driver: str, cuda: str, word: str = "CUDA Version") -> str:
    return HEADER.format(driver, word, cuda)


def test_one_gpu() -> None:
    found = machine.parse(H100, header("580.159.04", "13.0"))
    assert found == Driver("580.159.04", "13.0", [Gpu("NVIDIA H100 80GB HBM3", 81559 * MIB, 81079 * MIB, "9.0")])


def test_several_gpus_keep_their_order() -> None:
    found = machine.parse(T4S, header("535.183.01", "12.2"))
    assert [gpu.free for gpu in found.gpus] == [14923 * MIB, 103 * MIB]


def test_a_newer_header_and_memory_that_is_not_told() -> None:
    found = machine.parse(SHARED, header("580.95.05", "13.1", "CUDA UMD Version"))
    assert (found.cuda, found.gpus[0].memory, found.gpus[0].free) == ("13.1", None, None)


def test_a_header_without_cuda_leaves_it_open() -> None:
    assert machine.parse(H100, "").cuda == ""


@pytest.mark.parametrize("rows", ["", "\n", "No devices were found\n", "580.1, H100, 1\n"])
def test_what_is_no_list_of_gpus_is_an_error(rows: str) -> None:
    with pytest.raises(SystemFault, match="no list of GPUs"):
        machine.parse(rows, "")


@pytest.mark.parametrize(
    ("version", "knows", "cuda", "enough"),
    [
        ("550.54.14", "12.4", "12.6", True),  # minor versions are compatible
        ("525.60.13", "12.0", "12.9", True),
        ("470.256.02", "11.4", "12.1", False),
        ("570.211.01", "12.8", "13.0", False),
        ("580.65.06", "13.0", "12.6", True),
        ("580.65.06", "13.0", "11.8", True),
        ("450.51.06", "11.0", "11.8", False),  # of the branch that does, but older than its first that does
        ("450.80.02", "11.0", "11.8", True),
        ("580.65.06", "13.0", "14.0", False),  # after the table: by the driver's own word
        ("700.10", "14.1", "14.0", True),
        ("700.10", "", "14.0", True),
    ],
)
def test_whether_a_driver_suffices_for_a_cuda(version: str, knows: str, cuda: str, enough: bool) -> None:
    assert machine.suffices(Driver(version, knows, ()), cuda) is enough


@given(major=st.sampled_from([11, 12, 13]), minor=st.integers(0, 20), branch=st.integers(390, 700))
def test_a_newer_driver_never_does_less(major: int, minor: int, branch: int) -> None:
    older, newer = (Driver(f"{number}.99.99", "", ()) for number in (branch, branch + 1))
    cuda = f"{major}.{minor}"
    assert machine.suffices(newer, cuda) or not machine.suffices(older, cuda)
    assert machine.suffices(Driver(machine.least_driver(cuda), "", ()), cuda)


def test_no_least_driver_is_claimed_for_a_cuda_after_the_table() -> None:
    assert machine.least_driver("14.0") == ""


@given(st.text(max_size=300), st.text(max_size=300))
def test_any_text_is_parsed_or_refused(rows: str, shown: str) -> None:
    with contextlib.suppress(SystemFault):
        assert machine.parse(rows, shown).gpus


# The program itself


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for a program of that name, in front of all others."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path / "nvidia-smi"


def write(program: Path, text: str) -> None:
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)


def test_the_driver_is_asked_twice(smi: Path) -> None:
    write(smi, f'case "$1" in --query-gpu=*) printf "{H100}";; *) cat <<X\n{header("580.159.04", "13.0")}X\n;; esac')
    found = machine.nvidia()
    assert found is not None
    assert (found.version, found.cuda, len(found.gpus)) == ("580.159.04", "13.0", 1)


def test_a_driver_that_does_not_work_is_an_error_in_its_own_words(smi: Path) -> None:
    write(smi, 'echo "NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver."; exit 9')
    with pytest.raises(SystemFault, match="nvidia-smi failed: NVIDIA-SMI has failed because"):
        machine.nvidia()


def test_a_driver_that_hangs_is_given_up(smi: Path) -> None:
    write(smi, "exec sleep 60")
    with pytest.raises(SystemFault, match=r"did not answer within 0\.2 s"):
        machine.nvidia(within=0.2)


def test_no_program_is_no_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.nvidia() is None


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="the extra torch is not installed")
def test_torch_is_asked_in_a_process_of_its_own() -> None:
    before = set(sys.modules)
    found = machine.torch()
    assert found is not None
    assert found.version.startswith("2.")
    assert found.cuda or not found.gpus
    assert "torch" not in set(sys.modules) - before


def test_what_outlives_a_process_with_limited_threads_has_the_users_own_environment() -> None:
    users = {"OMP_NUM_THREADS": "3", "HOME": "/home/ada"}
    environment = dict(users)
    machine.limit_threads(environment, 2)
    assert environment["OMP_NUM_THREADS"] == environment["MKL_NUM_THREADS"] == "2"
    assert machine.without_limit(environment) == users
    assert machine.without_limit(users) == users
