"""The board's stream with a real database: what it shows, when it says that numbers are old, and how it ends."""

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, LiteralString

import anyio
import httpx
import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.types.json import Jsonb
from tests import game_rows
from tests.conftest import Database, Postgres, Roles, create_game_tables
from tests.http_client import connect, request
from tests.support import PATIENCE, ExporterProcess, eventually, stop_backend

from mfg_notify.core.progress import FactoryNeeds
from mfg_notify.postgres import connection, migrations
from mfg_notify.postgres.progress import ProgressReading, read_progress
from mfg_notify.web.board import VIEWERS_MAXIMUM

STREAM = "/-/board/stream"
SECRET = "s3cr3t-w0rd"  # noqa: S105 - of nobody
BoardSnapshot = dict[str, Any]


class Watching:
    """One viewer."""

    def __init__(self, answer: httpx.Response) -> None:
        self.answer = answer
        self._lines = answer.iter_lines()
        self._last: BoardSnapshot = {}

    def snapshots(self) -> Iterator[BoardSnapshot]:
        """Yield snapshots as they come, and the last one again with each heartbeat."""
        for line in self._lines:
            if line.startswith("data: {"):
                self._last = json.loads(line.removeprefix("data: "))
            if line.startswith("data: "):
                yield self._last

    def until(self, satisfied: Callable[[BoardSnapshot], Any]) -> BoardSnapshot:
        """Wait for a snapshot that satisfies."""
        until = time.monotonic() + PATIENCE
        for snapshot in self.snapshots():
            if satisfied(snapshot):
                return snapshot
            assert time.monotonic() < until, f"still {snapshot}"
        raise AssertionError("the stream has ended")


@contextmanager
def watching(exporter: ExporterProcess) -> Iterator[Watching]:
    with httpx.stream("GET", exporter.address + STREAM, timeout=PATIENCE) as answer:
        yield Watching(answer)


def add_player(connection: psycopg.Connection) -> None:
    connection.execute("INSERT INTO players (agent_symbol, token) VALUES ('A', 'x')")


def add_task(connection: psycopg.Connection, key: str) -> None:
    connection.execute(
        """INSERT INTO manufacturing_tasks (id, player_id, task_type, status, good, assigned_ship)
           VALUES (%s, 1, 'COLLECT_SELL', 'READY', 'G', 'SHIP-1')""",
        (key,),
    )


def end_connections(connection: psycopg.Connection) -> None:
    connection.execute(
        """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
           WHERE datname = current_database() AND application_name = 'mfg-notify'"""
    )


def test_changes_are_on_the_stream_as_they_happen(installed: Database) -> None:
    with installed.connect() as game, ExporterProcess(installed.dsn) as exporter:
        exporter.wait_ready()
        add_player(game)
        with watching(exporter) as viewer:
            assert viewer.answer.headers["content-type"].startswith("text/event-stream")
            assert "content-encoding" not in viewer.answer.headers
            first = viewer.until(lambda snapshot: snapshot["state"] == "live")
            assert (first["known_at"], first["changes"], first["ready"]) == (None, [], True)
            add_task(game, "t-1")
            seen = viewer.until(lambda snapshot: snapshot["changes"])
            [line] = seen["changes"]
            assert (line["key"], line["before"], line["after"], line["ship"]) == ("t-1", None, "READY", "SHIP-1")
            assert seen["game"]["tables"]["tasks"] == [[line["player"], "COLLECT_SELL", 0, 1, 0, 0, 0, 0]]
            assert ["Events counted since the start", 1, ""] in seen["exporter"]
            game.execute("UPDATE manufacturing_tasks SET status = 'ASSIGNED'")
            seen = viewer.until(lambda snapshot: len(snapshot["changes"]) == 2)
            assert (seen["changes"][0]["before"], seen["changes"][0]["after"]) == ("READY", "ASSIGNED")
            assert seen["game"]["summary"]["ships_assigned"] == 1


