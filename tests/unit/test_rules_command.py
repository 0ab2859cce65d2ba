"""`mfg-notify rules write`: the rules for another job and another runbook, and what it does not replace."""

from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from mfg_notify import alerts
from mfg_notify.cli import main


def write(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["rules", "write", *map(str, arguments)])


def test_it_writes_the_shipped_rules(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "rules"
    printed = write(folder).output
    assert printed.count("wrote") == 2
    assert "the alerts link to docs/how-to/answer-an-alert.md#… until --runbook-url names" in printed
    assert {file.name: file.read_text(encoding="utf-8") for file in folder.iterdir()} == {
        name: alerts.read_rules(name) for name in alerts.NAMES
    }
    assert "nothing to do" in write(folder).output


def test_another_job_and_another_runbook(tmp_path: Path) -> None:
    written = write(tmp_path, "--job", "game one", "--runbook-url", "https://wiki.example/runbook")
    assert (written.exit_code, "--runbook-url" in written.output) == (0, False)
    rules = [
        rule
        for name in alerts.NAMES
        for group in yaml.safe_load((tmp_path / name).read_text(encoding="utf-8"))["groups"]
        for rule in group["rules"]
    ]
    assert rules
    for rule in rules:
        assert 'job="mfg-notify"' not in rule["expr"]
        assert 'job="game one"' in rule["expr"]
        # The anchors of a section's title, as GitHub, GitLab and MkDocs make them.
        assert rule["annotations"]["runbook_url"] == f"https://wiki.example/runbook#{rule['alert'].lower()}"


def test_a_users_file_is_not_replaced(tmp_path: Path) -> None:
    theirs = tmp_path / "game.yml"
    theirs.write_text("groups: []\n", encoding="utf-8")
    refused = write(tmp_path)
    assert (refused.exit_code, "was not made by mfg-notify" in refused.output) == (1, True)
    assert [file.name for file in tmp_path.iterdir()] == ["game.yml"]
    assert theirs.read_text(encoding="utf-8") == "groups: []\n"
    assert write(tmp_path, "--force").output.count("wrote") == 2


@pytest.mark.parametrize("given", [("--job", 'a"b'), ("--job", "a\nb"), ("--runbook-url", "http://x/ y")])
def test_what_would_break_the_yaml_is_refused(tmp_path: Path, given: tuple[str, str]) -> None:
    assert write(tmp_path / "rules", *given).exit_code == 2
    assert not (tmp_path / "rules").exists()
