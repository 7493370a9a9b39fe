"""The files of Prometheus and Alertmanager, and the operator's manifests, for rules that are to be evaluated there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from drivetrain.engines.expressions import duration
from drivetrain.engines.rules import Rule

_REPEAT = "1h"


@dataclass(frozen=True, slots=True)
class Target:
    """Something that is scraped. `url` is its root; `labels` are added to all that it tells; `certificate` is the file of the
    certificate that it shows."""

    job: str
    url: str
    labels: Mapping[str, str]
    certificate: str | None = None


def rule_groups(service: str, rules: Sequence[Rule], every: float) -> dict[str, Any]:
    """`rules.yml`: the rules as one group, evaluated each `every` seconds."""
    return {
        "groups": [
            {"name": f"drivetrain-{service}", "interval": duration(every), "rules": [_rule(rule) for rule in rules]}
        ]
    }


def prometheus_rule(service: str, rules: Sequence[Rule], every: float) -> dict[str, Any]:
    """The same rules for the Prometheus operator."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": f"drivetrain-{service}", "labels": {"app.kubernetes.io/part-of": "drivetrain"}},
        "spec": rule_groups(service, rules, every),
    }


def prometheus(targets: Sequence[Target], every: float, alertmanager: str) -> dict[str, Any]:
    """`prometheus.yml`: targets scraped and rules evaluated each `every` seconds, alerts sent to Alertmanager at that address."""
    return {
        "global": {
            "scrape_interval": duration(every),
            "scrape_timeout": duration(min(every, 10.0)),
            "evaluation_interval": duration(every),
        },
        "rule_files": ["rules.yml"],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": [alertmanager]}]}]},
        "scrape_configs": [_scraped(target) for target in targets],
    }


def alertmanager(service: str, webhook: str, token_file: Path, every: float) -> dict[str, Any]:
    """`alertmanager.yml`: the alerts of the service, each by itself and at once, to the loop's door, which looks each `every` seconds.
    Others go nowhere.

    `token_file` holds the bearer token that the door wants.
    """
    authorization = {"type": "Bearer", "credentials_file": str(token_file)}
    to_loop = {"url": webhook, "send_resolved": True, "http_config": {"authorization": authorization}}
    own = [f'service="{service}"', 'action=~".+"']
    return {
        "route": {
            "receiver": "nobody",
            # Alerts that are not grouped are sent as soon as they fire, and keep nothing of each other back.
            "routes": [{
                "receiver": "loop", "matchers": own, "group_by": ["..."], "group_wait": "0s", "group_interval": duration(every),
                "repeat_interval": _REPEAT,
            }],
        },
        "receivers": [{"name": "nobody"}, {"name": "loop", "webhook_configs": [to_loop]}],
    }  # fmt: skip


def _rule(rule: Rule) -> dict[str, Any]:
    made: dict[str, Any] = {"alert": rule.name, "expr": rule.promql}
    if rule.hold > 0:
        made["for"] = duration(rule.hold)
    return {**made, "labels": dict(rule.labels), "annotations": dict(rule.annotations)}


def _scraped(target: Target) -> dict[str, Any]:
    place = urlsplit(target.url)
    static: dict[str, Any] = {"targets": [place.netloc]}
    if target.labels:
        static["labels"] = dict(target.labels)
    made: dict[str, Any] = {"job_name": target.job, "scheme": place.scheme, "static_configs": [static]}
    if target.certificate is not None:
        made["tls_config"] = {"ca_file": target.certificate}
    return made
