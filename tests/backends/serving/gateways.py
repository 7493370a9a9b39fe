"""Gateways as processes, upstreams that do as they are told, and clients that keep asking."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from drivetrain.backends.serving.gateway import settings as settings_file
from drivetrain.backends.serving.gateway.settings import Settings
from drivetrain.backends.serving.http.messages import Exchange, Request, Response
from drivetrain.backends.serving.http.server import Server
from tests.backends.serving.servers import HOST, Reply, exchange, message
from tests.ports import free_port

TOKEN = "a-test-token"
RUNNER = "run.py:Runner"


@dataclass
class Gateway:
    """A started gateway; it leads a process group of its own."""

    settings: Settings
    file: Path
    log: Path
    process: subprocess.Popen[bytes]

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
        return exchange(self.settings.port, message(method, path, given | dict(headers or {}), raw), timeout)

    def predict(self, headers: Mapping[str, str] | None = None, timeout: float = 60.0, **inputs: Any) -> Reply:
        return self.request("POST", "/predictions", {"input": inputs}, headers, timeout)

    def admin(self, method: str, path: str, body: Any = None, timeout: float = 60.0) -> Reply:
        """A request to the admin API, with the token."""
        return self.request(method, f"/-/{path}", body, {"authorization": f"Bearer {TOKEN}"}, timeout)

    def deploy(self, revision: str, bundle: Path, example: Mapping[str, Any] | None = None) -> Reply:
        asked = {"bundle": str(bundle), "runner": RUNNER, "example": example}
        return self.admin("PUT", f"revisions/{revision}", asked)

    def route(self, shadow: str | None = None, sticky: str | None = None, **weights: int) -> Reply:
        return self.admin("PUT", "traffic", {"weights": weights, "shadow": shadow, "sticky": sticky})

    def serve(self, revision: str, bundle: Path, example: Mapping[str, Any] | None = None) -> None:
        """Deploys the revision, and gives it all the traffic."""
        for reply in (self.deploy(revision, bundle, example), self.route(**{revision: 100})):
            assert reply.status == 200, reply.body

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.admin("GET", "status").json()
        return found

    def revision(self, name: str) -> dict[str, Any]:
        return next((entry for entry in self.status()["revisions"] if entry["revision"] == name), {})

    def metrics(self) -> dict[str, float]:
        """Every sample of `/metrics` by name and labels, as they stand."""
        lines = self.request("GET", "/metrics").body.decode().splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}

    def replicas(self) -> list[psutil.Process]:
        """Its child processes: the replicas' fronts."""
        return [child for child in psutil.Process(self.process.pid).children() if _runs(child.pid)]

    def end(self, within: float = 60.0) -> int:
        """Asks it to end; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(within)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def text(self) -> str:
        return self.log.read_text(errors="replace")


def configure(home: Path, **changes: Any) -> Path:
    """A settings file for a gateway of the service `echo` in that directory."""
    home.mkdir(parents=True, exist_ok=True)
    token = home / "token"
    token.write_text(TOKEN + "\n")
    given = {"name": "echo", "home": str(home), "host": HOST, "port": free_port(), "token_file": str(token)} | changes
    file = home / "settings.json"
    settings_file.write(Settings(**given), file)
    return file


def start(file: Path) -> Gateway:
    """Starts a gateway and waits until it listens."""
    settings = settings_file.read(file)
    log = file.with_name("gateway.log")
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "drivetrain.backends.serving.gateway", str(file)],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, env=dict(os.environ),
        )  # fmt: skip
    gateway = Gateway(settings, file, log, process)

    def listens() -> bool:
        assert process.poll() is None, gateway.text()
        try:
            return gateway.admin("GET", "status").status == 200
        except OSError:
            return False

    if settings.certificate is None:
        wait_until(listens)
    else:
        wait_until(lambda: "listening on" in gateway.text())
    return gateway


@contextmanager
def running(home: Path, **changes: Any) -> Iterator[Gateway]:
    """A gateway that listens; killed afterwards, and whatever it started with it."""
    gateway = start(configure(home, **changes))
    try:
        yield gateway
    finally:
        gateway.kill()
        with suppress(FileNotFoundError, ValueError):
            kept = json.loads((home / f"{gateway.settings.name}.routes.json").read_text())
            shutil.rmtree(kept["sockets"], ignore_errors=True)


def wait_until(condition: Callable[[], Any], within: float = 60.0) -> float:
    """Waits until the condition holds; says for how many seconds."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < within, f"not within {within} s"
        time.sleep(0.01)
    return time.monotonic() - began


