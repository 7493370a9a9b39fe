"""A client of the gateway on this machine: its administration, predictions and feedback, each with what the answers mean."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from drivetrain.errors import ServingError


class Control:
    """The gateway at `url`. `token` is its bearer token; `certificate` the file of its TLS certificate; `log` where it writes."""

    def __init__(self, url: str, token: str, certificate: str | None, log: Path) -> None:
        self._url = url
        self._token = token
        self._certificate = certificate
        self._log = log
        self._hint = f"the gateway's log: {log}"

    def status(self) -> Mapping[str, Any]:
        """The service with its revisions."""
        return self._administer("GET", "/-/status", None, 10.0)

    def add(self, revision: str, about: Mapping[str, Any], timeout: float) -> None:
        """Brings a revision up beside the others; `about` has `bundle`, `runner`, `example`."""
        self._administer("PUT", f"/-/revisions/{quote(revision, safe='')}", about, timeout)

    def remove(self, revision: str) -> None:
        """Ends a revision that gets no traffic."""
        self._administer("DELETE", f"/-/revisions/{quote(revision, safe='')}", None, 60.0)

    def route(self, traffic: Mapping[str, Any], timeout: float) -> Mapping[str, Any]:
        """Splits the traffic; `traffic` has `weights`, `shadow`, `sticky`."""
        return self._administer("PUT", "/-/traffic", traffic, timeout)

    def scale(self, least: int, most: int) -> Mapping[str, Any]:
        """Bounds each revision's replicas."""
        return self._administer("PUT", "/-/scale", {"min": least, "max": most}, 10.0)

    def feedback(self, prediction_id: str, label: Any) -> None:
        """Sends a label. Raises `ServingError` if it was not taken."""
        self._administer("POST", "/feedback", {"id": prediction_id, "label": label}, 10.0)

    def predict(self, inputs: Mapping[str, Any], prediction_id: str, timeout: float) -> Mapping[str, Any]:
        """Cog's answer with `revision` and `id`. Raises `ServingError` if the runner failed, refused the inputs (naming the fields),
        or did not answer in time."""
        body = json.dumps({"input": inputs}, allow_nan=False).encode()
        path = f"/predictions/{quote(prediction_id, safe='')}"
        status, headers, answer = self._request("PUT", path, body, timeout, predicts=True)
        if status == 200 and answer.get("status") == "succeeded":
            return {**answer, "id": prediction_id, "revision": headers.get("x-drivetrain-revision", "")}
        raise self._failed(status, answer, headers.get("x-drivetrain-revision", ""))

    def _failed(self, status: int, answer: Mapping[str, Any], revision: str) -> ServingError:
        if status == 422:
            return ServingError(
                f"the inputs were refused: {_fields(answer)}",
                hint=f"{self._url}/openapi.json says what is wanted",
                where=self._url,
            )
        reason = answer.get("error") or answer.get("detail") or answer.get("status") or f"HTTP status {status}"
        if status == 504:
            return ServingError(f"no answer in time: {reason}", hint=self._hint, where=self._url)
        # What the model itself prints, tracebacks too, is in the log of its revision.
        hint = (
            f"the revision's log: {self._log.with_name(f'{self._log.stem}-{revision}.log')}" if revision else self._hint
        )
        return ServingError(f"the prediction failed: {reason}", hint=hint, where=self._url)

    def _administer(
        self, method: str, path: str, document: Mapping[str, Any] | None, timeout: float
    ) -> Mapping[str, Any]:
        body = None if document is None else json.dumps(document, allow_nan=False).encode()
        status, _, answer = self._request(method, path, body, timeout)
        if status < 300:
            return answer
        log = f"\n{answer['log']}" if answer.get("log") else ""
        reason = answer.get("error") or answer.get("detail") or f"HTTP status {status}"
        raise ServingError(f"{reason}{log}", hint=str(answer.get("hint") or self._hint))

    def _request(
        self, method: str, path: str, body: bytes | None, timeout: float, *, predicts: bool = False
    ) -> tuple[int, Mapping[str, str], dict[str, Any]]:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self._token}"}
        if predicts:
            headers["X-Request-Timeout-Ms"] = str(int(timeout * 1000))
        connection = self._connection(timeout + 1.0)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            text = response.read()
        except TimeoutError as error:
            raise ServingError(f"no answer within {timeout:.3g} s", hint=self._hint, where=self._url) from error
        except (OSError, http.client.HTTPException) as error:
            raise ServingError(
                f"it does not answer: {error or type(error).__name__}", hint=self._hint, where=self._url
            ) from error
        finally:
            connection.close()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, _object(text)

    def _connection(self, timeout: float) -> http.client.HTTPConnection:
        place = urlsplit(self._url)
        if self._certificate is None:
            return http.client.HTTPConnection(place.hostname or "", place.port, timeout=timeout)
        context = ssl.create_default_context(cafile=self._certificate)
        context.check_hostname = False
        return http.client.HTTPSConnection(place.hostname or "", place.port, timeout=timeout, context=context)


def _object(text: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(text)
    except ValueError:
        answer = None
    return answer if isinstance(answer, dict) else {"error": text[:500].decode(errors="replace")}


def _fields(answer: Mapping[str, Any]) -> str:
    """ "carrier: Field required; distance: -1 is less than the minimum of 0" from pydantic's form of it."""
    detail = answer.get("detail")
    if not isinstance(detail, list):
        return str(detail or answer)
    return "; ".join(f"{'.'.join(str(part) for part in entry['loc'][2:])}: {entry['msg']}" for entry in detail)
