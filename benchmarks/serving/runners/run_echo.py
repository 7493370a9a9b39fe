"""The model echo as a Cog runner."""

import models
from cog import BaseRunner


class Runner(BaseRunner):
    def setup(self) -> None:
        self.predict = models.load("echo")

    def run(self, x: int, y: int) -> int:
        return self.predict([{"x": x, "y": y}])[0]
