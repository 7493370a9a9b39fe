"""The model digits as a Cog runner."""

from typing import Any

import models
from cog import BaseRunner


class Runner(BaseRunner):
    def setup(self) -> None:
        self.predict = models.load("digits")

    def run(self, pixels: list[float]) -> int:
        return self.predict([{"pixels": pixels}])[0]

    def batch(self, inputs: list[dict[str, Any]]) -> list[int]:
        return self.predict(inputs)
