"""What front and worker say to each other, and what a protocol's codec has to do.

    front                                  worker
    Pool.submit(Call) --- frame --->  codec.decode -> Decoded.items -> runner -> Decoded.encode
    done(Answer)      <-- frame ----  Answer

A `Codec` is pure and runs in the worker: bytes in, checked inputs out; outcomes in, bytes out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Protocol

INPUTS = "DRIVETRAIN_INPUTS"
"""The variable of the worker's environment that names the directory for files that inputs name."""


class Wire(IntEnum):
    """How a call's body is written."""

    COG = 0
    V1 = 1
    V2 = 2
    GRPC = 3


@dataclass(slots=True)
class Call:
    """One request for predictions, as it came off the wire.

    `meta` is JSON for the codec, empty for none: `{"id": prediction id, "created_at": ISO time, "input": keep the input in the answer}`
    for COG; `{"header_length": n}` (the header `Inference-Header-Content-Length`) for V2 with binary tensors.
    `deadline` is in seconds of `time.monotonic()`: a call that has not begun by then is answered 504 and never run.
    """

    wire: Wire
    body: bytes
    meta: bytes = b""
    deadline: float | None = None


@dataclass(slots=True)
class Answer:
    """The whole answer: HTTP status, body, and JSON for the front (`{"header_length": n}`; `{"outcome": "failed"}` where the status
    does not say so: Cog answers a failed prediction with 200)."""

    status: int
    body: bytes
    meta: bytes = b""


@dataclass(slots=True)
class Progress:
    """Something that a running prediction gave before its end: `kind` is "start", "output" (JSON) or "log" (text)."""

    kind: str
    body: bytes


@dataclass(slots=True)
class Outcome:
    """What became of one item: `output` in JSON-ready values, or `error` (the exception's own words).

    `kind` is "succeeded", "failed", "canceled", or "refused" (`infer` does not take the tensors); times are in seconds since
    the epoch; `metrics` are what the runner recorded.
    """

    kind: str
    output: Any = None
    error: str = ""
    logs: str = ""
    started: float = 0.0
    completed: float = 0.0
    metrics: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Signature:
    """What the worker found in the runner: the model's name, Cog's OpenAPI document, and the optional methods it has.

    `array_input` names the runner's one required input if that is a list: V1 `instances` and V2 rows then go to it whole.
    `slots` is how many predictions may run at once: more than one for async runners with `@cog.concurrent` alone.
    """

    name: str
    schema: Mapping[str, Any]
    batches: bool = False
    """It has `batch(self, inputs: list[dict]) -> list`: the inputs of several requests, the outputs in the same order."""
    infers: bool = False
    """It has `infer(self, tensors: dict[str, ndarray]) -> dict[str, ndarray]`: V2 tensors whole, rows along the first axis. A
    `ValueError` that the runner's own module raises refuses the tensors; one of a library that it calls is a failure."""
    streams: bool = False
    is_async: bool = False
    slots: int = 1
    array_input: str | None = None


@dataclass(slots=True)
class Decoded:
    """A call's inputs, validated: keyword arguments of `run` for each item, in JSON values; or tensors for `infer`.

    `encode` makes the answer from the outcomes, as many as there are items (one, whose output is a dict of arrays, for tensors). It must
    not raise.
    """

    items: Sequence[Mapping[str, Any]]
    encode: Callable[[Sequence[Outcome]], Answer]
    tensors: Mapping[str, Any] | None = None
    context: Mapping[str, str] | None = None
    """What the caller tells the runner beside the inputs; Cog's `current_scope().context`."""


class Refused(Exception):
    """The inputs are not what the runner takes; `answer` says so in the protocol's own form (422 for Cog, 400 for V1 and V2)."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.body.decode(errors="replace"))
        self.answer = answer


class Codec(Protocol):
    """One protocol's way of writing inputs and outputs."""

    def decode(self, call: Call) -> Decoded:
        """The checked inputs. Raises `Refused`."""
        ...

    def failed(self, call: Call, outcome: Outcome, status: int) -> Answer:
        """The answer to a call that has no outcome of its own: not begun in time (504), canceled, the worker died (500)."""
        ...


@dataclass(frozen=True, slots=True)
class ReplicaSettings:
    """What a replica is started with. `bundle` is the working directory; `runner` is `run.py:Runner`; times in seconds.

    `queue` is how many calls may wait; one more is answered 503 with `Retry-After`. `batch_wait` is the longest that a call waits for
    company, and only under load.
    """

    name: str
    bundle: str
    runner: str
    queue: int = 256
    batch_max: int = 32
    batch_wait: float = 0.002
    setup_within: float = 300.0
    timeout: float = 60.0
    """A prediction that runs longer is ended with its worker, and answered 504."""
    max_slots: int | None = None
    """COG_MAX_CONCURRENCY."""
