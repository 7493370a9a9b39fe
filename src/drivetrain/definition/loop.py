"""The parts of `drivetrain.yaml` about the loop: what is watched of the service, what starts something, and within which bounds."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BeforeValidator, Field, field_validator, model_validator

from drivetrain.definition.parts import Name
from drivetrain.definition.values import Duration, Part, Size, parse_duration

Signal = Literal[
    "drift",
    "quality",
    "data_quality",
    "latency",
    "errors",
    "traffic",
    "saturation",
    "staleness",
    "schedule",
    "new_data",
]
"""What can be measured; `docs/loop.md` says how each is."""


def _level(value: Any) -> Any:
    """A number; or a duration, which counts in seconds."""
    if isinstance(value, str) and re.search(r"[a-z]$", value.strip()):
        return parse_duration(value).total_seconds()
    return value


Level = Annotated[float, BeforeValidator(_level)]


class Capture(Part):
    """The log of what was asked and answered, as CloudEvents."""

    keep: Size = Field(1024**3, description="Most bytes on disk (`1Gi`); the oldest go first. 0: nothing is kept.")
    sync: Literal["never", "interval", "always"] = Field(
        "interval", description="When events are forced to disk: by the system, each second, or each by itself."
    )
    sink: str | None = Field(
        None, description="HTTP address that is sent each event too, as KServe's logger sends them."
    )


class Monitoring(Part):
    """What is watched while the model serves."""

    window: Duration = Field(default="1h", validate_default=True, description="Length of one window of live traffic.")
    late: Duration = Field(
        default="1m",
        validate_default=True,
        description="How long after its end a window is kept open for events that come late.",
    )
    sample: float = Field(1.0, gt=0, le=1, description="Share of the requests that is captured.")
    capture: Capture = Field(default_factory=Capture, description="Where the captured requests are kept.")
    drift: Literal["psi", "js", "ks"] = Field("psi", description="Distance between reference and live values.")
    features: list[str] = Field(default_factory=list, description="The inputs that are watched. None: all of them.")
    false_alarms: float = Field(
        0.05,
        gt=0,
        description="Drift alarms a day, over all features together, that may be false when nothing has changed.",
    )
    output: str | None = Field(
        None,
        pattern=r'^[^"\\\x00-\x1f]+$',
        description="Key of the answer that holds the prediction: the probability of the positive class, or the predicted value. "
        "None: `probability`, `score` or `prediction`, or the whole answer where it is a number.",
    )
    least_labels: int = Field(200, ge=2, description="Quality is told of windows with at least so many labels.")


class Bounds(Part):
    """Replicas, for the action `scale`."""

    min: int = Field(1, ge=0, description="Least replicas while the trigger fires.")
    max: int = Field(1, ge=1, description="Most replicas while the trigger fires.")


class Trigger(Part):
    """A condition on a signal, and what is done when it holds."""

    name: Name = Field(description="Name of the trigger; unique.")
    signal: Signal = Field(description="What is measured.")
    feature: str | None = Field(
        None,
        description="For `drift`: this input alone, or `prediction`, what the model answers. None: the largest of all.",
    )
    above: Level | None = Field(None, description="Fires when the signal is above this. A duration counts in seconds.")
    below: Level | None = Field(None, description="Fires when the signal is below this.")
    clear: Level | None = Field(
        None,
        description="Once it fires, it does so until the signal is back beyond this. None: the same as `above` or `below`.",
    )
    cron: str | None = Field(None, description="For `schedule`: five fields, in `timezone`.")
    timezone: str = Field("UTC", description="Zone of `cron`.")
    window: Duration = Field(
        default="5m", validate_default=True, description="For `latency`, `errors`, `traffic`: span of the rate."
    )
    hold: Duration = Field(default="0s", validate_default=True, description="The condition has to hold for so long.")
    action: Literal["retrain", "rollback", "scale", "notify"] = Field("retrain", description="What is done.")
    scale: Bounds | None = Field(None, description="For the action `scale`: the bounds while it fires.")
    cooldown: Duration = Field(default="1d", validate_default=True, description="Least time between two actions.")
    weekly_cap: int = Field(3, ge=1, description="At most so many actions in seven days.")
    approval: bool = Field(
        False, description="Whether somebody has to approve the action: `drivetrain watch --approve ID`."
    )

    @property
    def level(self) -> float:
        """The value that the signal is compared with; a schedule is due or not."""
        found = self.above if self.above is not None else self.below
        return 0.0 if found is None else found

    @field_validator("timezone")
    @classmethod
    def _zone_is_known(cls, value: str) -> str:
        return _zone(value)

    @field_validator("cron")
    @classmethod
    def _cron_is_readable(cls, value: str | None) -> str | None:
        return None if value is None else _cron(value)

    @model_validator(mode="after")
    def _says_when(self) -> Trigger:
        if self.signal == "schedule":
            if self.cron is None or self.above is not None or self.below is not None:
                raise ValueError("a schedule has `cron`, and neither `above` nor `below`")
        elif (self.above is None) == (self.below is None):
            raise ValueError(f"the signal {self.signal} needs either `above` or `below`")
        elif self.cron is not None:
            raise ValueError("`cron` belongs to the signal schedule")
        if self.clear is not None:
            beyond = self.clear <= self.level if self.above is not None else self.clear >= self.level
            if not beyond:
                raise ValueError("`clear` has to lie on the calm side of `above` or `below`")
        if self.feature is not None and self.signal != "drift":
            raise ValueError("`feature` belongs to the signal drift")
        if (self.action == "scale") != (self.scale is not None):
            raise ValueError("the action `scale` needs its bounds: scale: {min: 2, max: 8}")
        return self


class Maintenance(Part):
    """A span in which the loop only watches."""

    cron: str = Field(description="When it begins: five fields, in `timezone`.")
    timezone: str = Field("UTC", description="Zone of `cron`.")
    length: Duration = Field(description="How long it lasts.")

    @field_validator("timezone")
    @classmethod
    def _zone_is_known(cls, value: str) -> str:
        return _zone(value)

    @field_validator("cron")
    @classmethod
    def _cron_is_readable(cls, value: str) -> str:
        return _cron(value)


class Worth(Part):
    """The cost rule: retraining has to be worth it. All amounts in one currency."""

    per_prediction: float = Field(
        gt=0,
        description="What one prediction loses when the loss (1 - metric, or the metric where lower is better) rises by 1.",
    )
    training: float = Field(ge=0, description="What a training costs.")
    rollout: float = Field(0.0, ge=0, description="What a rollout costs.")


class Loop(Part):
    """The controller: `drivetrain watch`."""

    every: Duration = Field(default="30s", validate_default=True, description="Time between two looks.")
    host: str = Field(
        "127.0.0.1", description="Address of its own door: Alertmanager's webhook, KServe's events, metrics."
    )
    port: int = Field(0, ge=0, le=65535, description="Port of its own door; 0: a free one.")
    evaluator: Literal["embedded", "prometheus"] = Field(
        "embedded", description="Who evaluates the rules. `prometheus`: Alertmanager tells, by its webhook."
    )
    maintenance: list[Maintenance] = Field(default_factory=list, description="Spans in which it only watches.")
    worth: Worth | None = Field(
        None, description="The cost rule. None: every retraining that a trigger asks for is worth it."
    )
    notify: list[str] = Field(
        default_factory=list,
        description="Addresses that get each decision as JSON with a `text`, as Slack's webhooks want it.",
    )
    backoff: Duration = Field(
        default="1h", validate_default=True,
        description="Rest after a retraining that failed, was refused or gave a worse model; doubled each time, up to a week.",
    )  # fmt: skip


def _zone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError):
        raise ValueError(f"{value!r} is no time zone; they are named as Europe/Berlin or UTC") from None
    return value


def _cron(value: str) -> str:
    from croniter import croniter  # only where a schedule is read

    if len(value.split()) != 5 or not croniter.is_valid(value):
        raise ValueError(f"{value!r} is no cron expression: five fields, minute hour day month weekday")
    return value
