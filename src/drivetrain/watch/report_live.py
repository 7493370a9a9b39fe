"""The part of a report that a revision has from its traffic: drift, quality, data quality, how it answered, its rollout, decisions."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from drivetrain import service
from drivetrain.journal import Decision
from drivetrain.watch import report_plots, rollout
from drivetrain.watch.explain import spelled
from drivetrain.watch.monitor import Monitor
from drivetrain.watch.report_found import Found, interval, moment, number, percent, span
from drivetrain.watch.report_page import Badge, Block, Cell, Picture, Pictures, Said, Section, Table, Tile
from drivetrain.watch.report_service import latency
from drivetrain.watch.window_state import Moved, WindowReport

NO_WINDOW = "No window of live traffic is closed yet."
_SHOWN = 6
"""Features whose bins are drawn: those that have moved most."""
_MOST_ROWS = 100
_MOST_DECISIONS = 60
_BAD = ("failed", "refused", "rolled_back")
_INSTANTS = ("since", "until", "at")

Told = tuple[Section, Tile | None]


def drift(monitor: Monitor, windows: Sequence[WindowReport], distance: str) -> Told:
    """How far each feature is from the training rows, in the newest window that tells it and over time."""
    told = [window for window in windows if window.drift]
    if not told:
        few = "No window had enough rows to tell drift." if windows else NO_WINDOW
        return Section("Drift", [Said(few)]), None
    newest, over_time = told[-1], _over_time(told, distance)
    ranked = sorted(
        (one for one in newest.drift if one.distance == distance), key=lambda one: (not one.significant, -one.value)
    )
    beyond = sum(one.significant for one in ranked)
    which = f"the window of {moment(newest.start)} to {moment(newest.end)} UTC"
    blocks: list[Block] = [
        Said(
            f"In {which}, {beyond} of {len(ranked)} features (the prediction is one of them) are further from the training rows "
            "than chance explains."
        )
    ]
    names = [one.feature for one in ranked][: report_plots.MOST_FEATURES]
    if len(told) > 1:
        blocks.append(Pictures([report_plots.drift_map(told, names, distance)], "Over time", size="whole"))
    blocks += _closer(monitor, newest, ranked, over_time)
    blocks.append(_drift_table(newest, ranked, over_time, distance))
    tile = Tile(
        "Features that drift", f"{beyond} of {len(ranked)}", f"window to {moment(newest.end)}", "bad" if beyond else ""
    )
    return Section("Drift", blocks), tile


def _over_time(windows: Sequence[WindowReport], distance: str) -> dict[str, list[tuple[WindowReport, Moved]]]:
    found: dict[str, list[tuple[WindowReport, Moved]]] = {}
    for window in windows:
        for moved in window.drift:
            if moved.distance == distance:
                found.setdefault(moved.feature, []).append((window, moved))
    return found


def _closer(
    monitor: Monitor, newest: WindowReport, ranked: Sequence[Moved],
    over_time: Mapping[str, Sequence[tuple[WindowReport, Moved]]],
) -> list[Block]:  # fmt: skip
    """Bins and distance of the features that have moved most, and of the prediction."""
    names = [one.feature for one in ranked]
    chosen = list(dict.fromkeys([*names[:_SHOWN], *(name for name in names if name == "prediction")]))
    drawn: list[Picture] = []
    for place, name in enumerate(chosen):
        bins = monitor.shares(newest, name)
        drawn += [] if bins is None else [report_plots.shares(place, name, bins)]
        drawn.append(report_plots.distance(place, name, over_time[name]))
    return [Pictures(drawn, "Those that have moved most, and the prediction")] if drawn else []


def _drift_table(
    newest: WindowReport, ranked: Sequence[Moved], over_time: Mapping[str, Sequence[tuple[WindowReport, Moved]]],
    distance: str,
) -> Table:  # fmt: skip
    others = {(one.feature, one.distance): one for one in newest.drift}

    def share(feature: str, kind: str) -> Cell:
        one = others.get((feature, kind))
        if one is None:
            return ""
        return Badge(percent(one.value), "bad") if one.significant else percent(one.value)

    rows: list[list[Cell]] = [
        [
            one.feature, Badge(number(one.value), "bad") if one.significant else number(one.value), number(one.critical),
            "< 1e-300" if one.p_value < 1e-300 else f"{one.p_value:.2g}",
            f"{sum(moved.significant for _, moved in over_time[one.feature])} of {len(over_time[one.feature])}",
            share(one.feature, "missing"), share(one.feature, "unseen"),
        ]
        for one in ranked[:_MOST_ROWS]
    ]  # fmt: skip
    head = ["Feature", distance, "Critical", "p", "Windows beyond", "Missing, change", "Unseen, above"]
    return Table(head, rows, frozenset(range(1, 7)), title="Every feature in that window; red is beyond chance")


def quality(windows: Sequence[WindowReport], document: Mapping[str, Any] | None) -> Told:
    """The metric over time, by labels and as estimated."""
    told = [window for window in windows if window.quality is not None]
    metric = next((window.metric for window in windows if window.metric), "the metric")
    drawn = report_plots.quality(windows, metric, None if document is None else document["metric"]["value"])
    if drawn is None:
        none = "Neither labels nor probabilities tell the quality of any window yet." if windows else NO_WINDOW
        return Section("Quality", [Said(none)]), None
    blocks: list[Block] = []
    tile = None
    if told and (newest := told[-1]).quality is not None:
        found = newest.quality
        note = f"{interval(found.low, found.high)}, {number(found.rows)} labels until {moment(newest.end)}"
        blocks.append(Said(f"{metric} is {number(found.value)} in the newest window with labels ({note} UTC)."))
        tile = Tile(f"{metric}, live", number(found.value), note)
    else:
        blocks.append(Said("No window has enough labels yet: nothing is measured, what is drawn is estimated."))
    guessed = next((window for window in reversed(windows) if window.estimate is not None), None)
    if guessed is not None and guessed.estimate is not None:
        found = guessed.estimate
        blocks.append(Said(
            f"Estimated, not measured: {number(found.value)} ({interval(found.low, found.high)}) until {moment(guessed.end)} UTC, "
            "from the model's own probabilities as they were calibrated on the hold-out. It does not see that the same inputs now turn "
                "out otherwise."
        ))  # fmt: skip
    return Section("Quality", [*blocks, Pictures([drawn, report_plots.rows(windows)])]), tile


def data_quality(windows: Sequence[WindowReport]) -> Told:
    """The share of live rows that meet the checks of the training rows, and which checks are broken."""
    drawn = report_plots.passing(windows)
    if drawn is None:
        none = "No row of the closed windows could be checked." if windows else NO_WINDOW
        return Section("Data quality", [Said(none)]), None
    newest = [window for window in windows if window.passing is not None][-1]
    share = newest.passing or 0.0
    broken: Counter[str] = Counter()
    for window in windows:
        broken.update(window.broken)
    rows = [[name, number(count)] for name, count in broken.most_common(_MOST_ROWS)]
    told: Block = Said("No row breaks a check.")
    if rows:
        told = Table(["Check", "Rows that break it"], rows, frozenset({1}), title="Over all windows")
    text = f"{percent(share)} of the rows meet every check in the window until {moment(newest.end)} UTC."
    tile = Tile("Rows that meet every check", percent(share), f"window to {moment(newest.end)}")
    return Section("Data quality", [Said(text), Pictures([drawn]), told]), tile


def answers(found: Found, windows: Sequence[WindowReport]) -> Told:
    """What became of the requests, and how long answers took, as far back as the gateway's log tells."""
    project = found.project
    blocks: list[Block] = []
    outcomes: Counter[str] = Counter()
    for window in windows:
        outcomes.update({kind: count for kind, count in window.outcomes.items() if count})
    if outcomes:
        total = sum(outcomes.values())
        rows = [
            [kind.replace("_", " "), number(count), percent(count / total)] for kind, count in outcomes.most_common()
        ]
        blocks.append(Table(["Requests", "Count", "Share"], rows, frozenset({1, 2}), title="In the closed windows"))
    known = latency(service.capture_directory(project.state, project.definition.name), found.revision or "")
    if known is None:
        blocks.insert(
            0, Said("The gateway's log holds no answer of this revision, so nothing is known of its latency.")
        )
        return Section("Service", blocks), None
    half, most = span(known.took_p50), span(known.took_p99)
    text = (
        f"Of {number(known.answers)} answers in the gateway's log, {moment(known.start)} to {moment(known.end)} UTC, half took at most "
        f"{half} and 99 % at most {most}; {number(known.failures)} failed and {number(known.refusals)} were refused as not valid."
    )
    blocks = [Said(text), Pictures([report_plots.latency(known), report_plots.failing(known)]), *blocks]
    tile = Tile("99 % of answers within", most, f"{percent(known.failures / known.answers)} of the requests failed")
    return Section("Service", blocks), tile


