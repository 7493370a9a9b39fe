"""The online feature look-up, ours and Feast's own, from one Redis and in one process."""

from __future__ import annotations

import asyncio
import gc
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import uvloop

NAME = "lookup"
FEATURES = 10
ENTITIES = 1000
CALLS = {1: 200, 100: 30}
"""Entities in a call -> calls in a round."""
ROUNDS = 10
"""The two take turns, so that a noisy machine disturbs both alike; the first round warms up and does not count."""
LIMIT, FACTOR = 0.002, 3.0
"""Seconds of the 99th percentile for one entity, and how many times as fast as Feast."""
END = datetime(2024, 5, 2, tzinfo=UTC)
DEFINITIONS = f"""
from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import Float64

customer = Entity(name="customer", join_keys=["customer"], value_type=ValueType.STRING)
figures = FeatureView(
    name="figures", entities=[customer], schema=[Field(name=f"figure_{{n}}", dtype=Float64) for n in range({FEATURES})],
    source=FileSource(name="figures_table", path="data/figures.parquet", timestamp_field="known"))
service = FeatureService(name="service", features=[figures])
"""
Rows = Sequence[Mapping[str, Any]]


def measure() -> dict[str, Any]:
    """Seconds of p50 and p99 for 1 and for 100 entities of 10 features, whether all values were equal, and the targets.

    `{"1": {"ours": {"p50": .., "p99": ..}, "sqlite": .., "feast": ..}, "100": .., "equal": bool, "targets": {text: bool}}`;
    `{"error": why}` where there is no redis-server.
    """
    binary = shutil.which("redis-server")
    if binary is None:
        return {"error": "redis-server is not installed"}
    with tempfile.TemporaryDirectory(prefix="lookup-") as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Feast's, of its own doings
        with _server(binary, Path(scratch)) as port, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_measure(Path(scratch), port))


@contextmanager
def _server(binary: str, home: Path) -> Iterator[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(home)]
    process = subprocess.Popen([binary, *options], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except ConnectionRefusedError:
                if time.monotonic() > deadline or process.poll() is not None:
                    raise
                time.sleep(0.02)
        yield port
    finally:
        process.kill()
        process.wait()


async def _measure(scratch: Path, port: int) -> dict[str, Any]:
    from drivetrain.backends.features.online import open_lookup

    stores = {
        "ours": {"type": "redis", "connection_string": f"127.0.0.1:{port}"},
        "sqlite": {"type": "sqlite", "path": str(scratch / "online.db")},
    }
    plans = {name: _written(scratch / name, store) for name, store in stores.items()}
    look_ups = {name: open_lookup({"plan": plans[name], "store": store}) for name, store in stores.items()}
    feast = _feast(scratch / "ours", stores["ours"])

    async def by_feast(entities: Rows) -> Rows:
        return feast(entities)

    entrants: dict[str, Callable[[Rows], Awaitable[Rows]]] = {
        **{name: look_up.fetch for name, look_up in look_ups.items()},
        "feast": by_feast,
    }
    # Feast brings millions of objects; without this the collector's passes over them are what is timed, for both.
    gc.collect()
    gc.freeze()
    found: dict[str, Any] = {"equal": True}
    for count, calls in CALLS.items():
        samples: dict[str, list[float]] = {name: [] for name in entrants}
        for turn in range(1 + ROUNDS):
            for name, entrant in entrants.items():
                taken = await _timed(entrant, count, calls)
                samples[name] += taken if turn else []
        found[str(count)] = {name: _summary(taken) for name, taken in samples.items()}
        answers = [await entrant(_entities(count, 0)) for entrant in entrants.values()]
        found["equal"] = found["equal"] and all(list(answer) == list(answers[0]) for answer in answers)
    for look_up in look_ups.values():
        await look_up.close()
    gc.unfreeze()
    return {**found, "targets": _targets(found)}


async def _timed(entrant: Callable[[Rows], Awaitable[Rows]], count: int, calls: int) -> list[float]:
    taken = []
    for call in range(calls):
        entities = _entities(count, call)
        started = time.perf_counter()
        await entrant(entities)
        taken.append(time.perf_counter() - started)
    return taken


def _entities(count: int, call: int) -> list[dict[str, Any]]:
    return [{"customer": f"customer {(call * 7 + number) % ENTITIES}"} for number in range(count)]


def _summary(samples: list[float]) -> dict[str, float]:
    ordered = sorted(samples)
    return {"p50": ordered[len(ordered) // 2], "p99": ordered[int(len(ordered) * 0.99)]}


def _targets(found: Mapping[str, Any]) -> dict[str, bool]:
    one = found["1"]
    return {
        f"p99 of 1 entity, {FEATURES} features, at most {1000 * LIMIT:.0f} ms": one["ours"]["p99"] <= LIMIT,
        f"p50 at least {FACTOR:.0f} times as fast as Feast": one["feast"]["p50"] / one["ours"]["p50"] >= FACTOR,
        f"p99 at least {FACTOR:.0f} times as fast as Feast": one["feast"]["p99"] / one["ours"]["p99"] >= FACTOR,
        "values equal to Feast's": found["equal"],
    }


def _written(home: Path, online: Mapping[str, Any]) -> str:
    """The features written to the store, as `drivetrain run` does it; where the look-up's plan lies."""
    import numpy as np
    import pandas as pd

    from drivetrain.backends.features import LOOKUP_PLAN, FeatureStoreSettings
    from drivetrain.backends.features.feast import open_store

    repo = home / "repo"
    (repo / "data").mkdir(parents=True)
    (repo / "definitions.py").write_text(DEFINITIONS)
    random = np.random.default_rng(0)
    rows = pd.DataFrame({f"figure_{number}": random.normal(size=ENTITIES) for number in range(FEATURES)})
    rows["customer"] = [f"customer {number}" for number in range(ENTITIES)]
    rows["known"] = END - timedelta(days=1)
    rows.to_parquet(repo / "data" / "figures.parquet", coerce_timestamps="us", index=False)
    store = open_store(FeatureStoreSettings("bench", repo, "service", home / "registry.db", online))
    store.apply()
    store.materialize(END)
    return str(home / LOOKUP_PLAN.name)


def _feast(home: Path, online: Mapping[str, Any]) -> Callable[[Rows], Rows]:
    """Feast as its documentation has it called."""
    from feast import FeatureStore, RepoConfig

    config = RepoConfig(
        project="bench",
        provider="local",
        registry=str(home / "registry.db"),
        online_store=dict(online),
        entity_key_serialization_version=3,
    )
    store = FeatureStore(config=config)
    service = store.get_feature_service("service")
    names = [f"figure_{number}" for number in range(FEATURES)]

    def fetch(entities: Rows) -> Rows:
        answer = store.get_online_features(features=service, entity_rows=list(entities)).to_dict()
        return [{name: answer[name][row] for name in names} for row in range(len(entities))]

    return fetch


if __name__ == "__main__":
    json.dump(measure(), sys.stdout, indent=1)
    print()
