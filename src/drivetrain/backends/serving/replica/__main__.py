"""A replica: `python -m drivetrain.backends.serving.replica --bundle DIR --runner run.py:Runner --name NAME (--uds PATH | --port P)`.

It ends on SIGTERM or SIGINT when what it was asked is answered, with code 0; a second signal ends it at once.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from drivetrain.backends.serving.http import server as http
from drivetrain.backends.serving.http.messages import Limits
from drivetrain.backends.serving.replica.app import App
from drivetrain.backends.serving.replica.calls import ReplicaSettings
from drivetrain.backends.serving.replica.front import Front
from drivetrain.backends.serving.replica.gpu import Gpus
from drivetrain.backends.serving.replica.metrics import Metrics, Reading
from drivetrain.backends.serving.replica.pool import Pool
from drivetrain.backends.serving.replica.webhooks import Sender
from drivetrain.errors import DrivetrainError

if TYPE_CHECKING:
    from drivetrain.backends.serving.replica.grpc_server import GrpcServer

log = logging.getLogger("drivetrain.replica")

BODY = 100 * 1024 * 1024
"""Bytes of a request's body, as in Cog's server."""
_WEBHOOKS = 10.0
"""Seconds that webhooks still on their way are given at the end."""
_SPARE = 2.0
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Place:
    """Where the replica listens: a Unix socket, or a TCP address; and gRPC, if at all, on a port of the same address."""

    uds: str | None
    host: str
    port: int
    grpc_port: int | None
    body: int


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves until it is told to end."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    told = _parser(os.environ).parse_args(arguments)
    if told.die_with_parent:
        die_with_parent()
    place = Place(told.uds, told.host, told.port, told.grpc_port, told.body_limit)
    try:
        http.run(serve(_settings(told, os.environ), place, os.environ.get("DRIVETRAIN_TOKEN", "")))
    except DrivetrainError as error:
        log.error("%s%s", error, f" ({error.hint})" if error.hint else "")
        return error.exit_code
    return 0


async def serve(settings: ReplicaSettings, place: Place, token: str) -> None:
    """Listens, then sets the model up, and answers until it is told to end."""
    loop = asyncio.get_running_loop()
    pool = Pool(settings)
    sender = Sender()
    ending = asyncio.Event()
    gpus = Gpus()
    metrics = Metrics(settings.name, lambda: _gauges(pool, server, sender, gpus), pool.recent)
    front = Front(settings.name, pool, metrics, token, ending.set)
    server = http.Server(App(front, sender), Limits(body=place.body))
    pool.start()
    _heed_signals(loop, ending)
    grpc = await _grpc(front, place)
    if place.uds is not None:
        await server.listen_unix(place.uds)
        log.info("model %s: listening on %s", settings.name, place.uds)
    else:
        port = await server.listen(place.host, place.port)
        log.info("model %s: listening on %s:%d", settings.name, place.host, port)
    telling = loop.create_task(_tell_when_ready(pool, settings.name))
    await ending.wait()
    telling.cancel()
    await _end(server, grpc, pool, sender, settings.timeout + _SPARE)


async def _tell_when_ready(pool: Pool, name: str) -> None:
    if await pool.wait_ready():
        log.info("model %s: ready after %.2f s of setup", name, pool.load_seconds or 0.0)
    else:
        log.error("model %s: %s\n%s", name, pool.state, pool.setup.logs)


async def _grpc(front: Front, place: Place) -> GrpcServer | None:
    if place.grpc_port is None:
        return None
    # Imported only where it is wanted: gRPC takes longer to import than all the rest.
    from drivetrain.backends.serving.replica import grpc_routes

    server = await grpc_routes.listen(front, place.host, place.grpc_port, place.body)
    log.info("model %s: listening for gRPC on %s:%d", front.name, place.host, server.port)
    return server


async def _end(server: http.Server, grpc: GrpcServer | None, pool: Pool, sender: Sender, grace: float) -> None:
    """Nobody new is let in; what was asked is answered; what was answered is told."""
    log.info("ending: %d requests are still to be answered", server.in_flight)
    loop = asyncio.get_running_loop()
    until = loop.time() + grace
    await asyncio.gather(server.stop(grace), *([grpc.stop(grace)] if grpc else []))
    await pool.stop(max(0.0, until - loop.time()))
    await sender.close(_WEBHOOKS)
    log.info("ended")


def _heed_signals(loop: asyncio.AbstractEventLoop, ending: asyncio.Event) -> None:
    def heed() -> None:
        if ending.is_set():
            os._exit(1)  # asked twice: at once
        ending.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, heed)


def _gauges(pool: Pool, server: http.Server, sender: Sender, gpus: Gpus) -> Mapping[str, Reading]:
    memory = gpus.memory()
    found: dict[str, Reading] = {
        "in_flight": pool.in_flight + pool.queued,
        "queue_length": pool.queued,
        "ready": int(pool.state in ("READY", "BUSY")),
        "model_load_seconds": pool.load_seconds or 0.0,
        "worker_deaths_total": pool.deaths,
        "connections": server.connections,
        "webhooks_lost_total": sender.lost,
    }
    if memory:
        found["gpu_memory_used_bytes"] = {str(gpu.index): gpu.used for gpu in memory}
        found["gpu_memory_total_bytes"] = {str(gpu.index): gpu.total for gpu in memory}
    return found


def die_with_parent() -> None:
    """Has the system end this process when the one that started it does; where it cannot, a thread watches."""
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it went before it could be asked for
            raise SystemExit(1)
    else:
        threading.Thread(target=_watch, args=(parent,), name="parent", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _parser(variables: Mapping[str, str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m drivetrain.backends.serving.replica", description=__doc__)
    add = parser.add_argument
    add("--bundle", default=".", help="directory with the runner; it becomes the working directory of the model")
    add(
        "--runner", default=variables.get("COG_PREDICT_TYPE_STUB"), help="run.py:Runner; default: COG_PREDICT_TYPE_STUB"
    )
    add("--name", default="model", help="the model's name in KServe's routes")
    add("--uds", help="path of a Unix socket to listen on, in place of host and port")
    add("--host", default="127.0.0.1")
    add("--port", type=int, default=variables.get("PORT", "5000"), help="default: PORT, or 5000")
    add("--grpc-port", type=int, help="port for the Open Inference Protocol over gRPC")
    add("--queue", type=int, default=256, help="calls that may wait; one more is answered 503")
    add("--batch-max", type=int, default=32, help="items computed together, where the runner can")
    add("--batch-wait-ms", type=float, default=2.0, help="longest wait for company, under load")
    add("--setup-timeout", type=float, default=variables.get("COG_SETUP_TIMEOUT", "300"), help="seconds")
    add("--timeout", type=float, default=60.0, help="seconds that one prediction may take")
    add("--body-limit", type=int, default=BODY, help="bytes")
    slots = "predictions at once, for async runners; default: COG_MAX_CONCURRENCY, or what the runner says"
    add("--concurrency", type=int, default=variables.get("COG_MAX_CONCURRENCY"), help=slots)
    add("--die-with-parent", action="store_true", help="end when the starting process ends")
    return parser


def _settings(told: argparse.Namespace, variables: Mapping[str, str]) -> ReplicaSettings:
    if not told.runner:
        _parser(variables).error("--runner is missing, and COG_PREDICT_TYPE_STUB is not set")
    return ReplicaSettings(
        name=told.name,
        bundle=os.path.abspath(told.bundle),
        runner=told.runner,
        queue=told.queue,
        batch_max=told.batch_max,
        batch_wait=told.batch_wait_ms / 1000.0,
        setup_within=told.setup_timeout,
        timeout=told.timeout,
        max_slots=told.concurrency,
    )


if __name__ == "__main__":
    code = main()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)  # threads that wait for a webhook's answer would hold an ordinary exit up
