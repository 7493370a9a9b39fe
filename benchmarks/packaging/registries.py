"""A registry on this machine, and a plain upload to it."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.packaging.scratch import run
from benchmarks.packaging.world import World
from benchmarks.serving.servers import free_port


@dataclass(frozen=True, slots=True)
class Registry:
    """A registry that runs. `home` is where it keeps blobs."""

    home: Path
    host: str

    @property
    def base(self) -> str:
        """The base's reference."""
        return f"{self.host}/base:1"

    def bytes(self) -> int:
        """Bytes of all blobs and manifests."""
        return sum(path.stat().st_size for path in self.home.glob("docker/registry/v2/blobs/sha256/*/*/data"))


@contextlib.contextmanager
def registry(world: World, place: Path) -> Iterator[Registry]:
    """Debian's docker-registry with the base in it, and nothing else."""
    port, home = free_port(), place / "registry"
    home.mkdir(parents=True)
    told = {
        "version": 0.1,
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(home)}},
        "http": {"addr": f"127.0.0.1:{port}"},
    }
    (place / "registry.json").write_text(json.dumps(told))
    with (place / "registry.log").open("wb") as log:
        process = subprocess.Popen(["docker-registry", "serve", str(place / "registry.json")], stdout=log, stderr=log)
    try:
        _wait(process, port)
        found = Registry(home, f"localhost:{port}")
        run(["skopeo", "copy", "--quiet", "--dest-tls-verify=false", f"oci:{world.base}:1", f"docker://{found.base}"])
        yield found
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(home, ignore_errors=True)


def _wait(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise RuntimeError("docker-registry did not come up")


def raw_upload(path: Path, found: Registry) -> float:
    """Seconds that curl takes to send a file to the registry as a blob, its digest known."""
    digest = run(["sha256sum", str(path)]).split()[0]
    curl, uploads = ("curl", "-sS", "-f", "-o", "/dev/null"), f"http://{found.host}/v2/raw/blobs/uploads/"
    began = time.monotonic()
    head = run([*curl, "-X", "POST", "-D", "-", uploads])
    place = next(line.split(": ", 1)[1].strip() for line in head.splitlines() if line.lower().startswith("location:"))
    headers = ("-H", "Content-Type: application/octet-stream", "-H", "Expect:")
    run([*curl, *headers, "-T", str(path), f"{place}&digest=sha256:{digest}"])
    return time.monotonic() - began
