"""The gateway of a service: `python -m drivetrain.backends.serving.gateway SETTINGS.json`.

It ends on SIGTERM or SIGINT with code 0 when every request has its answer and every replica has ended; a second signal ends it at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from drivetrain.backends.serving.gateway import settings as settings_file
from drivetrain.backends.serving.gateway.admin import Admin, Door
from drivetrain.backends.serving.gateway.app import App, Parts
from drivetrain.backends.serving.gateway.capture import Recorder, open_recorder
from drivetrain.backends.serving.gateway.forward import Shared
from drivetrain.backends.serving.gateway.lookup import Lookup, open_lookup
from drivetrain.backends.serving.gateway.metrics import Metrics
from drivetrain.backends.serving.gateway.scrape import Scrape
from drivetrain.backends.serving.gateway.service import Service
from drivetrain.backends.serving.gateway.settings import Settings
from drivetrain.backends.serving.gateway.shadow import Shadow
from drivetrain.backends.serving.gateway.streaming import Relays
from drivetrain.backends.serving.gateway.upstreams import Holders
from drivetrain.backends.serving.http import server as http
from drivetrain.backends.serving.http.messages import Limits
from drivetrain.backends.serving.http.tls import server_context
from drivetrain.errors import DrivetrainError, SystemFault

log = logging.getLogger("drivetrain.gateway")

_SPARE = 2.0
"""Seconds beyond the longest prediction that a drain may take."""


class GrpcDoor(Protocol):
    """A gRPC server that has its address."""

    port: int

    async def start(self) -> None: ...

    async def stop(self, grace: float) -> None: ...


def main(arguments: Sequence[str]) -> int:
    """Serves until it is told to end."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    try:
        (file,) = arguments
    except ValueError:
        print("usage: python -m drivetrain.backends.serving.gateway SETTINGS.json", file=sys.stderr)
        return 2
    try:
        http.run(serve(_read(Path(file))))
    except DrivetrainError as error:
        log.error("%s%s", error, f" ({error.hint})" if error.hint else "")
        return 1
    return 0


async def serve(settings: Settings) -> None:
    """Listens, brings the revisions up, and answers until it is told to end."""
    token = _token(Path(settings.token_file))
    tls = server_context(settings.certificate, settings.key) if settings.certificate and settings.key else None
    ending = asyncio.Event()
    _heed_signals(ending)
    recorder = _recorder(settings)
    lookup = open_lookup(settings.lookup) if settings.lookup else None
    service = Service(settings, Metrics())
    admin = Admin(service, Door(token))
    app = _app(settings, service, admin, Door(token), recorder, lookup, ending)
    if lookup is not None:
        # Importing pandas alone takes longer than a look-up may.
        await lookup.prepare()
    server = http.Server(app, Limits(body=settings.body))
    # First of all the addresses: whoever cannot have them must not touch what the one who has them runs, nor be taken to be up.
    door = _grpc_door(settings, service, app)
    port = await server.listen(settings.host, settings.port, tls)
    service.open()
    if door is not None:
        await door.start()
        log.info("%s: listening for gRPC on %s:%d", settings.name, settings.host, door.port)
    log.info("%s: listening on %s:%d", settings.name, settings.host, port)
    await ending.wait()
    log.info("%s: ending; %d requests are still to be answered", settings.name, server.in_flight)
    grace = settings.timeout + _SPARE
    await asyncio.gather(admin.close(), server.stop(grace), *([door.stop(grace)] if door else []))
    await service.close()
    if lookup is not None:
        await lookup.close()
    if recorder is not None:
        recorder.close()
    log.info("%s: ended", settings.name)


def _app(
    settings: Settings, service: Service, admin: Admin, door: Door, recorder: Recorder | None, lookup: Lookup | None,
    ending: asyncio.Event,
) -> App:  # fmt: skip
    shared = Shared(asyncio.get_running_loop().time, Holders(), settings.timeout, Relays().start)
    shadow = Shadow(service, shared, recorder)
    return App(
        settings, Parts(service, admin, door, shared, Scrape(service, recorder), shadow, recorder, lookup, ending.set)
    )


def _grpc_door(settings: Settings, service: Service, app: App) -> GrpcDoor | None:
    """The gRPC server, which has its address and takes no calls yet. Raises `ServingError` if it cannot have it."""
    if settings.grpc_port is None:
        return None
    # gRPC takes 100 ms to import, and most services have no such port.
    from drivetrain.backends.serving.gateway import grpc_door
    from drivetrain.backends.serving.replica.grpc_server import GrpcServer, Listening

    door = GrpcServer(grpc_door.service(app, service))
    door.bind(Listening(settings.host, settings.grpc_port, settings.certificate, settings.key, settings.body))
    return door


def _recorder(settings: Settings) -> Recorder | None:
    capturing = settings.capturing
    if capturing.directory is None and capturing.sink is None:
        return None
    return open_recorder(capturing, settings.name)


def _read(file: Path) -> Settings:
    try:
        return settings_file.read(file)
    except (OSError, ValueError, TypeError) as error:
        raise SystemFault(f"the settings cannot be read: {error}", where=str(file)) from error


def _token(file: Path) -> str:
    try:
        token = file.read_text().strip()
    except OSError as error:
        raise SystemFault(f"the token cannot be read: {error.strerror}", where=str(file)) from error
    if not token:
        raise SystemFault("the token is empty", where=str(file))
    return token


def _heed_signals(ending: asyncio.Event) -> None:
    def heed() -> None:
        if ending.is_set():
            os._exit(1)  # asked twice: at once; the replicas end with this process
        ending.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, heed)


if __name__ == "__main__":
    code = main(sys.argv[1:])
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    sys.exit(code)
