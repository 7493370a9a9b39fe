"""The text of `docs/cli.md`: every command with its options, from the commands themselves."""

from __future__ import annotations

from collections.abc import Iterator

import click

from drivetrain.cli.main import COMMANDS, cli

INTRO = """\
<!-- Written by docs/build.py from the commands in src/drivetrain/cli; `make fix` writes it anew. -->

# Commands

Every command looks for `drivetrain.yaml` in the current directory and above; `drivetrain -C DIRECTORY COMMAND` looks elsewhere.
`drivetrain --debug COMMAND` shows the traceback of an error. Results go to standard output, progress and errors to standard error.

| Exit code | Meaning |
|---|---|
| 0 | done |
| 1 | failed: a stage, the machine, an endpoint |
| 2 | wrong usage, or mistakes in the definition |
| 3 | the gate refused the model |
| 4 | data validation refused the data |
| 130 | interrupted; `drivetrain run --resume` goes on |
"""


def text() -> str:
    """The whole page."""
    context = click.Context(cli, info_name="drivetrain")
    sections = [section for name in COMMANDS for section in _command(cli.get_command(context, name), context, name, 2)]
    return "\n".join([INTRO, *sections])


def _command(command: click.Command | None, parent: click.Context, name: str, level: int) -> Iterator[str]:
    assert command is not None
    context = click.Context(command, info_name=name, parent=parent, terminal_width=1000, max_content_width=1000)
    usage = command.get_usage(context).removeprefix("Usage: ").replace("\n", " ")
    yield f"{'#' * level} {context.command_path.removeprefix('drivetrain ')}\n"
    yield f"    {' '.join(usage.split())}\n"
    yield f"{' '.join((command.help or '').split())}\n"
    rows = [record for option in command.get_params(context) if (record := option.get_help_record(context))]
    rows = [row for row in rows if "--help" not in row[0]]
    if rows:
        yield "| Option | |\n|---|---|"
        yield "\n".join(f"| `{_cell(name)}` | {_cell(about)} |" for name, about in rows) + "\n"
    if isinstance(command, click.Group):
        for inner in command.list_commands(context):
            yield from _command(command.get_command(context, inner), context, inner, level + 1)


def _cell(value: str) -> str:
    return " ".join(value.split()).replace("|", r"\|")
