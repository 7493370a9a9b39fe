"""What the parts of the gateway promise each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class OnlineFeatures(Protocol):
    """The newest values of a service's features, by entity."""

    keys: Sequence[str]
    """What an entity has to name: join keys, and what on-demand features are computed from."""
    entity_keys: Sequence[str]
    """The join keys alone (all keys where there are none): a request without any of them asks for no look-up."""
    features: Sequence[str]

    async def prepare(self) -> None:
        """Does beforehand what would make the first look-up slow: connects, imports, computes once. Raises nothing: what cannot be done
        now is tried again, and told, by `fetch`."""
        ...

    async def fetch(self, entities: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        """For each entity its features, None where there is no value. One look-up for all of them.

        Raises `Unavailable` if the store does not answer, `SystemFault` if it refuses, `StageError` if an on-demand feature cannot
        be computed, and `DataError` if an entity lacks a key or has one of a wrong type (`where` names it).
        """
        ...

    async def close(self) -> None:
        """Lets the store go."""
        ...


class Recorder(Protocol):
    """Keeps what was asked and answered. No call blocks or raises: what cannot be kept is counted as lost."""

    def request(self, event_id: str, revision: str, path: str, content_type: str, body: bytes, at: float) -> bool:
        """Whether this one is in the sample, and so its answer is wanted. `at` is in seconds since the epoch."""
        ...

    def response(
        self,
        event_id: str,
        revision: str,
        path: str,
        content_type: str,
        body: bytes,
        at: float,
        status: int,
        took: float,
    ) -> None:
        """The answer to a request of the same id; `took` in seconds."""
        ...

    def feedback(self, event_id: str, body: bytes, at: float) -> None:
        """A label that came later: `body` is the JSON the caller sent."""
        ...


class Scalable(Protocol):
    """A revision, as the autoscaler sees it."""

    @property
    def ready(self) -> int:
        """Replicas that answer."""
        ...

    @property
    def wanted(self) -> int:
        """Replicas that there should be."""
        ...

    def sample(self, now: float) -> tuple[float, float]:
        """Since the last sample: time-weighted mean of the requests in flight (waiting ones included), and requests per second."""
        ...

    def scale(self, wanted: int) -> None:
        """Starts or drains replicas until there are so many; returns at once."""
        ...
