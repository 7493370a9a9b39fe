"""`drivetrain watch` and `drivetrain decisions`: the loop, and what it has decided."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from drivetrain import project as projects
from drivetrain import service
from drivetrain.cli import output
from drivetrain.errors import DrivetrainError, SystemFault, UsageError
from drivetrain.journal import Decision, Journal
from drivetrain.project import Project

if TYPE_CHECKING:
    from drivetrain.watch.door import Door
    from drivetrain.watch.loop import Looked, Loop

COLOURS = {
    "promoted": "green", "done": "green", "scaled": "cyan", "training": "blue", "rollout": "blue", "acting": "blue",
    "waiting": "yellow", "held": "bright_black", "rejected": "bright_black", "failed": "red", "refused": "red",
    "unchanged": "yellow", "rolled_back": "red", "firing": "red", "pending": "yellow", "calm": "green", "unknown": "bright_black",
}  # fmt: skip


@click.command()
@click.option("--once", is_flag=True, help="Look once, act on it, and end.")
@click.option(
    "--dry-run", is_flag=True, help="Look once, say what would be done about each trigger and why, and do nothing."
)
@click.option("--approve", metavar="ID", help="Have a decision that waits for approval carried out.")
@click.option("--reject", metavar="ID", help="Have it dropped.")
@click.option(
    "--json", "as_json", is_flag=True, help="One JSON object a line for each decision; with --dry-run, one document."
)
@click.pass_obj
def watch(where: str, once: bool, dry_run: bool, approve: str | None, reject: str | None, as_json: bool) -> None:
    """Keep the service as good as it can be: see what changes, retrain, roll out, roll back.

    Looks each `loop.every`, acts as the triggers say, and prints a line for each decision. Ctrl-C ends it; a retraining that is under way
    goes on, and the next `drivetrain watch` sees to it. Its own door takes Alertmanager's alerts at /alerts and KServe's events at /events,
    and shows /metrics and /status.
    """
    if approve or reject:
        if once or dry_run or (approve and reject):
            raise UsageError("--approve and --reject stand alone")
        _answer(projects.open_journal(Path(where)), str(approve or reject), bool(approve), as_json)
        return
    opened = projects.open_project(Path(where))
    if dry_run:
        _rehearse(opened, as_json)
        return
    from drivetrain.watch.loop import open_loop

    with open_loop(opened) as loop:
        if once:
            _tell(loop.tick(), as_json)
        else:
            _watch(opened, loop, as_json)


def _answer(journal: Journal, decision_id: str, approved: bool, as_json: bool) -> None:
    found = journal.decision(decision_id)
    if found is None:
        raise UsageError(f"there is no decision {decision_id}", hint="`drivetrain decisions` lists them")
    if found.state != "waiting":
        raise UsageError(f"{found.id} does not wait for approval: it is {found.state}")
    journal.approve(found.id, approved, time.time())
    word = "approved" if approved else "rejected"
    output.as_json({"decision": found.id, "approved": approved}) if as_json else click.echo(
        f"{found.id} is {word}; `drivetrain watch` takes note at its next look"
    )


# looking again and again


def _watch(opened: Project, loop: Loop, as_json: bool) -> None:
    every = opened.definition.loop.every.total_seconds()
    with _until_signalled() as ending, _door(opened, as_json) as door:
        loop.told = door.samples
        complained = ""
        while not ending.is_set():
            began = time.monotonic()
            door.alerted.clear()
            try:
                _tell(loop.tick(), as_json)
                complained = ""
            except DrivetrainError as error:
                # The next look may succeed; the same words are not said at each.
                if str(error) != complained:
                    complained = str(error)
                    click.echo(click.style("not now: ", fg="yellow") + complained, err=True)
            _show(loop, door)
            _rest(began + every, ending, door, loop, as_json)


def _show(loop: Loop, door: Door) -> None:
    if loop.looked is not None:
        from drivetrain.watch.loop import document

        door.metrics, door.status = loop.looked.text, document(loop.looked)


def _rest(until: float, ending: threading.Event, door: Door, loop: Loop, as_json: bool) -> None:
    """Waits for the next look: until it is time, an alert has come, or it is to end."""
    live = sys.stderr.isatty() and not as_json
    while not ending.is_set() and (left := until - time.monotonic()) > 0 and not door.alerted.is_set():
        if live and loop.looked is not None:
            click.echo(f"\r\x1b[2K{_status(loop.looked, left)}", err=True, nl=False)
        ending.wait(min(left, 0.5))
    if live:
        click.echo("\r\x1b[2K", err=True, nl=False)


def _status(looked: Looked, left: float) -> str:
    """One line: who serves, which triggers are not calm, when the next look is."""
    loud = [
        click.style(f"{one.trigger} {one.state}", fg=COLOURS[one.state])
        for one in looked.triggers
        if one.state in ("pending", "firing")
    ]
    under_way = [
        f"{row.action} {row.state}" for row in looked.decisions if row.state in ("training", "rollout", "acting")
    ]
    candidate = f" + {looked.candidate}" if looked.candidate else ""
    parts = [f"{looked.champion or 'nothing serves'}{candidate}", ", ".join(loud) or "all calm", *under_way]
    return " | ".join([*parts, f"next look in {left:.0f} s"])


@contextmanager
def _until_signalled() -> Iterator[threading.Event]:
    ending = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        ending.set()

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield ending
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _door(opened: Project, as_json: bool) -> Iterator[Door]:
    """The loop's door, and on record where it is."""
    from drivetrain.watch.conditions import rules
    from drivetrain.watch.door import Door, Openings
    from drivetrain.watch.monitor import posted_directory

    definition = opened.definition
    token = Path(service.settings(definition, opened.root, opened.state).token_file).read_text().strip()
    door = Door(
        Openings(
            definition.name, token, {rule.name for rule in rules(definition)}, opened.journal.path,
            Path(posted_directory(opened)), definition.monitoring.capture.keep,
        )
    )  # fmt: skip
    host = definition.loop.host
    url = f"http://{'127.0.0.1' if host in ('0.0.0.0', '::') else host}:{door.open(host, definition.loop.port)}"
    record = _record(opened)
    record.write_text(json.dumps({"url": url}))
    if not as_json:
        click.echo(f"watching {definition.name}; door at {url}", err=True)
        if definition.serving.canary.at_once and any(one.action == "retrain" for one in definition.triggers):
            said = "a retrained version is promoted as soon as it passes the gate, with the whole traffic at once"
            click.echo(f"{said}; serving.canary.steps has it get some first", err=True)
    try:
        yield door
    finally:
        record.unlink(missing_ok=True)
        door.close()


