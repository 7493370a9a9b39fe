"""Real containers for tests: a Debian made by debootstrap, and podman as it runs on a machine without systemd."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.ports import free_port

_CONF = '[containers]\ndefault_ulimits = ["nofile=1024:1024", "nproc=1000:1000"]\n[engine]\nruntime = "runc"\n'
"""runc and low limits, for machines where crun finds no cgroups of its kind and limits cannot be raised."""


def needed(*programs: str) -> None:
    """Skips the test where a program is missing; fails it in CI."""
    missing = [name for name in programs if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        why = f"{', '.join(missing)} not installed" if missing else "only root makes a Debian and runs these containers"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(why)


def configured(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Has podman and buildah run where there are no cgroups of version 2."""
    (folder / "containers.conf").write_text(_CONF)
    patch.setenv("CONTAINERS_CONF", str(folder / "containers.conf"))


def debian(path: Path, packages: Sequence[str] = ("python3", "ca-certificates")) -> Path:
    """A Debian 12, with Python 3.11, as a tar archive without what differs from one making to the next."""
    root = path.parent / "debian"
    names = ",".join(packages)
    words = [
        "debootstrap",
        "--variant=minbase",
        f"--include={names}",
        "bookworm",
        str(root),
        "http://deb.debian.org/debian",
    ]
    subprocess.run(words, check=True, capture_output=True)
    left = [f"--exclude=./{name}/*" for name in ("dev", "proc", "sys", "var/cache/apt", "var/lib/apt/lists", "var/log")]
    left += ["--exclude=./usr/share/doc/*", "--exclude=./usr/share/locale/*"]
    fixed = ["--sort=name", "--mtime=@0", "--numeric-owner"]
    subprocess.run(["tar", *fixed, *left, "-C", str(root), "-cf", str(path), "."], check=True)
    shutil.rmtree(root)
    return path


@contextmanager
def place(root: Path, *programs: str) -> Iterator[Path]:
    """The directory with a base, where the builder's store is too. Skips the test, or fails it in CI, where a program is missing."""
    needed(*programs)
    debian(root / "base.tar")
    with pytest.MonkeyPatch.context() as patch:
        configured(patch, root)
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        yield root


def podman(*words: str) -> str:
    """`podman WORDS`, with what it prints."""
    ended = subprocess.run(["podman", *words], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


@contextmanager
def running(image: str, *options: str) -> Iterator[str]:
    """A container of the image, as anybody but root and on a read-only file system: its address, once it is ready."""
    port, name = free_port(), f"drivetrain-{uuid.uuid4().hex[:8]}"
    place = ("--read-only", "--tmpfs", "/tmp", "--network", "host", "--env", f"PORT={port}")
    podman("run", "--detach", "--name", name, *place, *options, image)
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 60
        while not ready(url):
            assert time.monotonic() < deadline, podman("logs", name)
            time.sleep(0.05)
        yield url
    finally:
        podman("rm", "--force", "--time", "5", name)


def ready(url: str) -> bool:
    """Whether the model answers."""
    try:
        with urllib.request.urlopen(f"{url}/v2/health/ready", timeout=2) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def ask(url: str, inputs: Mapping[str, Any]) -> Any:
    """The output of a prediction."""
    data = json.dumps({"input": inputs}).encode()
    request = urllib.request.Request(f"{url}/predictions", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        found = json.load(answer)
    assert found["status"] == "succeeded", found
    return found["output"]
