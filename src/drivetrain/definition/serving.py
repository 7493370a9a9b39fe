"""The part of `drivetrain.yaml` about the service that answers."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from drivetrain.definition.values import Duration, Part, Size, split_function

DEFAULT_RUNNER = "run.py:Runner"
"""Where the runner is that a bundle is given if the definition names none."""


class Scale(Part):
    """How many replicas serve, by Knative's autoscaler and in its terms."""

    min: int = Field(1, ge=0, description="Least replicas; 0 lets the service sleep, and the first request wakes it.")
    max: int = Field(1, ge=1, description="Most replicas.")
    metric: Literal["concurrency", "rps"] = Field(
        "concurrency", description="What is counted: requests in flight, or requests a second."
    )
    target: float = Field(10.0, gt=0, description="How much of it one replica can carry.")
    utilization: float = Field(70.0, gt=0, le=100, description="Percent of the target that is aimed at.")
    window: Duration = Field(
        default="60s",
        validate_default=True,
        description="Span of the average that decides; a tenth of it for a sudden rise.",
    )
    grace: Duration = Field(
        default="30s", validate_default=True, description="How long the last replica is kept once nothing is asked."
    )

    @model_validator(mode="after")
    def _bounds_agree(self) -> Scale:
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) is more than max ({self.max})")
        if self.window.total_seconds() < 6:
            raise ValueError("the window has to be 6s at least, as Knative has it")
        return self


class Slo(Part):
    """What callers may expect."""

    latency: Duration = Field(
        default="100ms", validate_default=True, description="99 % of the answers come within this."
    )
    availability: float = Field(
        99.9, gt=0, lt=100, description="Percent of requests that are answered without an error."
    )


class Canary(Part):
    """How traffic moves to a new revision: a copy of it first, then more and more of it, as long as nothing says that it is worse."""

    shadow: Duration = Field(
        default="0s", validate_default=True, description="How long requests are copied to the candidate first."
    )
    steps: list[int] = Field(
        default_factory=lambda: [100],
        description="Percent of the traffic in each step, rising, the last one 100. [100] alone: the whole traffic at once.",
    )
    step_time: Duration = Field(default="5m", validate_default=True, description="Least time in each step.")
    step_requests: int = Field(100, ge=1, description="Least answers of the candidate in each step.")
    limit: Duration = Field(
        default="1d", validate_default=True, description="A rollout that is undecided after this is rolled back."
    )
    most_requests: int | None = Field(
        None,
        ge=1,
        description="So is one that is undecided after so many answers of the candidate. None: however many.",
    )
    alpha: float = Field(0.05, gt=0, lt=1, description="Chance of rolling back a candidate that is no worse.")
    failures: float = Field(
        0.005, ge=0, lt=1, description="By how much the candidate's share of failed answers may exceed the champion's."
    )
    slower: float = Field(
        1.25, ge=1, description="How many times the champion's latencies the candidate's may be, at the same quantile."
    )
    quality: float = Field(
        0.01, ge=0, description="By how much the candidate's mean loss may exceed the champion's, once labels come."
    )

    @model_validator(mode="after")
    def _steps_rise_to_the_whole(self) -> Canary:
        if not self.steps or self.steps[-1] != 100 or sorted(set(self.steps)) != self.steps or self.steps[0] < 1:
            raise ValueError("the steps have to rise from 1 or more to 100, such as [5, 25, 50, 100]")
        return self

    @model_validator(mode="after")
    def _limit_leaves_room(self) -> Canary:
        before = len(self.steps) - 1 + (self.shadow.total_seconds() > 0)
        if self.most_requests is not None and self.most_requests < before * self.step_requests:
            raise ValueError(
                f"most_requests ({self.most_requests}) is less than {before} steps of {self.step_requests} answers take"
            )
        return self

    @property
    def at_once(self) -> bool:
        """Whether a new revision gets the whole traffic before any of its answers are compared."""
        return self.steps == [100] and not self.shadow


class Batch(Part):
    """Micro-batches, for runners that offer a method `batch` or `infer`."""

    max: int = Field(32, ge=1, description="Most requests that are predicted together; 1: none are.")
    wait: Duration = Field(
        default="2ms",
        validate_default=True,
        description="Longest that a request waits for company; under little load none waits.",
    )


class Lookup(Part):
    """Online features, added by the gateway to requests that name their entity keys."""

    enabled: bool = Field(True, description="Whether features are looked up, where the lifecycle has any.")
    on_failure: Literal["error", "defaults"] = Field(
        "error", description="When the online store does not answer: refuse the request (503), or go on with defaults."
    )
    timeout: Duration = Field(default="100ms", validate_default=True, description="Longest that a look-up may take.")
    defaults: dict[str, Any] = Field(
        default_factory=dict, description="Values of features that have none; null where none is named here."
    )


class Auth(Part):
    """Who may ask, and who may change."""

    token_variable: str | None = Field(
        None,
        description="Environment variable that holds the bearer token. None: one is made, and kept in "
        "`.drivetrain/serving/NAME.token`, which only its owner can read.",
    )
    predictions: bool = Field(
        False, description="Whether predictions need the token too; what changes the service always does."
    )


class Tls(Part):
    """HTTPS, by files."""

    certificate: str = Field(description="Certificate chain, PEM.")
    key: str = Field(description="Private key, PEM.")


class Limits(Part):
    """What one request may take."""

    body: Size = Field(16 * 1024**2, description="Largest body, in bytes (`16Mi`); a larger one is answered 413.")
    timeout: Duration = Field(
        default="60s", validate_default=True, description="Longest that a prediction may take; then 504."
    )
    queue: int = Field(
        256, ge=1, description="Requests that may wait for a free replica; one more is answered 503 with `Retry-After`."
    )


class Serving(Part):
    """How the model answers."""

    runner: str | None = Field(
        None, description="A Cog runner, `run.py:Runner`. None: one that takes `rows` and returns predictions."
    )
    cog: str | None = Field(None, description="`cog.yaml` of the image. None: made from the runner and the lock file.")
    host: str = Field(
        "127.0.0.1",
        description="Address to listen on. Whoever can reach it can ask for predictions, unless `auth.predictions` is set.",
    )
    port: int = Field(5000, ge=0, le=65535, description="Port to answer on; 0: a free one.")
    grpc_port: int | None = Field(
        None, ge=1, le=65535, description="Port for the Open Inference Protocol over gRPC. None: not offered."
    )
    batch: Batch = Field(default_factory=Batch, description="Micro-batches.")
    lookup: Lookup = Field(default_factory=Lookup, description="Online features.")
    auth: Auth = Field(default_factory=Auth, description="Bearer token.")
    tls: Tls | None = Field(None, description="HTTPS. None: plain HTTP.")
    limits: Limits = Field(default_factory=Limits, description="Limits of one request.")
    scale: Scale = Field(default_factory=Scale, description="Replicas.")
    slo: Slo = Field(default_factory=Slo, description="Objectives.")
    canary: Canary = Field(default_factory=Canary, description="Rollout of a new revision.")

    @model_validator(mode="after")
    def _ports_differ(self) -> Serving:
        if self.grpc_port is not None and self.grpc_port == self.port:
            raise ValueError(f"port and grpc_port are both {self.port}")
        return self

    @field_validator("runner")
    @classmethod
    def _runner_is_named_well(cls, value: str | None) -> str | None:
        if value is not None:
            split_function(value)
        return value
