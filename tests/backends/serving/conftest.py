"""Small Cog runners as text, and bundles made of them."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from drivetrain.backends.serving.local import LocalServing
from tests.backends.serving.services import end_everything

RUNNERS = {
    # what every server is compared with
    "echo": """
from cog import BaseRunner, Input

class Runner(BaseRunner):
    def run(self, x: float = Input(description="a number"), y: float = Input(default=0.0)) -> float:
        return 3 * x + y
""",
    "failing": """
from cog import BaseRunner

class Runner(BaseRunner):
    def run(self, x: float) -> float:
        print(f"looking at {x}")
        raise ValueError("no such carrier")
""",
    "sleeping": """
import time
from cog import BaseRunner

class Runner(BaseRunner):
    def run(self, seconds: float, x: float = 0.0) -> float:
        time.sleep(seconds)
        return x
""",
    # what is held is answered when a file `go` lies in the bundle: nothing has to happen within a certain time before
    "held": """
import pathlib, time
from cog import BaseRunner

class Runner(BaseRunner):
    def run(self, x: float = 0.0, held: bool = True) -> float:
        while held and not (pathlib.Path(__file__).parent / "go").exists():
            time.sleep(0.005)
        return x
""",
    "streaming": """
import time
from cog import BaseRunner, ConcatenateIterator

class Runner(BaseRunner):
    def run(self, text: str, pause: float = 0.0) -> ConcatenateIterator[str]:
        for word in text.split():
            time.sleep(pause)
            yield word + " "
""",
    "async": """
import asyncio
import cog
from cog import BaseRunner

class Runner(BaseRunner):
    async def setup(self) -> None:
        self.running = 0

    @cog.concurrent(max=4)
    async def run(self, seconds: float = 0.0, x: float = 0.0) -> dict:
        self.running += 1
        try:
            print(f"x is {x}")
            self.record_metric("x", x)
            most = self.running
            await asyncio.sleep(seconds)
            return {"x": x, "running": max(most, self.running)}
        finally:
            self.running -= 1
""",
    # dies in every way that a process can
    "crashing": """
import os, signal, time
from cog import BaseRunner

class Runner(BaseRunner):
    def run(self, how: str = "", x: float = 0.0) -> dict:
        if how == "exit":
            os._exit(3)
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        if how == "hang":
            time.sleep(3600)
        return {"x": x, "pid": os.getpid()}
""",
    "batch": """
from cog import BaseRunner

class Runner(BaseRunner):
    def run(self, x: float, y: float = 0.0) -> dict:
        return self.batch([{"x": x, "y": y}])[0]

    def batch(self, inputs: list) -> list:
        if any(one["x"] == -1 for one in inputs):
            raise ValueError("a bad item is in it")
        return [
            KeyError("no such row") if one["x"] == -2 else {"value": 3 * one["x"] + one["y"], "together": len(inputs)}
            for one in inputs
        ]
""",
    "infer": """
from cog import BaseRunner

class Runner(BaseRunner):
    def run(self, rows: list[float]) -> list[float]:
        return [2 * row for row in rows]

    def infer(self, tensors: dict) -> dict:
        return {name: 2 * array for name, array in tensors.items()}
""",
    "broken": """
from cog import BaseRunner

class Runner(BaseRunner):
    def setup(self) -> None:
        print("looking for the model")
        raise RuntimeError("model file is missing")

    def run(self, x: float) -> float:
        return x
""",
    "slow setup": """
import time
from cog import BaseRunner

class Runner(BaseRunner):
    def setup(self) -> None:
        time.sleep(60)

    def run(self, x: float) -> float:
        return x
""",
}


@pytest.fixture
def bundle(tmp_path: Path) -> Callable[[str], Path]:
    """`bundle("echo")` or `bundle(source)` makes a directory with that runner as `run.py`."""

    def make(runner: str) -> Path:
        place = tmp_path / f"bundle-{len(list(tmp_path.glob('bundle-*')))}"
        place.mkdir()
        (place / "run.py").write_text(RUNNERS.get(runner, runner))
        return place

    return make


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A real file system of one megabyte."""
    place = Path(tempfile.mkdtemp())
    mount = shutil.which("mount")
    if mount is None or subprocess.run([mount, "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], check=False).returncode:
        place.rmdir()
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", "-l", place], check=True, timeout=10)
    place.rmdir()


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    """The state directory of a project; what was started below it is ended."""
    yield tmp_path / "state"
    end_everything(tmp_path / "state")


@pytest.fixture
def serving(state: Path) -> LocalServing:
    """The services of that project."""
    return LocalServing(state, ready_within=60)
