"""What is asked of Cog's server and of the replica in one request; what takes several is in `cog_scenarios`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.backends.serving.servers import Reply, Server

Asking = Callable[[Server], list[Reply]]


@dataclass(frozen=True)
class Case:
    """Requests to one runner. `ask` sends them and returns the answers, in order."""

    runner: str
    name: str
    ask: Asking
    alone: bool = False
    """The server cannot be used afterwards."""


@dataclass
class Cases:
    """Collects cases under the name of their runner."""

    found: list[Case] = field(default_factory=list)

    def one(
        self,
        runner: str,
        name: str,
        method: str,
        path: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """A case of one request."""
        self.found.append(Case(runner, name, lambda server: [server.request(method, path, body, headers)]))

    def predict(self, runner: str, name: str, inputs: Any, **more: Any) -> None:
        """A case of one `POST /predictions`."""
        self.one(runner, name, "POST", "/predictions", {"input": inputs, **more})

    def many(self, runner: str, name: str, alone: bool = False) -> Callable[[Asking], Asking]:
        """Decorates the function that asks."""

        def keep(ask: Asking) -> Asking:
            self.found.append(Case(runner, name, ask, alone))
            return ask

        return keep


CASES = Cases()
one, predict = CASES.one, CASES.predict
JSON = "application/json"
ASYNC = {"prefer": "respond-async"}
EVENTS = {"accept": "text/event-stream"}

# Routes and methods
one("typed", "index", "GET", "/")
one("typed", "health check", "GET", "/health-check")
one("typed", "OpenAPI document", "GET", "/openapi.json")
one("typed", "unknown route", "GET", "/nothing")
one("typed", "unknown route with a body", "POST", "/nothing", {"input": {}})
one("typed", "GET on predictions", "GET", "/predictions")
one("typed", "DELETE on predictions", "DELETE", "/predictions")
one("typed", "GET on one prediction", "GET", "/predictions/abc")
one("typed", "GET on cancel", "GET", "/predictions/abc/cancel")
one("typed", "GET on shutdown", "GET", "/shutdown")
one("typed", "POST on the health check", "POST", "/health-check", {})
one("typed", "HEAD on the health check", "HEAD", "/health-check")
one("typed", "OPTIONS on predictions", "OPTIONS", "/predictions")
one("typed", "trailing slash", "POST", "/predictions/", {"input": {"x": 1}})
one("typed", "query string", "POST", "/predictions?a=1", {"input": {"x": 1}})
one("typed", "id with an escaped slash", "PUT", "/predictions/a%2Fb", {"input": {"x": 1}})
one("typed", "id in other letters", "PUT", "/predictions/%C3%A4", {"input": {"x": 1}})
one("typed", "id that is no UTF-8", "PUT", "/predictions/%ff", {"input": {"x": 1}})

# Inputs
predict("typed", "defaults", {"x": 2})
predict(
    "typed",
    "every input",
    {"x": 2.5, "y": -3, "mode": "product", "note": "n", "name": "xyz", "count": 7, "flag": True, "many": [3]},
)
predict("typed", "an id of the caller's", {"x": 2}, id="mine")
predict("typed", "an empty id", {"x": 2}, id="")
predict("typed", "null as id", {"x": 2}, id=None)
predict("typed", "unknown input is dropped", {"x": 2, "zzz": 1})
predict("typed", "unknown key beside input", {"x": 2}, zzz=1)
predict("typed", "missing input", {"y": 1})
predict("typed", "empty input", {})
predict("typed", "null as input", None)
predict("typed", "list as input", [1, 2])
predict("typed", "text as input", "x")
predict("typed", "text for a number", {"x": "2"})
predict("typed", "null for a number", {"x": None})
predict("typed", "boolean for a number", {"x": True})
predict("typed", "below the minimum", {"x": -101})
predict("typed", "above the maximum", {"x": 100.5})
predict("typed", "not one of the choices", {"x": 1, "mode": "power"})
predict("typed", "too short", {"x": 1, "name": "a"})
predict("typed", "too long", {"x": 1, "name": "abcdef"})
predict("typed", "pattern does not match", {"x": 1, "name": "ABC"})
predict("typed", "fraction for an integer", {"x": 1, "count": 1.5})
predict("typed", "whole float for an integer", {"x": 1, "count": 2.0})
predict("typed", "number for a boolean", {"x": 1, "flag": 1})
predict("typed", "text in a list of integers", {"x": 1, "many": [1, "2"]})
predict("typed", "null where none is allowed", {"x": 1, "y": None})
predict("typed", "null for an optional text", {"x": 1, "note": None})
predict("typed", "two mistakes", {"x": "a", "count": "b"})
predict("typed", "missing and wrong", {"count": "b"})
predict("typed", "large integer", {"x": 1, "count": 2**60})
predict("typed", "other letters", {"x": 1, "note": "żółć 🎈"})

# Bodies
one("typed", "no body", "POST", "/predictions")
one("typed", "no content type", "POST", "/predictions", {"input": {"x": 1}}, {"content-type": ""})
one("typed", "form content type", "POST", "/predictions", b"x=1", {"content-type": "application/x-www-form-urlencoded"})
one("typed", "text content type", "POST", "/predictions", {"input": {"x": 1}}, {"content-type": "text/plain"})
one(
    "typed",
    "content type with charset",
    "POST",
    "/predictions",
    {"input": {"x": 1}},
    {"content-type": f"{JSON}; charset=utf-8"},
)
one(
    "typed",
    "content type with a suffix",
    "POST",
    "/predictions",
    {"input": {"x": 1}},
    {"content-type": "application/cloudevents+json"},
)
one(
    "typed",
    "content type in capitals",
    "POST",
    "/predictions",
    {"input": {"x": 1}},
    {"content-type": "APPLICATION/JSON"},
)
one("typed", "empty body", "POST", "/predictions", b"")
one("typed", "malformed JSON", "POST", "/predictions", b'{"input": {"x": 1')
one("typed", "text after the JSON", "POST", "/predictions", b'{"input": {"x": 1}} x')
one("typed", "body that is no UTF-8", "POST", "/predictions", b'{"input": {"note": "\xff"}}')
one("typed", "NaN in the body", "POST", "/predictions", b'{"input": {"x": NaN}}')
one("typed", "number as body", "POST", "/predictions", 5)
one("typed", "empty list as body", "POST", "/predictions", [])
one("typed", "null as body", "POST", "/predictions", b"null")
one("typed", "number as id", "POST", "/predictions", {"input": {"x": 1}, "id": 5})
one("typed", "number as webhook", "POST", "/predictions", {"input": {"x": 1}, "webhook": 5})
one("typed", "unknown webhook event", "POST", "/predictions", {"input": {"x": 1}, "webhook_events_filter": ["begin"]})
one("typed", "null as webhook events", "POST", "/predictions", {"input": {"x": 1}, "webhook_events_filter": None})
one("typed", "key twice", "POST", "/predictions", b'{"input": {"x": 1}, "input": {"x": 2}}')
one("typed", "input twice", "POST", "/predictions", b'{"input": {"x": 1, "x": 2}}')
one("typed", "escaped key", "POST", "/predictions", b'{"\\u0069d": "escaped", "\\u0069nput": {"x": 1}}')
one("typed", "deep nesting", "POST", "/predictions", b'{"input": {"x": 1, "note": ' + b"[" * 200 + b"]" * 200 + b"}}")
one("typed", "wrong context", "POST", "/predictions", {"input": {"x": 1}, "context": {"a": 1}})

# Ids
one("typed", "PUT", "PUT", "/predictions/mine", {"input": {"x": 1}})
one("typed", "PUT with the same id", "PUT", "/predictions/mine", {"input": {"x": 1}, "id": "mine"})
one("typed", "PUT with another id", "PUT", "/predictions/mine", {"input": {"x": 1}, "id": "other"})
one("typed", "PUT without a body", "PUT", "/predictions/mine")
one("typed", "PUT with wrong input", "PUT", "/predictions/mine", {"input": {}})
one("typed", "cancel of an unknown prediction", "POST", "/predictions/nobody/cancel")
one("typed", "event stream from a runner that has none", "POST", "/predictions", {"input": {"x": 1}}, EVENTS)

# Trainings without a train function
one("typed", "training", "POST", "/trainings", {"input": {"x": 1}})
one("typed", "training with an id", "PUT", "/trainings/mine", {"input": {"x": 1}})
one("typed", "training with another id", "PUT", "/trainings/mine", {"input": {"x": 1}, "id": "other"})
one("typed", "training with wrong input", "POST", "/trainings", {"input": {}})
one("typed", "training as an event stream", "POST", "/trainings", {"input": {"x": 1}}, EVENTS)
one("typed", "cancel of an unknown training", "POST", "/trainings/nobody/cancel")
one("typed", "GET on trainings", "GET", "/trainings")

# What a runner does
predict("acting", "answer", {"action": "hello"})
predict("acting", "exception", {"action": "raise"})
predict("acting", "exception without words", {"action": "bare"})
predict("acting", "exception with a cause", {"action": "nested"})
predict("acting", "logs", {"action": "print"})
predict("acting", "metrics", {"action": "metrics"})
predict("acting", "nothing returned", {"action": "none"})
predict("acting", "NaN returned", {"action": "nan"})
predict("acting", "context", {"action": "context"}, context={"key": "value"})
predict("acting", "exit", {"action": "exit"})
predict("older", "older predictor", {"x": 2, "y": 1})
predict("older", "older predictor, wrong input", {"x": 2, "y": -1})
one("older", "older predictor, OpenAPI document", "GET", "/openapi.json")
predict("lists", "objects in and out", {"rows": [{"label": "a"}, {}]})
predict("lists", "no rows", {"rows": []})
predict("lists", "a row that is no object", {"rows": [1]})
one("unhealthy", "runner's own health check fails", "GET", "/health-check")
predict("unhealthy", "prediction while its health check fails", {"x": 1})

# Iterators
predict("streaming", "parts joined", {"count": 3})
predict("streaming", "no parts", {"count": 0})
predict("streaming", "failure after parts", {"count": 3, "fail_at": 2})
one("streaming", "event stream", "POST", "/predictions", {"input": {"count": 3}}, EVENTS)
one(
    "streaming",
    "event stream among other types",
    "POST",
    "/predictions",
    {"input": {"count": 1}, "id": "s2"},
    {"accept": "application/json, text/event-stream;q=0.9"},
)
one("streaming", "event stream of a failure", "POST", "/predictions", {"input": {"count": 3, "fail_at": 1}}, EVENTS)
one("streaming", "event stream of wrong input", "POST", "/predictions", {"input": {}}, EVENTS)
one("streaming", "event stream by PUT", "PUT", "/predictions/s1", {"input": {"count": 2}}, EVENTS)
predict("iterating", "iterator of numbers", {"count": 3})
predict("iterating", "iterator of nothing", {"count": 0})
one("iterating", "event stream from a plain iterator", "POST", "/predictions", {"input": {"count": 2}}, EVENTS)

# Files
predict("files", "file as data URI", {"file": "data:text/plain;base64,aGVsbG8="})
predict("files", "file as plain data URI", {"file": "data:text/plain,hello"})
predict("files", "number as file", {"file": 5})
predict("files", "text as file", {"file": "hello"})
predict("files", "address that nobody answers", {"file": "http://127.0.0.1:9/x.txt"})
predict("files", "exception beside a file", {"file": "data:text/plain;base64,aGVsbG8=", "action": "raise"})

# Async runners
predict("concurrent", "async runner", {})
predict("concurrent", "async runner raises", {"action": "raise"})
