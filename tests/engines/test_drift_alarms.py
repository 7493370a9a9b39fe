"""The stated false-alarm rate per day, by simulation: windows of rows like the reference's, drawn anew each time."""

import numpy as np
import pytest

from drivetrain.engines.drift import Distance, compare, corrected_alpha
from drivetrain.engines.reference import reference_of
from drivetrain.engines.sketches import Window

_SHARES = 1.0 / np.arange(1, 31) ** 1.5
_NAMES = np.array([f"v{n}" for n in range(3000)], object)


def _rows(draw: np.random.Generator, rows: int, moved: bool = False) -> dict[str, np.ndarray]:
    """Features of every kind that is hard: heavy tails, spikes, gaps, counts, rare flags, skewed and countless categories."""
    common = draw.normal(size=rows)
    return {
        "normal": common + (0.3 if moved else 0.0),
        "dependent": np.exp(common + draw.normal(size=rows) * 0.1),
        "spike": np.where(draw.random(rows) < 0.9, 0.0, draw.lognormal(size=rows)),
        "count": draw.poisson(3.0, rows),
        "flag": draw.random(rows) < 0.03,
        "gaps": np.where(draw.random(rows) < 0.02, np.nan, draw.normal(size=rows)),
        "skewed": _NAMES[draw.choice(30, rows, p=_SHARES / _SHARES.sum())],
        "countless": _NAMES[draw.integers(0, 3000, rows)],
    }


def _alarms(days: int, rows: int, a_day: float, distance: Distance, *, seed: int, moved: bool = False) -> float:
    """Significant comparisons a day, with windows of an hour and a reference that is drawn anew twice a day."""
    draw, found = np.random.default_rng(seed), 0
    for _ in range(days * 2):
        reference = reference_of(_rows(draw, 3000))
        window = Window(reference)
        alpha = corrected_alpha(a_day, len(reference.features), 3600.0)
        for _ in range(12):
            window = window.empty()
            window.add(_rows(draw, rows, moved), rows)
            found += sum(entry.significant for entry in compare(reference, window, distance, alpha))
    return found / days


def test_ten_false_alarms_a_day_are_not_exceeded_in_ten_days():
    # Poisson with mean 100 is above 130 once in a thousand times.
    assert _alarms(10, 300, 10.0, "psi", seed=1) <= 13.0


def test_drift_is_found_at_the_level_that_keeps_a_false_alarm_to_one_in_twenty_days():
    found = _alarms(1, 1000, 0.05, "psi", seed=2, moved=True)
    assert found >= 20.0, "the moved feature should alarm in nearly each of the 24 windows"


@pytest.mark.slow
@pytest.mark.parametrize("distance", ["psi", "js", "ks"])
@pytest.mark.parametrize("rows", [100, 1000])
def test_the_stated_number_of_false_alarms_a_day_is_not_exceeded(distance, rows):
    days, a_day = 30, 5.0
    assert _alarms(days, rows, a_day, distance, seed=rows) * days <= a_day * days + 3.0 * np.sqrt(a_day * days)
