"""Requests that the service is known to answer: the inputs with which the champion was tried out, also as curl commands."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from drivetrain import deployment, wiring
from drivetrain.backends.serving import Endpoint
from drivetrain.errors import UsageError
from drivetrain.project import Project

_DATATYPES: Mapping[type, str] = {bool: "BOOL", int: "INT64", float: "FP64", str: "BYTES"}


def of_champion(opened: Project) -> Mapping[str, Any]:
    """The inputs with which the deployed revision was tried out. Raises `UsageError` if there are none."""
    bundle, store = deployment.leading(opened).outputs.bundle, wiring.project_objects(opened)
    if "example.json" not in store.files(bundle):
        raise UsageError("no example is stored with the model", hint="give NAME=VALUE or --file")
    found: Mapping[str, Any] = json.loads(store.read(bundle, "example.json"))
    return found


def curl(opened: Project, endpoint: Endpoint, *, behind_gateway: bool = True) -> Iterator[str]:
    """Commands that ask the same of the service in Cog's API, KServe's V1 and the Open Inference Protocol; none where no example is
    stored. TLS and tokens are the gateway's."""
    try:
        inputs = of_champion(opened)
    except UsageError:
        return
    rows = inputs.get("rows")
    if (
        isinstance(rows, list) and rows
    ):  # one is enough to read; a tensor has no null, and so a row without any is better
        instance = next((row for row in rows if None not in row.values()), rows[0])
        inputs = {"rows": [instance]}
    else:
        instance = inputs
    bodies = {
        "Cog": ("/predictions", {"input": inputs}),
        "KServe V1": (f"/v1/models/{endpoint.name}:predict", {"instances": [instance]}),
        "Open Inference": (f"/v2/models/{endpoint.name}/infer", {"inputs": _tensors([instance])}),
    }
    options = "".join(f" {option}" for option in _options(opened, endpoint)) if behind_gateway else ""
    for protocol, (path, body) in bodies.items():
        yield f"# {protocol}"
        yield (
            f"curl -s{options} {endpoint.url}{path} -H 'Content-Type: application/json' -d {shlex.quote(json.dumps(body))}"
        )


def _options(opened: Project, endpoint: Endpoint) -> Iterator[str]:
    """What curl needs for HTTPS and for predictions that need the token, which is read from its file and not printed."""
    part = opened.definition.serving
    if part.tls is not None:
        yield f"--cacert {shlex.quote(str(opened.root / part.tls.certificate))}"
    if part.auth.predictions:
        token = opened.state.absolute() / "serving" / f"{endpoint.name}.token"
        yield f'-H "Authorization: Bearer $(cat {shlex.quote(str(token))})"'


def _tensors(rows: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Each input as a tensor with a row for each instance; what is null or no plain value in any of them is left out."""
    found = []
    for name in rows[0]:
        values = [row.get(name) for row in rows]
        if any(value is None for value in values):
            continue
        shape, flat = [len(values)], values
        while flat and isinstance(flat[0], list):
            shape.append(len(flat[0]))
            flat = [entry for value in flat if isinstance(value, list) for entry in value]
        kinds = {type(value) for value in flat}
        datatype = _DATATYPES.get(float if kinds == {int, float} else kinds.pop()) if kinds else None
        if datatype is not None:
            found.append({"name": name, "shape": shape, "datatype": datatype, "data": flat})
    return found