def _record(opened: Project) -> Path:
    return opened.state / "loop" / "door.json"


# what is printed


def _tell(decisions: list[Decision], as_json: bool) -> None:
    for decision in decisions:
        if as_json:
            click.echo(json.dumps(asdict(decision)))
        else:
            click.echo(f"{output.moment(decision.changed)}  {_line(decision)}")


def _line(decision: Decision) -> str:
    state = click.style(decision.state, fg=COLOURS.get(decision.state))
    return f"{decision.trigger}: {decision.action} {state}: {decision.reason}"


def _rehearse(opened: Project, as_json: bool) -> None:
    from drivetrain.watch.loop import document, open_loop

    try:
        with open_loop(opened) as loop:
            found = json.loads(json.dumps(document(loop.rehearse())))
    except SystemFault:
        found = _asked(opened)
        if found is None:
            raise
    if as_json:
        output.as_json(found)
        return
    click.echo(f"{found['champion'] or 'nothing'} serves, as of {output.moment(found['at'])}")
    rows = [
        [one["trigger"], click.style(one["state"], fg=COLOURS[one["state"]]), _would(one), one["why"]]
        for one in found["triggers"]
    ]
    output.table(["trigger", "state", "would be done", "why"], rows)
    if not rows:
        click.echo("the definition has no triggers")


def _would(one: dict[str, Any]) -> str:
    asked = {"act": one["action"], "ask": f"{one['action']}, once approved", "hold": f"{one['action']}, not now"}
    return str(asked.get(one["outcome"], "nothing"))


def _asked(opened: Project) -> dict[str, Any] | None:
    """What the process that watches found at its last look; None if it does not say."""
    import urllib.request

    try:
        url = json.loads(_record(opened).read_text())["url"]
        with urllib.request.urlopen(f"{url}/status", timeout=5) as answer:
            found: dict[str, Any] = json.load(answer)
    except (OSError, ValueError, KeyError):
        return None
    return found or None


@click.command()
@click.argument("decision_id", required=False, metavar="[ID]")
@click.option("--limit", default=20, show_default=True, help="At most so many, newest first.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.pass_obj
def decisions(where: str, decision_id: str | None, limit: int, as_json: bool) -> None:
    """List what the loop decided, or tell the history of one decision."""
    journal = projects.open_journal(Path(where))
    if decision_id is not None:
        _history(journal, decision_id, as_json)
        return
    found = journal.decisions(limit)
    if as_json:
        output.as_json([asdict(row) for row in found])
        return
    if not found:
        click.echo("nothing has been decided yet; `drivetrain watch` does")
    rows = [
        [row.id, output.moment(row.at), row.action, click.style(row.state, fg=COLOURS.get(row.state)), row.reason]
        for row in found
    ]
    output.table(["decision", "at", "action", "state", "reason"], rows)


def _history(journal: Journal, decision_id: str, as_json: bool) -> None:
    found = journal.decision(decision_id)
    if found is None:
        raise UsageError(f"there is no decision {decision_id}", hint="`drivetrain decisions` lists them")
    steps = journal.decision_steps(found.id)
    if as_json:
        told = [{"at": at, "state": state, "reason": reason} for at, state, reason in steps]
        output.as_json(asdict(found) | {"steps": told})
        return
    click.echo(f"{found.id}  {_line(found)}")
    for name, value in [("run", found.run_id), ("revision", found.revision), *found.numbers.items()]:
        if value is not None:
            click.echo(f"  {name:<24}{value:.6g}" if isinstance(value, float) else f"  {name:<24}{value}")
    click.echo()
    rows = [[output.moment(at), click.style(state, fg=COLOURS.get(state)), reason] for at, state, reason in steps]
    output.table(["at", "state", "reason"], rows)
