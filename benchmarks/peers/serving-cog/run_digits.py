"""The model digits as a Cog runner."""

import models
from cog import BaseRunner


class Runner(BaseRunner):
    def setup(self) -> None:
        self.predict = models.load("digits")

    def run(self, pixels: list[float]) -> int:
        return self.predict([{"pixels": pixels}])[0]
