"""A client of Cog's prediction API: one prediction, with what its answers mean."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from drivetrain.errors import ServingError

_CRASHED = ("DEFUNCT", "UNHEALTHY", "SETUP_FAILED")


def predict(
    url: str, inputs: Mapping[str, Any], prediction_id: str, timeout: float, log: Path | None = None
) -> Mapping[str, Any]:
    """Cog's answer (`id`, `status`, `output`, `metrics`, `logs`) to one prediction.

    A busy server (409: Cog has one slot and no queue, and frees the slot only after it has replied) is asked again until
    `timeout` seconds have passed. Raises `ServingError` if the runner raised or crashed, if it refused the inputs (the
    message names the fields), or if there was no answer in time.
    """
    hint = f"the server's log: {log}" if log else ""
    deadline = time.monotonic() + timeout
    wait = 0.002
    body = json.dumps({"input": inputs}, allow_nan=False).encode()
    path = f"/predictions/{quote(prediction_id, safe='')}"
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise ServingError(f"no free slot within {timeout:g} s", hint=hint, where=url)
        status, answer = _request(url, "PUT", path, body, left, hint)
        if status not in (409, 503):
            return _judge(status, answer, url, hint)
        _, said = _request(url, "GET", "/health-check", None, max(left, 1.0), hint)
        if said.get("status") in _CRASHED:
            raise ServingError(
                f"the server cannot predict any more: {said.get('status')}",
                hint="its worker has ended: deploy again; " + hint,
                where=url,
            )
        time.sleep(wait)
        wait = min(wait * 2, 0.1)


def _judge(status: int, answer: Mapping[str, Any], url: str, hint: str) -> Mapping[str, Any]:
    if status == 200 and answer.get("status") == "succeeded":
        return answer
    if status == 202:
        raise ServingError(
            "a prediction of that id is still running", hint="give every prediction an id of its own", where=url
        )
    if status == 422:
        raise ServingError(
            f"the inputs were refused: {_fields(answer)}", hint=f"{url}/openapi.json says what is wanted", where=url
        )
    reason = answer.get("error") or answer.get("detail") or answer.get("status") or f"HTTP status {status}"
    # Cog puts its own prefix before the runner's exception, twice.
    raise ServingError(f"the prediction failed: {str(reason).replace('Prediction failed: ', '')}", hint=hint, where=url)


def _fields(answer: Mapping[str, Any]) -> str:
    """ "carrier: Field required; distance: -1 is less than the minimum of 0" from pydantic's form of it."""
    detail = answer.get("detail")
    if not isinstance(detail, list):
        return str(detail or answer)
    return "; ".join(f"{'.'.join(str(part) for part in entry['loc'][2:])}: {entry['msg']}" for entry in detail)


def _request(
    url: str, method: str, path: str, body: bytes | None, timeout: float, hint: str
) -> tuple[int, dict[str, Any]]:
    place = urlsplit(url)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=timeout)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        text = response.read()
    except TimeoutError as error:
        raise ServingError(f"no answer within {timeout:.3g} s", hint=hint, where=url) from error
    except (OSError, http.client.HTTPException) as error:
        raise ServingError(f"it does not answer: {error or type(error).__name__}", hint=hint, where=url) from error
    finally:
        connection.close()
    try:
        answer = json.loads(text)
    except ValueError:
        answer = None
    return response.status, answer if isinstance(answer, dict) else {"error": text[:500].decode(errors="replace")}
