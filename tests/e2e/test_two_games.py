"""Two games in one Prometheus, with targets from files as `compose.two-games.yaml` has them.

Needs prometheus (Debian: apt-get install prometheus).
"""

import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from tests.conftest import Server
from tests.e2e.prometheus import SHIPPED, Prometheus, hurried
from tests.game_rows import add_pipeline, add_player
from tests.support import ExporterProcess

from mfg_notify.core.catalogue import PIPELINE_QUEUE_DEPTH


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed")
def test_each_game_has_its_label(server: Server, tmp_path: Path) -> None:
    configuration = yaml.safe_load((SHIPPED / "two-games.yml").read_text(encoding="utf-8"))
    configuration["global"] = {"scrape_interval": hurried(0.5)}
    del configuration["rule_files"]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(configuration), encoding="utf-8")
    shutil.copytree(SHIPPED / "targets", tmp_path / "targets")
    with (
        contextmanager(server.clone)(server.installed) as first,
        contextmanager(server.clone)(server.installed) as second,
        first.connect() as game,
        second.connect() as other,
        ExporterProcess(first.dsn) as exporter,
        ExporterProcess(second.dsn) as exporter_second,
    ):
        for connection, pipelines in ((game, 1), (other, 2)):
            add_player(connection)
            for number in range(pipelines):
                add_pipeline(connection, f"p-{number}")
        for name, process in (("game", exporter), ("second", exporter_second)):
            file = tmp_path / "targets" / f"{name}.yml"
            [entry] = yaml.safe_load(file.read_text(encoding="utf-8"))
            entry["targets"] = [process.address.removeprefix("http://")]
            file.write_text(yaml.safe_dump([entry]), encoding="utf-8")
        with Prometheus(tmp_path / "prometheus.yml") as prometheus:
            depth = f"sum by (job, database) ({PIPELINE_QUEUE_DEPTH.full_name})"
            prometheus.wait_for(f"count({depth}) == 2")
            found = {dict(labels)["database"]: value for labels, value in prometheus.at(depth).items()}
            assert found == {"game": 1, "second": 2}
            assert set(prometheus.values_of("job", "mfg_notify_leader")) == {"mfg-notify"}
