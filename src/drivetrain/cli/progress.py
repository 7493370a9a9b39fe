"""A run as it happens: lines for a log or a pipe, a live view for a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from drivetrain.backends.runner import StepResult
from drivetrain.cli import output

if TYPE_CHECKING:
    from rich.live import Live

MARKS = {"done": "✓", "cached": "✓", "failed": "✗", "refused": "✗", "interrupted": "!", "skipped": "-"}


class Lines:
    """One line when a step begins to say something, one when it ends; all on standard error."""

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._width = 0

    def run_started(self, run_id: str, steps: Sequence[str]) -> None:
        """Prints the run's id."""
        self._width = max(map(len, steps), default=0)
        self._print(click.style(f"run {run_id}", bold=True))

    def step_started(self, step: str, attempt: int) -> None:
        """Prints that a step is being tried again; a first attempt needs no line of its own."""
        if attempt > 1:
            self._print(f"  {step:<{self._width}}  attempt {attempt}")

    def step_said(self, step: str, text: str) -> None:
        """Prints a line of progress."""
        self._print(click.style(f"  {step:<{self._width}}  … {text}", fg="bright_black"))

    def step_ended(self, result: StepResult) -> None:
        """Prints what became of a step."""
        self._print(ended(result, self._width))

    def tick(self) -> None:
        """Nothing: lines do not move."""

    def _print(self, line: str) -> None:
        if not self._quiet:
            click.echo(line, err=True)


class Screen(Lines):
    """Lines for what has ended, and below them what is at work, with its time and its last words."""

    def __init__(self) -> None:
        super().__init__()
        self._live: Live | None = None
        self._at_work: dict[str, tuple[float, str]] = {}

    def step_started(self, step: str, attempt: int) -> None:
        """Shows the step below the lines."""
        self._at_work[step] = (time.monotonic(), f"attempt {attempt}" if attempt > 1 else "")
        if self._live is None:
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(stderr=True), auto_refresh=False, transient=True)
            self._live.start()

    def step_said(self, step: str, text: str) -> None:
        """Shows the step's last words beside it."""
        started, _ = self._at_work.get(step, (time.monotonic(), ""))
        self._at_work[step] = (started, text)

    def step_ended(self, result: StepResult) -> None:
        """Moves the step up into the lines."""
        self._at_work.pop(result.name, None)
        if not self._at_work and self._live is not None:
            self._live.stop()
            self._live = None
        if self._live is None:
            self._print(ended(result, self._width))
        else:
            from rich.text import Text

            self._live.console.print(Text.from_ansi(ended(result, self._width)))

    def tick(self) -> None:
        """Redraws."""
        if self._live is None:
            return
        from rich.text import Text

        frame = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"[int(time.monotonic() * 10) % 10]
        rows = [
            f"{frame} {name:<{self._width}}  {output.seconds(time.monotonic() - since):>7}  {text}"
            for name, (since, text) in self._at_work.items()
        ]
        self._live.update(Text("\n".join(rows), style="blue", overflow="ellipsis", no_wrap=True), refresh=True)


def ended(result: StepResult, width: int) -> str:
    """`✓ train     done     4.2 s  message`."""
    mark = click.style(MARKS.get(result.state, "?"), fg=output.COLOURS.get(result.state))
    spent = output.seconds(result.seconds) if result.state not in ("cached", "skipped") else ""
    line = f"{mark} {result.name:<{width}}  {output.state(result.state)}{' ' * (8 - len(result.state))}{spent:>8}"
    if result.message:
        line += f"  {result.message}"
    if result.hint:
        line += f"\n{' ' * (width + 4)}hint: {result.hint}"
    return line


def choose(quiet: bool) -> Lines:
    """A live screen on a terminal, lines elsewhere."""
    return Screen() if not quiet and sys.stderr.isatty() else Lines(quiet)
