"""How results look: tables in plain text, and JSON for machines."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import click

COLOURS = {
    "done": "green", "cached": "cyan", "failed": "red", "refused": "red", "interrupted": "yellow", "skipped": "bright_black",
    "running": "blue", "lost": "yellow", "killed": "yellow", "passed": "green",
}  # fmt: skip


def as_json(value: Any) -> None:
    """The value as JSON on standard output, and nothing else."""
    click.echo(json.dumps(value, indent=2, sort_keys=False, default=str))


def state(word: str) -> str:
    """A state's word in its colour."""
    return click.style(word, fg=COLOURS.get(word))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns padded to their widest cell; the last one is left to run."""
    if not rows:
        return
    widths = [max(len(click.unstyle(row[n])) for row in [head, *rows]) for n in range(len(head))]
    for number, row in enumerate([head, *rows]):
        cells = [cell + " " * (width - len(click.unstyle(cell))) for cell, width in zip(row, widths, strict=True)]
        line = "  ".join(cells).rstrip()
        click.echo(click.style(line, bold=True) if number == 0 else line)


def seconds(value: float) -> str:
    """`0.3 s`, `12 s`, `3 min 20 s`."""
    if value < 10:
        return f"{value:.1f} s"
    if value < 120:
        return f"{value:.0f} s"
    return f"{value // 60:.0f} min {value % 60:.0f} s"


def size(value: int) -> str:
    """Bytes as `12 KiB`, `3.4 MiB`."""
    amount = float(value)
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" or amount >= 10 else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} GiB"


def moment(value: float | None) -> str:
    """Local date and time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(value)) if value else ""


def short(digest: str) -> str:
    """A digest's first twelve digits: enough to tell any two apart here."""
    return digest[:12]


def cut(text: str, most: int) -> str:
    """The text in at most so many characters."""
    return text if len(text) <= most else f"{text[: most - 3]}..."
