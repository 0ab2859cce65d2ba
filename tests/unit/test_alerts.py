"""Checks the alerting rules against the catalogue, their own tests and the runbook. promtool tests their behaviour."""

import re
from typing import Any

import pytest
import yaml
from tests.support import ROOT

from mfg_notify.core.catalogue import CATALOGUE, EXPORTER_METRICS, PREFIX, SELF_PREFIX, Kind
from mfg_notify.postgres.installation import TRIGGERS_PER_TABLE

TARGET = {"job", "instance", "database"}
"""Labels of the targets; the catalogue declares all others."""


def read(pattern: str) -> list[Any]:
    return [yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "prometheus").glob(pattern))]


def labels_by_name() -> dict[str, set[str]]:
    """Return the labels of every name that a query may select."""
    found = {"up": set[str]()}
    for name, metric in [(m.full_name, m) for m in CATALOGUE] + [(SELF_PREFIX + m.name, m) for m in EXPORTER_METRICS]:
        if metric.kind is Kind.HISTOGRAM:
            found |= {f"{name}_{part}": set(metric.labels) for part in ("sum", "count")}
            found[f"{name}_bucket"] = {*metric.labels, "le"}
        else:
            found[name] = set(metric.labels)
    return found


LABELS = labels_by_name()
RULES = [rule for file in read("rules/*.yml") for group in file["groups"] for rule in group["rules"]]
NAMES = [rule["alert"] for rule in RULES]
TESTS = [test for file in read("tests/*.yml") for test in file["tests"]]
RUNBOOK = (ROOT / "docs" / "how-to" / "answer-an-alert.md").read_text(encoding="utf-8")
SELECTOR = re.compile(rf"\b({PREFIX}\w+|{SELF_PREFIX}\w+|up)\b(?:{{(.*?)}})?")
every_rule = pytest.mark.parametrize("rule", RULES, ids=NAMES)


@every_rule
def test_a_rule_uses_declared_metrics_and_labels(rule: dict[str, Any]) -> None:
    selectors = SELECTOR.findall(rule["expr"])
    assert selectors
    known = set(TARGET)
    for name, matchers in selectors:
        assert name in LABELS
        assert set(re.findall(r"(\w+)[=!]", matchers)) <= LABELS[name] | TARGET
        assert 'job="mfg-notify"' in matchers
        known |= LABELS[name]
    for grouped in re.findall(r"\b(?:by|on|without|ignoring) \((.*?)\)", rule["expr"]):
        assert set(grouped.split(", ")) <= known
    # Two games are two databases, and never one sum.
    assert all("database" in labels.split(", ") for labels in re.findall(r"\bby \((.*?)\)", rule["expr"]))
    for text in rule["annotations"].values():
        assert set(re.findall(r"\$labels\.(\w+)", text)) <= known


@every_rule
def test_a_rule_has_a_severity_texts_and_a_runbook_link(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"warning", "critical"}
    assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
    assert rule["annotations"]["runbook_url"] == f"docs/how-to/answer-an-alert.md#{rule['alert'].lower()}"


@every_rule
def test_a_description_says_what_to_do_first(rule: dict[str, Any]) -> None:
    assert re.search(r"\. (First|See first) ", rule["annotations"]["description"])


@every_rule
def test_a_rule_has_a_test_that_fires_it_and_one_that_does_not(rule: dict[str, Any]) -> None:
    cases = [case for test in TESTS for case in test["alert_rule_test"] if case["alertname"] == rule["alert"]]
    assert {bool(case["exp_alerts"]) for case in cases} == {True, False}


def test_the_tests_use_the_exporters_series() -> None:
    for test in TESTS:
        for series in test["input_series"]:
            name, pairs = series["series"].removesuffix("}").split("{")
            assert set(re.findall(r"(\w+)=", pairs)) - TARGET == LABELS[name], series["series"]


def test_the_runbook_has_exactly_one_section_per_alert() -> None:
    sections = re.split(r"^## (\w+)\n", RUNBOOK, flags=re.MULTILINE)
    assert sections[1::2] == NAMES
    for section in sections[2::2]:
        assert re.findall(r"^\*\*(.*?)\*\*", section, re.MULTILINE) == ["Meaning.", "Diagnosis.", "Fix."]


def test_the_rule_expects_the_triggers_of_the_migration() -> None:
    [rule] = [rule for rule in RULES if rule["alert"] == "MfgNotifyTriggersMissing"]
    assert f"< {TRIGGERS_PER_TABLE}" in rule["expr"]
