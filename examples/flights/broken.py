"""A release that went wrong, for the demo: `run.py` with a part of the day forgotten.

A quarter of the flights leave in the evening; for each of them it raises. The first request, with which a revision is tried out
before it gets any traffic, is of a morning flight, and so it comes up.
"""

from __future__ import annotations

from typing import Any

import run
from run import Answer

PARTS = ("night", "morning", "afternoon")


class Runner(run.Runner):
    """Predicts whether a flight will arrive late, and looks up what is said of each part of the day."""

    def batch(self, inputs: list[dict[str, Any]]) -> list[Answer]:
        """The answers for several flights."""
        for one in inputs:
            PARTS[int(one["hour"] // 6)]  # from six in the evening on there is none
        return super().batch(inputs)
