"""Serving on this machine: each revision is Cog's own HTTP server, a process that outlives the command that started it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from drivetrain.backends.serving import Endpoint, alive, process
from drivetrain.backends.serving.alive import Server
from drivetrain.errors import ServingError, StageError


def open_serving(state: Path) -> LocalServing:
    """The servers of the project whose state directory this is."""
    return LocalServing(state)


class LocalServing:
    """Cog servers on this machine, one for each name.

    Below `state/serving` lie `NAME.json` (the running server), `NAME-REVISION.log` (its log) and
    `bundles/REVISION/` (its working directory: Cog reads `.cog/openapi_schema.json` from there, so that two revisions
    must not share one). `ready_within` and `stopped_within` are in seconds.
    """

    def __init__(self, state: Path, *, ready_within: float = 300.0, stopped_within: float = 20.0) -> None:
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
        variables = process.environment() | {"PYTHONDONTWRITEBYTECODE": "1"}
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
        name: str,
        revision: str,
        bundle: Path,
        runner: str,
        host: str,
        port: int,
        example: Mapping[str, Any] | None = None,
    ) -> Endpoint:
        """Brings the revision up, has it answer `example`, and ends the one that served before.

        With a fixed port that the old revision holds, the new one is tried on a free port first; then the old one is
        ended and the new one started again on its port, so that nothing answers for about as long as one start takes.
        If that second start fails, the old revision is started again.
        """
        self._end_abandoned(name)
        old = alive.read(self._record(name))
        if old and self._serves(old, revision, host, port):
            return old.endpoint
        occupied = port != 0 and not process.is_free(host, port)
        if occupied and not (old and old.port == port and alive.is_alive(old)):
            raise process.port_taken(host, port)
        is_new = self._keep_bundle(bundle, revision)
        wanted = Server(name, revision, runner, host, port)
        try:
            server = self._start(replace(wanted, port=0 if occupied else port))
            self._try_out(server, example)
        except ServingError:
            if is_new:
                shutil.rmtree(self._bundle(revision), ignore_errors=True)
            raise
        if occupied and old:
            process.end(server, self._stopped_within)
            server = self._take_over(wanted, old)
        return self._settle(server, old).endpoint

    def find(self, name: str) -> Endpoint | None:
        """The endpoint of that name, if its process lives and it takes predictions."""
        return alive.find(self._state, name)

    def predict(
        self, endpoint: Endpoint, inputs: Mapping[str, Any], prediction_id: str, timeout: float
    ) -> Mapping[str, Any]:
        """One prediction; waits up to `timeout` seconds for a free slot and for the answer.

        Raises `ServingError` if the runner failed, refused the inputs (naming the fields), or did not answer in time.
        """
        from drivetrain.backends.serving import protocol  # an HTTP client takes 40 ms to import

        log = self._log(endpoint.name, endpoint.revision)
        return protocol.predict(endpoint.url, inputs, prediction_id, timeout, log)

    def stop(self, name: str) -> bool:
        """Ends the server and its worker, after the prediction that runs. False if none ran."""
        self._end_abandoned(name)
        server = alive.read(self._record(name))
        ran = server is not None and process.end(server, self._stopped_within)
        self._record(name).unlink(missing_ok=True)
        return ran

    def _serves(self, old: Server, revision: str, host: str, port: int) -> bool:
        same = (old.revision, old.host) == (revision, host) and port in (0, old.port)
        return same and alive.find(self._state, old.name) is not None

    def _start(self, wanted: Server) -> Server:
        """A server that is ready; nothing of it is left if it does not become so. Raises `ServingError`."""
        port = wanted.port or process.free_port(wanted.host)
        log = self._log(wanted.name, wanted.revision)
        server = process.launch(replace(wanted, port=port), self._bundle(wanted.revision), log)
        # Recorded at once, so that a deployment killed in between leaves no server that nobody knows of.
        alive.write(self._candidate(wanted.name), server)
        try:
            process.wait_until_ready(server, self._ready_within, log)
        except ServingError:
            self._end_abandoned(wanted.name)
            raise
        return server

    def _try_out(self, server: Server, example: Mapping[str, Any] | None) -> None:
        if example is None:
            return
        try:
            self.predict(server.endpoint, example, "first", self._ready_within)
        except ServingError as error:
            self._end_abandoned(server.name)
            raise ServingError(
                f"revision {server.revision} came up but did not answer its first request: {error.message}",
                hint=error.hint,
                where=server.runner,
            ) from error

    def _take_over(self, wanted: Server, old: Server) -> Server:
        process.end(old, self._stopped_within)
        try:
            return self._start(wanted)
        except ServingError:
            self._settle(self._start(replace(old, pid=0)), None)
            raise

    def _settle(self, server: Server, old: Server | None) -> Server:
        """Makes the server the one of its name, ends the old one, and forgets the bundle before that one's."""
        if old is not None:
            server = replace(server, former=old.former if old.revision == server.revision else old.revision)
        alive.write(self._record(server.name), server)
        self._candidate(server.name).unlink(missing_ok=True)
        if old is not None:
            process.end(old, self._stopped_within)
            if old.former and old.former not in (server.former, server.revision):
                shutil.rmtree(self._bundle(old.former), ignore_errors=True)
        return server

    def _end_abandoned(self, name: str) -> None:
        """Ends a server that was started and never took its place."""
        candidate = alive.read(self._candidate(name))
        current = alive.read(self._record(name))
        if candidate is not None and (current is None or candidate.pid != current.pid):
            process.end(candidate, self._stopped_within)
        self._candidate(name).unlink(missing_ok=True)

    def _record(self, name: str) -> Path:
        return alive.record_path(self._state, name)

    def _candidate(self, name: str) -> Path:
        return self._home / f"{name}.candidate.json"

    def _bundle(self, revision: str) -> Path:
        return self._home / "bundles" / revision

    def _log(self, name: str, revision: str) -> Path:
        return self._home / f"{name}-{revision}.log"

    def _keep_bundle(self, bundle: Path, revision: str) -> bool:
        """Copies the bundle to where it lasts; False if it is there already."""
        home = self._bundle(revision)
        if home.is_dir():
            return False
        scratch = home.with_name(f".{revision}.{os.getpid()}")
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.copytree(bundle, scratch)
        scratch.replace(home)
        return True


def _last_line(text: str) -> Mapping[str, Any]:
    """The last line as JSON: what the user's own code prints comes before it."""
    try:
        found = json.loads(text.strip().splitlines()[-1])
    except (ValueError, IndexError):
        return {}
    return found if isinstance(found, dict) else {}
