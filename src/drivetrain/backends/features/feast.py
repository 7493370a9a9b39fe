"""Features by Feast: registry and service from the user's own repository, joined by DuckDB, kept in SQLite or Redis.

Feast 0.67 sends no usage telemetry, so there is nothing to turn off here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pyarrow as pa
from feast import FeatureService, FeatureView, FileSource, OnDemandFeatureView, RepoConfig
from feast import FeatureStore as FeastStore
from feast.data_format import ParquetFormat
from feast.errors import FeastError, FeatureServiceNotFoundException, FeatureViewNotFoundException
from feast.infra.offline_stores.duckdb import DuckDBOfflineStore, DuckDBOfflineStoreConfig
from feast.infra.offline_stores.offline_store import RetrievalJob, RetrievalMetadata
from feast.infra.registry.base_registry import BaseRegistry
from feast.repo_contents import RepoContents
from feast.repo_operations import parse_repo

from drivetrain.backends.features import LOOKUP_PLAN, FeatureColumn, FeatureStore, FeatureStoreSettings, online_plan
from drivetrain.backends.features.asof import History, join_as_of, newest
from drivetrain.backends.features.connection import online_options, secrets
from drivetrain.backends.features.description import DUMMY_KEY, describe
from drivetrain.backends.features.faults import NO_TABLE, Border, no_service
from drivetrain.backends.features.frames import ROW, TIME, as_declared, entity_frame, refuse_missing
from drivetrain.backends.features.planning import lookup_plan
from drivetrain.backends.features.workplace import place_of, portable, quiet
from drivetrain.errors import DataError, StageError

_START = datetime(1700, 1, 1, tzinfo=UTC)
"""Before any event, and within what a nanosecond timestamp can hold."""


def open_store(settings: FeatureStoreSettings) -> FeatureStore:
    """The feature store of these settings. Nothing is read, written or connected to before its first verb."""
    return Feast(settings)


class AsOfOfflineStoreConfig(DuckDBOfflineStoreConfig):  # type: ignore[misc]
    """Feast finds an offline store's options by this name."""

    type: Literal["drivetrain.backends.features.feast.AsOfOfflineStore"] = (
        "drivetrain.backends.features.feast.AsOfOfflineStore"
    )


class AsOfOfflineStore(DuckDBOfflineStore):  # type: ignore[misc]
    """Feast's DuckDB store with queries of our own: DuckDB's ASOF join for the history, and microseconds throughout.

    Feast joins every row to its entity's whole history up to then and takes the newest afterwards: without a `ttl`,
    10 000 rows against 8 700 hours take 4.7 GB. It also loses features whose names end in `_y`. An ASOF join finds the
    one value while it passes over both sides, sorted.
    """

    supports_filter_by_created_timestamp = False

    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: pd.DataFrame,
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
    ) -> RetrievalJob:
        """The rows of `entity_df` in their order with the features, each null where there is no value by then or the
        newest is older than the view's `ttl`."""
        frame = pa.Table.from_pandas(entity_df, preserve_index=False)
        histories = [_history(view, feature_refs, full_feature_names, config.repo_path) for view in feature_views]
        for joined in join_as_of(frame, TIME, histories):
            for name in joined.column_names:
                frame = frame.append_column(name, joined[name])
        on_demand = OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry)
        return _ArrowJob(frame, feature_refs, on_demand, full_feature_names)

    @staticmethod
    def pull_latest_from_table_or_query(
        config: RepoConfig,
        data_source: FileSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None,
        start_date: datetime,
        end_date: datetime,
    ) -> RetrievalJob:
        """Each entity's newest row up to `end_date`, under the file's own column names; `start_date` is before all rows."""
        path = FileSource.get_uri_for_file_path(config.repo_path, data_source.path)
        keys = [key for key in join_key_columns if key != DUMMY_KEY]
        table = newest(path, keys, feature_name_columns, timestamp_field, created_timestamp_column, end_date)
        if not keys:
            table = table.append_column(DUMMY_KEY, pa.array([""] * table.num_rows))
        return _ArrowJob(table, [], [], full_feature_names=False)


