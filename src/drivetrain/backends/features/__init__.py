"""Features: the repository applied, training rows joined point in time, newest values kept online."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import pandas as pd


SQLITE_FILE = Path("feast", "online.db")
"""Where the embedded online store lies below a project's state directory."""
LOOKUP_PLAN = Path("feast", "lookup.json")
"""Where the plan of the online look-up lies below it: see `online_plan`."""


@dataclass(frozen=True, slots=True)
class FeatureStoreSettings:
    """What a feature store is opened with.

    `repo` is a working copy of the user's Feast files whose `data/` holds the snapshot's tables (a file source
    with the path `data/weather.parquet` reads table `weather`). `online` is `{"type": "sqlite", "path": ...}` or
    `{"type": "redis", "connection_string": ...}`.
    """

    project: str
    repo: Path
    service: str
    registry: Path
    online: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class FeatureColumn:
    """One feature as the service names it: `name` is the frame's column, `view` where it comes from, `type` Feast's."""

    name: str
    view: str
    type: str


class FeatureStore(Protocol):
    """The features of one service."""

    def apply(self) -> Mapping[str, Any]:
        """Registers the repository's objects and returns those behind the service, JSON-ready and without times or
        machine paths, so that equal definitions give equal bytes. Raises `DefinitionError` if the service is missing."""
        ...

    def columns(self) -> Sequence[FeatureColumn]:
        """The service's features, in its own order."""
        ...

    def entity_keys(self) -> Sequence[str]:
        """The join keys that rows must carry, sorted."""
        ...

    def join(self, rows: pd.DataFrame, timestamp: str) -> pd.DataFrame:
        """`rows` with the features as they were known at each row's time.

        Every input row comes back, once, in its order and with its index; features without history are null. A value
        at exactly the row's time counts as known. Raises `DataError` if a join key is missing.
        """
        ...

    def materialize(self, end: Any) -> int:
        """Writes to the online store the newest value of each entity as of `end` (a UTC datetime); returns how many
        views were written. Running it twice changes nothing. Leaves a look-up plan beside the registry."""
        ...

    def online(self, entities: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        """The newest feature values of each entity, None where there are none."""
        ...