def test_a_row_is_shown_by_its_id(installed: Database) -> None:
    key = "a/b?c=d&id=e%2F#f 💥"
    with installed.connect() as game, ExporterProcess(installed.dsn) as exporter:
        exporter.wait_ready()
        add_player(game)

        def row(**asked: str) -> httpx.Response:
            return httpx.get(f"{exporter.address}/-/board/row", params=asked, timeout=PATIENCE)

        unknown: dict[str, object] = {"facts": [], "changes": [], "complete_since": None}
        assert row(kind="pipeline", id=key).json() == unknown
        game_rows.add_pipeline(game, key)
        found = eventually(lambda: row(kind="pipeline", id=key).json(), lambda answer: answer["facts"])
        assert ["Status", "PLANNING", "words"] in found["facts"]
        assert [change["key"] for change in found["changes"]] == [key]
        for other in ({"id": "e/"}, {"id": ""}, {}, {"id": "x" * 10_000}):
            assert row(kind="pipeline", **other).json()["facts"] == []
        assert row(kind="task", id=key).json()["facts"] == []
        for kind in ("", "factory", "__class__"):
            refused = row(kind=kind, id=key)
            assert (refused.status_code, refused.text) == (400, "kind must be one of: pipeline, task\n")


def test_construction_sites_are_on_the_stream(installed: Database) -> None:
    def materials(delivered: int) -> Jsonb:
        return Jsonb([{"tradeSymbol": "FAB_MATS", "targetQuantity": 1600, "deliveredQuantity": delivered}])

    with installed.connect() as game, ExporterProcess(installed.dsn) as exporter, watching(exporter) as viewer:
        exporter.wait_ready()
        add_player(game)
        game_rows.add_pipeline(
            game, pipeline_type="CONSTRUCTION", construction_site="X1-I52", materials=materials(0), status="EXECUTING"
        )
        seen = viewer.until(lambda snapshot: snapshot["game"] and snapshot["game"]["tables"]["sites"])
        assert [row[1:] for row in seen["game"]["tables"]["sites"]] == [["X1-I52", "FAB_MATS", 0, 1600, 0]]
        game.execute("UPDATE manufacturing_pipelines SET materials = %s", (materials(400),))
        viewer.until(lambda snapshot: snapshot["game"]["tables"]["sites"][0][3:] == [400, 1600, 0.25])
        game.execute("UPDATE manufacturing_pipelines SET status = 'COMPLETED'")
        viewer.until(lambda snapshot: snapshot["game"]["tables"]["sites"] == [])


def test_players_have_their_agents_names(installed: Database) -> None:
    with installed.connect() as game:
        for agent in ("TORWIND", "B", "TORWIND"):
            game_rows.add_player(game, agent)
        for player in (1, 2):
            game_rows.add_task(game, f"t-{player}", player_id=player)
        with ExporterProcess(installed.dsn) as exporter, watching(exporter) as viewer:
            exporter.wait_ready()
            seen = viewer.until(lambda snapshot: snapshot["game"])
            assert [row[0] for row in seen["game"]["tables"]["tasks"]] == ["TORWIND", "B"]
            # A second player of the same agent, as each reset of the universe makes one.
            game_rows.add_task(game, "t-3", player_id=3)
            names = ["TORWIND (1)", "B", "TORWIND (3)"]
            seen = viewer.until(lambda snapshot: [row[0] for row in snapshot["game"]["tables"]["tasks"]] == names)
            assert [row[0] for row in seen["game"]["tables"]["players"]] == names
            assert seen["changes"][0]["player"] == "TORWIND (3)"


