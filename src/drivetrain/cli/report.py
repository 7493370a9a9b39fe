"""`drivetrain report`."""

from __future__ import annotations

import time
from pathlib import Path

import click

from drivetrain import project


@click.command()
@click.argument("subject", metavar="[RUN|REVISION]", required=False)
@click.option(
    "--output", "-o", type=click.Path(dir_okay=False, path_type=Path), default=Path("report.html"), show_default=True,
    help="The file that is written.",
)  # fmt: skip
@click.pass_obj
def report(where: str, subject: str | None, output: Path) -> None:
    """Write a page about a run or a revision: data checks, metrics, drift, quality, rollout, decisions.

    Without an argument it is about the champion. The page is one file, and loads nothing from anywhere.
    """
    opened = project.open_project(Path(where), checked=False)
    from drivetrain.watch.report import page

    text = page(opened, subject, time.time())
    output.parent.mkdir(parents=True, exist_ok=True)
    # A name may hold what UTF-8 does not.
    output.write_text(text, encoding="utf-8", errors="replace")
    click.echo(f"wrote {output}", err=True)
