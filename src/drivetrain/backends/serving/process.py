"""One gateway as a process: started without a parent, waited for, ended; and the ports it may listen on."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from drivetrain.backends.serving import alive
from drivetrain.backends.serving.alive import Server
from drivetrain.backends.serving.gateway.settings import SERVICE_VARIABLE, Settings
from drivetrain.errors import ServingError
from drivetrain.machine import without_limit

_TAIL = 15
_MODULE = "drivetrain.backends.serving.gateway"
# The shell ends at once and leaves the server without a parent here: nothing has to reap it, and whoever watches the
# processes of this command does not take it for one of them. It prints the process group and the server's own id.
_SCRIPT = 'echo $$; "$@" </dev/null >>"$0" 2>&1 & echo $!'


def launch(server: Server, settings: Path, log: Path, token: str) -> Server:
    """Starts the gateway that `settings` describes, its output going to the end of `log`; returns it with its ids.

    What of the environment holds `token` is withheld: the gateway has it from its file, and the model has no business with it.
    """
    # A stage may have started it, whose threads are limited: the gateway gives replicas theirs.
    variables = {name: value for name, value in without_limit(os.environ).items() if value.strip() != token}
    done = subprocess.run(
        ["/bin/sh", "-c", _SCRIPT, str(log), *_command(settings)],
        cwd=settings.parent, env=variables, start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    group, pid = (int(line) for line in done.stdout.split())
    return replace(server, pid=pid, group=group, started=alive.start_time(pid))


def wait_until_listening(server: Server, within: float, log: Path) -> None:
    """Returns when the gateway answers its health check. Raises `ServingError`, with the end of its log, if its process ends, or
    `within` seconds pass."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        if alive.health(server):
            return
        if not alive.is_alive(server):
            raise _not_up(server, "its process ended", log)
        time.sleep(0.02)
    raise _not_up(server, f"it did not answer within {within:g} s", log)


def end(server: Server, within: float) -> bool:
    """Ends the gateway after the predictions that run, or after `within` seconds regardless, and whatever of its replicas is
    left. False if it did not run."""
    if not alive.is_alive(server):
        return False
    # The gateway alone is asked: it ends its replicas when they have answered.
    with contextlib.suppress(ProcessLookupError):
        os.kill(server.pid, signal.SIGTERM)
    _wait_for_end(server, within)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(server.group, signal.SIGKILL)
    _wait_for_end(server, 5.0)
    return True


def _command(settings: Path) -> list[str]:
    return [sys.executable, "-m", _MODULE, str(settings)]


def end_others(settings: Path, server: Server | None, within: float) -> None:
    """Ends every gateway that was started with the file `settings` but `server`: a command that was killed between starting a gateway
    and ending the one before it leaves two. Where there is no `/proc` nothing is looked for."""
    wanted = [part.encode() for part in _command(settings)[1:]]
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            pid = int(entry.name)
            found = (entry / "cmdline").read_bytes().split(b"\0")[1:-1]
            group = os.getpgid(pid)
            # By its group: what a gateway is about to start is still its copy for a moment.
            if found == wanted and (server is None or group != server.group):
                end(Server("", "", 0, None, pid, group, alive.start_time(pid)), within)


def sweep(home: Path, name: str) -> None:
    """Ends what is left of a gateway that was killed: its replicas die with it, but not what the user's own code has started.

    Everything below a gateway carries its service in the environment; where there is no `/proc` nothing is looked for.
    """
    mark = f"{SERVICE_VARIABLE}={home / name}".encode()
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                os.kill(int(entry.name), signal.SIGKILL)


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


def are_free(settings: Settings, held: Collection[int | None] = ()) -> bool:
    """Whether the ports that the settings name are free; False if one is not, but is among those of `held`.

    Raises `ServingError` if another program has one, and what `is_free` raises.
    """
    free = True
    for key, port in (("port", settings.port), ("grpc_port", settings.grpc_port)):
        if not port or is_free(settings.host, port):
            continue
        if port not in held:
            raise port_taken(settings.host, port, key)
        free = False
    return free


def port_taken(host: str, port: int, key: str = "port") -> ServingError:
    """The error for a port that another program holds; it names that program if the system tells. `key` is the setting of `serving`."""
    pid = _holder(port)
    who = f" by process {pid}" if pid else ""
    free = " (`serving.port: 0` takes a free one)" if key == "port" else ""
    return ServingError(
        f"port {port} of {host} is taken{who}", hint=f"end that process, or set `serving.{key}` to another port{free}"
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
        f"the gateway of {server.name} did not come up: {reason}\n{log_tail(log)}",
        hint=f"the whole log: {log}",
        where=server.url,
    )


def log_tail(log: Path) -> str:
    """The last lines of a log."""
    try:
        lines = log.read_text(errors="replace").splitlines()[-_TAIL:]
    except OSError:
        return ""
    return "\n".join(f"  {line}" for line in lines)