def canary(found: Found) -> Section:
    """How the revision was rolled out, if the loop did that."""
    text = found.project.journal.rollout(found.revision or "")
    if text is None:
        return Section(
            "Rollout", [Said("It was not rolled out step by step: it was promoted by hand or by a run, or not at all.")]
        )
    whole, points = json.loads(text), rollout.points(text)
    kept, plan = whole["kept"], whole["plan"]
    phase = str(kept["phase"])
    tone = {"promoted": "good", "rolled_back": "bad"}.get(phase, "")
    steps = ", ".join(f"{step} %" for step in plan["steps"])
    blocks: list[Block] = [
        Said(f"{kept['reason']}.", Badge(phase.replace("_", " "), tone)),  # type: ignore[arg-type]
        Said(
            f"Against {kept['champion']}, begun {moment(kept['started'])} UTC; "
            f"a copy of the traffic for {spelled(plan['shadow'])}, then {steps}."
        ),
    ]
    if not points:
        return Section("Rollout", [*blocks, Said("There are no answers to compare yet.")])
    last = points[-1].numbers
    rows = [
        [title, *(number(last.get(f"{name}_{key}")) for key in ("candidate", "champion", "count", "p_harm", "p_worse"))]
        for name, title in (
            ("failures", "share of failed answers"),
            ("latency", "latency, s"),
            ("quality", "mean loss"),
        )
        if f"{name}_count" in last
    ]
    head = ["Comparison", "Candidate", "Champion", "Count", "p: not worse", "p: worse"]
    note = "A small first p shows harm, a small second one that the candidate is no worse; both hold however often one looks."
    table = Table(head, rows, frozenset(range(1, 6)), title="As it stood last")
    return Section("Rollout", [*blocks, Pictures(report_plots.canary(points)), table, Said(note)])


