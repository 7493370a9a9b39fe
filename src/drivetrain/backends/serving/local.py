"""Serving on this machine: one gateway a service, a process that outlives the command that started it, with replicas behind."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drivetrain.backends.serving import Endpoint, RevisionStatus, Status, alive, process
from drivetrain.backends.serving.alive import Server
from drivetrain.backends.serving.gateway import settings as gateway_settings
from drivetrain.backends.serving.gateway import state as gateway_state
from drivetrain.backends.serving.gateway.settings import Settings
from drivetrain.errors import ServingError, StageError

if TYPE_CHECKING:
    from drivetrain.backends.serving.control import Control

_SPARE = 15.0
"""Seconds that a gateway may take longer than its own bounds say, before it is given up."""
_HANGS_AFTER = 10.0
"""Seconds without an answer to a health check after which a gateway is ended: on a busy machine two are soon gone."""


def open_serving(state: Path) -> LocalServing:
    """The services of the project whose state directory this is."""
    return LocalServing(state)


class LocalServing:
    """Gateways on this machine, one for each name.

    Below `state/serving` lie `NAME.json` (the running gateway), `NAME.settings.json` (what it was started with), `NAME.log`, and
    `bundles/REVISION/`, the working directories of replicas. `ready_within` and `stopped_within` are in seconds.
    """

    def __init__(self, state: Path, *, ready_within: float = 300.0, stopped_within: float = 30.0) -> None:
        self._state = state.absolute()
        self._home = self._state / "serving"
        self._ready_within = ready_within
        self._stopped_within = stopped_within

    def schema(self, bundle: Path, runner: str) -> Mapping[str, Any]:
        """The OpenAPI document of the bundle's runner, made in a process of its own.

        Raises `StageError` if the runner cannot be loaded, or is none.
        """
        command = [sys.executable, "-m", "drivetrain.backends.serving.schema", runner]
        # Bytecode files hold times and paths: they must not get into the bundle.
        variables = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
        try:
            done = subprocess.run(
                command, cwd=bundle, env=variables, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                timeout=self._ready_within, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise StageError(f"importing it took longer than {self._ready_within:g} s", where=runner) from error
        answer = _last_line(done.stdout)
        if "openapi" not in answer:
            said = answer.get("error") or "\n".join(done.stderr.strip().splitlines()[-5:]) or "its process died"
            raise StageError(f"the runner cannot be loaded: {said}", where=runner)
        return answer

    def deploy(
        self,
        settings: Settings,
        revision: str,
        bundle: Path,
        runner: str,
        example: Mapping[str, Any] | None = None,
        promote: bool = True,
    ) -> Endpoint:
        """Brings the revision up behind the service's gateway, has it answer `example`, and gives it the traffic.

        The gateway keeps its address and its callers' connections. Only where its own settings have changed is it
        started anew; if those name a port that it holds, nothing answers for about as long as a start takes. If a gateway with
        the changed settings does not come up, the one with the former settings serves on, or again.
        """
        with self._turn(settings):
            server = self._gateway(settings)
            control = self._control(server)
            now = control.status()
            if not (now.get("revision") == revision and _is_whole(now, revision)):
                kept = self._keep_bundle(bundle, revision)
                about = {"bundle": str(kept), "runner": runner, "example": example}
                try:
                    # The gateway's own bounds are shorter: it always has the last word on what has become of it.
                    control.add(revision, about, 2 * settings.ready_within + _SPARE)
                    if promote:
                        whole = {"weights": {revision: 100}, "shadow": None, "sticky": None}
                        control.route(whole, settings.ready_within + _SPARE)
                except ServingError:
                    self._undo(control, settings.name, revision, now)
                    raise
                self._forget_bundles(control.status())
        return Endpoint(settings.name, revision, server.url, server.pid)

    def find(self, name: str) -> Endpoint | None:
        """The endpoint of that name, if its process lives and it takes predictions."""
        return alive.find(self._state, name)

    def status(self, name: str) -> Status:
        """The service with its revisions. Raises `ServingError` if none of that name runs."""
        server = self._running(name)
        return _status(self._control(server).status(), server)

    def route(
        self, name: str, weights: Mapping[str, int], shadow: str | None = None, sticky: str | None = None
    ) -> Status:
        """Splits the traffic between revisions; those left out are drained and ended."""
        server = self._running(name)
        traffic = {"weights": dict(weights), "shadow": shadow, "sticky": sticky}
        return _status(self._control(server).route(traffic, self._stopped_within + 30.0), server)

    def scale(self, name: str, least: int, most: int) -> Status:
        """Bounds the replicas of each revision in traffic."""
        server = self._running(name)
        return _status(self._control(server).scale(least, most), server)

    def restore(self, name: str) -> Endpoint | None:
        """Starts a gateway again that has died; returns when what it serves answers."""
        settings = self._wanted_of(name)
        if settings is None or self._dead(name) is None:
            return None
        with self._turn(settings):
            dead = self._dead(name)
            if dead is None:  # somebody else was faster
                return None
            process.end_others(self._started(name), None, self._stopped_within)
            process.sweep(self._home, name)
            port = dead.port if process.is_free(dead.host, dead.port) else 0
            try:
                server = self._start(settings, port)
            except ServingError:
                alive.write(self._record(name), dead)  # it is still to be restored
                raise
        return self._wait_until_it_answers(server, settings.ready_within)

    def withdraw(self, name: str, revision: str) -> None:
        """Ends a revision that gets no traffic, and forgets it, also as the one to go back to."""
        control = self._control(self._running(name))
        if revision in _names(control.status()):
            control.remove(revision)
            self._forget_bundles(control.status())

    def predict(
        self, endpoint: Endpoint, inputs: Mapping[str, Any], prediction_id: str, timeout: float
    ) -> Mapping[str, Any]:
        """One prediction; waits up to `timeout` seconds for the answer.

        Raises `ServingError` if the runner failed, refused the inputs (naming the fields), or did not answer in time.
        """
        return self._control(self._running(endpoint.name)).predict(inputs, prediction_id, timeout)

    def feedback(self, endpoint: Endpoint, prediction_id: str, label: Any) -> None:
        """Tells what turned out to be true of an earlier prediction."""
        self._control(self._running(endpoint.name)).feedback(prediction_id, label)

    def running(self) -> Sequence[str]:
        """The names of the services whose gateways live."""
        found = [alive.read(path) for path in sorted(self._home.glob("*.json"))]
        return [server.name for server in found if server is not None and alive.is_alive(server)]

    def stop(self, name: str) -> bool:
        """Ends the gateway and its replicas, after the predictions that run. False if none ran."""
        server = alive.read(self._record(name))
        ran = server is not None and process.end(server, self._stopped_within)
        process.end_others(self._started(name), None, self._stopped_within)
        process.sweep(self._home, name)
        self._record(name).unlink(missing_ok=True)
        return ran

    def _dead(self, name: str) -> Server | None:
        """The gateway that was started, was never ended, and yet does not live."""
        server = alive.read(self._record(name))
        return None if server is None or alive.is_alive(server) else server

    def _wait_until_it_answers(self, server: Server, within: float) -> Endpoint:
        until = time.monotonic() + within
        while True:
            endpoint = self.find(server.name)
            if endpoint is not None:
                return endpoint
            nothing = not self._control(server).status().get("revision")
            if nothing or time.monotonic() > until:
                why = "it has no revision" if nothing else f"no revision was ready within {within:g} s"
                raise ServingError(f"the gateway of {server.name} is back, but {why}", hint="`drivetrain deploy`")
            time.sleep(0.05)

    @contextlib.contextmanager
    def _turn(self, settings: Settings) -> Iterator[None]:
        """One deployment at a time: two would start two gateways, and remove each other's bundles. It ends with the process."""
        self._home.mkdir(parents=True, exist_ok=True)
        until = time.monotonic() + 3 * settings.ready_within
        with (self._home / "deploying.lock").open("a") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > until:
                        hint = "end it, or try again later"
                        raise ServingError("another deployment is under way", hint=hint, where=file.name) from None
                    time.sleep(0.05)
            yield

    def _undo(self, control: Control, name: str, revision: str, before: Mapping[str, Any]) -> None:
        """Takes back what a deployment that failed has left. What the gateway goes on with keeps its bundle."""
        if not before.get("revision"):
            self.stop(name)
            known: set[str] = set()
        else:
            try:
                if revision not in _names(before) and revision in _names(control.status()):
                    control.remove(revision)
                known = _names(control.status())
            except ServingError:
                return
        if revision not in known:
            shutil.rmtree(self._home / "bundles" / revision, ignore_errors=True)

    def _gateway(self, settings: Settings) -> Server:
        """The gateway with these settings, started if there is none."""
        old = alive.read(self._record(settings.name))
        running = old if old is not None and alive.is_alive(old) else None
        if running is not None and not alive.health(running, _HANGS_AFTER):  # it hangs, or is just dying
            process.end(running, self._stopped_within)
            running = None
        process.end_others(self._started(settings.name), running, self._stopped_within)
        if running is None:
            if old is not None:
                process.sweep(self._home, settings.name)
            process.are_free(settings)
            return self._start(settings)
        if self._is_as_wanted(settings):
            return running
        return self._replace(running, settings)

    def _replace(self, running: Server, settings: Settings) -> Server:
        """Another gateway in place of the one that runs, which serves on, or again, if the other does not come up."""
        former = self._wanted_of(settings.name)
        patience = max(self._stopped_within, (former or settings).timeout + _SPARE)
        if not process.are_free(settings, (running.port, former.grpc_port if former else None)):
            process.end(running, patience)
        try:
            server = self._start(settings)
        except ServingError as error:
            raise ServingError(
                f"{error.message}\n{self._go_on_with(running, former)}", hint=error.hint, where=error.where
            ) from error
        process.end(running, patience)
        return server

    def _go_on_with(self, running: Server, former: Settings | None) -> str:
        """Has the former gateway serve; says whether it does."""
        if alive.is_alive(running):
            alive.write(self._record(running.name), running)
            if former is not None:
                gateway_settings.write(replace(former, port=running.port), self._started(running.name))
            return f"the gateway with the former settings serves on at {running.url}"
        try:
            if former is None:
                raise ServingError("its settings cannot be read")
            self._start(former, running.port)
        except ServingError as error:
            return f"the former gateway had to end first, and did not come back: {error.message}; nothing serves now"
        return f"the gateway with the former settings serves again at {running.url}"

    def _start(self, settings: Settings, port: int = 0) -> Server:
        port = settings.port or port or process.free_port(settings.host)
        started, log = self._started(settings.name), self._log(settings.name)
        gateway_settings.write(replace(settings, port=port), started)
        certificate = str(Path(settings.certificate).absolute()) if settings.certificate else None
        server = process.launch(Server(settings.name, settings.host, port, certificate), started, log, _token(settings))
        # Recorded at once, so that a deployment killed in between leaves no gateway that nobody knows of.
        alive.write(self._record(settings.name), server)
        try:
            process.wait_until_listening(server, 30.0, log)
        except ServingError:
            process.end(server, 0.0)
            self._record(settings.name).unlink(missing_ok=True)
            raise
        gateway_settings.write(settings, self._wanted(settings.name))
        return server

    def _wanted_of(self, name: str) -> Settings | None:
        """What the gateway was last asked to be; None if that cannot be read."""
        try:
            return gateway_settings.read(self._wanted(name))
        except (OSError, ValueError, TypeError):
            return None

    def _is_as_wanted(self, settings: Settings) -> bool:
        return self._wanted_of(settings.name) == settings

    def _running(self, name: str) -> Server:
        server = alive.read(self._record(name))
        if server is None or not alive.is_alive(server):
            raise ServingError(f"no gateway of {name} runs", hint="`drivetrain deploy` brings the champion up")
        return server

    def _control(self, server: Server) -> Control:
        from drivetrain.backends.serving.control import Control  # an HTTP client takes 40 ms to import

        settings = gateway_settings.read(self._started(server.name))
        return Control(server.url, _token(settings), server.certificate, self._log(server.name))

    def _record(self, name: str) -> Path:
        return alive.record_path(self._state, name)

    def _wanted(self, name: str) -> Path:
        return self._home / f"{name}.settings.json"

    def _started(self, name: str) -> Path:
        return self._home / f"{name}.started.json"

    def _log(self, name: str) -> Path:
        return self._home / f"{name}.log"

    def _keep_bundle(self, bundle: Path, revision: str) -> Path:
        """Copies the bundle to where it lasts, unless it is there already; that place."""
        home = self._home / "bundles" / revision
        if home.is_dir():
            return home
        scratch = home.with_name(f".{revision}.{os.getpid()}")
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.copytree(bundle, scratch)
        scratch.replace(home)
        return home

    def _forget_bundles(self, status: Mapping[str, Any]) -> None:
        """Removes the bundles of revisions that neither serve nor did so just before, in this service or another."""
        kept = {*_names(status), status.get("former")}
        for routes in self._home.glob("*.routes.json"):
            kept |= gateway_state.read(routes).revisions.keys()
        for path in (self._home / "bundles").iterdir():
            if path.name not in kept and not path.name.startswith("."):
                shutil.rmtree(path, ignore_errors=True)


