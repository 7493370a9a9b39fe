"""Load on a server: wrk for throughput (as many requests as it answers), and arrivals at a fixed rate for latencies under load."""

from __future__ import annotations

import asyncio
import gc
import json
import random
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httptools
import uvloop

from benchmarks.serving.servers import Address

_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}


class LoadFailed(RuntimeError):
    """The load could not be put on, or nothing came back."""


@dataclass(frozen=True, slots=True)
class Load:
    """What a server did under a load: requests answered with 2xx in a second, latencies in seconds, and answers that were not 2xx."""

    rate: float
    p50: float
    p99: float
    bad: int


def closed(address: Address, connections: int, seconds: float) -> Load:
    """`connections` clients that each ask again as soon as they are answered, by wrk with one thread."""
    program = shutil.which("wrk")
    if program is None:
        raise LoadFailed("wrk is not installed: apt-get install wrk")
    with tempfile.TemporaryDirectory() as place:
        script = Path(place) / "post.lua"
        headers = "".join(f"wrk.headers[{json.dumps(k)}]={json.dumps(v)}\n" for k, v in address.headers.items())
        script.write_text(f'wrk.method="POST"\nwrk.body={json.dumps(address.body.decode())}\n{headers}')
        command = [program, "-t1", f"-c{connections}", f"-d{seconds:g}s", "--latency", "--timeout", "10s"]
        done = subprocess.run([*command, "-s", str(script), address.url], capture_output=True, text=True, check=False)
    if done.returncode:
        raise LoadFailed(f"wrk ended with {done.returncode}: {done.stderr.strip()[-200:]}")
    return _read(done.stdout, seconds)


def _read(text: str, seconds: float) -> Load:
    found = re.search(r"Requests/sec:\s+([\d.]+)", text)
    if found is None:
        raise LoadFailed(f"wrk said {text!r}")
    refused = sum(int(n) for n in re.findall(r"Non-2xx or 3xx responses: (\d+)", text))
    broken = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    bad = refused + sum(int(n) for n in broken.groups()) if broken else refused
    return Load(max(0.0, float(found[1]) - refused / seconds), _quantile(text, "50%"), _quantile(text, "99%"), bad)


def _quantile(text: str, name: str) -> float:
    found = re.search(rf"{name}\s+([\d.]+)(us|ms|s|m)", text)
    if found is None:
        raise LoadFailed(f"wrk gave no {name}")
    return float(found[1]) * _UNITS[found[2]]


def open_loop(address: Address, rate: float, seconds: float, connections: int = 64, seed: int = 0) -> list[Any]:
    """Requests at random instants (Poisson), `rate` a second, whether or not earlier ones have been answered.

    Returns the samples: (second since the start, latency in seconds, status), latencies counted from the instant when the request was
    due, so that a server that stalls is not spared.
    """
    gc.collect()
    gc.disable()  # a pause of the load's own would count as the server's
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_open_loop(address, rate, seconds, connections, random.Random(seed)))
    finally:
        gc.enable()


async def _open_loop(
    address: Address, rate: float, seconds: float, connections: int, draw: random.Random
) -> list[tuple[float, float, int]]:
    place = urlsplit(address.url)
    loop = asyncio.get_running_loop()
    host, port = place.hostname or "", place.port or 80
    clients = [(await loop.create_connection(_Client, host, port))[1] for _ in range(connections)]
    free: asyncio.Queue[_Client] = asyncio.Queue()
    for client in clients:
        free.put_nowait(client)
    request = _request(address)
    samples: list[tuple[float, float, int]] = []
    waiting: set[asyncio.Task[None]] = set()

    async def ask(due: float) -> None:
        due = min(due, time.perf_counter())  # the loop's timers are whole milliseconds: some ring too early
        client = await free.get()
        status = await client.ask(request)
        samples.append((due - began, time.perf_counter() - due, status))
        free.put_nowait(client)

    began = due = time.perf_counter()
    while due - began < seconds:
        due += draw.expovariate(rate)
        if (ahead := due - time.perf_counter()) > 0:
            await asyncio.sleep(ahead)
        task = loop.create_task(ask(due))
        waiting.add(task)
        task.add_done_callback(waiting.discard)
    if waiting:
        await asyncio.wait(waiting, timeout=30)
    for client in clients:
        client.close()
    return samples


class _Client(asyncio.Protocol):
    """One connection that asks one request at a time."""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._parser = httptools.HttpResponseParser(self)
        self._done: asyncio.Future[int] | None = None

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        self._parser = httptools.HttpResponseParser(self)
        if self._done is not None and not self._done.done():
            self._done.set_result(status)

    def connection_lost(self, error: Exception | None) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_result(0)

    def close(self) -> None:
        """Ends the connection."""
        self._transport.close()

    async def ask(self, request: bytes) -> int:
        """The status of the answer; 0 if the connection was lost."""
        if self._transport.is_closing():
            return 0
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._done


def _request(address: Address) -> bytes:
    place = urlsplit(address.url)
    headers: Mapping[str, str] = {"Host": place.netloc, **address.headers, "Content-Length": str(len(address.body))}
    lines = [f"POST {place.path or '/'} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    return "\r\n".join(lines).encode() + address.body
