"""Validate: a frame that holds goes on, one that does not is refused, and its wrong rows are kept."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from drivetrain.backends.checks import Checks
from drivetrain.backends.checks.result import table_rows
from drivetrain.backends.objects.directory import open_directory
from drivetrain.definition.definition import Definition
from drivetrain.errors import DefinitionError
from drivetrain.lifecycle import stage
from drivetrain.records import Artifact, ValidateOutputs
from drivetrain.stages import StageContext
from drivetrain.stages.validate import Inputs, run
from drivetrain.wiring import only


@cache
def checks() -> Checks:
    """The one answer. Imported late, since that takes seconds and every xdist worker collects every file."""
    from drivetrain.backends.checks.great_expectations import open_checks

    return open_checks()


SUITE = {
    "name": "weather",
    "expectations": [
        {"type": "expect_column_values_to_be_between", "kwargs": {"column": "temp", "min_value": -40, "max_value": 50}},
        {"type": "expect_column_values_to_not_be_null", "kwargs": {"column": "late"}},
        {"type": "expect_column_values_to_be_in_set", "kwargs": {"column": "carrier", "value_set": ["A", "B"]}},
        {"type": "expect_column_mean_to_be_between", "kwargs": {"column": "temp", "min_value": 0, "max_value": 30}},
        {"type": "expect_column_to_exist", "kwargs": {"column": "temp"}},
    ],
}


def good_frame(rows: int = 200) -> pd.DataFrame:
    random = np.random.default_rng(7)
    return pd.DataFrame(
        {
            "carrier": random.choice(["A", "B"], rows),
            "time": pd.date_range("2013-01-01", periods=rows, freq="h", tz="UTC"),
            "temp": random.normal(12, 5, rows).round(2),
            "late": random.integers(0, 2, rows).astype(float),
        }
    )


def bad_frame() -> pd.DataFrame:
    frame = good_frame()
    frame.loc[[3, 150], "temp"] = [-273.0, 99.0]
    frame.loc[[3, 40], "late"] = np.nan
    frame.loc[199, "carrier"] = "Z"
    return frame


class Project:
    """A project on disk with its objects, and the stage run in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.said: list[str] = []
        self.objects = open_directory(root / "objects")
        (root / "suite.json").write_text(json.dumps(SUITE))

    def store(self, frame: pd.DataFrame) -> Artifact:
        directory = self.root / "made"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        pq.write_table(pa.Table.from_pandas(frame).replace_schema_metadata(None), directory / "frame.parquet")
        return self.objects.put("frame", directory)

    def validate(self, frame: pd.DataFrame, suite: str | None = "suite.json", **part: Any) -> ValidateOutputs:
        values: dict[str, Any] = {
            "name": "flights",
            "data": {"source": "data.py:load", "label": "late"},
            "train": {"function": "train.py:train"},
            "evaluate": {"metric": "roc_auc"},
        }
        if suite:
            values["validate"] = {"suite": suite, **part}
        work = self.root / "work"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        context = StageContext(
            run_id="r1",
            project=self.root,
            state=self.root / ".drivetrain",
            work=work,
            objects=self.objects,
            definition=only(Definition.model_validate(values), stage("validate").parts),
            fingerprints={},
            say=self.said.append,
        )
        return run(context, Inputs(self.store(frame)), checks=checks())


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_a_good_frame_passes_and_leaves_a_result_and_a_page(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    outputs = project.validate(good_frame())
    assert (outputs.verdict.passed, outputs.verdict.exit_code) == (True, 0)
    assert outputs.verdict.reason == "5 expectations held for 200 rows"
    assert set(project.objects.files(outputs.result)) == {"result.json", "result.html"}
    assert outputs.result.kind == "validation"
    assert outputs.result.metadata == {"expectations": 5, "failed": 0, "rows": 200, "offending": 0}
    assert project.said == ["checking 200 rows with suite.json"]
    printed = capsys.readouterr().out
    assert printed.count("ok ") == 5
    assert "FAILED" not in printed
    page = project.objects.read(outputs.result, "result.html").decode()
    assert "flights: training frame" in page


def test_a_bad_frame_is_refused_with_the_failed_expectations_in_words(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    outputs = project.validate(bad_frame())
    assert (outputs.verdict.passed, outputs.verdict.exit_code) == (False, 4)
    assert outputs.verdict.reason == (
        "3 of 5 expectations failed: "
        "column `temp` between -40 and 50: 2 of 200 outside -40 to 50 (1 %), such as -273, 99; "
        "column `late` not null: 2 of 200 null (1 %); "
        "column `carrier` in {A, B}: 1 of 200 not in the set (0.5 %), such as Z"
    )
    assert outputs.result.metadata == {"expectations": 5, "failed": 3, "rows": 200, "offending": 4}
    assert capsys.readouterr().out.count("FAILED") == 3


def test_the_rows_that_are_kept_are_exactly_the_wrong_ones_with_their_reasons(project: Project, tmp_path: Path) -> None:
    frame = bad_frame()
    outputs = project.validate(frame)
    directory = project.objects.get(outputs.result, tmp_path / "got")
    kept = pd.read_parquet(directory / "offending.parquet")
    pd.testing.assert_frame_equal(
        kept.drop(columns="failed_expectations"), frame.iloc[[3, 40, 150, 199]].reset_index(drop=True)
    )
    assert list(kept["failed_expectations"]) == [
        "column `temp` between -40 and 50; column `late` not null",
        "column `late` not null",
        "column `temp` between -40 and 50",
        "column `carrier` in {A, B}",
    ]


def test_the_stored_result_gives_back_the_table_of_the_run(project: Project) -> None:
    outputs = project.validate(bad_frame())
    lines = table_rows(project.objects.read(outputs.result, "result.json"))
    assert [line.passed for line in lines] == [False, False, False, True, True]
    assert lines[0].unexpected == 2


def test_the_same_frame_gives_the_same_digest_whatever_ran_before(project: Project) -> None:
    first = project.validate(bad_frame())
    project.validate(good_frame())
    assert project.validate(bad_frame()) == first


def test_a_smaller_keep_rows_keeps_fewer_rows_of_each_expectation(project: Project) -> None:
    assert project.validate(bad_frame(), keep_rows=1).result.metadata["offending"] == 2
    none = project.validate(bad_frame(), keep_rows=0)
    assert not none.verdict.passed
    assert "offending.parquet" not in project.objects.files(none.result)


def test_a_missing_column_refuses_the_frame_and_says_so(project: Project) -> None:
    reason = project.validate(good_frame().drop(columns="temp")).verdict.reason
    assert reason.startswith("3 of 5 expectations failed: column `temp` between")
    assert "column `temp` does not exist" in reason


def test_many_failures_are_counted_after_the_first_three(project: Project) -> None:
    frame = bad_frame().assign(temp=500.0)
    assert project.validate(frame).verdict.reason.endswith("such as Z; and 1 more")


def test_an_empty_frame_is_refused_by_any_suite(project: Project) -> None:
    verdict = project.validate(good_frame().iloc[:0]).verdict
    assert not verdict.passed
    assert "row count at least 1: row count 0, wanted at least 1" in verdict.reason


def test_without_a_suite_rows_and_labels_are_wanted(project: Project) -> None:
    assert project.validate(good_frame(), suite=None).verdict.passed
    refused = project.validate(bad_frame(), suite=None)
    assert refused.verdict.reason == "1 of 3 expectations failed: column `late` not null: 2 of 200 null (1 %)"
    assert project.said[-1] == "checking 200 rows with the built-in suite"


def test_a_wrong_suite_stops_before_the_frame_is_read(project: Project) -> None:
    wrong = {"name": "x", "expectations": [{"type": "expect_column_to_exit", "kwargs": {"column": "temp"}}]}
    (project.root / "suite.json").write_text(json.dumps(wrong))
    with pytest.raises(DefinitionError) as caught:
        project.validate(good_frame())
    assert caught.value.problems[0].hint == "did you mean expect_column_to_exist?"
    assert project.said == []
