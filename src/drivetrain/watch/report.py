"""What is known of one run or revision on one page: what it is, data checks, the model, drift, quality, how it answers, its rollout, the
loop's decisions. A part of which nothing is known says so."""

from __future__ import annotations

from drivetrain.project import Project
from drivetrain.watch import report_live, report_run
from drivetrain.watch.monitor import open_monitor
from drivetrain.watch.report_found import Found, find, moment
from drivetrain.watch.report_page import Badge, Said, Section, Tile, Tiles, render

MOST_WINDOWS = 400
"""Windows that are told of: the newest."""


def page(project: Project, subject: str | None, now: float) -> str:
    """The page about a run, a revision or a model version; without one about the champion. `now` (seconds since 1970) is written on it.

    Raises `UsageError` if there is no such thing in this project.
    """
    found = find(project, subject)
    sections, tiles = _sections(found)
    whole = [Section("At a glance", [Tiles(tiles)]), *sections] if tiles else sections
    title = found.revision or f"{project.definition.name}, run {found.run.id}"
    subtitle = f"{project.definition.name}, run {found.run.id}" if found.revision else "not deployed"
    return render(title, _badge(found), subtitle, whole, f"Written by drivetrain report, {moment(now)} UTC.")


def _badge(found: Found) -> Badge:
    if found.leads:
        return Badge("champion", "good")
    bad = found.run.state in ("failed", "refused")
    return Badge(found.run.state, "bad") if bad else Badge("not the champion")


def _sections(found: Found) -> tuple[list[Section], list[Tile]]:
    project = found.project
    part = project.definition.monitoring
    checked = report_run.checks(found)
    if found.revision is None:
        judged = report_run.model(found, None)
        live = Section("Live traffic", [Said("This run deployed nothing, so there is no traffic to tell of.")])
        told, sections = [checked, judged], [live, report_live.decisions(found, [], 0.0)]
        return [report_run.what(found), checked[0], judged[0], *sections, report_run.stages(found)], _tiles(told)
    with open_monitor(project) as monitor:
        windows = monitor.history(revision=found.revision)[-MOST_WINDOWS:]
        newest = next((window for window in reversed(windows) if window.slices), None)
        judged = report_run.model(found, newest)
        told = [
            checked, judged, report_live.drift(monitor, windows, part.drift),
            report_live.quality(windows, report_run.holdout(found)), report_live.data_quality(windows),
            report_live.answers(found, windows),
        ]  # fmt: skip
    ends = [report_live.canary(found), report_live.decisions(found, windows, part.window.total_seconds())]
    return [report_run.what(found), *(section for section, _ in told), *ends, report_run.stages(found)], _tiles(told)


def _tiles(told: list[tuple[Section, Tile | None]]) -> list[Tile]:
    return [tile for _, tile in told if tile is not None]
