"""Grafana's dashboards of a service, as code: how it answers, how its inputs drift, how good it is, what the loop does about it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from grafana_foundation_sdk.builders import common, timeseries
from grafana_foundation_sdk.builders.dashboard import Dashboard, DatasourceVariable, ThresholdsConfig
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    GraphTresholdsStyleMode,
    LegendDisplayMode,
    LegendPlacement,
)
from grafana_foundation_sdk.models.dashboard import DataSourceRef, Threshold, ThresholdsMode

from drivetrain.backends.metrics.panels import Panel, drift, loop, quality, service
from drivetrain.engines.rules import Rule

_SOURCE = DataSourceRef("prometheus", "${source}")
_CALM, _ALARM = "green", "red"


def dashboards(name: str, rules: Sequence[Rule], availability: float) -> Mapping[str, dict[str, Any]]:
    """The dashboards of the service of that name, by file name, as Grafana imports or provisions them.

    `rules` are those of its triggers and objectives; `availability` is the share of requests, in percent, that should be answered.
    """
    pages = {
        "service": ("Service", service(name, availability)),
        "drift": ("Drift", drift(name)),
        "quality": ("Quality", quality(name)),
        "loop": ("Loop", loop(name, rules)),
    }
    return {f"{name}-{key}.json": _dashboard(name, key, title, panels) for key, (title, panels) in pages.items()}


def queries(dashboard: Mapping[str, Any]) -> list[str]:
    """Every query that a dashboard holds, in PromQL."""
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def _dashboard(name: str, key: str, title: str, panels: Sequence[Panel]) -> dict[str, Any]:
    made = (
        Dashboard(f"{name}: {title.lower()}")
        .uid(f"drivetrain-{name}-{key}"[:40])
        .tags(["drivetrain", name])
        .refresh("30s")
        .time("now-6h", "now")
        .with_variable(DatasourceVariable("source").label("Data source").type("prometheus"))
    )
    for panel in panels:
        made = made.with_panel(_panel(panel))
    encoded: dict[str, Any] = json.loads(JSONEncoder().encode(made.build()))
    return encoded


def _panel(panel: Panel) -> timeseries.Panel:
    made = (
        timeseries.Panel()
        .title(panel.title)
        .description(panel.text)
        .datasource(_SOURCE)
        .unit(panel.unit)
        .height(8)
        .span(12)
        .legend(
            common.VizLegendOptions()
            .show_legend(True)
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
        )
    )
    for letter, (query, legend) in zip(ascii_uppercase, panel.queries, strict=False):
        made = made.with_target(Dataquery().ref_id(letter).expr(query).legend_format(legend).datasource(_SOURCE))
    if panel.level is not None:
        made = made.thresholds(_line(panel)).thresholds_style(
            common.GraphThresholdsStyleConfig().mode(GraphTresholdsStyleMode.DASHED)
        )
    return made


def _line(panel: Panel) -> ThresholdsConfig:
    """The level, as the border between calm and alarm."""
    first, second = (_CALM, _ALARM) if panel.above else (_ALARM, _CALM)
    steps = [Threshold(value=None, color=first), Threshold(value=panel.level, color=second)]
    return ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)
