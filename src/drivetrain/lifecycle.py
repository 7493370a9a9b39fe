"""The table of stages, read top to bottom by the CLI, the console, the local runner and the KFP compiler alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stage:
    """One row of the table."""

    name: str
    does: str
    """What it does, in the words of the help text."""
    inputs: Mapping[str, str]
    """Input name -> "stage.output", or "champion": the serving model at the moment when the stage starts."""
    reads: tuple[str, ...]
    """Parts of the definition whose values it may see (`data`), or keys of them (`evaluate.holdout`) where the others must not
    count: what stands here is in its cache key."""
    loads: tuple[str, ...]
    """Parts of the definition whose user files it loads; their code digest counts too."""
    needs: tuple[str, ...]
    """Folders under `backends/` that it is given an answer of."""
    version: int
    """Raised when the stage's own code changes what it makes."""
    still_holds: str | None = None
    """ "module:function": whether what the stage left outside of its artifacts (a store, an endpoint) is still there, asked before a
    cached result is used."""

    @property
    def parts(self) -> set[str]:
        """The parts of the definition that it may see."""
        return {key.partition(".")[0] for key in self.reads}

    @property
    def entry(self) -> str:
        return f"drivetrain.stages.{self.name}:run"

    @property
    def outputs(self) -> str:
        return f"drivetrain.records:{self.name.capitalize()}Outputs"


STAGES: tuple[Stage, ...] = (
    Stage(
        "ingest", "raw rows become a partitioned, deduplicated snapshot",
        inputs={},
        reads=("data",), loads=("data",), needs=(), version=1,
    ),
    Stage(
        "features", "Feast's features are joined to the rows, point in time, and materialised online",
        inputs={"snapshot": "ingest.snapshot"},
        reads=("name", "data", "features"), loads=("features",), needs=("features",), version=1,
        still_holds="drivetrain.wiring:online_store_there",
    ),
    Stage(
        "validate", "Great Expectations judges the training frame",
        inputs={"frame": "features.frame"},
        reads=("name", "data.label", "validation"), loads=("validation",), needs=("checks",), version=1,
    ),
    Stage(
        "train", "the user's function fits a model inside an MLflow run",
        inputs={"frame": "features.frame", "checked": "validate.verdict"},
        reads=("name", "data.label_delay", "train.function", "train.parameters", "train.seed", "evaluate.holdout"),
        loads=("train",), needs=("tracking",), version=2,
        still_holds="drivetrain.wiring:tracking_there",
    ),
    Stage(
        "evaluate", "the gate: the hold-out's metric against the minimum and the champion",
        inputs={"frame": "features.frame", "model": "train.model", "tracked": "train.tracked", "champion": "champion"},
        reads=("data.label_delay", "evaluate"), loads=("train",), needs=("tracking",), version=2,
    ),
    Stage(
        "register", "the model becomes a registered version, the challenger",
        inputs={
            "snapshot": "ingest.snapshot", "definitions": "features.definitions", "frame": "features.frame",
            "validation": "validate.result", "model": "train.model", "tracked": "train.tracked",
            "report": "evaluate.report", "passed": "evaluate.verdict",
        },
        reads=("name", "evaluate.metric"), loads=(), needs=("tracking",), version=1,
        still_holds="drivetrain.wiring:tracking_there",
    ),
    Stage(
        "package", "the version becomes an image, where the definition asks for one",
        inputs={
            "model": "train.model", "definitions": "features.definitions", "version": "register.version",
            "snapshot": "ingest.snapshot",
        },
        reads=(
            "name", "lock", "train.function", "package", "serving.runner", "serving.cog", "serving.grpc_port", "serving.batch",
            "serving.limits",
        ),
        loads=("serving", "train"), needs=("serving", "images", "trust"), version=1,
    ),
    Stage(
        "deploy", "the version answers at its endpoint and becomes the champion",
        inputs={
            "model": "train.model", "definitions": "features.definitions", "version": "register.version",
            "image": "package.image", "signature": "package.signature",
        },
        reads=(
            "name", "features.online", "train.function", "monitoring.sample", "monitoring.capture", "serving.runner", "serving.cog",
            "serving.host", "serving.port", "serving.grpc_port", "serving.batch", "serving.lookup", "serving.auth", "serving.tls",
            "serving.limits", "serving.scale", "package.sign",
        ),
        loads=("serving", "train"), needs=("serving", "tracking", "trust"), version=2,
        still_holds="drivetrain.backends.serving.alive:still_holds",
    ),
)  # fmt: skip
"""In an order in which each stage comes after those it takes inputs from."""


def stage(name: str) -> Stage:
    """The row of that name. Raises `KeyError`."""
    for row in STAGES:
        if row.name == name:
            return row
    raise KeyError(name)


def names() -> list[str]:
    """The stages' names, in order."""
    return [row.name for row in STAGES]
