"""The loop closed over five months, in a few minutes: `make demo`.

Trains on January to March, serves, and plays April to August to the service on a simulated clock: drift is seen, the model is
retrained, judged, rolled out and promoted, several times. Then a release that fails for a quarter of the flights is rolled out,
and taken back. All of it happens in a copy of this example, `.drivetrain/demo`; nothing is pretended but the time.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
COPY = HERE / ".drivetrain" / "demo"
PLOT = HERE / ".drivetrain" / "loop-flights.png"
DRIVETRAIN = [sys.executable, "-c", "from drivetrain.cli.main import main; main()", "-C", str(COPY)]

BEGIN, RELEASE, END = "2013-04-01", "2013-08-26", "2013-09-01"
PLAYED = ["--sample", "0.2", "--seed", "1", "--step", "12h"]
"""A fifth of the flights, 28,000 of them: enough to tell a week's ROC AUC to two points."""

RELEASED = """\
  - name: release             # for the demo: the changed runner is rolled out at once
    signal: schedule
    cron: "0 0 27 8 *"
    action: retrain
"""


def drivetrain(*arguments: str) -> Any:
    """What a command prints as JSON; its progress is shown as it comes. Ends the demo if the command fails."""
    found = subprocess.run([*DRIVETRAIN, *arguments, "--json"], stdout=subprocess.PIPE, text=True, check=False)
    if found.returncode != 0:
        sys.exit(found.returncode)
    return json.loads(found.stdout)


def begin_anew() -> None:
    """A fresh copy of the example. Of an earlier demo only the raw rows that it has read stay."""
    kept = COPY.with_name("demo-objects")
    if COPY.exists():
        subprocess.run([*DRIVETRAIN, "deploy", "--stop"], capture_output=True, check=False)
        objects = COPY / ".drivetrain" / "objects"
        if objects.exists():
            for name in ("champion", "cache"):
                shutil.rmtree(objects / "refs" / name, ignore_errors=True)
            shutil.rmtree(kept, ignore_errors=True)
            objects.rename(kept)
        shutil.rmtree(COPY)
    shutil.copytree(HERE, COPY, ignore=shutil.ignore_patterns(".drivetrain", "__pycache__"))
    if kept.exists():
        (COPY / ".drivetrain").mkdir()
        kept.rename(COPY / ".drivetrain" / "objects")


def release(broken: bool) -> None:
    """Has the copy name the runner that went wrong, and roll it out; or as it was."""
    text, cog = (HERE / "drivetrain.yaml").read_text(), (HERE / "cog.yaml").read_text()
    if broken:
        text = text.replace("runner: run.py:Runner", "runner: broken.py:Runner")
        text = text.replace("triggers:\n", f"triggers:\n{RELEASED}")
        cog = cog.replace("run.py:Runner", "broken.py:Runner")
    (COPY / "drivetrain.yaml").write_text(text)
    (COPY / "cog.yaml").write_text(cog)


# what came of it


def say(text: str = "") -> None:
    print(text, flush=True)


def heading(text: str) -> None:
    say(f"\n\x1b[1m{text}\x1b[0m" if sys.stdout.isatty() else f"\n{text}")


