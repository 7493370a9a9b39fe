"""A service's look-up plan, from Feast's own objects.

They are not typed here: Feast is imported in `feast.py` alone.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from drivetrain.backends.features import FeatureColumn
from drivetrain.backends.features.description import DUMMY_KEY
from drivetrain.backends.features.online_plan import Feature, Key, OnDemand, Plan, View


def lookup_plan(
    project: str,
    service: Any,
    columns: Sequence[FeatureColumn],
    views: Sequence[Any],
    on_demand: Sequence[Any],
    full_names: bool,
) -> Plan:
    """What `online` has to know to give the service's features without Feast.

    `views` hold all features that are read, each with the projection by which it is used; with `full_names` a feature is called
    `view__feature`, as Feast's `full_feature_names` has it.
    """
    projections = {projection.name_to_use(): projection for projection in service.feature_view_projections}
    read = {
        view.projection.name_to_use(): _view(view, _wanted(view, projections, on_demand), full_names) for view in views
    }
    requested = {name: kind.name for view in on_demand for name, kind in view.get_request_data_schema().items()}
    keys = sorted({key.column for view in read.values() for key in view.keys})
    given = {name: name for name in [*keys, *requested]}
    used = {projection.name: projection for projection in projections.values()}
    return Plan(
        project,
        service.name,
        tuple(read.values()),
        tuple(_on_demand(view, used[view.name], read, given, full_names) for view in on_demand),
        dict(sorted(requested.items())),
        tuple(column.name for column in columns),
    )


def _wanted(view: Any, projections: Mapping[str, Any], on_demand: Sequence[Any]) -> dict[str, Any]:
    """The features that are read of a view: those in the service, and those that its on-demand views take."""
    name = view.projection.name_to_use()
    sources = [source for demand in on_demand for source in demand.source_feature_view_projections.values()]
    users = [projections[name]] if name in projections else []
    users += [source for source in sources if source.name_to_use() == name]
    return {field.name: field for user in users for field in user.features}


def _view(view: Any, fields: Mapping[str, Any], full_names: bool) -> View:
    alias = view.projection.join_key_map
    keys = [
        Key(alias.get(column.name, column.name), column.name, column.dtype.to_value_type().name)
        for column in sorted(view.entity_columns, key=lambda column: str(column.name))
        if column.name != DUMMY_KEY
    ]
    name = view.projection.name_to_use()
    return View(view.name, tuple(keys), tuple(_feature(name, field, full_names) for field in fields.values()))


def _feature(view: str, field: Any, full_names: bool) -> Feature:
    return Feature(field.name, f"{view}__{field.name}" if full_names else field.name, field.dtype.to_value_type().name)


def _on_demand(
    view: Any, projection: Any, read: Mapping[str, View], given: Mapping[str, str], full_names: bool
) -> OnDemand:
    """Its function sees the join keys, what was requested, and the features of its sources by their short and full names."""
    arguments = dict(given)
    for source in view.source_feature_view_projections.values():
        columns = {feature.name: feature.column for feature in read[source.name_to_use()].features}
        arguments |= {column: column for column in columns.values()}
        for field in source.features:
            arguments |= {field.name: columns[field.name], f"{source.name}__{field.name}": columns[field.name]}
    mode = "stored" if view.write_to_online_store else "aggregating" if view.aggregations else view.mode
    stored = view.feature_transformation.to_proto() if mode in ("pandas", "python") else None
    return OnDemand(
        view.name,
        mode,
        bool(view.singleton),
        arguments,
        tuple(_feature(projection.name_to_use(), field, full_names) for field in projection.features),
        stored.name if stored else "",
        stored.body_text if stored else "",
        base64.b64encode(stored.body).decode() if stored else "",
    )
