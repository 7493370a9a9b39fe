"""The revisions of a service and the traffic between them; each change is on disk before it is answered."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from drivetrain.backends.serving.gateway import sockets, state
from drivetrain.backends.serving.gateway.metrics import Metrics
from drivetrain.backends.serving.gateway.pool import Room, Waiter
from drivetrain.backends.serving.gateway.revision import NAMES, Revision
from drivetrain.backends.serving.gateway.routing import WHOLE, Router, Routes
from drivetrain.backends.serving.gateway.settings import Settings
from drivetrain.backends.serving.gateway.sockets import Sockets
from drivetrain.backends.serving.gateway.state import Source, State
from drivetrain.backends.serving.http.outcomes import ClientError
from drivetrain.errors import SystemFault


class Refusal(Exception):
    """A change that cannot be made: the status and the words of the answer."""

    def __init__(self, status: int, error: str, *, hint: str = "", log: str = "") -> None:
        super().__init__(error)
        self.status = status
        self.error = error
        self.hint = hint
        self.log = log


class Service:
    """What the gateway serves. `router` is replaced whole, so that a request sees the old traffic or the new."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.settings = settings
        self.metrics = metrics
        self.router = Router(Routes())
        self.revisions: dict[str, Revision] = {}
        self.room = Room(settings.queue)
        self._file = state.path(Path(settings.home), settings.name)
        self._state = State()
        self._sockets: Sockets | None = None
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def former(self) -> str | None:
        """The revision that was primary before."""
        return self._state.former

    @property
    def shadow(self) -> Revision | None:
        """The revision that gets copies."""
        name = self.router.routes.shadow
        return self.revisions.get(name) if name else None

    def knows(self, name: str) -> bool:
        """Whether there is a revision of that name, running or remembered."""
        return name in self._state.revisions

    def open(self) -> None:
        """Brings up what was there when the last gateway ended. Raises `SystemFault` if its record cannot be read or written."""
        found = state.read(self._file)
        sockets.sweep(found.sockets)
        self._sockets = Sockets()
        self._state = replace(found, sockets=str(self._sockets.directory))
        if self.settings.upstreams:
            self._adopt_upstreams()
        routes = Routes(self._state.weights, self._state.shadow, self._state.sticky)
        for name, source in self._state.revisions.items():
            if name in routes.used or name != found.former:
                self.revisions[name] = self._revision(name, source)
        self._route(routes)
        try:
            state.write(self._file, self._state)
        except OSError as error:
            self._sockets.remove()
            raise SystemFault(f"{self._file} cannot be written: {error}", hint="make room on the disk") from error

    async def deploy(self, name: str, source: Source, example: Mapping[str, Any] | None) -> None:
        """Starts a revision beside the others, and has it answer the example. Raises `Refusal`; nothing of it is left then."""
        self._check(name, source)
        known = self.revisions.get(name)
        if known is not None:
            if known.source != source:
                raise Refusal(
                    409, f"revision {name} is another one: {known.source.bundle}", hint="use another name for it"
                )
            if await known.reach(1) is None:
                return
        revision = known or self._revision(name, source)
        try:
            await self._prove(revision, example)
            self._keep(revisions={**self._state.revisions, name: source})
        except BaseException:
            if known is None:
                await revision.close()
            raise
        if known is None:
            revision.rebound(self.settings)  # the bounds may have been moved meanwhile
        self.revisions[name] = revision
        self.metrics.revisions[name] = revision.pool.numbers  # forgotten if another change was made meanwhile

    async def switch(self, routes: Routes) -> None:
        """Has the traffic go as the routes say, once every revision in them is ready for it. Raises `Refusal`; nothing changes then."""
        missing = sorted(routes.used - self._state.revisions.keys())
        if missing:
            raise Refusal(
                404, f"there is no revision {', '.join(missing)}", hint=f"known: {', '.join(self._state.revisions)}"
            )
        waking = {
            name: self._revision(name, self._state.revisions[name]) for name in routes.used - self.revisions.keys()
        }
        try:
            await self._prepare(routes, {**self.revisions, **waking})
            running = {**self.revisions, **waking}  # only now: others may have come up meanwhile
            self._record(routes, running)
        except BaseException:
            await asyncio.gather(*(revision.close() for revision in waking.values()))
            raise
        dropped = [running.pop(name) for name in self.router.routes.used - routes.used]
        self.revisions = running
        self._route(routes)
        for revision in dropped:
            revision.pool.hand_over(self._reroute)
            self._retire(revision)

    def bound(self, least: int, most: int) -> None:
        """Keeps each revision's replicas within these bounds, until the gateway ends. Raises `Refusal` if they are none."""
        if not 0 <= least <= most or most < 1:
            raise Refusal(
                422, f"{least} to {most} replicas are no bounds", hint="at least one, and not fewer than least"
            )
        self.settings = replace(self.settings, scaling=replace(self.settings.scaling, min=least, max=most))
        for revision in self.revisions.values():
            revision.rebound(self.settings)

    async def delete(self, name: str) -> None:
        """Ends a revision and forgets it. Raises `Refusal` if there is none, or if it is in traffic."""
        if name not in self._state.revisions:
            raise Refusal(404, f"there is no revision {name}")
        if name in self.router.routes.used:
            raise Refusal(409, f"revision {name} is in traffic", hint="move the traffic away first")
        left = {known: source for known, source in self._state.revisions.items() if known != name}
        self._keep(revisions=left, former=None if self._state.former == name else self._state.former)
        revision = self.revisions.pop(name, None)
        if revision is not None:
            await revision.close()

    def status(self) -> dict[str, Any]:
        """The service as the admin API tells it."""
        routes = self.router.routes
        revisions = [self._entry(name, source, routes) for name, source in sorted(self._state.revisions.items())]
        return {
            "name": self.settings.name,
            "revision": routes.primary,
            "former": self._state.former,
            "shadow": routes.shadow,
            "sticky": routes.sticky,
            "scale": {"min": self.settings.scaling.min, "max": self.settings.scaling.max},
            "revisions": revisions,
        }

    async def close(self) -> None:
        """Ends every replica; by now nobody waits for their answers. What there was stays on record."""
        await asyncio.gather(*(revision.close(drain=False) for revision in self.revisions.values()), *self._closing)
        if self._sockets is not None:
            self._sockets.remove()

    def _check(self, name: str, source: Source) -> None:
        if self.settings.upstreams:
            raise Refusal(409, "the replicas of this service are run by something else", hint="change its settings")
        if not NAMES.fullmatch(name):
            raise Refusal(400, f"{name!r} is no name for a revision: letters, digits, '.', '_' and '-' are")
        if not source.runner or not Path(source.bundle).is_dir():
            raise Refusal(
                422, f"there is no bundle {source.bundle!r}", hint="name a directory on the gateway's machine"
            )

    async def _prove(self, revision: Revision, example: Mapping[str, Any] | None) -> None:
        """Raises `Refusal` unless the revision comes up and answers the example."""
        status, error = 500, await revision.reach(1)
        said = "did not come up"
        if error is None and example is not None:
            status, error = 422, await self._try_out(revision, example)
            said = "came up but did not answer its first request"
        if error is not None:
            hint = f"the whole log: {revision.log}"
            raise Refusal(status, f"revision {revision.name} {said}: {error}", hint=hint, log=revision.log_tail())

    async def _try_out(self, revision: Revision, example: Mapping[str, Any]) -> str | None:
        """Why the revision does not answer the example; None if it does."""
        if not revision.pool.upstreams:
            return "its process ended"
        upstream = revision.pool.upstreams[0]
        body = json.dumps({"input": example}).encode()
        headers = [(b"content-type", b"application/json")]
        try:
            answer = await upstream.client.request("POST", "/predictions", headers, body, self.settings.ready_within)
        except ClientError as error:
            return error.message
        if answer.status == 200 and _succeeded(answer.body):
            return None
        return f"{answer.status} {answer.body[:2000].decode(errors='replace')}"

    async def _prepare(self, routes: Routes, revisions: Mapping[str, Revision]) -> None:
        """Waits until each revision has as many replicas as its share of the present ones, as far as it may have so many."""
        present = sum(revision.ready for name, revision in self.revisions.items() if name in self.router.routes.used)
        for name in sorted(routes.used):
            share = routes.weights.get(name, 0)
            needed = max(1, min(-(-present * share // WHOLE), self.settings.scaling.max))
            revision = revisions[name]
            if revision.ready >= needed or (revision.state == "asleep" and name in self.router.routes.used):
                continue
            if (error := await revision.reach(needed)) is not None:
                raise Refusal(500, f"revision {name} did not come up: {error}", log=revision.log_tail())

    def _record(self, routes: Routes, running: Mapping[str, Revision]) -> None:
        """Writes the new traffic down. Of the revisions that do not run any more, the former primary alone is remembered."""
        before = self.router.routes
        former = before.primary if before.primary not in (None, routes.primary) else self._state.former
        dropped = before.used - routes.used
        kept = {
            name: source
            for name, source in self._state.revisions.items()
            if (name in running and name not in dropped) or name == former
        }
        weights = {name: weight for name, weight in routes.weights.items() if weight}
        self._keep(weights=weights, shadow=routes.shadow, sticky=routes.sticky, former=former, revisions=kept)

    def _reroute(self, waiter: Waiter) -> None:
        """Sends a request that waited for a revision which is out of traffic to one that is in it."""
        name = self.router.pick()
        if name is None:
            waiter.refuse(503, "nothing is deployed", 5.0)
        else:
            waiter.move(self.revisions[name].pool)

    def _route(self, routes: Routes) -> None:
        for name in routes.used:
            self.revisions[name].follow_load()
        for name in self.revisions.keys() - routes.used:
            self.revisions[name].scale(1)
        self.router = Router(routes)

    def _retire(self, revision: Revision) -> None:
        task = asyncio.get_running_loop().create_task(revision.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _revision(self, name: str, source: Source) -> Revision:
        assert self._sockets is not None, "opened before anything is deployed"
        return Revision(name, source, self.settings, self._sockets, self.room, self.metrics.of(name))

    def _adopt_upstreams(self) -> None:
        """Of what is on record only the traffic counts, as far as it still means these upstreams; else the first gets it all."""
        names = list(self.settings.upstreams)
        revisions = dict.fromkeys(names, Source())
        weights = dict(self._state.weights)
        if not weights or not weights.keys() <= revisions.keys():
            weights = {names[0]: WHOLE}
        shadow = self._state.shadow if self._state.shadow in revisions else None
        former = self._state.former if self._state.former in revisions else None
        self._state = replace(self._state, revisions=revisions, weights=weights, shadow=shadow, former=former)

    def _entry(self, name: str, source: Source, routes: Routes) -> dict[str, Any]:
        revision = self.revisions.get(name)
        return {
            "revision": name,
            "weight": routes.weights.get(name, 0),
            "wanted": revision.wanted if revision else 0,
            "ready": revision.ready if revision else 0,
            "state": revision.state if revision else "stopped",
            "bundle": source.bundle,
            "runner": source.runner,
        }

    def _keep(self, **changes: Any) -> None:
        """Writes the changes down. Raises `Refusal` if that cannot be done; nothing has changed then."""
        changed = replace(self._state, **changes)
        try:
            state.write(self._file, changed)
        except OSError as error:
            raise Refusal(500, f"{self._file} cannot be written: {error}", hint="make room on the disk") from error
        self._state = changed
        self.metrics.keep(changed.revisions)


def _succeeded(body: bytes) -> bool:
    try:
        return bool(json.loads(body)["status"] == "succeeded")
    except (ValueError, KeyError, TypeError):
        return False