def decisions(found: Found, windows: Sequence[WindowReport], window: float) -> Section:
    """What the loop decided about it, and while it answered: each decision with its numbers, and what became of it."""
    title = "Decisions of the loop"
    mine = [one for one in found.project.journal.decisions() if _is_about(one, found, windows, window)]
    if not mine:
        return Section(title, [Said("The loop has decided nothing about it.")])
    rows: list[list[Cell]] = []
    for one in mine[:_MOST_DECISIONS]:
        for place, (at, state, reason) in enumerate(found.project.journal.decision_steps(one.id)):
            badge = Badge(
                state.replace("_", " "), "bad" if state in _BAD else "good" if state == "promoted" else "soft"
            )
            first = [f"{one.trigger}: {one.action}", _numbers(one.numbers)] if place == 0 else ["", ""]
            rows.append([moment(at), first[0], badge, reason, first[1]])
    blocks: list[Block] = [
        Table(["When (UTC)", "Trigger: action", "State", "Why", "Numbers"], rows, unbroken=frozenset({0}))
    ]
    if len(mine) > _MOST_DECISIONS:
        blocks.append(
            Said(f"{len(mine) - _MOST_DECISIONS} older decisions are left out; `drivetrain decisions` lists them.")
        )
    return Section(title, blocks)


def _is_about(one: Decision, found: Found, windows: Sequence[WindowReport], window: float) -> bool:
    if one.run_id == found.run.id or (found.revision is not None and one.revision == found.revision):
        return True
    # What was decided while it answered was decided by what it answered.
    return bool(windows) and windows[0].start <= one.at and (found.leads or one.at <= windows[-1].end + window)


def _numbers(numbers: Mapping[str, Any]) -> str:
    """What it was decided by; how the rollout stood has a section of its own."""
    told = {
        name: moment(value) if name in _INSTANTS and isinstance(value, float) else number(value)
        for name, value in numbers.items()
        if name not in ("signal", "answers", "percent") and not name.startswith(("failures_", "latency_", "quality_"))
    }
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in told.items())
