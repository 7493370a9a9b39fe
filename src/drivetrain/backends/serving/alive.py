"""Which service answers here: the record of a started gateway, whether its process lives, and what it says of its health.

Only light modules of the standard library: this is asked in every run, also in one that finds everything cached.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from drivetrain.backends.serving import Endpoint
from drivetrain.records import DeployOutputs

ANSWERING = ("READY", "BUSY")
"""Cog's words for a server that takes predictions."""


@dataclass(frozen=True, slots=True)
class Server:
    """A started gateway, as `serving/NAME.json` records it.

    `started` is the process's start time in the kernel's own form, so that a process which was given the same id
    later is not mistaken for it; `group` is the process group of the gateway and its replicas. `certificate` is the
    file of its TLS certificate, None for plain HTTP.
    """

    name: str
    host: str
    port: int
    certificate: str | None = None
    pid: int = 0
    group: int = 0
    started: str = ""

    @property
    def address(self) -> str:
        """Where a client on this machine connects: a server on every address is asked on this machine's own."""
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)

    @property
    def url(self) -> str:
        """The root of its addresses."""
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"http{'s' if self.certificate else ''}://{host}:{self.port}"


def find(state: Path, name: str) -> Endpoint | None:
    """The endpoint of that name, if its process lives and it takes predictions. Takes a few milliseconds."""
    server = read(record_path(state, name))
    if server is None or not is_alive(server):
        return None
    said = health(server)
    if said.get("status") not in ANSWERING or not said.get("revision"):
        return None
    return Endpoint(name, str(said["revision"]), server.url, server.pid)


def still_holds(payload: Mapping[str, Any], outputs: DeployOutputs) -> bool:
    """Whether what a recorded deployment brought up still answers: `payload` has `state` (the project's state
    directory), `name` (the lifecycle's), and `candidate` where it is enough that the gateway still has the revision."""
    home, name = Path(payload["state"]), str(payload["name"])
    endpoint = find(home, name)
    if endpoint is None or not payload.get("candidate"):
        return endpoint is not None and endpoint.revision == outputs.revision.id
    from drivetrain.backends.serving.gateway import state  # a light module, and only candidates need it

    return outputs.revision.id in state.read(state.path(home / "serving", name)).revisions


def record_path(state: Path, name: str) -> Path:
    """Where the gateway of that name is recorded."""
    return state / "serving" / f"{name}.json"


def read(path: Path) -> Server | None:
    """The gateway recorded in the file; None if there is no file, or none that can be read as such."""
    try:
        return Server(**json.loads(path.read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def write(path: Path, server: Server) -> None:
    """Records the gateway, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(json.dumps(asdict(server), sort_keys=True, indent=1) + "\n")
    scratch.replace(path)


def is_alive(server: Server) -> bool:
    """Whether the very process that was recorded still runs."""
    return server.started != "" and start_time(server.pid) == server.started


def start_time(pid: int) -> str:
    """When the process was started, in the kernel's own form; empty if there is no such process, or only its remains."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return "" if Path("/proc/self/stat").exists() else _start_time_without_proc(pid)
    # The command's name stands in parentheses and may hold anything; state is the first field after it.
    after = text.rpartition(")")[2].split()
    return "" if after[0] in "ZX" else after[19]


def _start_time_without_proc(pid: int) -> str:
    import subprocess  # only where there is no /proc: it costs more than all the rest of this module

    answer = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    state, _, started = answer.stdout.strip().partition(" ")
    return "" if state.startswith("Z") else started.strip()


def health(server: Server, timeout: float = 2.0) -> Mapping[str, object]:
    """What the gateway says at `/health-check`; empty if it does not answer within `timeout` seconds.

    A socket by hand, since importing an HTTP library takes longer than asking.
    """
    request = f"GET /health-check HTTP/1.0\r\nHost: {server.address}\r\n\r\n".encode()
    answer = b""
    try:
        with _connect(server, timeout) as connection:
            connection.sendall(request)
            while piece := connection.recv(65536):
                answer += piece
        found = json.loads(answer.partition(b"\r\n\r\n")[2])
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _connect(server: Server, timeout: float) -> socket.socket:
    connection = socket.create_connection((server.address, server.port), timeout)
    if server.certificate is None:
        return connection
    import ssl  # 20 ms, only where it is used

    # The very certificate that it was started with is expected, whatever name it was made out to.
    context = ssl.create_default_context(cafile=server.certificate)
    context.check_hostname = False
    return context.wrap_socket(connection)
