"""`mfg-notify dashboards`: its messages, and what it does to files."""

import json
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tests.unit.test_dashboard_merge import ROW, game_dashboard

from mfg_notify.cli import main
from mfg_notify.dashboards import shipped

UID_LENGTH = 40
"""Grafana's limit."""


def dashboards(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["dashboards", *map(str, arguments)])


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    file = tmp_path / "market-dynamics.json"
    file.write_text(json.dumps(game_dashboard(), indent=4) + "\n", encoding="utf-8")
    return file


# ---------------------------------------------------------------------------------------------------- write --


def test_write_makes_the_folder_and_both_files(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "dashboards"
    result = dashboards("write", folder)
    assert result.exit_code == 0
    assert result.output.count("wrote") == 2
    assert {file.name: file.read_text(encoding="utf-8") for file in folder.iterdir()} == {
        name: shipped.read_dashboard(name) for name in shipped.NAMES
    }
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o644}
    again = dashboards("write", folder)
    assert (again.exit_code, "nothing to do" in again.output) == (0, True)


def test_write_replaces_our_own_older_file(tmp_path: Path) -> None:
    older = tmp_path / "manufacturing.json"
    older.write_text(json.dumps({"title": "x", "description": "Something. Made by mfg-notify."}), encoding="utf-8")
    assert dashboards("write", tmp_path).exit_code == 0
    assert older.read_text(encoding="utf-8") == shipped.read_dashboard("manufacturing.json")


@pytest.mark.parametrize("content", [b'{"title": "Market Dynamics"}', b"not JSON", b"[]", b"\xff\xfe"])
def test_write_does_not_replace_a_users_file(tmp_path: Path, content: bytes) -> None:
    users_file = tmp_path / "market-dynamics.json"
    users_file.write_bytes(content)
    result = dashboards("write", tmp_path)
    assert result.exit_code == 1
    assert f"dashboards merge {users_file}" in result.output
    assert users_file.read_bytes() == content
    assert [file.name for file in tmp_path.iterdir()] == ["market-dynamics.json"]
    assert dashboards("write", tmp_path, "--force").exit_code == 0
    assert users_file.read_text(encoding="utf-8") == shipped.read_dashboard("market-dynamics.json")


def test_own_uids_collide_with_no_other_dashboard(tmp_path: Path) -> None:
    assert dashboards("write", tmp_path, "--own-uids").exit_code == 0
    taken, texts = set(), []
    for name in shipped.NAMES:
        usual, text = json.loads(shipped.read_dashboard(name)), (tmp_path / name).read_text(encoding="utf-8")
        own = json.loads(text)
        # Grafana saves nothing of a provider whose dashboards share a uid, or a title in one folder.
        assert own["uid"] == f"mfg-notify-{usual['uid']}"
        assert len(own["uid"]) <= UID_LENGTH
        assert own["title"] == f"{usual['title']} (mfg-notify)"
        taken.add(own["uid"])
        texts.append(text)
    linked = re.findall(r'"/d/([^?"]+)', "".join(texts))
    assert len(linked) > 1
    assert set(linked) == taken
    again = dashboards("write", tmp_path, "--own-uids")
    assert (again.exit_code, "nothing to do" in again.output) == (0, True)
    # They are ours, so they can be given the usual uids later.
    assert dashboards("write", tmp_path).output.count("wrote") == 2


def datasource_of(file: Path) -> str:
    variables = json.loads(file.read_text(encoding="utf-8"))["templating"]["list"]
    [value] = [each["current"]["value"] for each in variables if each["type"] == "datasource"]
    return str(value)


def test_another_datasource_can_be_the_default(tmp_path: Path) -> None:
    assert dashboards("write", tmp_path, "--datasource-uid", "mine").exit_code == 0
    assert [datasource_of(tmp_path / name) for name in shipped.NAMES] == ["mine", "mine"]


def test_a_dashboard_can_ask_for_its_datasource_at_import(tmp_path: Path) -> None:
    assert dashboards("write", tmp_path, "--inputs").exit_code == 0
    for name in shipped.NAMES:
        text = (tmp_path / name).read_text(encoding="utf-8")
        document = json.loads(text)
        [asked] = document["__inputs"]
        assert (asked["type"], asked["pluginId"]) == ("datasource", "prometheus")
        kinds = {panel["type"] for panel in shipped.every_panel(document["panels"])} - {"row"}
        assert {each["id"] for each in document["__requires"]} == kinds | {"grafana", "prometheus"}
        # As Grafana imports it: every mention of the input becomes the uid of what was chosen.
        (tmp_path / name).write_text(text.replace(f"${{{asked['name']}}}", "chosen"), encoding="utf-8")
        assert datasource_of(tmp_path / name) == "chosen"
    refused = dashboards("write", tmp_path, "--inputs", "--datasource-uid", "mine")
    assert (refused.exit_code, "--inputs asks for the data source" in refused.output) == (2, True)


def test_write_into_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("", encoding="utf-8")
    result = dashboards("write", tmp_path / "x")
    assert result.exit_code == 1
    assert "file exists" in result.output


# ---------------------------------------------------------------------------------------------------- merge --


def test_merge_reports_what_it_did(foreign: Path) -> None:
    first, second = (dashboards("merge", foreign) for _ in range(2))
    assert (first.exit_code, second.exit_code) == (0, 0)
    assert "appended" in first.output
    assert "nothing to do" in second.output
    document = json.loads(foreign.read_text(encoding="utf-8"))
    document["panels"][-1]["targets"] = []
    foreign.write_text(json.dumps(document), encoding="utf-8")
    assert "refreshed" in dashboards("merge", foreign).output
    assert json.loads(foreign.read_text(encoding="utf-8"))["panels"][-1]["targets"]