def timeline(decisions: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A line for each step of each decision, by the simulated clock; that a trigger was held back is said once."""
    held = set()
    for decision in decisions:
        if decision["state"] == "held":
            if decision["trigger"] in held:
                continue
            held.add(decision["trigger"])
        numbers = decision["numbers"]
        for number, step in enumerate(decision["steps"]):
            when = datetime.fromtimestamp(step["at"], UTC).strftime("%a %d %b %H:%M")
            name = decision["trigger"] if number == 0 else ""
            state = step["state"].replace("_", " ")
            yield f"  {when}  {name:<16} {state:<12} {step['reason']}"
        if decision["state"] == "rolled_back" and "failures_candidate" in numbers:
            ours, theirs = numbers["failures_candidate"], numbers["failures_champion"]
            yield f"{'':<37} {'':<12} failed: {ours:.1%} of the candidate's answers, {theirs:.1%} of the champion's"


def judged(decisions: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What the gate said of each retraining."""
    for decision in decisions:
        if decision["run"]:
            for attempt in drivetrain("show", decision["run"])["attempts"]:
                if attempt["stage"] == "evaluate" and attempt["outputs"]:
                    yield f"  {decision['run'][:8]}  {decision['trigger']:<10} {attempt['outputs']['verdict']['reason']}"


def triggers(played: Mapping[str, Any]) -> Iterator[str]:
    """Each trigger as the loop saw it last."""
    for one in played["triggers"]:
        yield f"  {one['trigger']:<19} {one['state']:<8} {one['why']}"


def months(played: Mapping[str, Any]) -> Iterator[str]:
    """The metric by month: of what was answered, and of the first model."""
    yield f"  {'month':<9} {'flights':>8}  {'the loop':>9}  {'never retrained':>16}  {'gain':>7}"
    for period in played["periods"]:
        ours, never = period["loop"]["value"], period["never"]["value"]
        yield f"  {period['period']:<9} {period['loop']['rows']:>8,}  {ours:>9.4f}  {never:>16.4f}  {ours - never:>+7.4f}"


# the service


FLIGHT = {"carrier": "DL", "origin": "JFK", "dest": "LAX", "departs": "2013-08-31T17:30"}
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
    """Plays it all, and prints what came of it."""
    began = time.monotonic()
    begin_anew()
    heading("1  January to March: from raw rows to an endpoint that answers")
    run = drivetrain("run")
    ready = time.monotonic() - began
    heading(f"2  April to August, a fifth of the flights, and the loop watches ({BEGIN} to {RELEASE})")
    played = drivetrain("replay", "--from", BEGIN, "--to", RELEASE, *PLAYED, "--plot", str(PLOT))
    heading(f"3  A release that fails for evening flights ({RELEASE} to {END})")
    release(broken=True)
    after = drivetrain("replay", "--from", RELEASE, "--to", END, *PLAYED)
    release(broken=False)
    took = time.monotonic() - began

    made = {stage["stage"]: stage["outputs"] for stage in run["stages"]}
    report, url = made["evaluate"]["report"]["metadata"], made["deploy"]["revision"]["detail"]["url"]
    heading("what happened, by the simulated clock")
    say(
        f"  Mon 01 Apr 00:00  {'':<16} {'promoted':<12} {made['deploy']['revision']['id']}, trained on "
        f"{made['features']['frame']['metadata']['rows']:,} flights of January to March"
    )
    for line in timeline([*played["decisions"], *after["decisions"]]):
        say(line)
    heading(f"each trigger at the last look before the release, {RELEASE}")
    for line in triggers(played):
        say(line)
    heading("what the gate said of each model, on flights that it was not trained on")
    say(f"  20130401  {'first':<10} {made['evaluate']['verdict']['reason']}")
    for line in judged([*played["decisions"], *after["decisions"]]):
        say(line)
    heading(f"{report['metric']} by month, on the same flights")
    for line in months(played):
        say(line)
    failed = played["failed"] + after["failed"]
    asked = played["asked"] + after["asked"]
    say(f"\n  {asked:,} predictions, {failed:,} failed; {played['labels'] + after['labels']:,} labels")
    say(f"  endpoint after {ready:.0f} s, all of it after {took:.0f} s; the plot: {PLOT}")

    answers = {protocol: ask(*request) for protocol, request in requests(url).items()}
    _, headers = answers["Cog"]
    heading(f"{headers['x-drivetrain-revision']} serves: the same question in three protocols, each answered just now")
    for protocol, (address, body) in requests(url).items():
        say(f"  # {protocol}: {json.dumps(answers[protocol][0])}")
        say(f"  curl -s {address} -H 'Content-Type: application/json' -d {shlex.quote(json.dumps(body))}\n")
    say(f"""  look further   cd {COPY} && . {sys.prefix}/bin/activate
                 drivetrain decisions
                 drivetrain report -o report.html
                 drivetrain lineage {headers["x-request-id"]} -o lineage.html
                 drivetrain traffic
                 drivetrain deploy --stop""")


if __name__ == "__main__":
    main()