class _ArrowJob(RetrievalJob):  # type: ignore[misc]
    """A table that is there already, still to be passed through Feast's on-demand views."""

    def __init__(
        self, frame: pa.Table, features: list[str], on_demand: list[OnDemandFeatureView], full_feature_names: bool
    ) -> None:
        self._frame = frame
        self._features = features
        self._on_demand = on_demand
        self._full_feature_names = full_feature_names

    @property
    def full_feature_names(self) -> bool:
        return self._full_feature_names

    @property
    def on_demand_feature_views(self) -> list[OnDemandFeatureView]:
        return self._on_demand

    @property
    def metadata(self) -> RetrievalMetadata:
        keys = [name for name in self._frame.column_names if name != TIME]
        return RetrievalMetadata(features=self._features, keys=keys)

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        frame: pd.DataFrame = self._frame.to_pandas()
        return frame

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        return self._frame


def _history(view: FeatureView, feature_refs: list[str], full_feature_names: bool, repo: Path | None) -> History:
    """What of a view is to be joined. `field_mapping` says what the file's columns are called in the view."""
    source, projection = view.batch_source, view.projection
    in_file = {new: old for old, new in source.field_mapping.items()}
    names = [ref.split(":", 1)[1] for ref in feature_refs if ref.startswith(f"{projection.name_to_use()}:")]
    prefix = f"{projection.name_alias or projection.name}__" if full_feature_names else ""
    created = source.created_timestamp_column
    return History(
        path=FileSource.get_uri_for_file_path(repo, source.path),
        keys={column: in_file.get(key, key) for column, key in _row_keys(view).items()},
        values={prefix + name: in_file.get(name, name) for name in names},
        timestamp=in_file.get(source.timestamp_field, source.timestamp_field),
        created=in_file.get(created, created) if created else None,
        ttl=round(view.ttl.total_seconds() * 1_000_000) if view.ttl else None,
        label=f"feature view {view.name}",
    )


@dataclass(frozen=True)
class _Registered:
    """A service as the registry has it. `views` have a history: the service's own, and those that its on-demand views take
    from, each with the names and join keys by which it is used."""

    service: FeatureService
    views: tuple[FeatureView, ...]
    on_demand: tuple[OnDemandFeatureView, ...]

    @classmethod
    def read(cls, registry: BaseRegistry, project: str, service: FeatureService) -> _Registered:
        def find(projection: Any) -> Any:
            return registry.get_any_feature_view(projection.name, project)

        projections = list(service.feature_view_projections)
        on_demand = [view for view in map(find, projections) if isinstance(view, OnDemandFeatureView)]
        for view in on_demand:
            projections += view.source_feature_view_projections.values()
        found: dict[str, FeatureView] = {}
        for projection in projections:
            view = find(projection)
            if isinstance(view, FeatureView):
                found.setdefault(projection.name_to_use(), view.with_projection(projection))
        return cls(service, tuple(found.values()), tuple(on_demand))

    @cached_property
    def full_names(self) -> bool:
        """Whether two views share a feature's name, those that only an on-demand view takes from included."""
        projections = [*self.service.feature_view_projections]
        for view in self.on_demand:
            projections += view.source_feature_view_projections.values()
        owners: dict[str, set[str]] = {}
        for projection in projections:
            for field in projection.features:
                owners.setdefault(field.name, set()).add(projection.name_to_use())
        return any(len(names) > 1 for names in owners.values())

    @cached_property
    def columns(self) -> tuple[FeatureColumn, ...]:
        return tuple(
            FeatureColumn(f"{view}__{field.name}" if self.full_names else field.name, view, str(field.dtype))
            for projection in self.service.feature_view_projections
            for view in [projection.name_to_use()]
            for field in projection.features
        )

    @cached_property
    def keys(self) -> tuple[str, ...]:
        return tuple(sorted({key for view in self.views for key in _row_keys(view)}))

    @cached_property
    def row_columns(self) -> tuple[str, ...]:
        """What rows and entities must carry: join keys, and the request-time columns of on-demand views."""
        requested = {name for view in self.on_demand for name in view.get_request_data_schema()}
        return tuple(sorted({*self.keys, *requested}))


