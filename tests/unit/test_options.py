"""Values of options: read as they are meant, or refused in one line."""

import math

import click
import pytest

from mfg_notify.cli.options import DURATION, check_grafana_url, check_telemetry_path
from mfg_notify.errors import UsageError
from mfg_notify.web.server import bind


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("500ms", 0.5), ("1m", 60), ("1.5h", 5400), ("2", 2), ("1h30m", 5400), ("1m0s500ms", 60.5)],
)
def test_durations(text: str, seconds: float) -> None:
    assert math.isclose(DURATION.convert(text, None, None), seconds)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "s",
        "-1s",
        "1d",
        "1 s",
        "1h30",
        "1h 30m",
        "0h0m",
        "1s2s3s4s5s",
        "1e3s",
        "0",
        "0.0ms",
        "٣s",
        "9" * 400,
        f"0.{'0' * 322}5ms",
    ],
)
def test_no_durations(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is not a duration"):
        DURATION.convert(text, None, None)


@pytest.mark.parametrize("path", ["metrics", "", "/-/x", "/{player}", "/{a:nothing}", "/{a}/{a}", "/}"])
def test_paths_that_cannot_be_served(path: str) -> None:
    with pytest.raises(UsageError, match=r"--web\.telemetry-path"):
        check_telemetry_path(path)


@pytest.mark.parametrize(
    "url",
    ["", "grafana", "//host", "ftp://host", "javascript:alert(1)", "http://", "https://me:secret@host", "http://[x"],
)
def test_addresses_of_grafana_that_cannot_be_opened(url: str) -> None:
    with pytest.raises(UsageError, match=r"--web\.grafana-url") as refused:
        check_grafana_url(url)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("url", [None, "http://localhost:3000", "https://grafana.example/below/"])
def test_addresses_of_grafana(url: str | None) -> None:
    assert check_grafana_url(url) == url


@pytest.mark.parametrize("address", ["80", "127.0.0.1:x", "127.0.0.1:70000", f"{'a' * 64}:0", "é.xn--é:0", "a\0b:0"])
def test_addresses_that_cannot_be_bound(address: str) -> None:
    with pytest.raises(UsageError):
        bind([address])
