"""A model behind Ray Serve: `python server.py MODEL PORT`. Its own batching is on for the models that gain by it."""

from __future__ import annotations

import sys
from typing import Any

import models
import ray
from ray import serve

NAME = sys.argv[1] if len(sys.argv) > 1 else ""


@serve.deployment(num_replicas=1, max_ongoing_requests=256, ray_actor_options={"num_cpus": 0.5})
class One:
    def __init__(self, name: str) -> None:
        self.call = models.load(name)

    async def __call__(self, request: Any) -> Any:
        return {"output": self.call([await request.json()])[0]}


@serve.deployment(num_replicas=1, max_ongoing_requests=256, ray_actor_options={"num_cpus": 0.5})
class Many:
    def __init__(self, name: str) -> None:
        self.call = models.load(name)

    @serve.batch(max_batch_size=32, batch_wait_timeout_s=0.002)
    async def together(self, rows: list[Any]) -> list[Any]:
        return self.call(rows)

    async def __call__(self, request: Any) -> Any:
        return {"output": await self.together(await request.json())}


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[2]), "access_log": False})
    serve.run((One if NAME == "echo" else Many).bind(NAME), blocking=True)