def _token(settings: Settings) -> str:
    """The bearer token. Raises `ServingError` if it cannot be read."""
    try:
        return Path(settings.token_file).read_text().strip()
    except OSError as error:
        hint = "`drivetrain deploy` makes a new one" if isinstance(error, FileNotFoundError) else ""
        raise ServingError(f"the token cannot be read: {error}", hint=hint, where=settings.token_file) from error


def _names(status: Mapping[str, Any]) -> set[str]:
    return {str(entry["revision"]) for entry in status.get("revisions", [])}


def _is_whole(status: Mapping[str, Any], revision: str) -> bool:
    """Whether the revision has all of the traffic, and is not broken."""
    return any(
        entry["revision"] == revision and entry["weight"] == 100 and entry["state"] in ("ready", "asleep")
        for entry in status["revisions"]
    )


def _status(document: Mapping[str, Any], server: Server) -> Status:
    names = ("revision", "weight", "wanted", "ready", "state")
    return Status(
        endpoint=Endpoint(server.name, str(document["revision"]), server.url, server.pid),
        former=document["former"],
        shadow=document["shadow"],
        sticky=document["sticky"],
        revisions=[RevisionStatus(**{name: entry[name] for name in names}) for entry in document["revisions"]],
        scale=(int(document["scale"]["min"]), int(document["scale"]["max"])),
    )


def _last_line(text: str) -> Mapping[str, Any]:
    """The last line as JSON: what the user's own code prints comes before it."""
    try:
        found = json.loads(text.strip().splitlines()[-1])
    except (ValueError, IndexError):
        return {}
    return found if isinstance(found, dict) else {}
