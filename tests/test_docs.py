"""The documentation is complete and current: every command, key, stage and need is in it, and every link leads somewhere."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import click
import jsonschema
import pytest
from ruamel.yaml import YAML

from drivetrain import lifecycle
from drivetrain.cli.main import cli
from drivetrain.definition.definition import Definition

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
EXAMPLE = ROOT / "examples" / "flights" / "drivetrain.yaml"


def build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_build", DOCS / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def headings(path: Path) -> list[str]:
    """The file's headings without marks of code, those within code blocks left out."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return [line.lstrip("#").strip().replace("`", "") for line in text.splitlines() if re.match(r"#+ ", line)]


def anchor(heading: str) -> str:
    """The heading's anchor as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def commands(group: click.Command, prefix: str = "") -> Iterator[str]:
    """Every command by its full name: `run`, `render kubeflow`."""
    if not isinstance(group, click.Group):
        yield prefix.strip()
        return
    if prefix:
        yield prefix.strip()
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield from commands(command, f"{prefix} {name}")


def test_generated_files_are_what_the_types_say_now() -> None:
    module = build()
    assert (DOCS / "definition.md").read_text(encoding="utf-8") == module.reference()
    assert (DOCS / "drivetrain.schema.json").read_text(encoding="utf-8") == module.schema()


def test_the_check_fails_on_a_stale_file_and_writes_nothing(tmp_path: Path) -> None:
    module = build()
    script = "import sys; sys.path[0] = sys.argv.pop(1); import build; from pathlib import Path; "
    script += "build.DOCS = Path(sys.argv.pop(1)); sys.exit(build.main())"

    def call(*options: str) -> int:
        command = [sys.executable, "-c", script, str(DOCS), str(tmp_path), *options]
        return subprocess.run(command, capture_output=True, check=False).returncode

    assert call("--check") == 1
    assert list(tmp_path.iterdir()) == []
    assert call() == 0
    assert call("--check") == 0
    (tmp_path / "definition.md").write_text(module.reference() + "\n")
    assert call("--check") == 1


def test_every_key_of_the_definition_has_a_row_and_every_part_a_heading() -> None:
    module = build()
    keys = list(module.keys())
    assert {"name", "data.window.start", "data.tables.NAME.source", "triggers[].cron", "validate.suite"} <= set(keys)
    rows = {line.split("`")[1] for line in (DOCS / "definition.md").read_text().splitlines() if line.startswith("| `")}
    assert set(keys) <= rows
    parts = {key.rpartition(".")[0] for key in keys} - {"", "data.tables"}
    assert parts <= set(headings(DOCS / "definition.md"))


def test_the_reference_names_the_stages_that_read_a_key() -> None:
    text = (DOCS / "definition.md").read_text(encoding="utf-8")
    assert re.search(r"^\| `features.repo` \| text \| \*\*required\*\* \| features \|", text, re.MULTILINE)
    assert re.search(r"^\| `train.timeout` \| duration \| `1h` \|  \|", text, re.MULTILINE)


def test_the_examples_on_top_are_definitions_and_pass_the_schema() -> None:
    schema = json.loads((DOCS / "drivetrain.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for text in (build().LEAST, EXAMPLE.read_text(encoding="utf-8")):
        tree = YAML(typ="safe").load(text)
        Definition.model_validate(tree)
        # Dates are a type of YAML that JSON does not have.
        assert list(validator.iter_errors(json.loads(json.dumps(tree, default=str)))) == []
    broken = {**YAML(typ="safe").load(build().LEAST), "trian": {}}
    assert [error.validator for error in validator.iter_errors(broken)] == ["additionalProperties"]


def test_every_command_has_a_heading() -> None:
    wanted = set(commands(cli))
    assert {"run", "doctor", "render kubeflow"} <= wanted
    found = {heading.removeprefix("drivetrain ") for heading in headings(DOCS / "cli.md")}
    assert sorted(wanted - found) == []


@pytest.mark.parametrize("stage", lifecycle.names())
def test_every_stage_has_a_page_that_begins_with_its_name(stage: str) -> None:
    assert headings(DOCS / "stages" / f"{stage}.md")[0] == stage


def test_no_page_is_left_of_a_stage_that_is_gone() -> None:
    assert {path.stem for path in (DOCS / "stages").glob("*.md")} == set(lifecycle.names())


def test_every_need_has_a_heading_in_the_architecture() -> None:
    backends = ROOT / "src" / "drivetrain" / "backends"
    needs = {path.parent.name for path in backends.glob("*/__init__.py")}
    assert {"checks", "runner"} <= needs
    first_words = {
        heading.split()[0].rstrip(":/").removeprefix("backends/") for heading in headings(DOCS / "architecture.md")
    }
    assert sorted(needs - first_words) == []


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: page.relative_to(DOCS).as_posix())
def test_every_link_within_the_documentation_leads_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, fragment = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        if not path.exists() or (fragment and fragment not in map(anchor, headings(path))):
            wrong.append(target)
    assert wrong == []
