"""Cog's HTTP API: `{"input": {...}}` in, `{"id", "logs", "metrics", "output", "status"}` out.

As Cog's own server has it, a prediction that failed or was canceled is HTTP 200: `Answer.meta` carries its outcome. Differences:
what is no JSON, or has fields of wrong types around the input, is answered in the same form as bad inputs (there: a line of text);
`error` is the exception's own words, and the logs of a failed prediction are kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import uuid4

import msgspec

from drivetrain.backends.serving.replica.calls import Answer, Call, Decoded, Outcome, Refused, Signature
from drivetrain.backends.serving.replica.codecs import jsons
from drivetrain.backends.serving.replica.codecs.jsons import UNREADABLE
from drivetrain.backends.serving.replica.codecs.rules import Problem
from drivetrain.backends.serving.replica.codecs.validation import Inputs, Invalid, inputs_of

_ENVELOPE: Mapping[str, Any] = {
    "id": str | None,
    "context": dict[str, str],
    "webhook": str | None,
    "webhook_events_filter": list[Literal["start", "output", "logs", "completed"]],
}


_Read = tuple[str | None, dict[str, Any], Mapping[str, str] | None]
"""Id, inputs and context."""


class _Meta(msgspec.Struct):
    """What the front says about a call. With `created_at` the answer has times, with `input` the inputs."""

    id: str | None = None
    created_at: str | None = None
    input: bool = False


class _Body(msgspec.Struct, kw_only=True):
    """An answer, its fields in the order in which Cog's server writes them; those that it does not give are unset."""

    completed_at: str | msgspec.UnsetType = msgspec.UNSET
    created_at: str | msgspec.UnsetType = msgspec.UNSET
    error: str | msgspec.UnsetType = msgspec.UNSET
    id: str
    input: Any = msgspec.UNSET
    logs: str
    metrics: Mapping[str, Any]
    output: Any = msgspec.UNSET
    started_at: str | msgspec.UnsetType = msgspec.UNSET
    status: str


_NO_META = _Meta()
_read_meta = msgspec.json.Decoder(_Meta).decode
_OUTCOMES = {kind: msgspec.json.encode({"outcome": kind}) for kind in ("failed", "canceled")}


def refusal(problems: Sequence[tuple[Sequence[str], str, str]], status: int = 422) -> Refused:
    """The answer to a bad request: where in it, what, and which kind of problem."""
    detail = [{"loc": ["body", *place], "msg": message, "type": kind} for place, message, kind in problems]
    return Refused(Answer(status, msgspec.json.encode({"detail": detail})))


@dataclass(slots=True)
class CogCodec:
    """Cog's `/predictions`."""

    signature: Signature
    _inputs: Inputs = field(init=False)
    _decoder: msgspec.json.Decoder[Any] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._inputs = inputs_of(self.signature.schema)
        if self._inputs.kind is not None:
            fields: list[tuple[str, Any] | tuple[str, Any, Any]] = [("input", self._inputs.kind)]
            fields += [(name, kind, None) for name, kind in _ENVELOPE.items()]
            self._decoder = msgspec.json.Decoder(msgspec.defstruct("Request", fields))

    def decode(self, call: Call) -> Decoded:
        """The one item of the call. Raises `Refused` with 400 for what is no JSON, with 422 for wrong inputs."""
        meta = _read_meta(call.meta) if call.meta else _NO_META
        known, item, context = self._read(call.body)
        found = _Found(meta.id or known or uuid4().hex, meta, dict(item) if meta.input else None)
        return Decoded((item,), found.encode, context=context)

    def failed(self, call: Call, outcome: Outcome, status: int) -> Answer:
        """The same form as an answer's, with the HTTP status given."""
        meta = _read_meta(call.meta) if call.meta else _NO_META
        return _Found(meta.id or self._id(call.body) or uuid4().hex, meta, None).answer(outcome, status)

    def _read(self, body: bytes) -> _Read:
        if self._decoder is not None:
            try:
                request = self._decoder.decode(body)
            except UNREADABLE:
                pass  # the slow path says why, or finds that it is right after all
            else:
                return request.id, self._inputs.completed(request.input), request.context
        return self._read_slowly(body)

    def _read_slowly(self, body: bytes) -> _Read:
        try:
            request = msgspec.json.decode(body) if body.strip() else {}
        except UNREADABLE as error:
            message = f"Failed to parse the request body as JSON: {error}"
            raise refusal([((), message, "value_error.jsondecode")], 400) from error
        if not isinstance(request, dict):
            raise refusal([((), "the request body is not a JSON object", "type_error")])
        if problems := list(_envelope_problems(request)):
            raise refusal(problems)
        given = request.get("input")
        try:
            return request.get("id"), self._inputs.checked({} if given is None else given), request.get("context")
        except Invalid as error:
            raise refusal([_located(problem) for problem in error.problems]) from error

    def _id(self, body: bytes) -> str | None:
        try:
            return self._read_slowly(body)[0]
        except Refused:
            return None


def _envelope_problems(request: Mapping[str, Any]) -> list[tuple[Sequence[str], str, str]]:
    found: list[tuple[Sequence[str], str, str]] = []
    for name, kind in _ENVELOPE.items():
        if name in request:
            try:
                msgspec.convert(request[name], kind)
            except msgspec.ValidationError as error:
                found.append(((name,), str(error), "type_error"))
    return found


def _located(problem: Problem) -> tuple[Sequence[str], str, str]:
    return ("input", problem.field), problem.message, problem.kind


@dataclass(slots=True)
class _Found:
    """What an answer needs to know of its call."""

    id: str
    meta: _Meta
    input: Mapping[str, Any] | None

    def encode(self, outcomes: Sequence[Outcome]) -> Answer:
        return self.answer(outcomes[0], 200)

    def answer(self, outcome: Outcome, status: int) -> Answer:
        body = self._body(outcome)
        try:
            return Answer(status, jsons.encode(body), _OUTCOMES.get(outcome.kind, b""))
        except jsons.Unwritable as error:
            failed = Outcome("failed", None, str(error), outcome.logs, outcome.started, outcome.completed)
            return Answer(status, jsons.encode(self._body(failed)), _OUTCOMES["failed"])

    def _body(self, outcome: Outcome) -> _Body:
        took = outcome.completed - outcome.started if outcome.started else 0.0
        metrics = {**outcome.metrics, "predict_time": took}
        body = _Body(id=self.id, logs=outcome.logs, metrics=metrics, status=outcome.kind)
        if outcome.kind == "succeeded":
            body.output = outcome.output
        elif outcome.kind == "failed":
            body.error = outcome.error
        if self.input is not None:
            body.input = self.input
        if self.meta.created_at is not None:
            body.created_at = self.meta.created_at
            body.completed_at = _iso(outcome.completed)
            if outcome.started:
                body.started_at = _iso(outcome.started)
        return body


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()