def _row_keys(view: FeatureView) -> dict[str, str]:
    """The rows' join keys, each with the view's own name for it."""
    return {view.projection.join_key_map.get(key, key): key for key in view.join_keys if key != DUMMY_KEY}


class Feast:
    """The features of one service of a Feast repository. `apply` comes first: the other verbs read what it registered.

    A column has the feature's own name, or, if two views of the service share a name, every column has Feast's full name
    (`view__feature`). Its type follows from the declared one alone, see `as_declared`.
    """

    def __init__(self, settings: FeatureStoreSettings) -> None:
        self._repo = settings.repo.resolve()
        self._service_name = settings.service
        self._registry = settings.registry.absolute()
        # SQLite's tables are named after the project, and Feast refuses a hyphen there.
        self._project = settings.project.replace("-", "_")
        self._online = online_options(settings.online)
        self._border = Border(self._repo, secrets(settings.online), FeatureViewNotFoundException)

    def apply(self) -> Mapping[str, Any]:
        contents = self._parse()
        names = [service.name for service in contents.feature_services]
        if self._service_name not in names:
            raise no_service(self._service_name, names)
        objects = [
            *contents.data_sources, *contents.entities, *contents.feature_views, *contents.stream_feature_views,
            *contents.on_demand_feature_views, *contents.label_views, *contents.feature_services,
        ]  # fmt: skip
        # Registered afresh and moved into place: nothing of an earlier definition remains, and a process that is killed
        # here leaves the old registry whole.
        path = self._registry.with_name(f"{self._registry.name}.{os.getpid()}.new")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        fresh = self._open(path)
        with self._border.inside("register the definitions"):
            fresh.apply(objects)
            self._keep_materialized(fresh)
        path.replace(self._registry)
        self._forget()
        known = self._registered
        for view in known.views:
            _check_source(view, self._repo)
        entities = self._store.list_entities()
        return describe(known.service, known.columns, known.views, known.on_demand, entities, self._repo)

    def columns(self) -> Sequence[FeatureColumn]:
        return self._registered.columns

    def entity_keys(self) -> Sequence[str]:
        return self._registered.keys

    def join(self, rows: pd.DataFrame, timestamp: str) -> pd.DataFrame:
        known = self._registered
        entities = entity_frame(rows, known.row_columns, timestamp)
        if len(rows):
            with self._border.inside("join the features"):
                job = self._store.get_historical_features(entities, known.service, full_feature_names=known.full_names)
                joined = job.to_arrow()
            if not joined[ROW].combine_chunks().equals(pa.array(entities[ROW])):
                message = f"the join gave {joined.num_rows} rows for {len(rows)}, or another order"
                raise StageError(message, where=f"feature service {self._service_name}")
        else:
            joined = pa.table({column.name: pa.array([], pa.null()) for column in known.columns})
        features = {column.name: as_declared(joined[column.name], column) for column in known.columns}
        return pd.concat([rows, pd.DataFrame(features).set_axis(rows.index)], axis=1)

    def materialize(self, end: datetime) -> int:
        until = end.astimezone(UTC) if end.tzinfo else end.replace(tzinfo=UTC)
        # Both stores are made to write without asking which value is newer, so that a correction of the newest value
        # arrives; a view that already holds values as of a later time is therefore left alone.
        used = {view.name for view in self._registered.views}
        views = [view for name, view in _with_history(self._store).items() if name in used and view.online]
        due = sorted(view.name for view in views if _materialized_until(view) <= until)
        if due:
            with self._border.inside("write to the online store"), quiet():
                self._store.materialize(_START, until, feature_views=due)
            self._forget()
        # After the values, so that no look-up expects what is not there yet.
        online_plan.write(self._plan(), self._registry.with_name(LOOKUP_PLAN.name))
        return len(due)

    def online(self, entities: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        known = self._registered
        for entity in entities:
            refuse_missing(known.row_columns, entity, "an entity")
        if not entities:
            return []
        # Feast counts the entities by their keys, and so needs one even where no view has any.
        wanted = [{name: entity[name] for name in known.row_columns} or {DUMMY_KEY: ""} for entity in entities]
        with self._border.translating("read the online store"):
            found = self._store.get_online_features(known.service, wanted, full_feature_names=known.full_names)
            answer = found.to_dict()
        return [{column.name: answer[column.name][row] for column in known.columns} for row in range(len(wanted))]

    def _plan(self) -> online_plan.Plan:
        known = self._registered
        return lookup_plan(
            self._project, known.service, known.columns, known.views, known.on_demand, full_names=known.full_names
        )

    @cached_property
    def _store(self) -> FeastStore:
        return self._open(self._registry)

    @cached_property
    def _registered(self) -> _Registered:
        with self._border.translating("read its registry"):
            try:
                service = self._store.get_feature_service(self._service_name)
            except FeatureServiceNotFoundException as error:
                names = [service.name for service in self._store.list_feature_services()]
                raise no_service(self._service_name, names) from error
            # Feast compares the service with the registry's by sorting its views, and fails where one is used twice; a
            # service with references still to be resolved is not compared.
            service._pending_feature_refs = [self._service_name]
            return _Registered.read(self._store.registry, self._project, service)

    def _forget(self) -> None:
        for name in ("_store", "_registered"):
            self.__dict__.pop(name, None)

    def _open(self, registry: Path) -> FeastStore:
        config = RepoConfig(
            project=self._project,
            provider="local",
            registry={"registry_type": "file", "path": str(registry)},
            online_store=dict(self._online),
            offline_store={"type": f"{AsOfOfflineStore.__module__}.{AsOfOfflineStore.__name__}"},
            entity_key_serialization_version=3,
            # The newest rows alone leave the offline store, and reach the online store in pieces.
            materialization={"pull_latest_features": True, "online_write_batch_size": 10_000},
            repo_path=self._repo,
        )
        return FeastStore(config=config)

    def _keep_materialized(self, fresh: FeastStore) -> None:
        """Carries over up to when each view is online already, if its values would be made in the same way."""
        if not self._registry.is_file():
            return
        try:
            former = _with_history(self._open(self._registry))
        except Exception:  # noqa: BLE001 - a registry that was cut short holds nothing worth keeping
            return
        for name, view in _with_history(fresh).items():
            old = former.get(name)
            if old is not None and _recipe(old) == _recipe(view) and _materialized_until(old) > _START:
                fresh.registry.apply_materialization(view, self._project, _START, _materialized_until(old))

    def _parse(self) -> RepoContents:
        with self._border.inside("read the definitions"):
            try:
                return parse_repo(self._repo)
            except FeastError:
                raise
            except Exception as error:
                place = place_of(self._repo, error)
                raise StageError(f"importing raised {type(error).__name__}: {error}", where=place) from error


def _check_source(view: FeatureView, repo: Path) -> None:
    source, place = view.batch_source, f"feature view {view.name}"
    is_parquet = isinstance(source, FileSource) and isinstance(source.file_format, ParquetFormat | None)
    if not is_parquet or "://" in source.path:
        raise StageError(
            f"a {type(source).__name__} cannot be read here, only parquet files",
            hint='name the table in data.tables and read it with FileSource(path="data/NAME.parquet")',
            where=place,
        )
    if not Path(FileSource.get_uri_for_file_path(repo, source.path)).is_file():
        raise DataError(f"{portable(source.path, repo)} does not exist", hint=NO_TABLE, where=place)


def _with_history(store: FeastStore) -> dict[str, FeatureView]:
    return {view.name: view for view in store.list_all_feature_views() if isinstance(view, FeatureView)}


def _materialized_until(view: FeatureView) -> datetime:
    ends = [end if end.tzinfo else end.replace(tzinfo=UTC) for _, end in view.materialization_intervals]
    return max(ends, default=_START)


def _recipe(view: FeatureView) -> tuple[object, ...]:
    source = view.batch_source
    schema = tuple(sorted((field.name, str(field.dtype)) for field in view.features))
    return (schema, tuple(sorted(view.join_keys)), Path(source.path).name, source.timestamp_field)
