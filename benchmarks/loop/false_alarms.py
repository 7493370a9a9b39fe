"""How often windows like their reference raise an alarm, and how often windows in which something moved do; beside Evidently and NannyML.

Each tool judges the same windows: 10,000 of 1,000 rows in which nothing happened, and 500 for each shift. An alarm of ours is a
comparison that is significant; how large the effect has to be besides is the user's to say, and would only make it fewer.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from benchmarks.loop import made, pictures
from benchmarks.loop.bench import EVIDENTLY, NANNYML, OURS, Bench
from benchmarks.measures import Findings, Target
from drivetrain.engines.drift import FeatureDrift, compare, corrected_alpha
from drivetrain.engines.reference import reference_of
from drivetrain.engines.sketches import Window

_A_DAY, _HOUR = 0.05, 3600.0
"""The defaults of `monitoring.false_alarms` and `monitoring.window`."""
_STATED = _A_DAY / 24
"""The share of windows that may alarm falsely."""

_RATE = 0.002
"""The share of windows that may alarm falsely for one feature where powers are compared: 20 of 10,000."""
Verdicts = Mapping[str, Mapping[str, np.ndarray]]
"""What happened -> feature -> shape (windows, 2): score, and whether it was an alarm."""


def race(bench: Bench) -> Findings:
    """False alarms as each tool comes, and power at equal rates of false alarms."""
    found = {OURS: _ours(bench)}
    errors = {}
    for peer in (EVIDENTLY, NANNYML):
        bench.say(f"  {peer.name}")
        answer, errors[peer.name] = bench.ask(peer, "windows")
        if answer:
            found[peer.name] = {
                what: {name: np.array(verdicts) for name, verdicts in features.items()}
                for what, features in answer.items()
            }
    alarms = {name: _any_alarm(verdicts[""]) for name, verdicts in found.items()}
    as_it_comes = {name: _powers(verdicts, None) for name, verdicts in found.items()}
    at_one_rate = {name: _powers(verdicts, _RATE) for name, verdicts in found.items()}
    targets = [
        Target(
            "false_alarms",
            f"windows without drift that alarm, {len(found[OURS]['']['normal']):,} of them: no more than stated",
            alarms[OURS],
            _STATED,
            "stated",
            unit="",
        ),
        *(_no_weaker(peer.name, at_one_rate, errors[peer.name]) for peer in (EVIDENTLY, NANNYML)),
    ]
    pictures.powers(bench.pictures / "bench-loop-alarms.png", alarms, _STATED, at_one_rate)
    return Findings(targets, notes=[*_alarm_notes(alarms), *_power_notes(as_it_comes, at_one_rate)])


def _ours(bench: Bench) -> Verdicts:
    """Three comparisons a feature; its score is the least of their p values, negative, so that more is more of an alarm."""
    found: dict[str, dict[str, list[list[float]]]] = {}
    for what, known, live in made.frames():
        reference = reference_of(known)
        alpha = corrected_alpha(_A_DAY, len(known), _HOUR)
        window = Window(reference)
        for start in range(0, len(live["normal"]), made.ROWS):
            window = window.empty()
            window.add({name: column[start : start + made.ROWS] for name, column in live.items()}, made.ROWS)
            entries: dict[str, list[FeatureDrift]] = {}
            for entry in compare(reference, window, "psi", alpha):
                entries.setdefault(entry.feature, []).append(entry)
            for name, three in entries.items():
                verdict = [-min(entry.p_value for entry in three), float(any(entry.significant for entry in three))]
                found.setdefault(what, {}).setdefault(name, []).append(verdict)
    return {what: {name: np.array(v) for name, v in features.items()} for what, features in found.items()}


def _any_alarm(features: Mapping[str, np.ndarray]) -> float:
    return float(np.any([verdicts[:, 1] > 0 for verdicts in features.values()], axis=0).mean())


def _powers(verdicts: Verdicts, rate: float | None) -> dict[str, float]:
    """The share of windows with each shift that alarm for the feature that moved: as the tool comes, or with its threshold moved to where
    that share of the windows without drift alarm."""
    powers: dict[str, float] = {}
    for shift in made.SHIFTS:
        moved, calm = verdicts[shift.name][shift.feature], verdicts[""][shift.feature]
        found = moved[:, 1] > 0 if rate is None else moved[:, 0] > np.quantile(calm[:, 0], 1.0 - rate)
        powers[shift.name] = float(found.mean())
    return powers


def _no_weaker(peer: str, powers: Mapping[str, Mapping[str, float]], error: str) -> Target:
    """The mean over the shifts is what is compared; the text names the shift on which the peer is most ahead, which the mean hides."""
    text = f"power at equal false alarms: over nine shifts, on average no larger share goes unseen than by {peer}"
    if peer not in powers:
        return Target("false_alarms", text, None, None, peer, unit="", error=error)
    unseen, theirs = (1.0 - sum(powers[name].values()) / len(powers[name]) for name in (OURS, peer))
    return Target("false_alarms", f"{text}; {_worst(powers, peer)}", unseen, theirs, peer, unit="")


def _worst(powers: Mapping[str, Mapping[str, float]], peer: str) -> str:
    """The shift on which we are furthest behind the peer, in words."""
    ahead, shift = max((powers[peer][shift.name] - powers[OURS][shift.name], shift.name) for shift in made.SHIFTS)
    if ahead <= 0.0:
        return "behind on none"
    return f"behind on {shift}: found in {powers[OURS][shift]:.0%}, by {peer} in {powers[peer][shift]:.0%}"


def _alarm_notes(alarms: Mapping[str, float]) -> list[str]:
    each = "; ".join(f"{name} {share:.2%}" for name, share in alarms.items())
    return [
        f"windows without drift in which some feature alarms, defaults: {each} (stated by Drivetrain: {_STATED:.2%})"
    ]


def _power_notes(
    as_it_comes: Mapping[str, Mapping[str, float]], at_one_rate: Mapping[str, Mapping[str, float]]
) -> list[str]:
    return [
        f"{shift.name}: found in "
        + "; ".join(f"{name} {at_one_rate[name][shift.name]:.0%} (defaults {as_it_comes[name][shift.name]:.0%})" for name in at_one_rate)
        for shift in made.SHIFTS
    ]  # fmt: skip
