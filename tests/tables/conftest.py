"""What the tests of raw tables share: a table's description, and a real S3 server (`rclone serve s3`)."""

from __future__ import annotations

import os
import re
import subprocess
import sysconfig
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from drivetrain.tables import TableSpec

KEY, SECRET = "TESTKEY", "a-test-secret"


def make_spec(source: str = "data.py:load", **changes: object) -> TableSpec:
    values: dict[str, object] = {
        "name": "rows", "timestamp": None, "key": (), "needed": (), "timezone": "UTC", "start": None, "end": None,
        "keeps_earlier": False,
    }  # fmt: skip
    for name in ("start", "end"):
        if isinstance(changes.get(name), str):
            changes[name] = datetime.fromisoformat(str(changes[name])).replace(tzinfo=UTC)
    return TableSpec(source=source, **(values | changes))  # type: ignore[arg-type]


@pytest.fixture
def spec() -> Callable[..., TableSpec]:
    return make_spec


@dataclass(frozen=True)
class S3:
    """A running server; its buckets are the directories of `root`."""

    root: Path
    endpoint: str


@pytest.fixture(scope="module")
def s3_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    folder = tmp_path_factory.mktemp("s3")
    root, log = folder / "root", folder / "log"
    (root / "raw").mkdir(parents=True)
    command = [
        str(Path(sysconfig.get_path("scripts")) / "rclone"), "serve", "s3", str(root), "--config", "/dev/null",
        "--addr", "127.0.0.1:0", "--dir-cache-time", "1s", "--vfs-cache-mode", "off", "--etag-hash", "",
    ]  # fmt: skip
    with log.open("wb") as output:
        environment = os.environ | {"RCLONE_AUTH_KEY": f'"{KEY},{SECRET}"'}
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
    try:
        deadline = time.monotonic() + 60
        while not (found := re.search(r"Starting s3 server on \[(http://[0-9.:]+)/\]", log.read_text())):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"rclone did not start: {log.read_text()}")
            time.sleep(0.01)
        yield S3(root, found[1])
    finally:
        process.kill()
        process.wait(10)


@pytest.fixture
def s3(s3_files: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    """The server, and the environment that leads to it."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_files.endpoint)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    # Set by the code as defaults; named here so that they are taken back after the test.
    for name in ("AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_RESPONSE_CHECKSUM_VALIDATION"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return s3_files
