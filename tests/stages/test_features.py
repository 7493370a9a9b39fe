"""Features: a snapshot becomes a training frame whose columns are explained, and the newest values go online."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from drivetrain.backends.features import FeatureStore, FeatureStoreSettings
from drivetrain.backends.objects.directory import open_directory
from drivetrain.definition.definition import Definition
from drivetrain.errors import DataError, DefinitionError, Unavailable
from drivetrain.lifecycle import stage
from drivetrain.records import Artifact, FeaturesOutputs
from drivetrain.stages import StageContext
from drivetrain.stages.features import Inputs, run
from drivetrain.wiring import only

START = pd.Timestamp("2013-01-01", tz="UTC")
REPO = """
from datetime import timedelta
from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import Float64, Int64

origin = Entity(name="origin", join_keys=["origin"], value_type=ValueType.STRING)
weather = FeatureView(
    name="weather", entities=[origin], ttl=timedelta(days=2),
    schema=[Field(name="wind", dtype=Float64), Field(name="gusts", dtype=Int64)],
    source=FileSource(path="data/weather.parquet", timestamp_field="known"),
)
late = FeatureService(name="late", features=[weather[["wind", "gusts"]]])
"""


@cache
def feast() -> Any:
    """The one answer. Imported late, since that takes seconds."""
    from drivetrain.backends.features.feast import open_store

    return open_store


def opened(settings: FeatureStoreSettings) -> FeatureStore:
    store: FeatureStore = feast()(settings)
    return store


def untouched(settings: FeatureStoreSettings) -> FeatureStore:
    raise AssertionError("no feature store is needed here")


def flights(days: int = 6) -> pd.DataFrame:
    """Four flights at each of two moments a day: equal times and equal entities, ordered by time."""
    count = days * 8
    times = START + pd.to_timedelta(np.repeat(np.arange(days * 2) * 12, 4), unit="h")
    return pd.DataFrame(
        {
            "flight": np.arange(count),
            "asked": times,
            "origin": ["EWR", "JFK", "EWR", "BOS"] * (count // 4),
            "distance": pd.array([None if n % 5 == 0 else n for n in range(count)], dtype="Int64"),
            "late": pd.array([None if n % 7 == 0 else n % 2 for n in range(count)], dtype="Int64"),
        }
    )


def weather(days: int = 6) -> pd.DataFrame:
    known = START + pd.to_timedelta(np.arange(days * 2) * 12 + 6, unit="h")
    one = pd.DataFrame({"known": known, "wind": np.arange(days * 2) + 0.5, "gusts": np.arange(days * 2)})
    return pd.concat([one.assign(origin=name, wind=one["wind"] * (n + 1)) for n, name in enumerate(["EWR", "JFK"])])


def write_partitions(frame: pd.DataFrame, time: str, directory: Path, unit: str = "us") -> None:
    directory.mkdir(parents=True)
    for day, part in frame.groupby(frame[time].dt.strftime("%Y-%m-%d")):
        table = pa.Table.from_pandas(part, preserve_index=False).replace_schema_metadata(None)
        place = table.column_names.index(time)
        table = table.set_column(place, time, table[time].cast(pa.timestamp(unit, tz="UTC")))
        pq.write_table(table, directory / f"{day}.parquet")


class Project:
    """A project in `home` with one snapshot, and the stage run in it."""

    def __init__(self, home: Path, **changes: Any) -> None:
        self.home, self.project = home, home / "project"
        (self.project / "features").mkdir(parents=True)
        (self.project / "features" / "definitions.py").write_text(REPO)
        self.objects = open_directory(home / "objects")
        data = {"source": "data.py:load", "timestamp": "asked", "key": ["flight"], "label": "late",
                "tables": {"weather": {"source": "data.py:weather", "timestamp": "known"}}}  # fmt: skip
        document: dict[str, Any] = {
            "name": "late-flights",
            "data": data | changes.pop("data", {}),
            "features": {"repo": "features", "service": "late"},
            "train": {"function": "train.py:train"},
            "evaluate": {"metric": "roc_auc"},
        } | changes
        self.definition = only(Definition.model_validate(document), stage("features").parts)
        self.said: list[str] = []

    def snapshot(self, rows: pd.DataFrame, unit: str = "us", **tables: pd.DataFrame) -> Artifact:
        tree = self.home / "tree"
        write_partitions(rows, "asked", tree / "rows", unit)
        for name, table in tables.items():
            write_partitions(table, "known", tree / "tables" / name, unit)
        (tree / "snapshot.json").write_text("{}")
        artifact = self.objects.put("snapshot", tree)
        shutil.rmtree(tree)
        return artifact

    def run(self, snapshot: Artifact, features: Any = opened) -> FeaturesOutputs:
        work = self.home / "work"
        work.mkdir()
        context = StageContext(
            "run", self.project, self.home / "state", work, self.objects, self.definition, {}, self.said.append
        )
        try:
            return run(context, Inputs(snapshot), features=features)
        finally:
            shutil.rmtree(work)

    def frame(self, outputs: FeaturesOutputs) -> pa.Table:
        return pq.read_table(pa.BufferReader(self.objects.read(outputs.frame, "frame.parquet")))

    def json(self, artifact: Artifact, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.objects.read(artifact, name))
        return found


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_every_labelled_row_comes_with_what_was_known_at_its_time(project: Project) -> None:
    rows, history = flights(), weather()
    outputs = project.run(project.snapshot(rows, weather=history))
    frame = project.frame(outputs).to_pandas()
    kept = rows[rows["late"].notna()]
    assert frame["flight"].tolist() == kept["flight"].tolist()
    expected = pd.merge_asof(
        kept.sort_values("asked", kind="stable"), history.sort_values("known"),
        left_on="asked", right_on="known", by="origin", tolerance=pd.Timedelta(days=2),
    )  # fmt: skip
    np.testing.assert_array_equal(frame["wind"], expected["wind"])
    np.testing.assert_array_equal(frame["gusts"], expected["gusts"].astype(float))
    assert (
        frame["wind"].isna().sum()
        == (kept["origin"] == "BOS").sum()
        + (kept["asked"] == START).sum()
        - ((kept["asked"] == START) & (kept["origin"] == "BOS")).sum()
    )
    assert dict(outputs.frame.metadata) == {
        "rows": len(kept), "dropped_unlabelled": len(rows) - len(kept), "features": 2,
        "label_rate": round(kept["late"].mean(), 6),
    }  # fmt: skip


def test_the_frame_says_which_column_is_what(project: Project) -> None:
    outputs = project.run(project.snapshot(flights(), weather=weather()))
    assert project.json(outputs.frame, "frame.json") == {
        "label": "late",
        "timestamp": "asked",
        "keys": ["flight"],
        "features": ["wind", "gusts"],
        "types": {"wind": "double", "gusts": "double"},
        "others": ["origin", "distance"],
    }
    schema = project.frame(outputs).schema
    assert schema.names == ["flight", "asked", "origin", "distance", "late", "wind", "gusts"]
    assert schema.field("distance").type == pa.int64()  # nulls do not make floats of a row's own columns
    assert schema.field("asked").type == pa.timestamp("us", tz="UTC")


def test_rows_out_of_order_are_sorted_by_time_and_ties_keep_their_order(project: Project) -> None:
    rows = flights().assign(late=1)
    shuffled = rows.sample(frac=1, random_state=3)
    frame = project.frame(project.run(project.snapshot(shuffled, weather=weather()))).to_pandas()
    days = shuffled.assign(day=shuffled["asked"].dt.floor("D")).sort_values("day", kind="stable")
    assert frame["flight"].tolist() == days.sort_values("asked", kind="stable")["flight"].tolist()


def test_labels_not_yet_known_at_the_windows_end_are_left_out_and_counted(tmp_path: Path) -> None:
    end = START + pd.Timedelta(days=6)
    project = Project(tmp_path, data={"label_delay": "1d12h", "window": {"end": end.isoformat()}})
    rows = flights().assign(late=1)
    outputs = project.run(project.snapshot(rows, weather=weather()))
    known = rows[rows["asked"] + pd.Timedelta("1d12h") <= end]
    assert 0 < len(known) < len(rows)
    assert project.frame(outputs)["flight"].to_pylist() == known["flight"].tolist()
    assert outputs.frame.metadata["dropped_unlabelled"] == len(rows) - len(known)
    assert outputs.online.detail == {"views": 1, "as_of": "2013-01-07T00:00:00+00:00"}


def test_without_a_windows_end_values_go_online_as_of_the_last_time_in_the_snapshot(project: Project) -> None:
    outputs = project.run(project.snapshot(flights(), weather=weather()))
    assert (outputs.online.kind, outputs.online.id) == ("online_store", "sqlite")
    assert outputs.online.detail == {"views": 1, "as_of": weather()["known"].max().isoformat()}
    home = project.home / "state" / "feast"
    online = {"type": "sqlite", "path": str(home / "online.db")}
    store = opened(FeatureStoreSettings("late-flights", project.project, "late", home / "registry.db", online))
    assert store.online([{"origin": "JFK"}]) == [{"wind": 23.0, "gusts": 11}]


def test_without_features_the_rows_own_columns_are_the_features(tmp_path: Path) -> None:
    project = Project(tmp_path, features=None)
    outputs = project.run(project.snapshot(flights()), untouched)
    described = project.json(outputs.frame, "frame.json")
    assert (described["features"], described["others"]) == (["origin", "distance"], [])
    assert described["types"] == {"origin": "string", "distance": "int64"}
    assert project.json(outputs.definitions, "features.json") == {
        "source": "rows",
        "features": [{"name": "origin", "type": "string"}, {"name": "distance", "type": "int64"}],
    }
    assert outputs.online.id == "none"
    assert not (tmp_path / "state").exists()


def test_without_a_timestamp_rows_keep_their_order(tmp_path: Path) -> None:
    project = Project(tmp_path, features=None, data={"timestamp": None, "tables": {}})
    shuffled = flights(1).assign(late=1.5).sample(frac=1, random_state=1)
    outputs = project.run(project.snapshot(shuffled), untouched)
    assert project.frame(outputs)["flight"].to_pylist() == shuffled["flight"].tolist()
    assert project.json(outputs.frame, "frame.json")["features"] == ["asked", "origin", "distance"]
    assert "label_rate" not in outputs.frame.metadata


def test_equal_inputs_give_equal_digests_anywhere_and_again(tmp_path: Path) -> None:
    found = []
    for place in ("here", "somewhere/else"):
        project = Project(tmp_path / place)
        snapshot = project.snapshot(flights(), weather=weather())
        found += [project.run(snapshot), project.run(snapshot)]
    assert len({(one.frame.digest, one.definitions.digest) for one in found}) == 1
    text = project.objects.read(found[-1].definitions, "features.json").decode()
    assert str(tmp_path) not in text
    assert json.loads(text)["views"][0]["source"]["path"] == "data/weather.parquet"


def test_the_snapshots_tables_are_joined_and_not_the_projects_own_data(project: Project) -> None:
    snapshot = project.snapshot(flights(), weather=weather())
    before = project.run(snapshot)
    own = project.project / "features" / "data"
    own.mkdir()
    weather().assign(wind=-1.0).to_parquet(own / "weather.parquet")
    assert project.run(snapshot).frame == before.frame
    assert pd.read_parquet(own / "weather.parquet")["wind"].eq(-1.0).all()


def test_tables_in_nanoseconds_give_the_same_frame(tmp_path: Path) -> None:
    found = []
    for unit in ("us", "ns"):
        project = Project(tmp_path / unit)
        found.append(project.run(project.snapshot(flights(), unit, weather=weather())).frame)
    assert found[0] == found[1]


def test_partitions_may_lack_a_column_that_others_have(project: Project) -> None:
    history = weather()
    tree = project.home / "tree"
    write_partitions(flights(), "asked", tree / "rows")
    early = history["known"] < START + pd.Timedelta(days=3)
    write_partitions(history[early].drop(columns="gusts"), "known", tree / "tables" / "weather")
    write_partitions(history[~early], "known", tree / "later")
    for file in (tree / "later").iterdir():
        file.rename(tree / "tables" / "weather" / file.name)
    (tree / "later").rmdir()
    frame = project.frame(project.run(project.objects.put("snapshot", tree))).to_pandas()
    assert frame["gusts"].notna().any()
    assert frame.loc[frame["asked"] < START + pd.Timedelta(days=3), "gusts"].isna().all()


def test_a_row_column_with_the_name_of_a_feature_is_a_data_error(project: Project) -> None:
    with pytest.raises(DataError, match="names of row columns: wind"):
        project.run(project.snapshot(flights().assign(wind=1.0), weather=weather()))


@pytest.mark.parametrize("column", ["late", "asked", "origin"])
def test_a_column_that_the_rows_lack_is_a_data_error(project: Project, column: str) -> None:
    tree = project.home / "tree"
    write_partitions(flights(), "asked", tree / "rows")
    write_partitions(weather(), "known", tree / "tables" / "weather")
    for file in (tree / "rows").iterdir():
        pq.write_table(pq.read_table(file).drop_columns([column]), file)
    with pytest.raises(DataError, match=column):
        project.run(project.objects.put("snapshot", tree))


def test_rows_whose_labels_are_all_unknown_give_an_empty_frame_with_the_same_columns(project: Project) -> None:
    full = project.frame(project.run(project.snapshot(flights(), weather=weather())))
    rows = flights().assign(late=pd.array([None] * len(flights()), dtype="Int64"))
    outputs = project.run(project.snapshot(rows, weather=weather()))
    assert outputs.frame.metadata["rows"] == 0
    assert project.frame(outputs).schema == full.schema


def test_a_service_that_does_not_exist_is_a_definition_error(tmp_path: Path) -> None:
    project = Project(tmp_path, features={"repo": "features", "service": "latte"})
    with pytest.raises(DefinitionError) as caught:
        project.run(project.snapshot(flights(), weather=weather()))
    assert caught.value.problems[0].hint == "did you mean late?"


@pytest.fixture
def nobody() -> Iterator[int]:
    """A port where nobody answers, and that nobody else is given meanwhile."""
    with socket.socket() as kept:
        kept.bind(("127.0.0.1", 0))
        yield kept.getsockname()[1]


def redis_project(home: Path, port: int) -> Project:
    online = {"store": "redis", "connection": f"127.0.0.1:{port},password=${{LATE_PASSWORD}}"}
    return Project(home, features={"repo": "features", "service": "late", "online": online})


def test_a_variable_of_the_connection_that_is_not_set_is_a_definition_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nobody: int
) -> None:
    monkeypatch.delenv("LATE_PASSWORD", raising=False)
    project = redis_project(tmp_path, nobody)
    with pytest.raises(DefinitionError) as caught:
        project.run(project.snapshot(flights(), weather=weather()), untouched)
    [problem] = caught.value.problems
    assert problem.key == "features.online.connection"
    assert "LATE_PASSWORD is not set" in problem.message


def test_redis_that_does_not_answer_is_unavailable_and_its_password_is_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nobody: int
) -> None:
    monkeypatch.setenv("LATE_PASSWORD", "open sesame 8151")
    project = redis_project(tmp_path, nobody)
    with pytest.raises(Unavailable) as caught:
        project.run(project.snapshot(flights(), weather=weather()))
    assert "sesame" not in str(caught.value) + caught.value.hint + "".join(project.said)
    for path in (file for file in tmp_path.rglob("*") if file.is_file()):
        assert b"sesame" not in path.read_bytes()
