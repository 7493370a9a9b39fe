"""Debian's docker-registry for tests, a connection to it that can be cut, and one who keeps what arrived before the cut."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.ports import free_port

USER, PASSWORD = "somebody", "a password"
_HASH = "$2b$05$CiDRo49LTCtec0KHUDhypOC.Ua1CIPUMOdYPZmXOQvD/AiYt8r1CO"
"""bcrypt of the password: the one kind that the registry reads."""


class RegistryServer:
    """A registry at a port that stays its own. What it keeps lies in `home`; `auth` and `tls` go into its configuration."""

    def __init__(
        self,
        home: Path,
        *,
        password: bool = False,
        auth: Mapping[str, Any] | None = None,
        tls: Mapping[str, str] | None = None,
    ) -> None:
        binary = shutil.which("docker-registry")
        if binary is None:
            (pytest.fail if os.environ.get("CI") else pytest.skip)("docker-registry is not installed")
        self.home, self._scheme = home, "https" if tls else "http"
        home.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        if password:
            (home.parent / "htpasswd").write_text(f"{USER}:{_HASH}\n")
            auth = {"htpasswd": {"realm": "a registry", "path": str(home.parent / "htpasswd")}}
        told = {
            "version": 0.1,
            "log": {"level": "error", "accesslog": {"disabled": True}},
            "storage": {"filesystem": {"rootdirectory": str(home)}},
            "http": {"addr": f"127.0.0.1:{self.port}", "secret": "of the test", **({"tls": dict(tls)} if tls else {})},
            **({"auth": dict(auth)} if auth else {}),
        }
        config = home.parent / f"registry-{self.port}.yml"
        config.write_text(json.dumps(told))  # YAML takes JSON as it is
        self._command = [binary, "serve", str(config)]
        self._log = home.parent / f"registry-{self.port}.log"
        self.start()

    def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(self._command, stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while True:
            with socket.socket() as tried:
                if tried.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            assert time.monotonic() < deadline, "docker-registry did not come up"
            assert self.process.poll() is None, self._log.read_text()
            time.sleep(0.01)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    @property
    def host(self) -> str:
        return f"localhost:{self.port}"

    def blobs(self) -> set[str]:
        """The digests of what it keeps."""
        return {f"sha256:{path.parent.name}" for path in self.home.glob("docker/registry/v2/blobs/sha256/*/*/data")}

    def data(self, digest: str) -> Path:
        """The file of a blob or manifest."""
        bare = digest.removeprefix("sha256:")
        return self.home / "docker/registry/v2/blobs/sha256" / bare[:2] / bare / "data"

    def tags(self, repository: str) -> list[str]:
        """The tags of a repository, as whoever asks gets them."""
        try:
            with urllib.request.urlopen(f"{self._scheme}://127.0.0.1:{self.port}/v2/{repository}/tags/list") as answer:
                return sorted(json.load(answer)["tags"] or ())
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise
            return []


def docker_config(path: Path, host: str, password: str = PASSWORD) -> Path:
    """Credentials as `docker login` writes them."""
    told = base64.b64encode(f"{USER}:{password}".encode()).decode()
    path.write_text(json.dumps({"auths": {host: {"auth": told}}}))
    return path


class Line:
    """A TCP line to a registry, which breaks once `cut_after` bytes have gone through to it, and is whole again after that; it breaks
    `cuts` times. `sent` are the bytes that went through to the registry all together, `received` those that came from it."""

    def __init__(self, port: int, cut_after: int, cuts: int = 1) -> None:
        self.sent, self._left, self._after, self._cuts = 0, cut_after, cut_after, cuts
        self.received, self._answers_left = 0, 0
        self._port, self._lock = port, threading.Lock()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.host = f"localhost:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def cuts_left(self) -> int:
        return self._cuts

    def cut_answers(self, after: int) -> None:
        """Breaks the line once, when that many bytes have come from the registry."""
        self._answers_left = after

    def close(self) -> None:
        self._listening.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
                server = socket.create_connection(("127.0.0.1", self._port))
            except OSError:
                return
            threading.Thread(target=self._up, args=(client, server), daemon=True).start()
            threading.Thread(target=self._down, args=(server, client), daemon=True).start()

    def _up(self, client: socket.socket, server: socket.socket) -> None:
        try:
            while piece := client.recv(1 << 16):
                allowed = self._pass(len(piece))
                server.sendall(piece[:allowed])
                if allowed < len(piece):
                    break
        except OSError:
            pass
        finally:
            _end(client, server)

    def _pass(self, wanted: int) -> int:
        """How many of the bytes go through."""
        with self._lock:
            if self._cuts and wanted > self._left:
                allowed, self._left, self._cuts = self._left, self._after, self._cuts - 1
            else:
                allowed, self._left = wanted, self._left - wanted
            self.sent += allowed
            return allowed

    def _down(self, server: socket.socket, client: socket.socket) -> None:
        try:
            while piece := server.recv(1 << 16):
                client.sendall(piece)
                self.received += len(piece)
                if self._answers_left and self.received > self._answers_left:
                    self._answers_left = 0
                    break
        except OSError:
            pass
        finally:
            _end(client, server)


def _end(*ends: socket.socket) -> None:
    for end in ends:
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()
