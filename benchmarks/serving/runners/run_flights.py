"""The model flights as a Cog runner."""

from typing import Any

import models
from cog import BaseRunner


class Runner(BaseRunner):
    def setup(self) -> None:
        self.predict = models.load("flights")

    def run(self, row: dict) -> float:
        return self.predict([row])[0]

    def batch(self, inputs: list[dict[str, Any]]) -> list[float]:
        return self.predict([entry["row"] for entry in inputs])