@pytest.mark.slow
def test_each_change_once_over_folds_and_reconnects(installed: Database) -> None:
    keys = [f"t-{n:03d}" for n in range(90)]
    with installed.connect() as game, ExporterProcess(installed.dsn) as exporter, watching(exporter) as viewer:
        add_player(game)
        exporter.wait_ready()
        for n, key in enumerate(keys):
            add_task(game, key)
            if n % 30 == 20:
                viewer.until(lambda snapshot: snapshot["changes"])
                end_connections(game)
            if n % 30 == 25:
                exporter.wait_ready()
        newest = keys[::-1][:50]
        seen = viewer.until(lambda snapshot: [line["key"] for line in snapshot["changes"]] == newest)
        eventually(lambda: game.execute("SELECT count(*) FROM mfg_notify.event").fetchone() == (0,))
        # Those that come by the journal alone, without payloads, and the folds after them.
        with game.transaction():
            for n in range(200):
                add_task(game, f"u-{n:03d}")
        newest = [f"u-{n:03d}" for n in range(199, 149, -1)]
        seen = viewer.until(lambda snapshot: [line["key"] for line in snapshot["changes"]] == newest)
        assert len({line["id"] for line in seen["changes"]}) == 50


@pytest.mark.slow
def test_a_forged_change_goes_again(installed: Database) -> None:
    with installed.connect() as game, ExporterProcess(installed.dsn) as exporter, watching(exporter) as viewer:
        exporter.wait_ready()
        add_player(game)
        add_task(game, "real")
        viewer.until(lambda snapshot: len(snapshot["changes"]) == 1)
        game.execute(
            """SELECT pg_notify((SELECT channel FROM mfg_notify.settings),
                 '[1,999999999,1,"2023-11-14T22:13:20+00:00",["task","I",[null,null,"forged","COLLECT_SELL","READY",null],'
                 '[null,null,null,null,1,0,0,0,null],[null,null,null]]]')"""
        )
        seen = viewer.until(lambda snapshot: snapshot["changes"][0]["key"] == "forged")
        assert len(seen["changes"]) == 2
        viewer.until(lambda snapshot: [line["key"] for line in snapshot["changes"]] == ["real"])


@pytest.mark.slow
def test_it_says_when_the_numbers_were_last_known(postgres: Postgres) -> None:
    with postgres.make() as server:
        create_game_tables(server.dsn())
        began = time.time()
        with psycopg.connect(server.dsn(), autocommit=True) as game:
            migrations.up(game, "public", print)
            with ExporterProcess(server.dsn()) as exporter, watching(exporter) as viewer:
                exporter.wait_ready()
                add_player(game)
                add_task(game, "t-1")
                viewer.until(lambda snapshot: snapshot["changes"])
                server.stop("fast")
                old = viewer.until(lambda snapshot: snapshot["state"] == "waiting" and snapshot["known_at"])
                assert began < old["known_at"] / 1_000_000 < time.time()
                assert [row[1:] for row in old["game"]["tables"]["tasks"]] == [["COLLECT_SELL", 0, 1, 0, 0, 0, 0]]
                server.start()
                viewer.until(lambda snapshot: snapshot["state"] == "live" and snapshot["known_at"] is None)


@pytest.mark.slow
def test_a_standby_says_so(installed: Database) -> None:
    with ExporterProcess(installed.dsn) as first:
        first.wait_ready()
        with ExporterProcess(installed.dsn) as second, watching(second) as viewer:
            standby = viewer.until(lambda snapshot: snapshot["state"] == "standby")
            assert (standby["game"], standby["known_at"]) == (None, None)
            assert standby["status_text"] == "standby: another exporter is active"
            assert first.terminate() == 0
            viewer.until(lambda snapshot: snapshot["state"] == "live" and snapshot["game"])


def test_open_streams_do_not_hold_up_the_end(installed: Database) -> None:
    with ExporterProcess(installed.dsn) as exporter:
        exporter.wait_ready()
        with watching(exporter) as viewer:
            viewer.until(lambda snapshot: snapshot["state"] == "live")
            assert exporter.terminate() == 0
            # The stream was ended in good order, and nothing had to be cancelled.
            assert list(viewer.snapshots()) == []
        assert "timeout" not in exporter.read_log()


