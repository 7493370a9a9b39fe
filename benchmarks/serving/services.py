"""Our gateway with its replicas, as a deployment brings it up."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.serving.entrants import own_variables
from benchmarks.serving.servers import Address, Running
from drivetrain.backends.serving.gateway.settings import Batching, Capturing, Scaling, Settings
from drivetrain.backends.serving.local import LocalServing


@contextmanager
def service(
    place: Path,
    bundles: Sequence[Path],
    inputs: Mapping[str, Any] | None,
    scaling: Scaling,
    files: Path,
    *,
    captured: bool = True,
) -> Iterator[Running]:
    """A service with a revision for each bundle, the traffic split evenly between them, whole capture to disk."""
    place.mkdir(parents=True, exist_ok=True)
    (place / "model.token").write_text("a-token")
    capturing = Capturing(directory=str(place / "capture") if captured else None)
    settings = Settings(
        name="model", home=str(place), host="127.0.0.1", port=0, token_file=str(place / "model.token"),
        scaling=scaling, capturing=capturing, batching=Batching(),
    )  # fmt: skip
    serving = LocalServing(place)
    os.environ.update(own_variables(files))
    try:
        for number, bundle in enumerate(bundles, 1):
            endpoint = serving.deploy(settings, f"model-{number}", bundle, "run.py:Runner", inputs, promote=number == 1)
        if len(bundles) > 1:
            share = 100 // len(bundles)
            serving.route("model", {f"model-{number}": share for number in range(1, len(bundles) + 1)})
        yield Running(Address(f"{endpoint.url}/predictions", json.dumps({"input": inputs}).encode()), endpoint.pid)
    finally:
        serving.stop("model")
