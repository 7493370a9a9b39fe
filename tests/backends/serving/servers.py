"""Cog's own server and the replica as processes, and a client that sends exactly the bytes it is told to."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.ports import free_port

HOST = "127.0.0.1"
ENDED = ("SETUP_FAILED", "DEFUNCT", "UNHEALTHY")


@dataclass(frozen=True)
class Reply:
    """One answer; `headers` by lower-case name."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def content_type(self) -> str:
        return self.headers.get("content-type", "").partition(";")[0]

    def json(self) -> Any:
        return json.loads(self.body)

    def events(self) -> list[tuple[str, Any]]:
        """Server-sent events: name and JSON data of each; comments are left out."""
        found = []
        for block in self.body.decode().split("\n\n"):
            fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line and line[0] != ":")
            if "data" in fields:
                found.append((fields.get("event", ""), json.loads(fields["data"])))
        return found


@dataclass
class Server:
    """A started server. `process` leads a process group of its own."""

    port: int
    process: subprocess.Popen[bytes]
    log: Path
    options: Mapping[str, str] = field(default_factory=dict)

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = 60.0,
    ) -> Reply:
        """One request on a connection of its own. A body that is not bytes is sent as JSON."""
        raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        given = {"content-type": "application/json"} if body is not None else {}
        given |= {name.lower(): value for name, value in (headers or {}).items()}
        return exchange(self.port, message(method, path, {k: v for k, v in given.items() if v}, raw), timeout)

    def get(self, path: str) -> Reply:
        return self.request("GET", path)

    def predict(self, inputs: Mapping[str, Any], **more: Any) -> Reply:
        """`POST /predictions` with those inputs."""
        return self.request("POST", "/predictions", {"input": inputs, **more})

    def health(self) -> str:
        """Cog's word; empty if nothing answers."""
        try:
            return str(self.request("GET", "/health-check", timeout=5.0).json()["status"])
        except (OSError, ValueError, KeyError):
            return ""

    def wait_for(self, *words: str, within: float = 60.0) -> str:
        """The first of the health words that it says."""
        deadline = time.monotonic() + within
        while (said := self.health()) not in words:
            assert self.process.poll() is None, f"the server ended:\n{self.log.read_text(errors='replace')[-3000:]}"
            assert time.monotonic() < deadline, (
                f"{said} for {within} s:\n{self.log.read_text(errors='replace')[-3000:]}"
            )
            time.sleep(0.02)
        return said

    def end(self) -> None:
        """Kills the server and whatever it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)


class Asked:
    """A request on a thread of its own. To call it is to wait for the answer."""

    def __init__(self, server: Server, *arguments: Any) -> None:
        self._found: list[Reply] = []
        self._thread = threading.Thread(target=lambda: self._found.append(server.request(*arguments)))
        self._thread.start()

    @property
    def answered(self) -> bool:
        """Whether its answer is there."""
        return bool(self._found)

    def __call__(self) -> Reply:
        self._thread.join(90)
        assert self._found, "no answer"
        return self._found[0]


def in_background(server: Server, *arguments: Any) -> Asked:
    """Sends a request on a thread; the result waits for its answer."""
    return Asked(server, *arguments)


def message(method: str, path: str, headers: Mapping[str, str], body: bytes) -> bytes:
    """The bytes of a request; `Content-Length` is added where there is a body, and the connection is to be closed."""
    lines = [f"{method} {path} HTTP/1.1", "host: x", "connection: close"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if (body or method in ("POST", "PUT")) and not {"content-length", "transfer-encoding"} & set(headers):
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def exchange(port: int, raw: bytes, timeout: float = 60.0) -> Reply:
    """The answer to those bytes, read until the server closes the connection."""
    with socket.create_connection((HOST, port), timeout) as connection:
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(raw)
        return parse(b"".join(iter(lambda: receive(connection), b"")))


def receive(connection: socket.socket) -> bytes:
    try:
        return connection.recv(1 << 20)
    except ConnectionResetError:
        return b""


def parse(raw: bytes) -> Reply:
    """The answer as a `Reply`. Raises `ConnectionError` if there is none."""
    head, end, body = raw.partition(b"\r\n\r\n")
    if not end:
        raise ConnectionError(f"no answer: {raw!r}")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if headers.get("transfer-encoding") == "chunked":
        body = dechunk(body)
    return Reply(int(first.split(" ")[1]), headers, body)


def dechunk(raw: bytes) -> bytes:
    """A chunked body in one piece; what is there, if it was cut off."""
    found = b""
    while raw:
        size, _, rest = raw.partition(b"\r\n")
        count = int(size or b"0", 16)
        if not count:
            break
        found, raw = found + rest[:count], rest[count + 2 :]
    return found


def bundle(place: Path, source: str, file: str = "run.py", name: str = "Runner", streams: bool = False) -> Path:
    """A directory with that runner and its OpenAPI document, as `cog build` bakes it."""
    (place / ".cog").mkdir(parents=True)
    (place / file).write_text(source)
    command = [sys.executable, "-m", "drivetrain.backends.serving.schema", f"{file}:{name}"]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=60, check=False)
    document = json.loads(done.stdout.splitlines()[-1])
    assert "openapi" in document, document
    if streams:
        document["paths"]["/predictions"]["post"]["x-cog-streaming"] = True
    (place / ".cog" / "openapi_schema.json").write_text(json.dumps(document))
    return place


def environment() -> dict[str, str]:
    """This process's environment, with this interpreter first on the path: Cog starts its worker as plain `python`."""
    return {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])}


def cog_command(port: int, runner: str) -> tuple[list[str], dict[str, str]]:
    command = [sys.executable, "-m", "cog.server.http", "--host", HOST]
    return command, {"COG_PREDICT_TYPE_STUB": runner, "PORT": str(port)}


def replica_command(port: int, runner: str, options: Sequence[str] = ()) -> tuple[list[str], dict[str, str]]:
    command = [sys.executable, "-m", "drivetrain.backends.serving.replica", "--bundle", ".", "--runner", runner]
    return [*command, "--name", "model", "--host", HOST, "--port", str(port), *options], {}


def start(
    kind: str,
    place: Path,
    runner: str = "run.py:Runner",
    *,
    options: Sequence[str] = (),
    variables: Mapping[str, str] | None = None,
) -> Server:
    """Starts Cog's server (`kind` "cog") or the replica ("replica") in that directory; does not wait for it."""
    port = free_port()
    command, own = cog_command(port, runner) if kind == "cog" else replica_command(port, runner, options)
    log = place / f"{kind}.log"
    with log.open("wb") as file:
        started = subprocess.Popen(
            command, cwd=place, env=environment() | own | dict(variables or {}),
            stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True,
        )  # fmt: skip
    return Server(port, started, log)


@contextmanager
def running(
    kind: str,
    place: Path,
    runner: str = "run.py:Runner",
    *,
    options: Sequence[str] = (),
    variables: Mapping[str, str] | None = None,
    until: Sequence[str] = ("READY", "BUSY"),
) -> Iterator[Server]:
    """A started server that says one of the words `until` at `/health-check`; ended afterwards."""
    server = start(kind, place, runner, options=options, variables=variables)
    try:
        if until:
            server.wait_for(*until)
        yield server
    finally:
        server.end()