@pytest.mark.slow
@pytest.mark.thorough
def test_a_viewer_who_does_not_read_holds_up_nothing(installed: Database) -> None:
    with installed.connect() as game, ExporterProcess(installed.dsn) as exporter:
        exporter.wait_ready()
        add_player(game)
        for n in range(50):
            add_task(game, f"{n}-".ljust(60, "x"))
        host, port = exporter.address.removeprefix("http://").split(":")
        with socket.socket() as stuck:
            stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            stuck.connect((host, int(port)))
            stuck.sendall(request(path=STREAM))
            with watching(exporter) as viewer:
                for n in range(30):
                    game.execute("UPDATE manufacturing_tasks SET retry_count = %s", (n,))
                    viewer.until(lambda snapshot, n=n: f"retry {n}" in snapshot["changes"][0]["remark"] or n == 0)  # type: ignore[misc]
            assert exporter.terminate() == 0


def test_a_bounded_number_of_viewers(installed: Database) -> None:
    with ExporterProcess(installed.dsn) as exporter, ExitStack() as stack:
        viewers = [stack.enter_context(watching(exporter)) for _ in range(VIEWERS_MAXIMUM)]
        assert {viewer.answer.status_code for viewer in viewers} == {200}
        # Not a plain GET: if this takes so long that the first viewer may be evicted, the stream would never end.
        with watching(exporter) as refused:
            assert refused.answer.status_code == 503
            assert refused.answer.read().decode() == f"{VIEWERS_MAXIMUM} are watching already\n"
        assert exporter.get("/metrics").status_code == 200
        viewers[0].answer.close()

        def admitted() -> bool:
            with watching(exporter) as viewer:
                return viewer.answer.status_code == 200

        eventually(admitted)


@pytest.mark.slow
@pytest.mark.thorough
def test_silent_viewers_lock_nobody_out(installed: Database) -> None:
    """Viewers that never read are evicted when others want to watch."""
    with ExporterProcess(installed.dsn) as exporter, ExitStack() as stack:
        exporter.wait_ready()
        for _ in range(VIEWERS_MAXIMUM):
            silent = stack.enter_context(connect(exporter))
            silent.sendall(request(path=STREAM))
            assert silent.recv(12) == b"HTTP/1.1 200"
        with watching(exporter) as refused:
            assert refused.answer.status_code == 503

        def watches() -> bool:
            with watching(exporter) as viewer:
                return viewer.answer.status_code == 200 and viewer.until(lambda snapshot: snapshot["ready"])["ready"]

        eventually(watches)


def test_the_page_allows_its_own_files_only(installed: Database) -> None:
    with ExporterProcess(installed.dsn) as exporter:
        page = exporter.get("/")
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "http:" not in page.text + policy
        assert "style=" not in page.text
        for name in ("board.js", "board.css", "icon.svg"):
            assert f'"./-/board/{name}"' in page.text
            asset = exporter.get(f"/-/board/{name}")
            assert asset.status_code == 200
            assert asset.headers["content-encoding"] == "gzip"
            plain = httpx.get(f"{exporter.address}/-/board/{name}", headers={"accept-encoding": "identity"})
            assert "content-encoding" not in plain.headers
            assert plain.content == asset.content
        assert httpx.head(exporter.address + STREAM).status_code == 200
        assert exporter.get("/-/board/board.html").status_code == 404


def test_without_the_board(installed: Database) -> None:
    with ExporterProcess(installed.dsn, environment={"MFG_NOTIFY_WEB_NO_BOARD": "true"}) as exporter:
        exporter.wait_ready()
        page = exporter.get("/")
        assert "<script" not in page.text
        assert '<a href="/metrics">' in page.text
        assert exporter.get(STREAM).status_code == 404


def test_no_secret_on_the_stream(installed: Database) -> None:
    with installed.connect() as game:
        [(channel,)] = game.execute("SELECT channel FROM mfg_notify.settings").fetchall()
    with ExporterProcess(make_conninfo(installed.dsn, password=SECRET)) as exporter, watching(exporter) as viewer:
        live = json.dumps(viewer.until(lambda snapshot: snapshot["state"] == "live"))
        assert SECRET not in live
        assert channel not in live
        with installed.connect() as game:
            game.execute(sql.SQL("ALTER TABLE {} RENAME TO gone").format(sql.Identifier("mfg_notify", "settings")))
            end_connections(game)
            waiting = json.dumps(viewer.until(lambda snapshot: snapshot["state"] == "waiting"))
        assert SECRET not in waiting
        assert channel not in waiting


