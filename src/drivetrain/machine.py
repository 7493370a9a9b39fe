"""What this machine has to compute with besides its processors: NVIDIA's driver, GPUs, and what PyTorch sees of them.

Asked of programs, since no library that could answer is light: `nvidia-smi` comes with the driver (into containers
too), and PyTorch is imported by a process of its own.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

from drivetrain.errors import SystemFault

LEAST_DRIVER: Mapping[int, tuple[int, ...]] = {11: (450, 80, 2), 12: (525,), 13: (580,)}
"""The oldest driver (on Linux) that runs what was built with a CUDA of that major version: NVIDIA's table of "minor version
compatibility", https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html"""

_THREADS = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS", "VECLIB_MAXIMUM_THREADS",
)  # fmt: skip
_THREADS_BEFORE = "DRIVETRAIN_THREADS_BEFORE"
_FIELDS = ("driver_version", "name", "memory.total", "memory.free", "compute_cap")
_MIB = 1 << 20
_ASK_TORCH = """
import json, torch
found = {"version": torch.__version__, "cuda": torch.version.cuda or "", "gpus": [], "problem": ""}
if torch.version.cuda:
    try:
        torch.cuda.init()
        found["gpus"] = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    except (RuntimeError, AssertionError) as error:
        found["problem"] = str(error).strip().splitlines()[0]
print("\\n" + json.dumps(found))
"""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU; memory in bytes, None where the driver does not tell (it is the machine's own on some)."""

    name: str
    memory: int | None
    free: int | None
    capability: str
    """Compute capability, such as 9.0."""


@dataclass(frozen=True, slots=True)
class Driver:
    """NVIDIA's driver and the GPUs that it has."""

    version: str
    cuda: str
    """The newest CUDA that it knows."""
    gpus: Sequence[Gpu]


@dataclass(frozen=True, slots=True)
class Torch:
    """PyTorch as it is installed: `cuda` is what it was built for (empty: for the CPU alone)."""

    version: str
    cuda: str
    gpus: Sequence[str]
    problem: str
    """Why it sees no GPU, in its own words."""


def nvidia(within: float = 10.0) -> Driver | None:
    """The driver; None where none is installed. Raises `SystemFault` if one is, and does not work."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    rows = _ask([tool, f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader,nounits"], within)
    header = _ask([tool], within)
    return parse(rows, header)


def parse(rows: str, header: str) -> Driver:
    """The driver, from what `nvidia-smi` prints for a query and without arguments. Raises `SystemFault`."""
    cells = [[cell.strip() for cell in line.split(",")] for line in rows.splitlines() if line.strip()]
    if not cells or any(len(row) != len(_FIELDS) for row in cells):
        raise SystemFault(f"nvidia-smi printed what is no list of GPUs: {rows.strip()[:200]!r}")
    # "CUDA Version: 12.4"; newer ones say "CUDA UMD Version".
    cuda = re.search(r"CUDA(?: UMD)? Version\s*:\s*(\d+\.\d+)", header)
    gpus = [Gpu(name, _bytes(memory), _bytes(free), capability) for _, name, memory, free, capability in cells]
    return Driver(cells[0][0], cuda[1] if cuda else "", gpus)


def least_driver(cuda: str) -> str:
    """The oldest driver that runs what was built with that CUDA, as text; empty where that is not known."""
    return ".".join(map(str, LEAST_DRIVER.get(_major(cuda), ())))


def suffices(driver: Driver, cuda: str) -> bool:
    """Whether the driver runs what was built with that CUDA."""
    if _major(cuda) in LEAST_DRIVER:
        return _numbers(driver.version) >= LEAST_DRIVER[_major(cuda)]
    # A CUDA that came after the table: the driver itself says how far it goes.
    return not driver.cuda or _major(driver.cuda) >= _major(cuda)


def torch(within: float = 60.0) -> Torch | None:
    """PyTorch in this environment; None where it is not installed. Raises `SystemFault` if it does not import."""
    if importlib.util.find_spec("torch") is None:
        return None
    found = _ask([sys.executable, "-c", _ASK_TORCH], within)
    told: dict[str, Any] = json.loads(found.strip().splitlines()[-1])
    return Torch(**told)


def _ask(command: Sequence[str], within: float) -> str:
    name = command[0].rpartition("/")[2]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=within, check=False)
    except subprocess.TimeoutExpired as error:
        raise SystemFault(f"{name} did not answer within {within:g} s", hint="a GPU may hang: see dmesg") from error
    except OSError as error:
        raise SystemFault(f"{name} cannot be started: {error.strerror}") from error
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()
        raise SystemFault(f"{name} failed: {said[-1] if command[0] == sys.executable else said[0]}")
    return done.stdout


def _bytes(mebibytes: str) -> int | None:
    """`81559` as bytes; None for `[N/A]` and the like."""
    return int(mebibytes) * _MIB if mebibytes.isdecimal() else None


def _major(version: str) -> int:
    return next(iter(_numbers(version)), 0)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


def limit_threads(environment: MutableMapping[str, str], threads: int) -> None:
    """Has numerical libraries use so many threads that are loaded from now on, by this process and those that it starts."""
    environment[_THREADS_BEFORE] = json.dumps({name: environment[name] for name in _THREADS if name in environment})
    for name in _THREADS:
        environment[name] = str(threads)


def without_limit(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment as it was before `limit_threads`: for what outlives the process whose threads were limited."""
    if _THREADS_BEFORE not in environment:
        return dict(environment)
    kept = {name: value for name, value in environment.items() if name not in (*_THREADS, _THREADS_BEFORE)}
    before: dict[str, str] = json.loads(environment[_THREADS_BEFORE])
    return kept | before
