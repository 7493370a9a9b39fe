"""A compiled pipeline carried out as Kubeflow does it: each container's command line, with what belongs in its placeholders."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

Command = Callable[..., subprocess.CompletedProcess[str]]
RUN = "flights-on-kfp"
"""What Kubeflow would call the pipeline's run."""


@dataclass(frozen=True, slots=True)
class Container:
    """One step: its whole command line, the variables that it is given, and the file in which it leaves each output."""

    stage: str
    image: str
    command: list[str]
    environment: Mapping[str, str]
    outputs: Mapping[str, PurePosixPath]


def add_target(project: Path) -> None:
    """A target `here` with an image, which keeps its objects where the local one does."""
    path = project / "drivetrain.yaml"
    target = "  here: {platform: local, objects: .drivetrain/objects, image: registry.example/flights:1}\n"
    path.write_text(path.read_text().replace("targets:\n", "targets:\n" + target))


def render(drivetrain: Command, project: Path, out: Path) -> dict[str, Any]:
    """The pipeline of that target, compiled into the directory `out`."""
    found = drivetrain("render", "kubeflow", "-o", str(out), "--target", "here", directory=project)
    assert found.returncode == 0, found.stderr
    compiled: dict[str, Any] = next(iter(yaml.safe_load_all((out / "pipeline.yaml").read_text())))
    return compiled


def containers(pipeline: Mapping[str, Any], stages: list[str], place: Path, seen: PurePosixPath) -> Iterator[Container]:
    """The steps of those stages, in their order. Each has to have been carried out before the next is asked for: its outputs, read from
    the directory `place`, are the inputs of those that follow. `seen` is where a step sees that directory."""
    written: dict[str, str] = {}
    for stage in stages:
        container = pipeline["deploymentSpec"]["executors"][f"exec-{stage}"]["container"]
        given = {"{{$.pipeline_job_name}}": RUN, "{{$.inputs.parameters['parameters']}}": "{}"}
        for name, source in pipeline["root"]["dag"]["tasks"][stage]["inputs"]["parameters"].items():
            if "taskOutputParameter" in source:
                made = source["taskOutputParameter"]
                value = written[f"{made['producerTask']}.{made['outputParameterKey']}"]
                given[f"{{{{$.inputs.parameters['{name}']}}}}"] = value
        names = pipeline["components"][f"comp-{stage}"]["outputDefinitions"]["parameters"]
        outputs = {name: seen / stage / name for name in names}
        given |= {f"{{{{$.outputs.parameters['{name}'].output_file}}}}": str(path) for name, path in outputs.items()}
        arguments = [given.get(argument, argument) for argument in container["args"]]
        assert not [argument for argument in arguments if "{{" in argument]
        variables = {entry["name"]: entry["value"] for entry in container.get("env", [])}
        yield Container(stage, container["image"], [*container["command"], *arguments], variables, outputs)
        written |= {f"{stage}.{name}": (place / stage / name).read_text() for name in names}
