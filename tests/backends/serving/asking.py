"""What tests ask of a running replica: its metrics, its worker, whether it is ready."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.backends.serving.conftest import RUNNERS
from tests.backends.serving.servers import Server

NOT_RUN = "x-drivetrain-not-run"


def place_of(tmp: Path, source: str) -> Path:
    tmp.mkdir(parents=True, exist_ok=True)
    (tmp / "run.py").write_text(RUNNERS.get(source, source))
    return tmp


def metric(server: Server, name: str, **labels: str) -> float:
    """The value of one sample; labels that are not named may be anything."""
    for line in server.get("/metrics").body.decode().splitlines():
        found = re.fullmatch(rf"drivetrain_replica_{name}(?:\{{(.*)\}})? (\S+)", line)
        if found and all(f'{key}="{value}"' in (found[1] or "") for key, value in labels.items()):
            return float(found[2])
    raise AssertionError(f"no {name} with {labels}")


def until(condition: Callable[[], object], within: float = 60.0) -> float:
    """Waits for it; how many seconds it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() < began + within, "it did not happen in time"
        time.sleep(0.01)
    return time.monotonic() - began


def ready(server: Server) -> bool:
    """Whether predictions are answered, as KServe asks for it."""
    return server.get("/v2/health/ready").status == 200


def child_of(pid: int) -> int:
    """The process that this one has started; 0 if there is none."""
    ask = ["ps", "-o", "pid=", "--ppid", str(pid)]
    found = subprocess.run(ask, capture_output=True, text=True, check=False).stdout.split()
    return int(found[0]) if found else 0


def worker_of(server: Server) -> int:
    """The worker's process; 0 if there is none."""
    return child_of(server.process.pid)
