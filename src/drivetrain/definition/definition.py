"""The whole of `drivetrain.yaml`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from drivetrain.definition.loop import Loop, Monitoring, Trigger
from drivetrain.definition.packaging import Package
from drivetrain.definition.parts import (
    Data,
    Evaluate,
    Features,
    Name,
    Target,
    Train,
    Validate,
)
from drivetrain.definition.serving import Serving
from drivetrain.definition.values import Part, is_function, split_function
from drivetrain.errors import UsageError

FILE_NAME = "drivetrain.yaml"


class Definition(Part):
    """A lifecycle, stated once."""

    name: Name = Field(description="Name of the lifecycle; also of its registered model, its service and its images.")
    data: Data = Field(description="The raw rows. Read by the stage ingest.")
    features: Features | None = Field(
        None, description="The features joined to them. None: the rows' own columns. Stage features."
    )
    validation: Validate | None = Field(
        None,
        alias="validate",
        description="What must hold of them. None: rows exist, and labels are not null. Stage validate.",
    )
    train: Train = Field(description="How a model is fitted. Stage train.")
    evaluate: Evaluate = Field(description="The gate. Stage evaluate.")
    package: Package | None = Field(
        None, description="The image that it is packaged into. None: no image is made by a run. Stage package."
    )
    serving: Serving = Field(default_factory=Serving, description="How the model answers. Stage deploy.")
    monitoring: Monitoring = Field(default_factory=Monitoring, description="What is watched while it serves.")
    triggers: list[Trigger] = Field(default_factory=list, description="What starts a new run by itself.")
    loop: Loop = Field(default_factory=Loop, description="Within which bounds it is done.")
    targets: dict[str, Target] = Field(
        default_factory=dict, description="Where the lifecycle runs; `local` is always there, and may be changed."
    )
    lock: str = Field(
        "requirements.lock", description="Lock file whose digest counts towards every cache key, if it exists."
    )

    @model_validator(mode="after")
    def _parts_agree(self) -> Definition:
        if self.features is not None and self.data.timestamp is None:
            raise ValueError("features are joined by time: data.timestamp is needed")
        if self.evaluate.holdout.start is not None and self.data.timestamp is None:
            raise ValueError("evaluate.holdout.start needs data.timestamp")
        names = [trigger.name for trigger in self.triggers]
        if len(set(names)) != len(names):
            raise ValueError("two triggers have the same name")
        return self

    def target(self, name: str) -> Target:
        """The target of that name; `local` needs no entry. Raises `KeyError` for any other that has none."""
        if name == "local" and name not in self.targets:
            return Target()
        return self.targets[name]

    def user_files(self, part: str) -> list[str]:
        """The project files that a part names, relative to the project: where its code digest starts from."""
        match part:
            case "data":
                tables = [self.data, *self.data.tables.values()]
                return sorted({split_function(t.source)[0] for t in tables if is_function(t.source)})
            case "features":
                return [] if self.features is None else [self.features.repo]
            case "validation":
                if self.validation is None:
                    return []
                suite = self.validation.suite
                return [split_function(suite)[0] if is_function(suite) else suite]
            case "train":
                return [split_function(self.train.function)[0]]
            case "serving":
                runner = [split_function(self.serving.runner)[0]] if self.serving.runner else []
                return runner + ([self.serving.cog] if self.serving.cog else [])
            case _:
                return []


def find_project(start: Path) -> Path:
    """The nearest directory, from `start` upwards, that holds a `drivetrain.yaml`.

    Raises `UsageError` if there is none.
    """
    start = start.resolve()
    if start.is_file() and start.name == FILE_NAME:
        return start.parent
    for directory in (start, *start.parents):
        if (directory / FILE_NAME).is_file():
            return directory
    raise UsageError(f"no {FILE_NAME} in {start} or above", hint="`drivetrain init NAME` starts a project")


def json_schema() -> dict[str, Any]:
    """The JSON schema of `drivetrain.yaml`, for editors."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Definition.model_json_schema(by_alias=True),
        "title": FILE_NAME,
    }
