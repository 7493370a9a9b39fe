"""The model flights as a Cog runner."""

import models
from cog import BaseRunner


class Runner(BaseRunner):
    def setup(self) -> None:
        self.predict = models.load("flights")

    def run(self, row: dict) -> float:
        return self.predict([row])[0]
