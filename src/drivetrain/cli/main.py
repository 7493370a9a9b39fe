"""`drivetrain`: the commands by name, and the one door through which errors reach a user."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any

import click

from drivetrain import __version__
from drivetrain.errors import DefinitionError, DrivetrainError, SystemFault

COMMANDS: dict[str, tuple[str, str]] = {
    "init": ("init", "Start a project from a template."),
    "run": ("run", "Carry the lifecycle out, from data to an endpoint."),
    "runs": ("history", "List past runs."),
    "show": ("history", "Show one run: stages, digests, metrics, timings."),
    "logs": ("history", "Print what the stages of a run printed."),
    "lineage": ("lineage", "Walk from a version, run or prediction back to its data."),
    "package": ("package", "Make an image of the champion, without Docker."),
    "deploy": ("serve", "Bring the champion up again, or stop it."),
    "serve": ("serve", "Serve the champion until Ctrl-C."),
    "predict": ("predict", "Ask the endpoint for a prediction."),
    "feedback": ("predict", "Tell what turned out to be true of a prediction."),
    "traffic": ("serve", "Show or split the traffic between revisions."),
    "rollback": ("serve", "Have the former revision serve again."),
    "watch": ("watch", "Watch the service; retrain, roll out and roll back as the triggers say."),
    "decisions": ("watch", "List what the loop decided, and why."),
    "replay": ("replay", "Play past rows to the service and let the loop act, on a simulated clock."),
    "report": ("report", "Write a page about a run or a revision."),
    "render": (
        "render",
        "Write what other systems need: Kubeflow's pipeline, Prometheus' rules, Grafana's dashboards.",
    ),
    "stage": ("stage", "Carry out one stage; the command of a pipeline's container."),
    "doctor": ("doctor", "Check the definition and the machine."),
    "completion": ("completion", "Print the shell's completion script."),
}
"""Command -> module of this package, and its line in the help: listed here so that `--help` imports nothing."""


class Lazy(click.Group):
    """A group that imports a command's module when the command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"drivetrain.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from difflib import get_close_matches

            close = get_close_matches(args[0], COMMANDS, n=1)
            raise click.UsageError(f"no command {args[0]!r}." + (f" Did you mean {close[0]!r}?" if close else ""), ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="drivetrain %(version)s")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.option(
    "-C",
    "--project",
    type=click.Path(exists=True),
    default=".",
    help="Project directory, or one below it.",
    show_default=True,
)
@click.pass_context
def cli(ctx: click.Context, debug: bool, project: str) -> None:
    """A machine-learning lifecycle as one closed loop.

    One definition, drivetrain.yaml, runs end to end on this machine and compiles to the cluster.
    """
    ctx.obj = project


def main() -> None:
    """The console script."""
    debug = "--debug" in sys.argv
    # Looking for pydantic's plug-ins reads the metadata of every installed package; none has a part in the definition. Workers,
    # which run the user's code, drop this again.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "true")
    try:
        cli(standalone_mode=False)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)
    except (DrivetrainError, OSError) as error:
        if debug:
            raise
        known = error if isinstance(error, DrivetrainError) else SystemFault(str(error))
        report(known)
        sys.exit(known.exit_code)


def report(error: DrivetrainError) -> None:
    """An error on standard error: what, where, what to do; as one JSON line where the command was asked for JSON."""
    from drivetrain.redact import Redactor

    clean = Redactor(os.environ)
    problems = error.problems if isinstance(error, DefinitionError) else []
    if "--json" in sys.argv:
        import json
        from dataclasses import asdict

        document = {
            "error": clean(str(error)),
            "hint": clean(error.hint),
            "problems": [
                {name: clean(v) if isinstance(v, str) else v for name, v in asdict(p).items()} for p in problems
            ],
        }
        click.echo(json.dumps(document), err=True)
        return
    click.echo(click.style("error: ", fg="red", bold=True) + clean(str(error)), err=True)
    for problem in problems:
        click.echo(f"  {clean(str(problem))}", err=True)
    if error.hint:
        click.echo(click.style("  hint: ", bold=True) + clean(error.hint), err=True)
