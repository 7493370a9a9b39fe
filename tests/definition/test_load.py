"""The definition read: every mistake with file, line, key and a suggestion, all at once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivetrain.definition import check, load
from drivetrain.definition.serving import Canary
from drivetrain.definition.values import format_duration, parse_duration, parse_instant, parse_size
from drivetrain.errors import DefinitionError, Problem
from drivetrain.project import open_project

GOOD = """\
name: late
data:
  source: rows.csv
  timestamp: time
  label: late
  window: {start: 2013-01-01, end: 2013-04-01}
train:
  function: train.py:train
  parameters: {depth: 4}
evaluate:
  metric: roc_auc
  minimum: 0.6
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "drivetrain.yaml").write_text(GOOD)
    (tmp_path / "rows.csv").write_text("time,late\n")
    (tmp_path / "train.py").write_text("def train(features, label, depth): ...\ndef train_quickly(): ...\n")
    return tmp_path


def problems(project: Path, text: str, **parameters: str) -> list[Problem]:
    (project / "drivetrain.yaml").write_text(text)
    with pytest.raises(DefinitionError) as caught:
        check.check(project, load.read(project, parameters))
    return caught.value.problems


def test_a_right_definition_has_its_defaults(project: Path) -> None:
    source = load.read(project)
    check.check(project, source)
    definition = source.definition
    assert definition.data.window.end == datetime(2013, 4, 1, tzinfo=UTC)
    assert definition.train.timeout == timedelta(hours=1)
    assert definition.train.parameters == {"depth": 4}
    assert definition.target("local").objects == ".drivetrain/objects"


def test_all_mistakes_are_told_at_once_each_on_its_line(project: Path) -> None:
    text = (
        GOOD.replace("label: late", "lable: late")
        .replace("roc_auc", "roc_auk")
        .replace("depth: 4}", "depth: 4}\n  seed: many")
    )
    found = {problem.key: problem for problem in problems(project, text)}
    assert found["data.lable"].line == 5
    assert found["data.lable"].hint == "did you mean label?"
    assert found["data.label"].message == "is missing"
    assert found["data.label"].line == 2
    assert found["train.seed"].line == 10
    assert (
        found["train.seed"].message
        == "input should be a valid integer, unable to parse string as an integer, not 'many'"
    )
    assert found["evaluate.metric"].line == 12
    assert found["evaluate.metric"].hint == "did you mean roc_auc?"


def test_missing_files_and_functions_are_told_at_once_with_near_names(project: Path) -> None:
    text = (
        GOOD.replace("rows.csv", "row.csv").replace("train.py:train", "train.py:trian")
        + "serving: {runner: 'rum.py:Runner'}\n"
    )
    found = {problem.key: problem for problem in problems(project, text)}
    assert found["data.source"].hint == "did you mean rows.csv?"
    assert found["train.function"].message == "train.py has no trian"
    assert found["train.function"].hint == "did you mean train?"
    assert found["serving.runner"].message == "rum.py does not exist"


@pytest.mark.parametrize(
    ("cog", "serving", "message"),
    [
        ("run: 'predict.py:Predictor'", "", "cog.yaml runs predict.py:Predictor, and serving.runner is run.py:Runner"),
        ("predict: 'predict.py:P'", ", runner: 'train.py:train'", "cog.yaml runs predict.py:P, and serving.runner is train.py:train"),
        ("run: 'train.py:train'", ", runner: 'train.py:train'", ""),
        ("run: 'run.py:Runner'", "", ""),
        ("build: {}", "", ""),
    ],
)  # fmt: skip
def test_a_cog_yaml_that_starts_another_runner_is_told(project: Path, cog: str, serving: str, message: str) -> None:
    (project / "cog.yaml").write_text(cog)
    text = f"{GOOD}serving: {{cog: cog.yaml{serving}}}\n"
    if message:
        assert [(found.key, found.message) for found in problems(project, text)] == [("serving.cog", message)]
    else:
        (project / "drivetrain.yaml").write_text(text)
        check.check(project, load.read(project))


@pytest.mark.parametrize(("most", "mistaken"), [(299, True), (300, False)])
def test_a_rollouts_most_requests_leave_room_for_its_steps(project: Path, most: int, mistaken: bool) -> None:
    text = f"{GOOD}serving: {{canary: {{shadow: 1h, steps: [5, 25, 100], most_requests: {most}}}}}\n"
    if mistaken:
        (found,) = problems(project, text)
        assert "most_requests (299) is less than 3 steps of 100 answers take" in found.message
    else:
        (project / "drivetrain.yaml").write_text(text)
        check.check(project, load.read(project))


def test_only_a_candidate_that_gets_neither_copies_nor_a_share_is_promoted_at_once() -> None:
    assert Canary().at_once
    assert not Canary.model_validate({"shadow": "1h"}).at_once
    assert not Canary.model_validate({"steps": [5, 100]}).at_once


def test_a_missing_feature_service_is_found_without_importing_feast(project: Path) -> None:
    (project / "repo").mkdir()
    (project / "repo" / "defs.py").write_text(
        "import feast\ns = feast.FeatureService(name='flight_features', features=[])\n"
    )
    found = problems(project, GOOD + "features: {repo: repo, service: flight_feature}\n")
    assert [(p.key, p.line, p.hint) for p in found] == [("features.service", 13, "did you mean flight_features?")]


def test_a_computed_service_name_is_left_to_feast(project: Path) -> None:
    (project / "repo").mkdir()
    (project / "repo" / "defs.py").write_text(
        "from feast import FeatureService\ns = FeatureService(name=NAME, features=[])\n"
    )
    (project / "drivetrain.yaml").write_text(GOOD + "features: {repo: repo, service: anything}\n")
    check.check(project, load.read(project))


