"""`drivetrain replay`."""

from __future__ import annotations

import math
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from drivetrain import champion, project, wiring
from drivetrain.cli import output, progress
from drivetrain.cli.run import instant, parameters
from drivetrain.definition.values import parse_duration
from drivetrain.errors import UsageError
from drivetrain.journal import Decision, Journal
from drivetrain.project import Project
from drivetrain.records import Artifact, FeaturesOutputs

if TYPE_CHECKING:
    from drivetrain.engines.quality import Interval
    from drivetrain.watch.rehearsal import Row
    from drivetrain.watch.replay import Totals
    from drivetrain.watch.replay_score import Period

_EVERY = 5.0
"""Seconds between two lines of progress where there is no terminal."""
_WEEK = 604_800.0


def seconds(ctx: click.Context, option: click.Parameter, value: str | None) -> float | None:
    """A duration such as `6h`."""
    try:
        return None if value is None else parse_duration(value).total_seconds()
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def pace(ctx: click.Context, option: click.Parameter, value: str) -> float | None:
    """`max` as None, or a positive number."""
    if value == "max":
        return None
    try:
        found = float(value)
    except ValueError:
        found = math.nan
    if not (math.isfinite(found) and found > 0):
        raise click.BadParameter(f"{value!r} is neither max nor a number of simulated seconds a second")
    return found


