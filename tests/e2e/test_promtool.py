"""What Prometheus's own tool says of the page, and of its configuration, rules and their tests.

Needs promtool (Debian: apt-get install prometheus).
"""

import shutil
import subprocess

import pytest
from tests.conftest import Database
from tests.game_rows import add_pipeline
from tests.support import ROOT, check_with_promtool, exporting, page_of, settled

from mfg_notify.core import catalogue
from mfg_notify.demo.game import play
from mfg_notify.demo.world import GameOptions

pytestmark = pytest.mark.anyio

NAMED_BY_THE_SPECIFICATION = {metric.full_name for metric in catalogue.GAUGES if metric.full_name.endswith("_total")}
"""Seven gauges whose names promtool would not have chosen."""


@pytest.fixture
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not installed")
    return found


@pytest.mark.usefixtures("promtool")
async def test_promtool_objects_to_the_prescribed_names_only(installed: Database) -> None:
    with installed.connect() as connection:
        async with exporting(installed.dsn, reconcile_interval=0.2) as exporter:
            await play(installed.dsn, GameOptions(seed=4, rate=0), statements=1500)
            hostile = 'a "quoted"\nline\\ of ‮דגל‬ ' + "🚀" * 20
            add_pipeline(connection, "hostile", product_good=hostile[:64], status="EXECUTING")
            await settled(exporter, connection)
            page = page_of(exporter)
    assert {line.split()[0] for line in check_with_promtool(page)} == NAMED_BY_THE_SPECIFICATION
    assert len(NAMED_BY_THE_SPECIFICATION) == 7


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "config", "prometheus.yml"),
        ("check", "config", "two-games.yml"),
        ("check", "config", "--agent", "agent.yml"),
        ("check", "rules", "rules/*.yml"),
        ("test", "rules", "tests/*.yml"),
    ],
    ids=" ".join,
)
def test_promtool_accepts_the_configuration_and_the_rules(promtool: str, arguments: tuple[str, ...]) -> None:
    *command, pattern = arguments
    files = sorted(map(str, (ROOT / "prometheus").glob(pattern)))
    assert files
    done = subprocess.run([promtool, *command, *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS" in done.stdout
