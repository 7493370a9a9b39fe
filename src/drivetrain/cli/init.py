"""`drivetrain init`."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click

from drivetrain import templates
from drivetrain.errors import UsageError


@click.command()
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--template",
    type=click.Choice(["tabular", "torch", "tensorflow"]),
    default="tabular",
    show_default=True,
    help="What to start from.",
)
def init(directory: Path, template: str) -> None:
    """Start a project from a template."""
    name = re.sub(r"[^a-z0-9]+", "-", directory.resolve().name.lower()).strip("-")
    if not name or not name[0].isalpha():
        raise UsageError(f"{directory.name!r} gives no name for a lifecycle", hint="begin it with a letter")
    written = templates.write(template, directory, name)
    for path in written:
        click.echo(f"  {path}")
    click.echo(f"\nnext: cd {shlex.quote(str(directory))} && drivetrain run")
