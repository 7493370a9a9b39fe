"""The admin API: `/-/status`, `/-/revisions/REV`, `/-/traffic`, `/-/scale`.

One change at a time, but that traffic can be moved while a new revision takes its time to come up.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from drivetrain.backends.serving.gateway.routing import Routes
from drivetrain.backends.serving.gateway.service import Refusal, Service
from drivetrain.backends.serving.gateway.state import Source
from drivetrain.backends.serving.gateway.tasks import Tasks
from drivetrain.backends.serving.http.messages import Exchange, Request, Response

log = logging.getLogger(__name__)

_REVISIONS = "/-/revisions/"


class Door:
    """Lets those in who have the token."""

    def __init__(self, token: str) -> None:
        self._expected = b"Bearer " + token.encode()

    def admits(self, request: Request) -> bool:
        """Whether the request brings the token. It takes as long for a wrong one as for the right one."""
        return hmac.compare_digest(request.header(b"authorization") or b"", self._expected)


def unauthorized() -> Response:
    """The answer to who has no token."""
    body = b'{"error":"a bearer token is needed","detail":"a bearer token is needed"}'
    return Response(401, body, [(b"www-authenticate", b"Bearer")])


class Admin:
    """Carries out what the admin API is asked for. A change goes on to its end if the client goes away."""

    def __init__(self, service: Service, door: Door) -> None:
        self._service = service
        self._door = door
        self._turn = asyncio.Lock()
        self._coming_up = asyncio.Lock()
        self._tasks = Tasks()

    def __call__(self, exchange: Exchange) -> None:
        """Answers a request below `/-/`."""
        request = exchange.request
        if not self._door.admits(request):
            exchange.reply(unauthorized())
        elif (request.method, request.path) == ("GET", "/-/status"):
            exchange.reply(reply(200, self._service.status()))
        elif (change := self._change(request.method, request.path)) is not None:
            self._tasks.start(exchange, self._carry_out(exchange, change))
        else:
            exchange.reply(reply(404, {"error": f"{request.method} {request.path} is nothing that can be done here"}))

    async def close(self) -> None:
        """Gives up the change that is under way."""
        await self._tasks.close()

    async def _carry_out(self, exchange: Exchange, change: Callable[[Request], Coroutine[Any, Any, None]]) -> None:
        try:
            await change(exchange.request)
        except Refusal as refusal:
            log.warning("%s %s: %s", exchange.request.method, exchange.request.path, refusal.error)
            said = {"error": refusal.error, "hint": refusal.hint, "log": refusal.log}
            exchange.reply(reply(refusal.status, said))
        else:
            exchange.reply(reply(200, self._service.status()))

    def _change(self, method: str, path: str) -> Callable[[Request], Coroutine[Any, Any, None]] | None:
        if (method, path) == ("PUT", "/-/traffic"):
            return self._traffic
        if (method, path) == ("PUT", "/-/scale"):
            return self._scale
        if path.startswith(_REVISIONS):
            return {"PUT": self._deploy, "DELETE": self._delete}.get(method)
        return None

    async def _delete(self, request: Request) -> None:
        async with self._turn:
            await self._service.delete(request.path.removeprefix(_REVISIONS))

    async def _deploy(self, request: Request) -> None:
        asked = _object(request)
        bundle, runner, example = asked.get("bundle"), asked.get("runner"), asked.get("example")
        if not isinstance(bundle, str) or not isinstance(runner, str):
            raise Refusal(422, "a revision is deployed with its `bundle` and its `runner`")
        if example is not None and not isinstance(example, dict):
            raise Refusal(422, "`example` has to be the inputs of a prediction, or null")
        name, source = request.path.removeprefix(_REVISIONS), Source(bundle, runner)
        async with self._coming_up:
            if not self._service.knows(name):
                # Nobody else can name it before it is up.
                await self._service.deploy(name, source, example)
                return
            async with self._turn:
                await self._service.deploy(name, source, example)

    async def _scale(self, request: Request) -> None:
        asked = _object(request)
        least, most = asked.get("min"), asked.get("max")
        if type(least) is not int or type(most) is not int:
            raise Refusal(422, "`min` and `max` have to be whole numbers of replicas")
        async with self._turn:
            self._service.bound(least, most)

    async def _traffic(self, request: Request) -> None:
        asked = _object(request)
        weights, shadow, sticky = asked.get("weights"), asked.get("shadow"), asked.get("sticky")
        if not isinstance(weights, dict) or not all(type(weight) is int for weight in weights.values()):
            raise Refusal(422, "`weights` has to give each revision whole percents")
        if not all(value is None or isinstance(value, str) for value in (shadow, sticky)):
            raise Refusal(422, "`shadow` names a revision and `sticky` a header, or they are null")
        if not weights:
            raise Refusal(422, "`weights` is empty")
        try:
            routes = Routes(weights, shadow or None, sticky or None)
        except ValueError as error:
            raise Refusal(422, str(error)) from error
        async with self._turn:
            await self._service.switch(routes)


def reply(status: int, said: Any) -> Response:
    """An answer in JSON."""
    return Response(status, json.dumps(said).encode())


def _object(request: Request) -> dict[str, Any]:
    try:
        found = json.loads(request.body)
    except ValueError as error:
        raise Refusal(400, f"the body is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise Refusal(422, "the body has to be a JSON object")
    return found
