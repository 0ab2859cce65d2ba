"""What a forge reads: workflows, forms, root pages. Only the forge can run them; what they name has to exist here."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from tests.matrix import RELEASES
from tests.support import ROOT
from tests.unit.test_docs import check, command_lines, links

FORGE = ROOT / ".github"
WORKFLOWS = sorted((FORGE / "workflows").glob("*.yml"))
FORMS = sorted((FORGE / "ISSUE_TEMPLATE").glob("*.yml"))
PAGES = [ROOT / name for name in ("CHANGELOG.md", "CODE_OF_CONDUCT.md", "SECURITY.md")]
PINNED = r"[\w/-]+@(?:(?:release/)?v\d+|[0-9a-f]{40})"


def test_the_matrix_has_every_supported_version() -> None:
    """And a newer Python, whose classifier follows once it has passed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pythons = re.findall(r"Python :: (3\.\d+)", "\n".join(project["classifiers"]))
    ci = yaml.safe_load((FORGE / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    matrix = ci["jobs"]["matrix"]["strategy"]["matrix"]
    assert matrix["python"][: len(pythons)] == pythons
    assert matrix["postgresql"] == list(RELEASES)


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_a_workflow_has_few_rights_and_pinned_actions(file: Path) -> None:
    workflow = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert workflow["permissions"] in ({}, {"contents": "read"})
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    used = [step for step in steps if "uses" in step]
    assert [step["uses"] for step in used if not re.fullmatch(PINNED, step["uses"])] == []
    assert [step for step in used if "checkout@" in step["uses"] and step["with"]["persist-credentials"]] == []
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert {name for step in steps for name in re.findall(r"\bmake ([a-z-]+)", step.get("run", ""))} <= set(targets)


@pytest.mark.parametrize("file", FORMS, ids=lambda file: file.stem)
def test_a_form_asks_for_commands_that_exist(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    for arguments in command_lines(text):
        check(arguments)
    named = [item["id"] for item in yaml.safe_load(text)["body"] if "id" in item]
    assert len(named) == len(set(named)) > 2


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_a_root_page_lead_somewhere(page: Path) -> None:
    for link in links(page.read_text(encoding="utf-8")):
        assert "://" in link or (ROOT / link.partition("#")[0]).exists(), link
