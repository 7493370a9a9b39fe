"""The replica's routes: which part answers which request."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from drivetrain.backends.serving.http.messages import Exchange, Response
from drivetrain.backends.serving.replica import kserve_routes
from drivetrain.backends.serving.replica.cog_api import TEXT, CogApi
from drivetrain.backends.serving.replica.front import Front
from drivetrain.backends.serving.replica.kserve_routes import KServeRoutes
from drivetrain.backends.serving.replica.metrics import CONTENT_TYPE
from drivetrain.backends.serving.replica.webhooks import Sender

Route = Callable[[Exchange], None]
RouteOf = Callable[[Exchange, str], None]


class App:
    """Answers every request that the server hands it."""

    def __init__(self, front: Front, sender: Sender) -> None:
        self._front = front
        self._cog = cog = CogApi(front, sender)
        self._kserve = kserve = KServeRoutes(front)
        self._exact: Mapping[str, tuple[str, Route]] = {
            "/predictions": ("POST", cog.create),
            "/trainings": ("POST", cog.train),
            "/": ("GET", cog.index),
            "/health-check": ("GET", cog.health_check),
            "/openapi.json": ("GET", cog.openapi),
            "/shutdown": ("POST", cog.shutdown),
            "/metrics": ("GET", self.metrics),
            "/v1/models": ("GET", kserve.models),
            "/v2": ("GET", kserve.server),
            "/v2/models": ("GET", kserve.models),
            "/v2/health/live": ("GET", kserve.live),
            "/v2/health/ready": ("GET", kserve.server_ready),
        }
        self._below: Mapping[str, RouteOf] = {
            "/predictions/": self._prediction,
            "/trainings/": self._training,
            "/v1/models/": self._v1_model,
            "/v2/models/": self._v2_model,
        }

    def __call__(self, exchange: Exchange) -> None:
        """The handler."""
        path = exchange.request.path
        found = self._exact.get(path)
        if found is not None:
            if _has_method(exchange, found[0]):
                found[1](exchange)
            return
        for before, route in self._below.items():
            if path.startswith(before) and len(path) > len(before):
                route(exchange, path[len(before) :])
                return
        if path.startswith(("/v1/", "/v2/")):
            kserve_routes.not_found(exchange)
        else:
            exchange.reply(Response(404, b"", (), b""))

    def metrics(self, exchange: Exchange) -> None:
        """`GET /metrics`"""
        exchange.reply(Response(200, self._front.metrics.render(), (), CONTENT_TYPE))

    def _prediction(self, exchange: Exchange, rest: str) -> None:
        self._named(exchange, rest, self._cog.create_with_id)

    def _training(self, exchange: Exchange, rest: str) -> None:
        self._named(exchange, rest, self._cog.train_with_id)

    def _named(self, exchange: Exchange, rest: str, create: RouteOf) -> None:
        key, _, verb = rest.rpartition("/")
        cancels = verb == "cancel" and key != ""
        if not _has_method(exchange, "POST" if cancels else "PUT"):
            return
        if "\ufffd" in rest:  # what was no UTF-8
            exchange.reply(Response(400, b"Invalid URL: Invalid UTF-8 in `id`", (), TEXT))
        elif cancels:
            self._cog.cancel(exchange, key)
        else:
            create(exchange, rest)

    def _v1_model(self, exchange: Exchange, rest: str) -> None:
        name, colon, verb = rest.rpartition(":")
        if colon and verb == "predict":
            if _has_method(exchange, "POST"):
                self._kserve.v1_predict(exchange, name)
        elif _has_method(exchange, "GET"):
            self._kserve.v1_model(exchange, rest)

    def _v2_model(self, exchange: Exchange, rest: str) -> None:
        name, slash, verb = rest.partition("/")
        if verb.startswith("versions/"):
            # There is one model, and it answers whichever version of it is named.
            version, slash, verb = verb.removeprefix("versions/").partition("/")
            if not version:
                kserve_routes.not_found(exchange)
                return
        kserve = self._kserve
        routes: Mapping[str, tuple[str, RouteOf]] = {
            "infer": ("POST", kserve.v2_infer),
            "ready": ("GET", kserve.v2_model_ready),
            "": ("GET", kserve.v2_model),
        }
        if (slash and not verb) or verb not in routes:
            kserve_routes.not_found(exchange)
            return
        method, route = routes[verb]
        if _has_method(exchange, method):
            route(exchange, name)


def _has_method(exchange: Exchange, method: str) -> bool:
    """Whether the request is of that method; answers 405 if not. What can be got can be asked for with HEAD too."""
    asked, path = exchange.request.method, exchange.request.path
    if asked == method or (asked == "HEAD" and method == "GET"):
        return True
    if path.startswith(("/v1", "/v2")):
        kserve_routes.not_allowed(exchange, method.encode())
    else:
        allowed = b"GET,HEAD" if method == "GET" else method.encode()
        exchange.reply(Response(405, b"", ((b"allow", allowed),), b""))
    return False
