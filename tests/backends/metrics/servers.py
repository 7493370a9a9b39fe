"""Debian's Prometheus and Alertmanager as processes of a test."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

Found = TypeVar("Found")


def until(found: Callable[[], Found], within: float = 60.0, what: str = "it") -> Found:
    """What `found` gives once it gives something."""
    deadline = time.monotonic() + within
    while True:
        if value := found():
            return value
        assert time.monotonic() < deadline, f"{what} did not come within {within} s"
        time.sleep(0.02)


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)


def post(url: str, body: Any, headers: Mapping[str, str]) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json", **headers})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


class Prometheus:
    """A running Prometheus; `url` is its root."""

    def __init__(self, url: str) -> None:
        self.url = url

    def query(self, promql: str, at: float | None = None) -> list[dict[str, Any]]:
        """The samples that a query gives, now or at a time."""
        options = {"query": promql} | ({"time": str(at)} if at is not None else {})
        answer = get(f"{self.url}/api/v1/query?{urllib.parse.urlencode(options)}")
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    def alerts(self) -> list[tuple[float, str]]:
        """Value and state of each alert."""
        found = get(f"{self.url}/api/v1/alerts")["data"]["alerts"]
        return [(float(alert["value"]), alert["state"]) for alert in found]


@contextmanager
def prometheus(config: Path, home: Path, port: int) -> Iterator[Prometheus]:
    """Prometheus with that configuration, its data in `home`."""
    options = [f"--config.file={config}", f"--storage.tsdb.path={home}", f"--web.listen-address=127.0.0.1:{port}"]
    with _process("prometheus", options, f"http://127.0.0.1:{port}", home.with_suffix(".log")) as url:
        yield Prometheus(url)


@contextmanager
def alertmanager(config: Path, home: Path, port: int) -> Iterator[str]:
    """Alertmanager with that configuration, by itself; its root."""
    options = [
        f"--config.file={config}",
        f"--storage.path={home}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--cluster.listen-address=",
    ]
    with _process("prometheus-alertmanager", options, f"http://127.0.0.1:{port}", home.with_suffix(".log")) as url:
        yield url


@contextmanager
def _process(name: str, options: Sequence[str], url: str, log: Path) -> Iterator[str]:
    if shutil.which(name) is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{name} is not installed")
    with log.open("wb") as told:
        process = subprocess.Popen([name, *options], stdout=told, stderr=told)
    try:
        until(lambda: process.poll() is not None or _ready(url), what=name)
        assert process.poll() is None, log.read_text()
        yield url
    finally:
        process.terminate()
        process.wait()


def _ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/-/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
