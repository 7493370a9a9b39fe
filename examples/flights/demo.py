"""The whole lifecycle once, and what came of it: `make demo`."""

from __future__ import annotations

import json
import subprocess
import sys
import time
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


def main() -> None:
    """Runs, predicts, walks the prediction back, and prints a table."""
    began = time.monotonic()
    run = drivetrain("run")
    took = time.monotonic() - began
    made = {stage["stage"]: stage["outputs"] for stage in run["stages"]}
    report = made["evaluate"]["report"]["metadata"]
    answer = drivetrain("predict", "--example")
    walk = drivetrain("lineage", answer["id"])
    snapshot = next(node for node in walk["nodes"] if node["kind"] == "snapshot")
    rows = [
        ("rows", f"{made['ingest']['snapshot']['metadata']['rows']:,} flights, "
         f"{made['features']['frame']['metadata']['features']} features joined point in time"),
        ("data checks", made["validate"]["verdict"]["reason"]),
        ("metric", f"{report['metric']} {report['value']:.4f}, 95 % interval {report['low']:.4f} to {report['high']:.4f}"),
        ("gate", made["evaluate"]["verdict"]["reason"]),
        ("model version", made["register"]["version"]["id"]),
        ("endpoint", f"{made['deploy']['revision']['detail']['url']}/predictions"),
        ("a prediction", f"{json.dumps(answer['output'])}  by {answer['revision']}"),
        ("its lineage", f"{len(walk['nodes'])} nodes, down to snapshot {snapshot['detail']['digest'][:12]}"),
        ("time", f"{took:.1f} s"),
    ]  # fmt: skip
    width = max(len(name) for name, _ in rows)
    print()
    for name, value in rows:
        print(f"  {name:<{width}}  {value}")
    print(f"""
  look further   cd {HERE} && . {sys.prefix}/bin/activate
                 drivetrain show --timings
                 drivetrain lineage {answer["id"]} -o lineage.html
                 drivetrain show --files evaluate -o report
                 drivetrain deploy --stop""")


if __name__ == "__main__":
    main()