@click.command()
@click.option("--from", "start", required=True, metavar="INSTANT", callback=instant, help="First instant replayed.")
@click.option("--to", "end", required=True, metavar="INSTANT", callback=instant, help="First instant not replayed.")
@click.option("--speed", default="max", callback=pace, show_default=True, help="Simulated seconds a second, or max.")
@click.option(
    "--sample", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True, help="Share of the rows."
)
@click.option("--seed", default=0, show_default=True, help="Which rows are in the sample.")
@click.option(
    "--step",
    metavar="DURATION",
    callback=seconds,
    help="Time between two looks of the loop. Default: monitoring.window; with --policies a week.",
)
@click.option("--connections", type=click.IntRange(1, 256), default=8, show_default=True, help="Requests at once.")
@click.option(
    "--plot", type=click.Path(dir_okay=False, path_type=Path), help="Also write the plot of the metric there."
)
@click.option(
    "--policies",
    is_flag=True,
    help="Send nothing: train at the instants of each retraining policy, and say what it would have cost and gained.",
)
@click.option(
    "--param", "params", multiple=True, callback=parameters, metavar="KEY=VALUE",
    help="Set a key for the comparison of policies, such as loop.worth={per_prediction: 1, training: 20}.",
)  # fmt: skip
@click.option("--quiet", "-q", is_flag=True, help="No progress, only the summary.")
@click.option("--json", "as_json", is_flag=True, help="The result as JSON on standard output.")
@click.pass_obj
def replay(
    where: str, start: datetime, end: datetime, speed: float | None, sample: float, seed: int, step: float | None,
    connections: int, plot: Path | None, policies: bool, params: dict[str, str], quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    """Play a range of real rows to the service, and let the loop act on a simulated clock.

    Each row is asked about at its own time, its label told data.label_delay later, and at each step the loop looks, decides and acts:
    retrainings, rollouts and promotions are real. Nothing else should watch the project meanwhile. Ctrl-C ends it between two steps'
    requests, and says where to go on.
    """
    if not start < end:
        raise UsageError("the range is empty", hint="--from has to be earlier than --to")
    if params and not policies:
        raise UsageError("a replay runs under the definition as it is", hint="--param goes with --policies")
    opened = project.open_project(Path(where), parameters=params)
    if policies:
        rows = _rehearse(opened, start, end, step or _WEEK, quiet)
        output.as_json([_row_document(row) for row in rows]) if as_json else _policy_table(rows, opened)
        return
    _play(opened, start, end, speed, sample, seed, step, connections, plot, quiet, as_json)


def _play(
    opened: Project, start: datetime, end: datetime, speed: float | None, sample: float, seed: int, step: float | None,
    connections: int, plot: Path | None, quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    first = champion.read(wiring.project_objects(opened), opened.definition.name)
    if first is None:
        raise UsageError("no model has been promoted yet", hint="`drivetrain run` makes one")
    artifact = make_frame(opened, start, end, quiet)
    from drivetrain.stages import frame
    from drivetrain.watch import replay as player
    from drivetrain.watch import replay_rows, replay_score
    from drivetrain.watch.loop import open_loop

    with tempfile.TemporaryDirectory(prefix="drivetrain-") as directory:
        read = frame.read(wiring.project_objects(opened).get(artifact, Path(directory) / "frame"))
    data, monitoring = opened.definition.data, opened.definition.monitoring
    rows = replay_rows.Rows(
        read, replay_rows.shape_of(opened), delay=data.label_delay.total_seconds(), share=sample, seed=seed
    )
    plan = player.Plan(
        start.timestamp(), end.timestamp(), step or monitoring.window.total_seconds(), speed, connections
    )
    clock, show = player.Clock(plan.start), _Show(quiet, plan.start, plan.end)
    playing = player.Replay(opened, rows, plan, clock, show)
    try:
        with open_loop(opened, clock, patient=True) as loop:
            playing.run(loop)
            triggers = loop.looked.triggers if loop.looked else ()
    except KeyboardInterrupt:
        show.end()
        click.echo(f"interrupted; go on with --from {_instant(clock.now)}Z", err=True)
        sys.exit(130)
    show.end()
    periods = replay_score.score(opened, rows, playing.answers, first.model)
    decisions = [found for found in opened.journal.decisions() if start.timestamp() <= found.at <= end.timestamp()]
    picture = opened.state / "replay" / "quality.png"
    metric = opened.definition.evaluate.metric
    for file in filter(None, (picture, plot)):
        replay_score.plot(periods, decisions, metric, file)
    if as_json:
        told = _document(playing.totals, periods, decisions[::-1], metric, picture, opened.journal)
        output.as_json(told | {"triggers": [asdict(one) for one in triggers]})
    else:
        _summary(playing.totals, periods, decisions[::-1], metric, plot or picture)
        click.echo()
        output.table(["trigger", "at the end", "why"], [[one.trigger, one.state, one.why] for one in triggers])


def make_frame(opened: Project, start: datetime, end: datetime, quiet: bool) -> Artifact:
    """The rows of the range with their features, by the stages ingest and features (cached as in any run). Labels count that were known
    by data.label_delay after its end. Ends the command with the run's exit code if it fails."""
    until = end + opened.definition.data.label_delay
    window = {"data.window.start": start.isoformat(), "data.window.end": until.isoformat()}
    ranged = project.open_project(opened.root, parameters={**opened.parameters, **window}, checked=False)
    store = wiring.project_objects(ranged)
    plan = wiring.plan(ranged, store, [], "features")
    result = wiring.runner(ranged, store, progress.choose(quiet)).run(plan, only=["features"])
    outputs = next((step.outputs for step in result.steps if step.name == "features"), None)
    if not isinstance(outputs, FeaturesOutputs):
        step = next((step for step in result.steps if step.state == "failed"), None)
        click.echo(f"the rows of the range could not be made: {step.message if step else result.state}", err=True)
        sys.exit(result.exit_code or 1)
    return outputs.frame


class _Show:
    """Progress on standard error: a line that is written over on a terminal, one every few seconds elsewhere."""

    def __init__(self, quiet: bool, start: float, end: float) -> None:
        self._quiet = quiet
        self._live = sys.stderr.isatty()
        self._start, self._end = start, end
        self._last = 0.0
        self._seen: dict[str, str] = {}

    def stepped(self, now: float, totals: Totals) -> None:
        """Shows how far it is."""
        if self._quiet or (not self._live and time.monotonic() - self._last < _EVERY and now < self._end):
            return
        self._last = time.monotonic()
        share = (now - self._start) / (self._end - self._start)
        text = (
            f"  {_instant(now)}  {share:4.0%}  {totals.asked:,} of {totals.rows:,} rows asked, {totals.labels:,} labels"
        )
        text += f", {totals.failed:,} failed" if totals.failed else ""
        click.echo(f"\r\x1b[K{text}" if self._live else text, err=True, nl=not self._live)

    def decided(self, decision: Decision) -> None:
        """Shows what the loop does; that it held back only once for each reason."""
        known = f"{decision.state} {decision.reason}" if decision.state == "held" else decision.state
        if self._quiet or self._seen.get(decision.trigger if decision.state == "held" else decision.id) == known:
            return
        self._seen[decision.trigger if decision.state == "held" else decision.id] = known
        click.echo(("\r\x1b[K" if self._live else "") + _told(decision), err=True)

    def end(self) -> None:
        """Leaves the line as it is."""
        if self._live and not self._quiet:
            click.echo(err=True)


_STATES = {"promoted": "green", "done": "green", "failed": "red", "refused": "red", "rolled_back": "red"}


def _told(decision: Decision) -> str:
    state = click.style(decision.state.replace("_", " "), fg=_STATES.get(decision.state, "blue"))
    revision = f" {decision.revision}" if decision.revision else ""
    return f"  {_instant(decision.changed)}  {decision.trigger}: {decision.action}{revision} {state}: {decision.reason}"


def _instant(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S")


# results


def _document(
    totals: Totals,
    periods: Sequence[Period],
    decisions: Sequence[Decision],
    metric: str,
    picture: Path,
    journal: Journal,
) -> dict[str, Any]:
    return {
        "rows": totals.rows, "asked": totals.asked, "failed": totals.failed, "labels": totals.labels, "lost": totals.lost,
        "metric": metric,
        "periods": [
            {
                "period": period.name, "loop": _interval(period.loop), "never": _interval(period.never),
                "unanswered": period.unanswered, "revisions": dict(period.revisions),
            }
            for period in periods
        ],
        "decisions": [
            {
                "id": found.id, "at": found.at, "changed": found.changed, "trigger": found.trigger, "action": found.action,
                "state": found.state, "reason": found.reason, "numbers": dict(found.numbers), "run": found.run_id,
                "revision": found.revision,
                "steps": [
                    {"at": at, "state": state, "reason": reason}
                    for at, state, reason in journal.decision_steps(found.id)
                ],
            }
            for found in decisions
        ],
        "plot": str(picture),
    }  # fmt: skip


def _interval(value: Interval) -> dict[str, float | None]:
    told = {"value": value.value, "low": value.low, "high": value.high}
    return {name: None if math.isnan(number) else round(number, 6) for name, number in told.items()} | {
        "rows": value.rows
    }


def _summary(
    totals: Totals, periods: Sequence[Period], decisions: Sequence[Decision], metric: str, picture: Path
) -> None:
    click.echo(f"{totals.asked:,} rows asked, {totals.failed:,} failed, {totals.labels:,} labels told")
    if totals.lost:
        click.echo(f"{totals.lost:,} events were not captured: see drivetrain_gateway_captured_events_total")
    for found in decisions:
        if found.state != "held":
            click.echo(_told(found))
    click.echo()
    quality_table(periods, metric)
    click.echo(f"\nplot: {picture}")


def quality_table(periods: Sequence[Period], metric: str) -> None:
    """The metric by period: of the loop, and of the model never retrained."""
    rows = [
        [
            period.name, f"{period.loop.rows:,}", _number(period.loop.value), _number(period.never.value),
            f"{period.loop.value - period.never.value:+.4f}", ", ".join(period.revisions),
        ]
        for period in periods
    ]  # fmt: skip
    output.table(["", "rows", metric, "never retrained", "difference", "answered by"], rows)


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"


# policies


def _rehearse(opened: Project, start: datetime, end: datetime, step: float, quiet: bool) -> Sequence[Row]:
    from drivetrain.watch import rehearsal

    first = opened.definition.data.window.start
    if first is None or first >= start:
        raise UsageError("data.window.start has to be before --from: models are trained on what comes before it")
    artifact = make_frame(opened, first, end, quiet)

    def say(text: str) -> None:
        if not quiet:
            click.echo(f"  {text}", err=True)

    return rehearsal.rehearse(opened, artifact, start.timestamp(), end.timestamp(), step, say)


def _row_document(row: Row) -> dict[str, Any]:
    return {
        "policy": row.policy, "trainings": [_instant(at) for at in row.trainings], "metric": _finite(row.metric),
        "gain": _finite(row.gain), "spent": row.spent, "saved": row.saved,
    }  # fmt: skip


def _finite(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


def _policy_table(rows: Sequence[Row], opened: Project) -> None:
    metric = opened.definition.evaluate.metric
    table = [
        [
            row.policy, str(len(row.trainings)), _number(row.metric), f"{row.gain:+.4f}",
            "" if row.spent is None else f"{row.spent:,.0f}", "" if row.saved is None else f"{row.saved:+,.0f}",
            " ".join(_instant(at)[:10] for at in row.trainings[:8]) + (" ..." if len(row.trainings) > 8 else ""),
        ]
        for row in rows
    ]  # fmt: skip
    output.table(["policy", "trainings", metric, "gain", "spent", "saved", "when"], table)
    if opened.definition.loop.worth is None:
        click.echo("\nwithout loop.worth there are no amounts, and no cost rule")