@pytest.mark.parametrize(
    ("text", "line"), [("name: [", 1), ("a: 1\n  b: 2\n", 2), ("name: x\nname: y\n", 2), ("- 1\n", 1), ("", 1)]
)
def test_what_is_no_yaml_mapping_is_told_with_its_line(project: Path, text: str, line: int) -> None:
    assert [p.line for p in problems(project, text)] == [line]


def test_a_file_in_another_encoding_is_named(project: Path) -> None:
    (project / "drivetrain.yaml").write_bytes(b"name: caf\xe9\n")
    with pytest.raises(DefinitionError) as caught:
        load.read(project)
    assert caught.value.problems[0].message == "not UTF-8 at byte 9"


def test_parameters_replace_keys_and_are_checked_too(project: Path) -> None:
    source = load.read(project, {"train.parameters.depth": "8", "data.window.end": "2013-02-01", "train.seed": "3"})
    assert source.definition.train.parameters["depth"] == 8
    assert source.definition.train.seed == 3
    with pytest.raises(DefinitionError, match="mistake"):
        load.read(project, {"train.sead": "3"})
    with pytest.raises(DefinitionError):
        load.read(project, {"name.x": "3"})


def test_a_mistake_in_a_parameter_of_the_command_line_is_not_laid_to_the_file(project: Path) -> None:
    for name, text in [
        ("a.b", "3"),
        ("evaluate.minimum", "abc"),
        ("train.parameters.depth", "[1"),
        ("train.parameters", "3"),
    ]:
        with pytest.raises(DefinitionError) as caught:
            load.read(project, {name: text})
        assert [(found.file, found.line) for found in caught.value.problems] == [("--param", 0)], name


def test_only_a_file_of_the_same_kind_is_suggested(project: Path) -> None:
    (project / "train.yaml").touch()
    found = problems(project, GOOD.replace("train.py:train", "trains.py:train"))
    assert found[0].hint == "did you mean train.py?"
    (project / "train.py").unlink()
    assert problems(project, GOOD.replace("train.py:train", "trains.py:train"))[0].hint == ""


def test_features_without_a_timestamp_are_refused(project: Path) -> None:
    found = problems(project, GOOD.replace("  timestamp: time\n", "") + "features: {repo: repo, service: s}\n")
    assert "data.timestamp is needed" in found[0].message


def test_a_function_that_is_no_function_name_is_refused(project: Path) -> None:
    found = problems(project, GOOD.replace("train.py:train", "train"))
    assert found[0].message == "a function is named FILE.py:FUNCTION, such as train.py:train"
    assert found[0].line == 8


@given(st.integers(min_value=0, max_value=10**11))
def test_durations_read_back_what_they_wrote(milliseconds: int) -> None:
    value = timedelta(milliseconds=milliseconds)
    assert parse_duration(format_duration(value)) == value


@given(st.text(max_size=8))
def test_durations_and_sizes_refuse_or_read_any_text_and_never_break(text: str) -> None:
    for parse in (parse_duration, parse_size, parse_instant):
        try:
            parse(text)
        except ValueError:
            continue


@pytest.mark.parametrize(
    ("text", "size"), [("1500000", 1500000), ("2Gi", 2 * 2**30), ("512MiB", 512 * 2**20), ("1.5G", 1.5e9)]
)
def test_sizes_in_both_unit_systems(text: str, size: float) -> None:
    assert parse_size(text) == size


def test_times_without_a_zone_are_utc_and_others_are_converted() -> None:
    assert parse_instant("2013-04-01") == datetime(2013, 4, 1, tzinfo=UTC)
    assert parse_instant("2013-04-01T02:00:00+02:00") == datetime(2013, 4, 1, tzinfo=UTC)


def test_a_definition_read_before_is_not_parsed_again_until_its_text_or_its_parameters_change(project: Path) -> None:
    memory = project / "memory.json"
    first = load.read(project, memory=memory)
    assert "tree" not in vars(load.read(project, memory=memory))
    assert load.read(project, memory=memory).definition == first.definition
    assert load.read(project, {"train.seed": "3"}, memory=memory).definition.train.seed == 3
    (project / "drivetrain.yaml").write_text(GOOD.replace("0.6", "0.7"))
    assert load.read(project, memory=memory).definition.evaluate.minimum == 0.7
    memory.write_text("damaged")
    assert load.read(project, memory=memory).definition.evaluate.minimum == 0.7
    (project / "rows.csv").unlink()
    with pytest.raises(DefinitionError) as caught:
        check.check(project, load.read(project, memory=memory))
    assert caught.value.problems[0].line == 3


def test_what_was_found_before_is_looked_for_again_when_a_file_changes(project: Path) -> None:
    memory = project / "checked"
    check.check(project, load.read(project), memory=memory)
    before = memory.read_text()
    (project / "train.py").write_text("def other(): ...\n")
    with pytest.raises(DefinitionError) as caught:
        check.check(project, load.read(project), memory=memory)
    assert caught.value.problems[0].message == "train.py has no train"
    (project / "train.py").unlink()
    with pytest.raises(DefinitionError):
        check.check(project, load.read(project), memory=memory)
    assert memory.read_text() == before


@pytest.mark.parametrize("name", ["{0}/rows.csv", "{0}/r*.csv", "../{1}/rows.csv", "../{1}/r*.csv", "r*.csv"])
def test_data_may_lie_anywhere_and_are_named_by_glob(project: Path, name: str) -> None:
    wanted = name.format(project, project.name)
    (project / "drivetrain.yaml").write_text(GOOD.replace("rows.csv", wanted))
    check.check(project, load.read(project))
    assert list(open_project(project).source_digests()) == ["rows.csv"]
