"""The parts of `drivetrain.yaml`, in the order of the stages that read them.

Each field's description is the reference documentation: `drivetrain docs` and the JSON schema are made from it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from drivetrain.definition.values import Duration, Instant, Part, Size, is_function, split_function

Name = Annotated[str, Field(pattern=r"^[a-z]([-a-z0-9_]*[a-z0-9])?$", max_length=52)]


def _function(value: str) -> str:
    split_function(value)
    return value


class Window(Part):
    """A span of time, from `start` up to but not including `end`."""

    start: Instant | None = Field(None, description="First instant of the window; none: from the first row.")
    end: Instant | None = Field(
        None,
        description="First instant after the window; none: up to the last row. Labels not yet known then are not used.",
    )
    length: Duration | None = Field(
        None,
        description="With a retraining, whose window ends when it starts: take so long a span up to there. None: all since `start`.",
    )


class Table(Part):
    """One table of raw rows."""

    source: str = Field(
        description="A Python function (`data.py:load`), a parquet or CSV path (globs allowed), or an `s3://` URI of such."
    )
    timestamp: str | None = Field(None, description="Column with each row's event time.")
    key: list[str] = Field(
        default_factory=list,
        description="Columns that identify a row; of rows with equal keys the latest is kept. None: exact duplicates go.",
    )

    @field_validator("source")
    @classmethod
    def _source_is_named_well(cls, value: str) -> str:
        return _function(value) if is_function(value) else value


class Data(Table):
    """Where the training rows come from."""

    label: str = Field(description="Column that the model predicts.")
    label_delay: Duration = Field(
        default="0s",
        validate_default=True,
        description="How long after a row's time its label is known. Rows whose label was not known by the window's end, "
        "or by the hold-out's start, are not trained on.",
    )
    timezone: str = Field("UTC", description="Zone of times that name none; `reject` refuses them.")
    window: Window = Field(default_factory=Window, description="The rows to take, by their timestamp.")
    partition: Literal["day", "week", "month", "year"] = Field(
        "month", description="Size of the pieces in which a function is called and a snapshot is stored."
    )
    parameters: dict[str, Any] = Field(default_factory=dict, description="Further keyword arguments for the functions.")
    tables: dict[str, Table] = Field(
        default_factory=dict,
        description="Further tables: the histories behind the Feast views, each found there as `data/NAME.parquet`.",
    )


class Online(Part):
    """Where the newest feature values are kept for serving."""

    store: Literal["sqlite", "redis"] = Field("sqlite", description="Feast's online store.")
    connection: str = Field(
        "127.0.0.1:6379", description="Redis: `host:port`, with `,ssl=true,password=${NAME}` as Feast writes it."
    )


class Features(Part):
    """The Feast repository whose features are joined to the rows, point in time."""

    repo: str = Field(description="Directory with the Feast definitions (its Python files).")
    service: str = Field(description="Name of the feature service that the model uses.")
    online: Online = Field(default_factory=Online, description="The online store.")


class Validate(Part):
    """What has to hold of the training frame before it is trained on."""

    suite: str = Field(
        description="A Great Expectations suite: its JSON file, or a function that returns one (`checks.py:suite`)."
    )
    keep_rows: int = Field(1000, ge=0, description="At most so many offending rows are saved for each expectation.")

    @field_validator("suite")
    @classmethod
    def _suite_is_named_well(cls, value: str) -> str:
        return _function(value) if is_function(value) else value


class Resources(Part):
    """What a stage may use."""

    cpu: float | None = Field(
        None, gt=0, description="Cores; sets the thread counts of OpenMP and BLAS too. None: a fair share."
    )
    memory: Size | None = Field(
        None, description="Bytes (`2Gi`); beyond it the stage is ended with a message. None: no limit."
    )
    gpu: int = Field(0, ge=0, description="GPUs.")


class Train(Part):
    """The user's training function."""

    function: str = Field(
        description="`train.py:train`: called as `train(features, label, **parameters)`, returns a fitted model."
    )
    parameters: dict[str, Any] = Field(
        default_factory=dict, description="Keyword arguments of the function, logged to MLflow."
    )
    seed: int = Field(0, ge=0, description="Seeds Python, NumPy, PyTorch and Keras before the function is called.")
    resources: Resources = Field(default_factory=Resources, description="What training may use.")
    timeout: Duration = Field(default="1h", validate_default=True, description="After this the training is ended.")

    _check = field_validator("function")(_function)


class Holdout(Part):
    """The last rows in time, kept from training. Without a timestamp: a seeded draw."""

    fraction: float = Field(0.2, gt=0, lt=1, description="Share of the rows, the latest ones.")
    start: Instant | None = Field(None, description="Rows from this instant on, in place of a share.")


class ChampionRule(Part):
    """How a candidate is compared with the serving model, on the same rows."""

    compare: bool = Field(True, description="Whether the candidate has to be no worse than the champion.")
    tolerance: float = Field(0.0, ge=0, description="By how much, in the metric's unit, the candidate may be worse.")


Metric = Literal[
    "roc_auc", "average_precision", "accuracy", "balanced_accuracy", "f1", "log_loss", "brier", "rmse", "mae", "r2"
]


class Evaluate(Part):
    """The gate: what the model must reach on the hold-out."""

    metric: Metric = Field(
        description="Decides. With more than two classes `roc_auc` is one-vs-rest and `f1` is macro-averaged."
    )
    minimum: float | None = Field(
        None, description="The metric must be at least this (for losses and errors: at most)."
    )
    holdout: Holdout = Field(default_factory=Holdout, description="The rows that decide.")
    champion: ChampionRule = Field(default_factory=ChampionRule, description="Comparison with the serving model.")
    slices: list[str] = Field(
        default_factory=list, description="Columns; the metric is given for each of their values."
    )
    resamples: int = Field(500, ge=0, le=100_000, description="Bootstrap resamples for the 95 % interval.")


class Target(Part):
    """A place where the lifecycle runs."""

    platform: Literal["local", "microk8s", "eks"] = Field("local", description="Kind of the place.")
    objects: str = Field(".drivetrain/objects", description="Directory, or `s3://BUCKET/PREFIX`, for artifacts.")
    s3_endpoint: str | None = Field(None, description="URL of an S3 server other than AWS (MinIO, a NAS).")
    tracking: str | None = Field(None, description="MLflow tracking URI. None: SQLite beside the journal.")
    image: str | None = Field(
        None, description="Container image in which stages run on a cluster; `drivetrain package --stages` makes it."
    )
    pipeline_root: str | None = Field(None, description="Kubeflow's own root for its bookkeeping (`s3://...`).")
