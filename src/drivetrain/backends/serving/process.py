"""One Cog server as a process: started without a parent, waited for, ended; and the ports it may listen on."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from drivetrain.backends.serving import alive
from drivetrain.backends.serving.alive import Server
from drivetrain.errors import ServingError

_FAILED = ("SETUP_FAILED", "DEFUNCT", "UNHEALTHY")
_TAIL = 15
# The shell ends at once and leaves the server without a parent here: nothing has to reap it, and whoever watches the
# processes of this command does not take it for one of them. It prints the process group and the server's own id.
_SCRIPT = 'echo $$; "$@" </dev/null >"$0" 2>&1 & echo $!'


def environment() -> dict[str, str]:
    """This process's environment, with this interpreter first on the path: Cog starts its worker as plain `python`.

    Raises `ServingError` if this interpreter is not called that; the worker would never come up, and Cog never say so.
    """
    home = Path(sys.executable).parent
    if not (home / "python").exists():
        raise ServingError(f"there is no `python` in {home}, which Cog needs", hint="use a virtual environment")
    paths = [str(home), *filter(None, [os.environ.get("PATH")])]
    return {**os.environ, "PATH": os.pathsep.join(paths)}


def launch(server: Server, bundle: Path, log: Path) -> Server:
    """Starts the server in the directory `bundle`, its output going to `log`; returns it with its ids."""
    variables = environment() | {"COG_PREDICT_TYPE_STUB": server.runner, "PORT": str(server.port)}
    command = [sys.executable, "-m", "cog.server.http", "--host", server.host]
    done = subprocess.run(
        ["/bin/sh", "-c", _SCRIPT, str(log), *command],
        cwd=bundle, env=variables, start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        text=True, check=True,
    )  # fmt: skip
    group, pid = (int(line) for line in done.stdout.split())
    return replace(server, pid=pid, group=group, started=alive.start_time(pid))


def wait_until_ready(server: Server, within: float, log: Path) -> None:
    """Returns when the server takes predictions. Raises `ServingError`, with the end of its log, if its setup fails, its
    process ends, or `within` seconds pass."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        said = alive.health(server)
        if said.get("status") in alive.ANSWERING:
            return
        if said.get("status") in _FAILED:
            raise _not_up(server, f"its setup failed: {_setup_error(said)}", log)
        if not alive.is_alive(server):
            raise _not_up(server, "its process ended", log)
        time.sleep(0.05)
    raise _not_up(server, f"it was not ready within {within:g} s", log)


def end(server: Server, within: float) -> bool:
    """Ends the server after the prediction that runs, or after `within` seconds regardless, and whatever its worker
    left behind. False if it did not run."""
    if not alive.is_alive(server):
        return False
    # The server alone is asked: its worker would drop what it is doing.
    with contextlib.suppress(ProcessLookupError):
        os.kill(server.pid, signal.SIGTERM)
    _wait_for_end(server, within)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(server.group, signal.SIGKILL)
    _wait_for_end(server, 5.0)
    return True


def _wait_for_end(server: Server, within: float) -> None:
    deadline = time.monotonic() + within
    while alive.is_alive(server) and time.monotonic() < deadline:
        time.sleep(0.02)


def is_free(host: str, port: int) -> bool:
    """Whether a server can listen there. Raises `ServingError` if that address is none of this machine's, or the port
    is one that needs another user's rights."""
    with _socket(host) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise ServingError(
                f"cannot listen on {host}:{port}: {error.strerror or error}",
                hint="change `serving.host` or `serving.port`",
            ) from error
    return True


def free_port(host: str) -> int:
    """A port that is free now. Raises `ServingError` if that address is none of this machine's."""
    with _socket(host) as probe:
        try:
            probe.bind((host, 0))
        except OSError as error:
            raise ServingError(
                f"cannot listen on {host}: {error.strerror or error}", hint="change `serving.host`"
            ) from error
        return int(probe.getsockname()[1])


def port_taken(host: str, port: int) -> ServingError:
    """The error for a port that another program holds; it names that program if the system tells."""
    pid = _holder(port)
    who = f" by process {pid}" if pid else ""
    return ServingError(
        f"port {port} of {host} is taken{who}",
        hint="end that process, or set `serving.port` to another port (`serving.port: 0` takes a free one)",
    )


def _holder(port: int) -> int | None:
    """The process that listens on the port; None where the system does not tell."""
    import psutil  # 80 ms, and only for this message

    try:
        found = [
            c.pid for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.laddr.port == port
        ]
    except (psutil.Error, OSError):
        return None
    return found[0] if found else None


def _socket(host: str) -> socket.socket:
    return socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)


def _not_up(server: Server, reason: str, log: Path) -> ServingError:
    return ServingError(
        f"revision {server.revision} did not come up: {reason}\n{log_tail(log)}",
        hint=f"the whole log: {log}",
        where=server.runner,
    )


def _setup_error(said: object) -> str:
    setup = said.get("setup") if isinstance(said, dict) else None
    logs = str(setup.get("logs", "")) if isinstance(setup, dict) else ""
    # "worker setup failed: worker setup failed (slot ID): Setup failed: setup failed: RuntimeError: no such file"
    return logs.strip().rpartition("etup failed: ")[2] or "no reason given"


def log_tail(log: Path) -> str:
    """The last lines of a server's log, each JSON line as its message alone."""
    try:
        lines = log.read_text(errors="replace").splitlines()[-_TAIL:]
    except OSError:
        return ""
    return "\n".join(f"  {_plain(line)}" for line in lines)


def _plain(line: str) -> str:
    try:
        fields = json.loads(line)["fields"]
        return " ".join(str(fields[key]) for key in ("message", "error") if key in fields)
    except (ValueError, KeyError, TypeError):
        return line