def gone(pids: list[int]) -> bool:
    """Whether none of the processes runs any more."""
    return not any(_runs(pid) for pid in pids)


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Fake:
    """An upstream in a thread of this process.

    `answer` is called with each request but those for its health and metrics; it replies, or does not.
    """

    def __init__(self, answer: Callable[[Exchange], None]) -> None:
        self.requests: list[Request] = []
        self.gone: queue.Queue[str] = queue.Queue()
        """Paths of requests whose client has gone before it was answered."""
        self.port = free_port()
        self.health = "READY"
        self.metrics: str | None = None
        """What it says at `/metrics`; None if it has no such route."""
        self.loop = asyncio.new_event_loop()
        self._answer = answer
        self._server = Server(self._handle)
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self._call(self._server.listen(HOST, self.port))

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def stop(self) -> None:
        """Cuts every connection, and listens no more."""
        self._call(self._server.stop(0.0))

    def listen(self) -> None:
        """Listens again, at the same address."""
        self._call(self._server.listen(HOST, self.port))

    def close(self) -> None:
        self.stop()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(5)
        self.loop.close()

    def _call(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def _handle(self, exchange: Exchange) -> None:
        if exchange.request.path == "/health-check":
            exchange.reply(Response(200, json.dumps({"status": self.health}).encode()))
            return
        if exchange.request.path == "/metrics":
            text = self.metrics
            exchange.reply(
                Response(404) if text is None else Response(200, text.encode(), (), b"text/plain; version=0.0.4")
            )
            return
        self.requests.append(exchange.request)
        exchange.on_disconnect(lambda: self.gone.put(exchange.request.path))
        self._answer(exchange)


def succeed(exchange: Exchange) -> None:
    """Cog's answer to a prediction."""
    exchange.reply(Response(200, b'{"status":"succeeded","output":1}'))


@contextmanager
def fakes(*answers: Callable[[Exchange], None]) -> Iterator[list[Fake]]:
    """Upstreams, one for each function that answers."""
    started = [Fake(answer) for answer in answers]
    try:
        yield started
    finally:
        for fake in started:
            fake.close()


@dataclass
class Clients:
    """Threads that ask for one prediction after the other, each on a connection of its own."""

    port: int
    inputs: Callable[[int], Mapping[str, Any]]
    """The inputs of the prediction of that number."""
    expected: Callable[[int], Any]
    count: int = 4
    answers: Counter[int] = field(default_factory=Counter)
    """Answers by status."""
    revisions: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    """Requests that had an answer of another status than 200, or none."""
    slowest: float = 0.0
    _noting: threading.Lock = field(default_factory=threading.Lock)
    _stopping: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Clients:
        for number in range(self.count):
            self._threads.append(threading.Thread(target=self._ask, args=(number * 1_000_000,)))
            self._threads[-1].start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(90)
            assert not thread.is_alive(), "a client never got its answer"

    @property
    def total(self) -> int:
        return sum(self.answers.values())

    def wait_for(self, more: int, within: float = 60.0) -> None:
        """Waits for so many more answers."""
        before = self.total
        wait_until(lambda: self.total >= before + more, within)

    def _ask(self, number: int) -> None:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=60)
        while not self._stopping.is_set():
            number += 1
            began = time.monotonic()
            try:
                connection.request(
                    "POST",
                    "/predictions",
                    json.dumps({"input": self.inputs(number)}),
                    {"Content-Type": "application/json"},
                )
                answer = connection.getresponse()
                body = answer.read()
            except (OSError, http.client.HTTPException) as error:
                with self._noting:
                    self.errors.append(f"{type(error).__name__}: {error}")
                    self.answers[0] += 1
                connection.close()
                continue
            self.slowest = max(self.slowest, time.monotonic() - began)
            with self._noting:  # the first of several threads to count would else undo what the others did meanwhile
                self._note(number, answer.status, answer.getheader("x-drivetrain-revision") or "", body)
        connection.close()

    def _note(self, number: int, status: int, revision: str, body: bytes) -> None:
        if status != 200:
            self.errors.append(f"{status} {body.decode()[:200]}")
        elif json.loads(body).get("output") != self.expected(number):
            self.wrong.append(f"{number}: {body!r}")
        self.answers[status] += 1
        self.revisions[revision] += 1


def labels(sample: str) -> dict[str, str]:
    """The labels of a sample's name."""
    return dict(re.findall(r'(\w+)="([^"]*)"', sample))


def at_once(ask: Callable[[int], Any], count: int) -> list[Any]:
    """What `ask` gives for each number, all asked at the same time."""
    found: dict[int, Any] = {}

    def run(number: int) -> None:
        found[number] = ask(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
    return [found.get(number) for number in range(count)]


def ready(gateway: Gateway, *revisions: str) -> None:
    """Waits until the gateway knows that its upstreams answer."""
    wait_until(lambda: all(gateway.revision(name)["ready"] for name in revisions))


def never(exchange: Exchange) -> None:
    """No answer."""