@pytest.mark.parametrize(
    ("text", "beginning", "end"),
    [
        (json.dumps(game_dashboard(), indent=4) + "\n", '{\n    "uid"', "\n}\n"),
        (json.dumps(game_dashboard(), indent="\t"), '{\n\t"uid"', "\n}"),
        (json.dumps(game_dashboard(), indent=2).replace("\n", "\r\n") + "\r\n", '{\r\n  "uid"', "\r\n}\r\n"),
        (json.dumps(game_dashboard()), '{"uid": "market-dynamics", ', "}}"),
        (json.dumps(game_dashboard(), separators=(",", ":")), '{"uid":"market-dynamics",', "}"),
    ],
    ids=["4 spaces", "tabs", "CRLF", "one line", "compact"],
)
def test_merge_keeps_the_style_of_the_file(foreign: Path, text: str, beginning: str, end: str) -> None:
    foreign.write_bytes(text.encode())
    assert dashboards("merge", foreign).exit_code == 0
    after = foreign.read_bytes().decode()
    assert ROW in after
    assert after.startswith(beginning)
    assert after.endswith(end)
    # The text before the row is unchanged.
    end_of_old = text.rindex("targets")
    assert after[:end_of_old] == text[:end_of_old]


@pytest.mark.parametrize("escaped", [True, False])
def test_merge_keeps_escapes(foreign: Path, *, escaped: bool) -> None:
    document = game_dashboard() | {"title": "Märkte"}
    foreign.write_text(json.dumps(document, ensure_ascii=escaped), encoding="utf-8")
    assert dashboards("merge", foreign).exit_code == 0
    assert foreign.read_text(encoding="utf-8").isascii() is escaped


def test_merge_links_to_own_uids(foreign: Path) -> None:
    assert dashboards("merge", foreign, "--own-uids").exit_code == 0
    text = foreign.read_text(encoding="utf-8")
    assert set(re.findall(r'"/d/([^?"]+)', text)) == {"mfg-notify-manufacturing-pipeline"}
    assert json.loads(text)["uid"] == "market-dynamics"
    assert "nothing to do" in dashboards("merge", foreign, "--own-uids").output


def test_merge_takes_a_datasource(foreign: Path) -> None:
    assert dashboards("merge", foreign, "--datasource-uid", "mine").exit_code == 0
    assert {each["datasource"]["uid"] for each in json.loads(foreign.read_text(encoding="utf-8"))["panels"][-4:]} == {
        "mine"
    }


def test_merge_does_not_write_a_file_that_has_the_row(foreign: Path) -> None:
    dashboards("merge", foreign)
    untidy = foreign.read_text(encoding="utf-8").replace("    ", " ") + "\n\n"
    foreign.write_text(untidy, encoding="utf-8")
    before = foreign.stat()
    assert dashboards("merge", foreign).exit_code == 0
    assert foreign.read_text(encoding="utf-8") == untidy
    assert foreign.stat().st_ino == before.st_ino


def test_merge_keeps_the_mode_and_follows_a_link(foreign: Path) -> None:
    foreign.chmod(0o640)
    link = foreign.with_name("link.json")
    link.symlink_to(foreign.name)
    assert dashboards("merge", link).exit_code == 0
    assert link.is_symlink()
    assert ROW in foreign.read_text(encoding="utf-8")
    assert stat.S_IMODE(foreign.stat().st_mode) == 0o640
    assert {file.name for file in foreign.parent.iterdir()} == {"link.json", "market-dynamics.json"}


def test_a_merge_that_fails_leaves_the_file_as_it_was(foreign: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    before = foreign.read_bytes()
    monkeypatch.setattr("os.fsync", full)
    result = dashboards("merge", foreign)
    assert result.exit_code == 1
    assert "no space left on device" in result.output
    assert foreign.read_bytes() == before
    assert [file.name for file in foreign.parent.iterdir()] == [foreign.name]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not JSON"),
        (b"[1]", "no JSON object"),
        (b"\xff{}", "is not UTF-8"),
        (b'{"elements": {}, "layout": {}}', "new schema"),
        (b"{}", "no list of panels"),
        (b'{"panels": [{"title": "x", "gridPos": {"x": 0, "y": null}}]}', "no dashboard that Grafana has written"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"panels": [' + b'{"panels": [' * 400 + b"]}" * 400 + b"]}", "nested too deeply"),
        # They would be written as NaN and Infinity, which is no JSON.
        (b'{"panels": [], "x": NaN}', "NaN is no number in JSON"),
        (b'{"panels": [], "x": -1e400}', "the number -1e400 is too large"),
    ],
)
def test_merge_refuses_a_file_that_is_no_dashboard(foreign: Path, content: bytes, message: str) -> None:
    foreign.write_bytes(content)
    result = dashboards("merge", foreign)
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert message in result.output
    assert str(foreign) in result.output
    assert foreign.read_bytes() == content


def test_merge_of_a_missing_file_or_a_folder(tmp_path: Path) -> None:
    assert "no such file" in dashboards("merge", tmp_path / "absent.json").output
    result = dashboards("merge", tmp_path)
    assert (result.exit_code, "is a directory" in result.output) == (1, True)


# --------------------------------------------------------------------------------------------- without the SDK --


def test_the_command_works_without_the_sdk(foreign: Path) -> None:
    script = (
        "import sys; sys.modules['grafana_foundation_sdk'] = None\nfrom mfg_notify.cli import main; main(sys.argv[1:])"
    )
    for arguments in (["merge", foreign], ["write", foreign.parent / "new"]):
        command = [sys.executable, "-c", script, "dashboards", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")
