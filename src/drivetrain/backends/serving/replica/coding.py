"""The codecs of one runner, and the answers to calls that no runner ever saw."""

from __future__ import annotations

from collections.abc import Sequence

from drivetrain.backends.serving.replica.calls import Answer, Call, Codec, Decoded, Outcome, Refused, Signature, Wire
from drivetrain.backends.serving.replica.codecs import codec_for

NOT_RUN = b'{"not_run":true}'
"""`Answer.meta` of a call that certainly was not run, so that asking again is safe."""


class Codecs(dict[int, Codec]):
    """Codecs by wire, each made when it is first asked for."""

    def __init__(self, signature: Signature) -> None:
        super().__init__()
        self._signature = signature

    def __missing__(self, wire: int) -> Codec:
        codec = self[wire] = codec_for(Wire(wire), self._signature)
        return codec

    def decoded(self, call: Call) -> Decoded | Answer:
        """The call's inputs; or its answer, if they are refused."""
        try:
            return self[call.wire].decode(call)
        except Refused as refused:
            return refused.answer
        except Exception as error:  # noqa: BLE001 - one call that the codec chokes on must not end the worker
            return self.failed(call, f"its body could not be read: {type(error).__name__}: {error}")

    def answer(self, call: Call, decoded: Decoded, outcomes: Sequence[Outcome]) -> Answer:
        """The answer made of the outcomes."""
        try:
            return decoded.encode(outcomes)
        except Exception as error:  # noqa: BLE001 - one output that the codec chokes on must not end the worker
            return self.failed(call, f"its output could not be written: {type(error).__name__}")

    def late(self, call: Call) -> Answer:
        """504: the deadline passed before it had begun."""
        words = "its deadline passed before it could begin; it was not run"
        answer = self[call.wire].failed(call, Outcome("failed", error=words), 504)
        return _marked(answer)

    def canceled(self, call: Call) -> Answer:
        """It was canceled before it had begun. Cog answers such a prediction with 200; elsewhere it is 499, as proxies have it."""
        return self[call.wire].failed(call, Outcome("canceled"), 200 if call.wire is Wire.COG else 499)

    def failed(self, call: Call, words: str, status: int = 500) -> Answer:
        """It had begun, and will not have an outcome."""
        return self[call.wire].failed(call, Outcome("failed", error=words), status)

    def not_run(self, call: Call, words: str) -> Answer:
        """503: it was not run, and will not be here."""
        return _marked(self[call.wire].failed(call, Outcome("failed", error=words), 503))


def _marked(answer: Answer) -> Answer:
    if not answer.meta:
        answer.meta = NOT_RUN
    elif answer.meta.startswith(b"{") and b"not_run" not in answer.meta:
        answer.meta = NOT_RUN[:-1] + b"," + answer.meta[1:]
    return answer
