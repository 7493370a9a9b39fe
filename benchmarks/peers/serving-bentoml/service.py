"""A model as a BentoML service: `BENCH_MODEL=NAME bentoml serve service:Service`. Its own adaptive batching is on."""

from __future__ import annotations

import os
from typing import Any

import bentoml
import models

NAME = os.environ["BENCH_MODEL"]


@bentoml.service(workers=1, traffic={"timeout": 60, "max_concurrency": 1000}, logging={"access": {"enabled": False}})
class Service:
    def __init__(self) -> None:
        self.call = models.load(NAME)

    @bentoml.api(batchable=NAME != "echo", max_batch_size=32, max_latency_ms=1000)
    def predict(self, rows: list[dict[str, Any]]) -> list[Any]:
        return self.call(rows)
