"""`drivetrain report`."""

from __future__ import annotations

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

    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(page(opened, subject), encoding="utf-8")
    click.echo(f"wrote {output}", err=True)