@pytest.mark.slow
@pytest.mark.extended
def test_a_database_that_hangs_holds_up_no_viewer(installed: Database) -> None:
    with installed.connect() as connection, ExporterProcess(installed.dsn) as exporter, watching(exporter) as viewer:
        viewer.until(lambda snapshot: snapshot["state"] == "live")
        hanging = stop_backend(connection)
        try:
            assert exporter.page()
            viewer.until(lambda snapshot: ["Connections given up", 1, ""] in snapshot["exporter"])
        finally:
            os.kill(hanging, signal.SIGCONT)


def progress_of(dsn: str) -> ProgressReading:
    async def read() -> ProgressReading:
        async with await connection.connect(dsn) as opened:
            return await read_progress(opened, "public")

    return anyio.run(read)


def test_what_live_pipelines_wait_for(installed: Database) -> None:
    with installed.connect() as game:
        add_player(game)
        for key, status in (("old", "EXECUTING"), ("new", "PLANNING"), ("done", "COMPLETED")):
            game_rows.add_pipeline(game, key, status=status)
        game.execute("UPDATE manufacturing_pipelines SET created_at = now() - interval '1 hour' WHERE id = 'old'")
        game_rows.add_task(game, "pending", pipeline_id="old")
        for minutes in ("5 minutes", "1 minute"):
            game_rows.add_task(game, minutes, pipeline_id="old", status="READY", ready_at=game_rows.ago(minutes))
        game_rows.add_task(game, "finished", pipeline_id="old", status="COMPLETED")
        game_rows.add_task(game, "ad hoc")
        game_rows.add_factory(
            game,
            "X1-F",
            pipeline_id="old",
            required_inputs=Jsonb(["IRON", "TIN"]),
            delivered_inputs=Jsonb({"IRON": {"delivered": True}, "TIN": {"delivered": False}}),
            current_supply="",
        )
        game_rows.add_factory(game, "X1-G", pipeline_id="done")
        found = progress_of(installed.dsn)
    assert found.error is None
    assert found.progress is not None
    assert list(found.progress) == ["old", "new"]
    old = found.progress["old"]
    assert old.created_at is not None
    assert old.ready.since is not None
    assert round((old.ready.since - old.created_at) / 60_000_000) == 55
    assert [tasks.number for tasks in (old.pending, old.ready, old.executing)] == [1, 2, 0]
    assert old.factories == (FactoryNeeds("X1-F", "IRON", None, ("TIN",)),)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ("ALTER TABLE manufacturing_tasks DROP pipeline_id", None),
        ("ALTER TABLE manufacturing_pipelines ALTER created_at DROP DEFAULT, ALTER created_at TYPE text", "DataError"),
    ],
)
def test_the_board_does_without_what_pipelines_wait_for(
    installed: Database, change: LiteralString, error: str | None
) -> None:
    with installed.connect() as game:
        add_player(game)
        game_rows.add_pipeline(game, "p", status="EXECUTING")
        game.execute(change)
        if error is not None:
            game.execute("UPDATE manufacturing_pipelines SET created_at = 'yesterday evening, about eight'")
        found = progress_of(installed.dsn)
        assert found.progress is None
        assert (found.error is None) is (error is None)
        with ExporterProcess(installed.dsn) as exporter, watching(exporter) as viewer:
            exporter.wait_ready()
            seen = viewer.until(lambda snapshot: snapshot["game"] and snapshot["game"]["tables"]["runs"])
            assert [row[1:] for row in seen["game"]["tables"]["runs"]] == [
                ["IRON", "p", "EXECUTING", None, "not read yet", None]
            ]


def test_a_role_of_its_own_may_read_what_pipelines_wait_for(roles: Roles, installed: Database) -> None:
    role = roles.name("board")
    with migrations.connect(installed.dsn) as opened:
        migrations.up(opened, "public", print)
        migrations.create_role(opened, "public", role, print)
    assert progress_of(make_conninfo(installed.dsn, user=role)).progress == {}
