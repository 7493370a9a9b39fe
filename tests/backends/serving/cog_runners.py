"""Small Cog runners, each for one side of Cog's API."""

from __future__ import annotations

RUNNERS: dict[str, str] = {
    "typed": """
from typing import Optional
from cog import BaseRunner, Input

class Runner(BaseRunner):
    def run(
        self,
        x: float = Input(description="a number", ge=-100, le=100),
        y: float = 1.0,
        mode: str = Input(default="sum", choices=["sum", "product"]),
        note: Optional[str] = None,
        name: str = Input(default="abc", min_length=2, max_length=5, regex="^[a-z]+$"),
        count: int = 1,
        flag: bool = False,
        many: list[int] = Input(default=[1, 2]),
    ) -> dict:
        value = x + y if mode == "sum" else x * y
        return {"value": value, "note": note, "name": name, "count": count, "flag": flag, "many": many}
""",
    "acting": """
import os, pathlib, sys, time
from cog import BaseRunner, CancelationException, current_scope

class Runner(BaseRunner):
    def setup(self) -> None:
        print("loading weights")

    def run(self, action: str, seconds: float = 0.0) -> str:
        if action == "raise":
            raise ValueError("no such carrier")
        if action == "bare":
            raise RuntimeError
        if action == "nested":
            try:
                1 / 0
            except ZeroDivisionError as error:
                raise KeyError("carrier") from error
        if action == "exit":
            sys.exit(3)
        if action == "print":
            print("one")
            print("two", file=sys.stderr)
        if action == "metrics":
            current_scope().record_metric("tokens", 3)
            current_scope().record_metric("tokens", 4, mode="incr")
            current_scope().record_metric("time.load", 0.5)
        if action == "none":
            return None
        if action == "bytes":
            return b"\\x00\\xff"
        if action == "nan":
            return float("nan")
        if action == "context":
            return current_scope().context.get("key", "none")
        while action == "held" and not pathlib.Path("go").exists():
            time.sleep(0.005)
        end = time.monotonic() + seconds
        if seconds > 5:
            print("waiting", flush=True)
        try:
            while time.monotonic() < end:
                time.sleep(0.005)
        except CancelationException:
            print("canceled")
            raise
        return action
""",
    "streaming": """
import pathlib, time
from cog import BaseRunner, ConcatenateIterator, streaming

class Runner(BaseRunner):
    @streaming
    def run(self, count: int, fail_at: int = -1, seconds: float = 0.0) -> ConcatenateIterator[str]:
        print("begin")
        for number in range(count):
            if number == fail_at:
                raise ValueError(f"stopped at {number}")
            while number and pathlib.Path("hold").exists():
                time.sleep(0.005)
            time.sleep(seconds)
            yield f"part{number} "
""",
    "iterating": """
import time
from typing import Iterator
from cog import BaseRunner

class Runner(BaseRunner):
    def run(self, count: int) -> Iterator[int]:
        for number in range(count):
            yield number
""",
    "concurrent": """
import asyncio
from cog import BaseRunner, concurrent

class Runner(BaseRunner):
    async def setup(self) -> None:
        self.running = self.most = 0

    @concurrent(max=4)
    async def run(self, seconds: float = 0.0, action: str = "") -> int:
        if action == "raise":
            raise ValueError("no such carrier")
        if seconds > 5:
            print("waiting", flush=True)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(seconds)
            while action == "together" and self.most < 4:
                await asyncio.sleep(0.005)
        finally:
            self.running -= 1
        return self.most
""",
    "files": """
import os
from cog import BaseRunner, Path

class Runner(BaseRunner):
    def run(self, file: Path, action: str = "") -> Path:
        data = open(file, "rb").read()
        if action == "raise":
            raise ValueError("unreadable")
        out = Path("/tmp") / f"out-{os.getpid()}.txt"
        out.write_bytes(data.upper())
        return out
""",
    "lists": """
from cog import BaseModel, BaseRunner

class Found(BaseModel):
    label: str
    score: float

class Runner(BaseRunner):
    def run(self, rows: list[dict], one: bool = False) -> Found:
        return Found(label=str(rows[0].get("label")), score=float(len(rows)))
""",
    "older": """
from cog import BasePredictor, Input

class Predictor(BasePredictor):
    def setup(self):
        self.factor = 3

    def predict(self, x: float, y: float = Input(default=0.0, ge=0)) -> float:
        return self.factor * x + y
""",
    "unhealthy": """
from cog import BaseRunner

class Runner(BaseRunner):
    def healthcheck(self) -> bool:
        return False

    def run(self, x: float) -> float:
        return x
""",
    "broken": """
from cog import BaseRunner

class Runner(BaseRunner):
    def setup(self) -> None:
        print("loading weights")
        raise RuntimeError("model file is missing")

    def run(self, x: float) -> float:
        return x
""",
    "slow": """
import time
from cog import BaseRunner

class Runner(BaseRunner):
    def setup(self) -> None:
        time.sleep(600)

    def run(self, x: float) -> float:
        return x
""",
    "dying": """
import os
from cog import BaseRunner

class Runner(BaseRunner):
    def run(self, x: float) -> float:
        if x < 0:
            os._exit(3)
        return x
""",
}
"""Source by name; each is `run.py:Runner` but `older`, which is `predict.py:Predictor`."""
