"""NannyML's report on the rows that `benchmarks.loop.made` makes, and its verdicts on many windows. Prints JSON.

python drift.py report ROUNDS      seconds to fit, and to compare one chunk with what was fitted
python drift.py windows            a score and a verdict for every window and feature, with the defaults
"""

import json
import sys
import time

import numpy as np
import pandas as pd
from nannyml import UnivariateDriftCalculator

from benchmarks.loop import made

WARM_UP = 5000
"""Rows of a first report that is not counted."""


def report(rounds: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {"fit": [], "calculate": []}
    for rows in (WARM_UP, *[made.REPORT_ROWS] * rounds):
        reference, live = (pd.DataFrame(made.report_rows(seed, rows)) for seed in (1, 2))
        started = time.process_time()
        calculator = UnivariateDriftCalculator(column_names=list(reference.columns)).fit(reference)
        fitted = time.process_time()
        found = calculator.calculate(live).to_df()
        seconds["fit"].append(fitted - started)
        seconds["calculate"].append(time.process_time() - fitted)
        assert len(found) == 20
    return {name: taken[1:] for name, taken in seconds.items()}


def windows() -> dict[str, dict[str, list[list[float]]]]:
    """All windows of one reference are chunks of one frame: its own way to judge many."""

    def judged(reference: dict[str, np.ndarray], live: dict[str, np.ndarray]) -> dict[str, list[list[float]]]:
        calculator = UnivariateDriftCalculator(column_names=list(reference), chunk_size=made.ROWS)
        found = calculator.fit(pd.DataFrame(reference)).calculate(pd.DataFrame(live)).filter(period="analysis").to_df()
        return {
            feature: found[feature]["jensen_shannon"][["value", "alert"]].astype(float).to_numpy().tolist()
            for feature in reference
        }

    return made.judged_frames(judged)


if __name__ == "__main__":
    print(json.dumps(report(int(sys.argv[2])) if sys.argv[1] == "report" else windows()))
