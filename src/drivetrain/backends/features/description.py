"""What a service's features mean, as JSON: equal definitions give equal bytes, on any machine and at any time.

Takes Feast's own objects, which are not typed here: Feast is imported in `feast.py` alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from drivetrain.backends.features import FeatureColumn
from drivetrain.backends.features.workplace import portable

DUMMY_KEY = "__dummy_id"
"""Feast's stand-in join key of a view without entities."""


def describe(
    service: Any,
    columns: Sequence[FeatureColumn],
    views: Sequence[Any],
    on_demand: Sequence[Any],
    entities: Sequence[Any],
    repo: Path,
) -> dict[str, Any]:
    """The service with every view and entity behind it, sorted by name; its features in its own order."""
    unique = {view.name: view for view in views}
    used = {name for view in views for name in view.entities}
    return {
        "source": "feast",
        "service": {
            "name": service.name,
            "features": [{"name": c.name, "view": c.view, "type": c.type} for c in columns],
            "tags": _sorted(service.tags),
        },
        "entities": [
            {"name": e.name, "key": e.join_key, "type": e.value_type.name, "tags": _sorted(e.tags)}
            for e in sorted(entities, key=lambda e: str(e.name))
            if e.name in used
        ],
        "views": [_describe_view(view, repo) for _, view in sorted(unique.items())],
        "on_demand_views": [_describe_on_demand(view) for view in sorted(on_demand, key=lambda v: str(v.name))],
    }


def _describe_view(view: Any, repo: Path) -> dict[str, Any]:
    source = view.batch_source
    return {
        "name": view.name,
        "keys": sorted(key for key in view.join_keys if key != DUMMY_KEY),
        "source": {
            "path": portable(source.path, repo),
            "timestamp": source.timestamp_field,
            "created": source.created_timestamp_column or None,
            "field_mapping": _sorted(source.field_mapping),
        },
        "schema": _describe_schema(view.features),
        "ttl_seconds": view.ttl.total_seconds() if view.ttl else None,
        "tags": _sorted(view.tags),
    }


def _sorted(values: Mapping[str, str]) -> dict[str, str]:
    return dict(sorted(values.items()))


def _describe_schema(fields: Sequence[Any]) -> list[dict[str, str]]:
    return [
        {"name": field.name, "type": str(field.dtype)} for field in sorted(fields, key=lambda field: str(field.name))
    ]


def _describe_on_demand(view: Any) -> dict[str, Any]:
    return {
        "name": view.name,
        "sources": sorted(projection.name_to_use() for projection in view.source_feature_view_projections.values()),
        "requests": {name: kind.name for name, kind in sorted(view.get_request_data_schema().items())},
        "schema": _describe_schema(view.features),
        "transformation": view.feature_transformation.udf_string,
        "tags": _sorted(view.tags),
    }
