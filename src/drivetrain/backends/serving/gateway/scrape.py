"""`GET /metrics`: the gateway's own numbers, and those of every replica with the labels `revision` and `replica`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from drivetrain.backends.serving.gateway.capture import Recorder
from drivetrain.backends.serving.gateway.exposition import merge
from drivetrain.backends.serving.gateway.metrics import family
from drivetrain.backends.serving.gateway.service import Service
from drivetrain.backends.serving.gateway.upstreams import Upstream
from drivetrain.backends.serving.http.messages import Exchange, Response
from drivetrain.backends.serving.http.outcomes import ClientError

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
_TEXTS = (b"text/plain", b"application/openmetrics-text")
_WITHIN = 1.0


class Scrape:
    """Answers a scrape."""

    def __init__(self, service: Service, recorder: Recorder | None) -> None:
        self._service = service
        self._recorder = recorder

    async def answer(self, exchange: Exchange) -> None:
        """A replica that does not answer within a second is left out."""
        upstreams = [upstream for revision in self._service.revisions.values() for upstream in revision.pool.upstreams]
        scrapes = await asyncio.gather(*(_scrape(upstream) for upstream in upstreams))
        lines = [*self._service.metrics.text(), *self._now(), *self._captured()]
        lines += merge([scrape for scrape in scrapes if scrape is not None])
        exchange.reply(Response(200, ("\n".join(lines) + "\n").encode(), (), CONTENT_TYPE))

    def _now(self) -> Iterator[str]:
        """How things stand at this moment."""
        revisions = sorted(self._service.revisions.items())
        routes = self._service.router.routes

        def gauge(name: str, text: str, values: dict[str, float]) -> Iterator[str]:
            yield from family(name, "gauge", text, [((("revision", key),), value) for key, value in values.items()])

        yield from gauge("waiting", "Requests that wait for a replica", {n: r.pool.waiting for n, r in revisions})
        yield from gauge(
            "in_flight", "Requests in flight, waiting ones included", {n: r.pool.load.now for n, r in revisions}
        )
        yield from gauge("replicas_wanted", "Replicas that there should be", {n: r.wanted for n, r in revisions})
        yield from gauge("replicas_ready", "Replicas that answer", {n: r.ready for n, r in revisions})
        yield from gauge(
            "weight", "Share of the requests in percent", {n: routes.weights.get(n, 0) for n, _ in revisions}
        )
        states = [
            ((("revision", name), ("replica", upstream.name)), float(upstream.breaker.state.value))
            for name, revision in revisions
            for upstream in revision.pool.upstreams
        ]
        yield from family("breaker_state", "gauge", "0 closed, 1 half open, 2 open", states)

    def _captured(self) -> Iterator[str]:
        if self._recorder is None:
            return
        counts = self._recorder.counters()
        outcomes = {"written": counts.written, "lost": counts.lost, "sent": counts.sent, "unsent": counts.unsent}
        samples = [((("outcome", word),), float(count)) for word, count in outcomes.items()]
        yield from family("captured_events_total", "counter", "Events of the capture log and the sink", samples)
        yield from family("captured_waiting", "gauge", "Events that wait to be written", [((), float(counts.queue))])


async def _scrape(upstream: Upstream) -> tuple[str, str, str] | None:
    try:
        answer = await upstream.client.request("GET", "/metrics", timeout=_WITHIN)
    except ClientError:
        return None
    if answer.status != 200 or not (answer.header(b"content-type") or b"").startswith(_TEXTS):
        return None
    return upstream.pool.revision, upstream.name, answer.body.decode(errors="replace")
