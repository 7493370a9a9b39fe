"""`drivetrain render`: the definition in the forms that other systems read."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import click

from drivetrain import lifecycle, project
from drivetrain.backends.runner import cache
from drivetrain.cli import output
from drivetrain.definition.definition import json_schema
from drivetrain.errors import UsageError


@click.group()
def render() -> None:
    """Write what other systems need: Kubeflow's pipeline, the JSON schema."""


@render.command()
@click.option(
    "--output", "-o", "directory", type=click.Path(file_okay=False, path_type=Path), default="out", show_default=True
)
@click.option("--target", help="A target with an image; default: the first one.")
@click.option("--json", "as_json", is_flag=True, help="What was written, as JSON.")
@click.pass_obj
def kubeflow(where: str, directory: Path, target: str | None, as_json: bool) -> None:
    """Write pipeline.yaml: the stages as a Kubeflow pipeline (KFP v2)."""
    opened = project.open_project(Path(where), checked=True)
    name = target or next((key for key, value in opened.definition.targets.items() if value.image), "local")
    try:
        chosen = opened.definition.target(name)
    except KeyError as error:
        raise UsageError(f"the definition has no target {name}") from error
    if chosen.image is None:
        raise UsageError(
            f"the target {name} names no image for the stages to run in",
            hint="set targets.NAME.image to an image with drivetrain and this project in its working directory",
        )
    from drivetrain.backends.runner.kubeflow import ContainerStep, compile_pipeline

    train = opened.definition.train.resources
    steps = [
        ContainerStep(
            row.name, row.does, row.inputs, [entry.name for entry in fields(cache.load(row.outputs))],
            *((train.cpu, train.memory, train.gpu) if row.name == "train" else ()),
        )
        for row in lifecycle.STAGES
    ]  # fmt: skip
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "pipeline.yaml"
    compile_pipeline(opened.definition.name, steps, chosen.image, name, chosen.pipeline_root, path)
    output.as_json({"pipeline": str(path), "target": name}) if as_json else click.echo(
        f"wrote {path} for the target {name}"
    )


@render.command()
@click.option(
    "--output",
    "-o",
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Into this file; default: standard output.",
)
def schema(path: Path | None) -> None:
    """Write the JSON schema of drivetrain.yaml, for editors."""
    text = json.dumps(json_schema(), indent=2) + "\n"
    if path is None:
        click.echo(text, nl=False)
    else:
        path.write_text(text, encoding="utf-8")
