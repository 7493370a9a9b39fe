"""What can go wrong in a whole run: each time one clear message, and nothing that was finished is lost."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Command = Callable[..., subprocess.CompletedProcess[str]]
Maker = Callable[[str], Path]
SECRET = "correct-horse-battery"


def change(project: Path, file: str, before: str, after: str) -> None:
    text = (project / file).read_text()
    assert before in text
    (project / file).write_text(text.replace(before, after))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise KeyError('no such column')", "KeyError"),
        ("return None", "returned nothing"),
        ("import time; time.sleep(600)", "took longer than 15 s and was ended"),
        ("return [bytearray(2**24) for n in range(10**6)]", "MiB of memory, over its limit of 1,500 MiB"),
    ],
    ids=["raises", "returns-nothing", "hangs", "eats-memory"],
)
def test_a_training_function_that_misbehaves(drivetrain: Command, make_wine: Maker, body: str, message: str) -> None:
    project = make_wine("bad")
    limit = "15s" if "sleep" in body else "5m"
    change(project, "drivetrain.yaml", "timeout: 2m", f"timeout: {limit}\n  resources: {{memory: 1500Mi}}")
    (project / "train.py").write_text(f"def train(features, label, C=1.0):\n    {body}\n")
    found = drivetrain("run", "--json", directory=project)
    assert found.returncode == 1
    assert "Traceback" not in found.stderr
    stages = {entry["stage"]: entry for entry in json.loads(found.stdout)["stages"]}
    assert message in stages["train"]["message"]
    assert [stages[name]["state"] for name in ("ingest", "features", "validate")] == ["done"] * 3


@pytest.mark.slow
def test_a_run_that_failed_goes_on_when_its_cause_is_mended(drivetrain: Command, make_wine: Maker) -> None:
    project = make_wine("mended")
    good = (project / "train.py").read_text()
    (project / "train.py").write_text("import nowhere\n" + good)
    assert drivetrain("run", directory=project).returncode == 1
    (project / "train.py").write_text(good)
    mended = json.loads(drivetrain("run", "--json", "--resume", directory=project).stdout)
    assert [entry["state"] for entry in mended["stages"]] == ["cached"] * 3 + ["done"] * 5


def test_secrets_appear_in_no_log_journal_artifact_or_error(drivetrain: Command, make_wine: Maker) -> None:
    project = make_wine("secret")
    (project / "train.py").write_text(
        "import os\ndef train(features, label, C=1.0):\n    word = os.environ['DB_PASSWORD']\n    print(word)\n    raise ValueError(word)\n"
    )
    found = drivetrain("run", directory=project, env={"DB_PASSWORD": SECRET})
    assert found.returncode == 1
    assert "ValueError: ***" in found.stderr
    printed = drivetrain("logs", directory=project).stdout + drivetrain("show", directory=project).stdout
    assert SECRET not in found.stdout + found.stderr + printed
    for path in (project / ".drivetrain").rglob("*"):
        if path.is_file():
            assert SECRET.encode() not in path.read_bytes(), path


def test_an_object_store_that_does_not_answer(drivetrain: Command, make_wine: Maker) -> None:
    project = make_wine("far")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        target = f"targets: {{local: {{objects: 's3://bucket/here', s3_endpoint: 'http://127.0.0.1:{taken.getsockname()[1]}'}}}}\n"
        (project / "drivetrain.yaml").write_text((project / "drivetrain.yaml").read_text() + target)
        found = drivetrain(
            "run",
            directory=project,
            env={"AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "us-east-1"},
        )
    assert found.returncode == 1
    assert "s3://bucket/here" in found.stderr
    assert "the S3 server does not answer" in found.stderr
    assert "hint: " in found.stderr
    assert "Traceback" not in found.stderr
    assert SECRET not in found.stderr


@pytest.mark.slow
def test_a_damaged_artifact_is_named_and_made_again(drivetrain: Command, make_wine: Maker) -> None:
    project = make_wine("damaged")
    first = json.loads(drivetrain("run", "--json", "--until", "features", directory=project).stdout)
    frame = first["stages"][1]["outputs"]["frame"]
    biggest = max(
        (project / ".drivetrain" / "objects" / "blobs").rglob("*"),
        key=lambda path: path.stat().st_size * path.is_file(),
    )
    biggest.chmod(0o644)
    content = bytearray(biggest.read_bytes())
    content[len(content) // 2] ^= 0xFF
    biggest.write_bytes(content)
    found = drivetrain("run", "--json", "--until", "train", directory=project)
    assert found.returncode == 0, found.stderr
    second = json.loads(found.stdout)
    assert second["stages"][1]["outputs"]["frame"]["digest"] == frame["digest"]
    events = json.loads(drivetrain("show", "--json", directory=project).stdout)["events"]
    assert any("made again" in event["text"] for event in events), events


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("label: target", "label: tarket", "target"),
        ("label: target", "label: target\n  timestamp: hue", "hue"),
        ("source: wine.csv", "source: empty.csv", "empty.csv"),
        ("source: wine.csv", "source: latin.csv", "latin.csv"),
        ("source: wine.csv", "source: unlabelled.csv", "target"),
    ],
    ids=["missing-label", "no-times", "no-rows", "latin-1", "no-labels"],
)
def test_data_that_are_not_what_the_definition_says(
    drivetrain: Command, make_wine: Maker, before: str, after: str, message: str
) -> None:
    project = make_wine("data")
    lines = (project / "wine.csv").read_text().splitlines()
    (project / "empty.csv").write_text(lines[0] + "\n")
    (project / "latin.csv").write_bytes("alcohol,target\ncaf\xe9,1\n".encode("latin-1"))
    (project / "unlabelled.csv").write_text(
        "\n".join([lines[0]] + [line.rpartition(",")[0] + "," for line in lines[1:]]) + "\n"
    )
    change(project, "drivetrain.yaml", before, after)
    found = drivetrain("run", directory=project)
    assert found.returncode == 1
    assert message in found.stderr
    assert "Traceback" not in found.stderr
