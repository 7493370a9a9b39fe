"""KServe's V1 protocol: `{"instances": [...]}` in, `{"predictions": [...]}` out.

An instance is an object of the runner's inputs, or the bare value where the runner has one required input. Where that one is a
list (`Signature.array_input`), the instances are that list as one call; if they do not fit it, each of them is one. As KServe
has it, `inputs` is another word for `instances`. A bad request is 400, a failed prediction 500, both `{"error": ...}`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from drivetrain.backends.serving.replica.calls import Answer, Call, Decoded, Outcome, Refused, Signature
from drivetrain.backends.serving.replica.codecs import jsons, rules
from drivetrain.backends.serving.replica.codecs.validation import Inputs, Invalid, inputs_of

_Read = tuple[Sequence[Mapping[str, Any]], bool]
"""Items, and whether they are one call for all instances."""


def error(status: int, message: str) -> Answer:
    """An error in the form that V1 and V2 share."""
    return Answer(status, msgspec.json.encode({"error": message}))


def first_failure(outcomes: Sequence[Outcome]) -> Answer | None:
    """The answer to a call of which not every item has succeeded: 500 with the first error, 400 for tensors refused."""
    for outcome in outcomes:
        if outcome.kind != "succeeded":
            status = 400 if outcome.kind == "refused" else 500
            return error(status, outcome.error or f"the prediction was {outcome.kind}")
    return None


@dataclass(slots=True)
class V1Codec:
    """`/v1/models/NAME:predict`."""

    signature: Signature
    _inputs: Inputs = field(init=False)
    _bare: str | None = field(init=False)
    """The input that a bare value is for."""
    _fast: Sequence[Callable[[bytes], _Read]] = field(init=False)

    def __post_init__(self) -> None:
        self._inputs = inputs_of(self.signature.schema)
        self._bare = self._inputs.required[0] if len(self._inputs.required) == 1 else None
        self._fast = tuple(self._fast_paths())

    def decode(self, call: Call) -> Decoded:
        """An item for each instance, or one for all of them. Raises `Refused` with 400."""
        for read in self._fast:
            try:
                items, whole = read(call.body)
            except jsons.UNREADABLE:
                continue
            break
        else:
            items, whole = self._read_slowly(call.body)
        if whole and not items[0][self.signature.array_input or ""]:
            return Decoded((), _encode)  # no instances, no predictions: most models cannot compute nothing
        return Decoded(items, _encode_whole if whole else _encode)

    def failed(self, call: Call, outcome: Outcome, status: int) -> Answer:
        """`{"error": ...}` with the status given."""
        return error(status, outcome.error or f"the prediction was {outcome.kind}")

    def _fast_paths(self) -> Iterator[Callable[[bytes], _Read]]:
        """Ways to decode and check in one pass; what all of them refuse is looked at again."""
        completed, name = self._inputs.completed, self._bare
        kind = None if name is None else rules.kind_of(self._inputs.properties[name])
        if self.signature.array_input is not None:
            if kind is not None:
                whole = _decoder(kind)
                yield lambda body: ((completed({name: whole(body).instances}),), True)  # type: ignore[dict-item]
        elif self._inputs.kind is not None:
            objects = _decoder(list[self._inputs.kind])  # type: ignore[name-defined]
            yield lambda body: ([completed(entry) for entry in objects(body).instances], False)
        if kind is not None and not self._takes_objects:
            bare = _decoder(list[kind])  # type: ignore[valid-type]
            yield lambda body: ([completed({name: entry}) for entry in bare(body).instances], False)  # type: ignore[dict-item]

    def _read_slowly(self, body: bytes) -> _Read:
        instances = _instances(body)
        if self.signature.array_input is None:
            return self._each(instances), False
        try:
            return (self._inputs.checked({self.signature.array_input: instances}),), True
        except Invalid as whole:
            try:
                return self._each(instances), False
            except Refused:
                raise Refused(error(400, str(whole))) from whole

    def _each(self, instances: Sequence[Any]) -> list[dict[str, Any]]:
        found, problems = [], []
        for at, instance in enumerate(instances):
            try:
                found.append(self._inputs.checked(self._as_inputs(instance)))
            except Invalid as refused:
                problems.append(f"instances[{at}]: {refused}")
        if problems:
            raise Refused(error(400, "; ".join(problems)))
        return found

    def _as_inputs(self, instance: Any) -> Any:
        if self._bare is None:
            return instance
        if isinstance(instance, dict) and (self._bare in instance or not self._takes_objects):
            return instance
        return {self._bare: instance}

    @property
    def _takes_objects(self) -> bool:
        """Whether a bare value is an object itself, and looks like an object of inputs."""
        return self._bare is not None and self._inputs.properties[self._bare].get("type") == "object"


def _decoder(kind: Any) -> Callable[[bytes], Any]:
    return msgspec.json.Decoder(msgspec.defstruct("Request", [("instances", kind)])).decode


def _instances(body: bytes) -> list[Any]:
    try:
        request = msgspec.json.decode(body)
    except jsons.UNREADABLE as unreadable:
        raise Refused(error(400, f"Unrecognized request format: {unreadable}")) from unreadable
    for name in ("instances", "inputs"):
        if isinstance(request, dict) and name in request:
            if not isinstance(request[name], list):
                raise Refused(error(400, f'Expected "{name}" to be a list'))
            found: list[Any] = request[name]
            return found
    raise Refused(error(400, 'Expected a JSON object with "instances", a list'))


def _encode(outcomes: Sequence[Outcome]) -> Answer:
    return first_failure(outcomes) or _predictions([outcome.output for outcome in outcomes])


def _encode_whole(outcomes: Sequence[Outcome]) -> Answer:
    output = outcomes[0].output
    return first_failure(outcomes) or _predictions(output if isinstance(output, list) else [output])


def _predictions(outputs: list[Any]) -> Answer:
    try:
        return Answer(200, jsons.encode({"predictions": outputs}))
    except jsons.Unwritable as unwritable:
        return error(500, str(unwritable))
