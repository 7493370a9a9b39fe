"""`drivetrain render`: the definition in the forms that other systems read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from drivetrain import lifecycle, project, wiring
from drivetrain.backends.runner import cache
from drivetrain.cli import output
from drivetrain.definition.definition import json_schema
from drivetrain.errors import UsageError

if TYPE_CHECKING:
    from drivetrain.backends.metrics.prometheus import Target


@click.group()
def render() -> None:
    """Write what other systems need: Kubeflow's pipeline, Prometheus' rules, Grafana's dashboards, the JSON schema."""


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
            hint="set targets.NAME.image to where `drivetrain package --stages --target NAME` is to push it",
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
    "--output", "-o", "directory", type=click.Path(file_okay=False, path_type=Path), default="out", show_default=True
)
@click.option(
    "--gateway", metavar="URL", help="Where Prometheus reaches the service; default: where it answers from here."
)
@click.option(
    "--door",
    metavar="URL",
    help="Where Prometheus and Alertmanager reach `drivetrain watch`; default: loop.host and loop.port.",
)
@click.option(
    "--alertmanager",
    metavar="HOST:PORT",
    default="127.0.0.1:9093",
    show_default=True,
    help="Where Prometheus reaches Alertmanager.",
)
@click.option("--json", "as_json", is_flag=True, help="What was written, as JSON.")
@click.pass_obj
def prometheus(
    where: str, directory: Path, gateway: str | None, door: str | None, alertmanager: str, as_json: bool
) -> None:
    """Write prometheus.yml, rules.yml, alertmanager.yml and prometheusrule.yaml: triggers and objectives as alerts.

    With `loop.evaluator: prometheus` the loop goes by these alerts instead of evaluating the rules itself. prometheusrule.yaml holds the
    same rules for the Prometheus operator.
    """
    from drivetrain import service
    from drivetrain.backends.metrics import prometheus as files
    from drivetrain.watch import conditions

    opened = project.open_project(Path(where))
    name, part = opened.definition.name, opened.definition.loop
    rules, every = conditions.rules(opened.definition), part.every.total_seconds()
    door = door or _open_door(opened) or _address("http", part.host, part.port, "loop.port", "--door")
    targets = [_gateway(opened, gateway), files.Target(f"drivetrain-{name}-loop", door, {})]
    token = Path(service.settings(opened.definition, opened.root, opened.state).token_file)
    written = {
        "rules.yml": files.rule_groups(name, rules, every),
        "prometheus.yml": files.prometheus(targets, every, alertmanager),
        "alertmanager.yml": files.alertmanager(name, f"{door}/alerts", token, every),
        "prometheusrule.yaml": files.prometheus_rule(name, rules, every),
    }
    _write(directory, {file: _yaml(document) for file, document in written.items()}, as_json)


def _gateway(opened: project.Project, url: str | None) -> Target:
    """The service as a target; it is where `--gateway` says, or at its fixed port, or at the one that it has now."""
    part, name = opened.definition.serving, opened.definition.name
    scheme = "https" if part.tls else "http"
    if url is None and part.port == 0:
        found = wiring.serving(opened.state).find(name)
        url = found.url if found else None
    from drivetrain.backends.metrics.prometheus import Target

    certificate = str((opened.root / part.tls.certificate).resolve()) if part.tls else None
    url = url or _address(scheme, part.host, part.port, "serving.port", "--gateway")
    return Target(f"drivetrain-{name}", url, {"service": name}, certificate)


def _open_door(opened: project.Project) -> str | None:
    """Where the door is of a `drivetrain watch` that runs, if its port is any free one."""
    record = opened.state / "loop" / "door.json"
    if opened.definition.loop.port or not record.is_file():
        return None
    return str(json.loads(record.read_text())["url"])


def _address(scheme: str, host: str, port: int, key: str, option: str) -> str:
    if port == 0:
        raise UsageError(
            f"{key} is 0, any free port, and nothing answers now", hint=f"set {key}, or give the address with {option}"
        )
    return f"{scheme}://{'127.0.0.1' if host in ('0.0.0.0', '::') else host}:{port}"


@render.command()
@click.option(
    "--output", "-o", "directory", type=click.Path(file_okay=False, path_type=Path), default="out", show_default=True
)
@click.option("--json", "as_json", is_flag=True, help="What was written, as JSON.")
@click.pass_obj
def grafana(where: str, directory: Path, as_json: bool) -> None:
    """Write Grafana's dashboards, a JSON file each: how the service answers, drift, quality, what the loop does."""
    from drivetrain.backends.metrics.grafana import dashboards
    from drivetrain.watch import conditions

    definition = project.open_project(Path(where)).definition
    found = dashboards(definition.name, conditions.rules(definition), definition.serving.slo.availability)
    _write(directory, {file: json.dumps(content, indent=2) + "\n" for file, content in found.items()}, as_json)


def _write(directory: Path, files: Mapping[str, str], as_json: bool) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for file, text in files.items():
        (directory / file).write_text(text, encoding="utf-8")
    paths = [str(directory / file) for file in files]
    output.as_json({"files": paths}) if as_json else click.echo("\n".join(f"wrote {path}" for path in paths))


def _yaml(document: Mapping[str, Any]) -> str:
    from ruamel.yaml import YAML

    writer, text = YAML(), StringIO()
    writer.width = 10_000
    writer.dump(document, text)
    return text.getvalue()


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
