"""Dashboard and alerts name only metrics and labels that there are."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser as promql
import pytest
import yaml

from infra.observability.metrics import DEFINITIONS, ROLES, by_class, registry_of
from infra.outbound.reasons import Reason as FetchReason
from infra.outbound.reasons import http_reason

ROOT = Path(__file__).parents[3]
MONITORING = ROOT / "infra" / "monitoring"

ALERTS: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"] for rule in group["rules"]
]
DASHBOARD: dict[str, Any] = json.loads((MONITORING / "dashboard.json").read_text())

# What Prometheus adds when it scrapes, and what it calls the parts of a histogram.
SCRAPED = {"job", "instance"}
VARIABLES = {"$job": ".*", "$__rate_interval": "5m", "$datasource": "prometheus"}


def labels_by_name() -> dict[str, set[str]]:
    """The labels of every name that a scrape of any role has."""
    known: dict[str, set[str]] = {"shrinkstream_info": {"role", "version"}}
    for definition in DEFINITIONS:
        labels = {*definition.labels}
        if definition.kind == "histogram":
            known[f"{definition.name}_bucket"] = {*labels, "le"}
            known |= {f"{definition.name}_{part}": labels for part in ("sum", "count")}
        else:
            known[definition.name] = labels
    for role in ROLES:
        for family in registry_of(role).collect():
            if not family.name.startswith("shrinkstream"):
                known |= {sample.name: {*sample.labels} for sample in family.samples}
    return known


KNOWN = labels_by_name()


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def expressions() -> Iterator[tuple[str, str]]:
    for rule in ALERTS:
        yield rule["alert"], rule["expr"]
    for panel in panels():
        for target in panel["targets"]:
            yield f"{panel['title']} {target['refId']}", target["expr"]


def parsed(expression: str) -> promql.Expr:
    for variable, value in VARIABLES.items():
        expression = expression.replace(variable, value)
    return promql.parse(expression)


def parts(expression: Any) -> Iterator[Any]:
    """The expression and everything in it."""
    yield expression
    for name in ("expr", "lhs", "rhs", "vector_selector", "param"):
        inner = getattr(expression, name, None)
        if inner is not None and not isinstance(inner, str):
            yield from parts(inner)
    for argument in getattr(expression, "args", ()):
        yield from parts(argument)


def selectors(expression: Any) -> Iterator[promql.VectorSelector]:
    return (part for part in parts(expression) if isinstance(part, promql.VectorSelector))


def name_of(selector: promql.VectorSelector) -> str:
    assert selector.name, "each names its metric"
    return selector.name


def labels_of(expression: Any) -> set[str]:
    """The labels that an expression's metrics have."""
    return {label for one in selectors(expression) for label in KNOWN[name_of(one)]} | SCRAPED


def grouped_by(expression: Any) -> Iterator[tuple[Any, set[str]]]:
    """Each part that groups or joins by labels, with them."""
    for part in parts(expression):
        if isinstance(part, promql.AggregateExpr) and part.modifier is not None:
            yield part, {*part.modifier.labels}
        if isinstance(part, promql.BinaryExpr) and part.modifier is not None and part.modifier.matching is not None:
            yield part, {*part.modifier.matching.labels}


def faults(expression: str) -> list[str]:
    """The metrics and labels in an expression that there are not."""
    found = parsed(expression)
    unknown = [name_of(one) for one in selectors(found) if name_of(one) not in KNOWN]
    if unknown:
        return unknown
    for selector in selectors(found):
        matched = {matcher.name for matcher in selector.matchers.matchers}
        unknown += matched - KNOWN[name_of(selector)] - SCRAPED
    for part, labels in grouped_by(found):
        unknown += labels - labels_of(part)
    return unknown


@pytest.mark.parametrize("expression", sorted({expression for _, expression in expressions()}))
def test_every_expression_names_metrics_and_labels_that_there_are(expression: str) -> None:
    assert list(selectors(parsed(expression)))
    assert faults(expression) == []


@pytest.mark.parametrize(
    ("wrong", "fault"),
    [
        ("sum(rate(shrinkstream_imags_total[5m]))", "shrinkstream_imags_total"),
        ("sum(rate(shrinkstream_image_seconds[5m]))", "shrinkstream_image_seconds"),
        ('1 - shrinkstream_images_total{colour="red"} > 0', "colour"),
        ("max(sum by (colour) (shrinkstream_images_total))", "colour"),
        ("shrinkstream_decoders * on (colour) group_left () shrinkstream_info", "colour"),
    ],
)
def test_unknown_metric_or_label_is_found(wrong: str, fault: str) -> None:
    assert faults(wrong) == [fault]


def test_alert_texts_use_labels_of_their_expression() -> None:
    for rule in ALERTS:
        said = {*re.findall(r"\$labels\.(\w+)", json.dumps(rule["annotations"]))}
        kept = [labels for _, labels in grouped_by(parsed(rule["expr"]))]
        matched = {one.name for part in selectors(parsed(rule["expr"])) for one in part.matchers.matchers}
        assert said <= set().union(*kept, matched), rule["alert"]


def test_every_alert_has_severity_and_runbook() -> None:
    assert len({rule["alert"] for rule in ALERTS}) == len(ALERTS)
    for rule in ALERTS:
        assert rule.keys() <= {"alert", "expr", "for", "labels", "annotations"}
        assert re.fullmatch(r"\d+[mh]", rule.get("for", "1m"))
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert {"summary", "runbook"} <= rule["annotations"].keys()
        # What only ever grows by a fault needs no time to be sure of it.
        assert "for" in rule or "increase(" in rule["expr"], rule["alert"]


def test_every_metric_is_shown_or_watched() -> None:
    shown = {name_of(selector) for _, expression in expressions() for selector in selectors(parsed(expression))}
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown}
    assert {definition.name for definition in DEFINITIONS} - shown == set()


def test_names_follow_the_conventions_of_prometheus() -> None:
    for one in DEFINITIONS:
        assert re.fullmatch(r"shrinkstream(_[a-z]+)+", one.name)
        assert one.name.endswith("_total") == (one.kind == "counter"), one.name
        if one.kind == "histogram":
            assert one.name.endswith("_seconds"), one.name
        assert not re.search(r"_(ms|milliseconds|kb|mb|mib|percent)\b", one.name), one.name
        assert one.roles


def test_reasons_that_others_choose_become_few_labels() -> None:
    labels = {by_class(http_reason(status)) for status in range(100, 1000)}
    assert labels == {f"fetch_http_{digit}xx" for digit in range(1, 10)}
    assert by_class("http_503") == "http_5xx"
    assert {by_class(reason) for reason in FetchReason} == set(FetchReason)
