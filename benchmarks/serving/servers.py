"""A server as a process: started, waited for until it answers, ended with all that it started; its memory and its CPU time."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import psutil


class NotUp(RuntimeError):
    """The server did not come up; the message holds what it said last."""


@dataclass(frozen=True, slots=True)
class Address:
    """One request that a server is asked again and again."""

    url: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=lambda: {"Content-Type": "application/json"})


@dataclass(frozen=True, slots=True)
class Running:
    """A server that answers."""

    address: Address
    pid: int

    @property
    def processes(self) -> list[psutil.Process]:
        """The server and all below it."""
        root = psutil.Process(self.pid)
        return [root, *root.children(recursive=True)]

    def memory(self) -> int:
        """Bytes of the whole tree, pages shared between its processes counted once each in proportion (PSS)."""
        return sum(process.memory_full_info().pss for process in self.processes)

    def resident(self) -> int:
        """Bytes that the processes of the tree have in memory, added up (RSS): unlike PSS it does not change with what other programs
        of the machine begin or cease to share."""
        return sum(process.memory_info().rss for process in self.processes)

    def cpu(self) -> float:
        """Seconds of CPU time that the tree has used so far."""
        times = [process.cpu_times() for process in self.processes]
        return float(sum(entry.user + entry.system for entry in times))


def free_port() -> int:
    """A port of this machine that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running(
    command: Sequence[str], directory: Path, variables: Mapping[str, str], address: Address, within: float = 120.0
) -> Iterator[Running]:
    """Starts the command in a session of its own and waits until the request is answered with 200; ends it afterwards."""
    directory.mkdir(parents=True, exist_ok=True)
    log = directory / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=directory, env={**os.environ, **variables}, stdin=subprocess.DEVNULL, stdout=output,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        _wait(process, address, within, log)
        yield Running(address, process.pid)
    finally:
        _end(process)


def _wait(process: subprocess.Popen[bytes], address: Address, within: float, log: Path) -> None:
    deadline = time.monotonic() + within
    said = ""
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise NotUp(f"it ended with {process.returncode}: {_end_of(log)}")
        try:
            status, answer = ask(address)
            if status == 200:
                return
            said = f"{status} {answer[:200]!r}"
        except (OSError, http.client.HTTPException) as error:
            said = repr(error)
        time.sleep(0.1)
    raise NotUp(f"no answer within {within:g} s: {said}; {_end_of(log)}")


def ask(address: Address, timeout: float = 30.0) -> tuple[int, bytes]:
    """Status and body of one request on a connection of its own."""
    place = urlsplit(address.url)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=timeout)
    try:
        connection.request("POST", place.path or "/", address.body, dict(address.headers))
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the process and what it started, also what has left its session (Ray's)."""
    with contextlib.suppress(psutil.Error):
        tree = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        for entry in tree:
            with contextlib.suppress(psutil.Error):
                entry.kill()
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(10)


def _end_of(log: Path) -> str:
    return " | ".join(log.read_text(errors="replace").strip().splitlines()[-4:])[-600:]
