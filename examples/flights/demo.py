"""The whole lifecycle once, and what came of it: `make demo`."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
DRIVETRAIN = [sys.executable, "-c", "from drivetrain.cli.main import main; main()", "-C", str(HERE)]


def drivetrain(*arguments: str) -> Any:
    """What a command prints as JSON; its progress is shown as it comes. Ends the demo if the command fails."""
    found = subprocess.run([*DRIVETRAIN, *arguments, "--json"], stdout=subprocess.PIPE, text=True, check=False)
    if found.returncode != 0:
        sys.exit(found.returncode)
    return json.loads(found.stdout)


FLIGHT = {"carrier": "DL", "origin": "JFK", "dest": "LAX", "departs": "2013-03-31T17:30"}
"""The entity keys and the time of departure, all that a caller knows: the gateway adds the 26 features."""


def requests(url: str) -> Mapping[str, tuple[str, Mapping[str, Any]]]:
    """The same question in three protocols: address and body."""
    tensors = [{"name": name, "shape": [1], "datatype": "BYTES", "data": [value]} for name, value in FLIGHT.items()]
    return {
        "Cog": (f"{url}/predictions", {"input": FLIGHT}),
        "KServe V1": (f"{url}/v1/models/flights:predict", {"instances": [FLIGHT]}),
        "Open Inference (V2)": (f"{url}/v2/models/flights/infer", {"inputs": tensors}),
    }


def ask(url: str, body: Mapping[str, Any]) -> tuple[Any, Mapping[str, str]]:
    """The answer to one request, and its headers."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer), {name.lower(): value for name, value in answer.headers.items()}


def main() -> None:
    """Runs, predicts, walks the prediction back, and prints a table."""
    began = time.monotonic()
    run = drivetrain("run")
    took = time.monotonic() - began
    made = {stage["stage"]: stage["outputs"] for stage in run["stages"]}
    report = made["evaluate"]["report"]["metadata"]
    url = made["deploy"]["revision"]["detail"]["url"]
    answers = {protocol: ask(*request) for protocol, request in requests(url).items()}
    answer, headers = answers["Cog"]
    walk = drivetrain("lineage", headers["x-request-id"])
    snapshot = next(node for node in walk["nodes"] if node["kind"] == "snapshot")
    rows = [
        ("rows", f"{made['ingest']['snapshot']['metadata']['rows']:,} flights, "
         f"{made['features']['frame']['metadata']['features']} features joined point in time"),
        ("data checks", made["validate"]["verdict"]["reason"]),
        ("metric", f"{report['metric']} {report['value']:.4f}, 95 % interval {report['low']:.4f} to {report['high']:.4f}"),
        ("gate", made["evaluate"]["verdict"]["reason"]),
        ("model version", made["register"]["version"]["id"]),
        ("endpoint", f"{url}/predictions"),
        ("a prediction", f"{json.dumps(answer['output'])}  by {headers['x-drivetrain-revision']}"),
        ("its lineage", f"{len(walk['nodes'])} nodes, down to snapshot {snapshot['detail']['digest'][:12]}"),
        ("time", f"{took:.1f} s"),
    ]  # fmt: skip
    width = max(len(name) for name, _ in rows)
    print()
    for name, value in rows:
        print(f"  {name:<{width}}  {value}")
    print("\n  the same question in three protocols, each answered just now:\n")
    for protocol, (address, body) in requests(url).items():
        print(f"  # {protocol}: {json.dumps(answers[protocol][0])}")
        print(f"  curl -s {address} -H 'Content-Type: application/json' -d {shlex.quote(json.dumps(body))}\n")
    print(f"""  look further   cd {HERE} && . {sys.prefix}/bin/activate
                 drivetrain show --timings
                 drivetrain lineage {headers["x-request-id"]} -o lineage.html
                 drivetrain traffic
                 drivetrain show --files evaluate -o report
                 drivetrain deploy --stop""")


if __name__ == "__main__":
    main()
