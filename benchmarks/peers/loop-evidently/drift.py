"""Evidently's report on the rows that `benchmarks.loop.made` makes, and its tests on many windows. Prints JSON.

python drift.py report ROUNDS      seconds of each report, with the defaults and with PSI for every column
python drift.py windows            a score and a verdict for every window and feature, with the defaults
"""

import json
import sys
import time

import numpy as np
import pandas as pd
from evidently import DataDefinition, Dataset, Report
from evidently.legacy.calculations.stattests import get_stattest
from evidently.presets import DataDriftPreset

from benchmarks.loop import made

WARM_UP = 5000
"""Rows of a first report that is not counted."""


def report(rounds: int) -> dict[str, list[float]]:
    definition = DataDefinition(numerical_columns=made.NUMBERS, categorical_columns=made.WORDS)
    seconds: dict[str, list[float]] = {}
    for name, preset in (("defaults", DataDriftPreset()), ("PSI", DataDriftPreset(method="psi"))):
        for rows in (WARM_UP, *[made.REPORT_ROWS] * rounds):
            reference, live = (pd.DataFrame(made.report_rows(seed, rows)) for seed in (1, 2))
            started = time.process_time()
            done = Report([preset]).run(
                Dataset.from_pandas(live, definition), Dataset.from_pandas(reference, definition)
            )
            assert len(done.dict()["metrics"]) == 1 + len(made.NUMBERS) + len(made.WORDS)
            seconds.setdefault(name, []).append(time.process_time() - started)
    return {name: taken[1:] for name, taken in seconds.items()}


def windows() -> dict[str, dict[str, list[list[float]]]]:
    """What `get_one_column_drift` does with a column, without the histograms for the page."""

    def judged(reference: np.ndarray, window: np.ndarray, feature: str) -> tuple[float, bool]:
        known, live = pd.Series(reference).dropna(), pd.Series(window).dropna()
        kind = "cat" if feature in made.CATEGORIES else "num"
        found = get_stattest(known, live, kind, None)(known, live, kind, None)
        return float(found.drift_score), bool(found.drifted)

    return made.judged_windows(judged)


if __name__ == "__main__":
    print(json.dumps(report(int(sys.argv[2])) if sys.argv[1] == "report" else windows()))
