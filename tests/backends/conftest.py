"""Object stores to test against: a directory, and a bucket of a real S3 server (`rclone serve s3`)."""

from __future__ import annotations

import os
import re
import secrets
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import obstore
import pytest
from obstore.store import LocalStore, ObjectStore, S3Store

from drivetrain.backends.objects import Objects
from drivetrain.backends.objects.directory import open_directory
from drivetrain.backends.objects.s3 import open_s3

S3_KEY, S3_SECRET = "TESTKEY", "a-test-secret"


@dataclass
class S3Server:
    """A running server. Buckets are the directories of `root`; the one called `bucket` is there."""

    root: Path
    log: Path
    process: subprocess.Popen[bytes]
    bucket: str = "objects"
    key: str = S3_KEY
    secret: str = S3_SECRET

    @property
    def endpoint(self) -> str:
        found = re.search(r"Starting s3 server on \[(http://[0-9.:]+)/\]", self.log.read_text())
        return found[1] if found else ""

    def stop(self) -> None:
        """Ends the server as a crash would."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)


def start_s3_server(folder: Path) -> S3Server:
    root, log = folder / "root", folder / "rclone.log"
    (root / "objects").mkdir(parents=True)
    command = [
        str(Path(sysconfig.get_path("scripts")) / "rclone"), "serve", "s3", str(root),
        "--config", "/dev/null", "--addr", "127.0.0.1:0", "--dir-cache-time", "1s", "--vfs-cache-mode", "off",
    ]  # fmt: skip
    with log.open("wb") as output:
        environment = os.environ | {"RCLONE_AUTH_KEY": f'"{S3_KEY},{S3_SECRET}"'}
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
    server = S3Server(root, log, process)
    deadline = time.monotonic() + 60
    while not server.endpoint:
        if process.poll() is not None or time.monotonic() > deadline:
            server.stop()
            raise RuntimeError(f"rclone did not start: {log.read_text()}")
        time.sleep(0.01)
    return server


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    server = start_s3_server(tmp_path_factory.mktemp("s3"))
    yield server
    server.stop()


@pytest.fixture
def own_s3_server(tmp_path: Path) -> Iterator[S3Server]:
    """A server that the test may stop."""
    server = start_s3_server(tmp_path / "s3")
    yield server
    server.stop()


@pytest.fixture
def s3_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", S3_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", S3_SECRET)


@dataclass
class Place:
    """Somewhere to keep objects: `raw` reaches the same bytes without any check; `address` opens it elsewhere too."""

    name: str
    raw: ObjectStore
    open: Callable[[], Objects]
    address: list[str] = field(default_factory=list)

    def keys(self, prefix: str = "") -> list[str]:
        return sorted(entry["path"] for batch in obstore.list(self.raw, prefix or None) for entry in batch)

    def read(self, key: str) -> bytes:
        return bytes(obstore.get(self.raw, key).bytes())

    def write(self, key: str, data: bytes) -> None:
        obstore.put(self.raw, key, data, use_multipart=False)

    def delete(self, key: str) -> None:
        obstore.delete(self.raw, key)


@pytest.fixture(params=["directory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "directory":
        root = tmp_path / "objects"
        objects = open_directory(root)
        return Place("directory", LocalStore(root), lambda: objects, ["directory", str(root)])
    request.getfixturevalue("s3_credentials")
    server: S3Server = request.getfixturevalue("s3_server")
    prefix = f"tests/{secrets.token_hex(6)}"
    url = f"s3://{server.bucket}/{prefix}"
    raw = S3Store(
        server.bucket,
        prefix=prefix,
        endpoint=server.endpoint,
        client_options={"allow_http": True},
        disable_bulk_delete=True,
    )
    return Place("s3", raw, lambda: open_s3(url, server.endpoint), ["s3", url, server.endpoint])


@pytest.fixture
def objects(place: Place) -> Objects:
    return place.open()


@pytest.fixture
def start_python() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `python -c CODE ARGUMENTS` with the package at hand; what still runs at the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(code: str, *arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()
