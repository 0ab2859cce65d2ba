"""From the COMMIT of a change in the game to its number in /metrics: measured over HTTP, one change after the other.

Plays against a database with the triggers installed and a running exporter:

    python benchmarks/delay.py --dsn … --url http://127.0.0.1:9810/metrics --changes 1000 --rate 50

The figure has one whole scrape in it. It adds a player and a task of its own and takes both away in the end.
"""

import argparse
import http.client
import re
import statistics
import time
from urllib.parse import urlsplit

import psycopg

METRIC = "spacetraders_daemon_manufacturing_task_retry_total"


def main() -> None:
    """Measure, and print the quantiles in milliseconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dsn", default="")
    parser.add_argument("--url", default="http://127.0.0.1:9810/metrics")
    parser.add_argument("--changes", type=int, default=200)
    parser.add_argument("--rate", type=float, default=50.0, help="changes a second, at most")
    options = parser.parse_args()
    address = urlsplit(options.url)
    scraper = http.client.HTTPConnection(address.hostname or "127.0.0.1", address.port or 80)

    def scrape() -> str:
        scraper.request("GET", address.path)
        return scraper.getresponse().read().decode()

    with psycopg.connect(options.dsn, autocommit=True) as game:
        row = game.execute("INSERT INTO players (agent_symbol, token) VALUES ('DELAY', '') RETURNING id").fetchone()
        player = row[0] if row is not None else None
        game.execute(
            """INSERT INTO manufacturing_tasks (id, player_id, task_type, status, good)
               VALUES (gen_random_uuid()::text, %s, 'COLLECT_SELL', 'PENDING', 'G')""",
            (player,),
        )
        shown = re.compile(rf'^{METRIC}\{{player_id="{player}",task_type="COLLECT_SELL"\}} (\S+)$', re.MULTILINE)
        delays, scrapes = [], []
        begun = time.perf_counter()
        for number in range(1, options.changes + 1):
            time.sleep(max(0.0, begun + number / options.rate - time.perf_counter()))
            game.execute("UPDATE manufacturing_tasks SET retry_count = %s WHERE player_id = %s", (number, player))
            committed = time.perf_counter()
            while True:
                asked = time.perf_counter()
                page = scrape()
                answered = time.perf_counter()
                found = shown.search(page)
                scrapes.append(answered - asked)
                if found and float(found[1]) >= number:
                    break
            delays.append(answered - committed)
        game.execute("DELETE FROM manufacturing_tasks WHERE player_id = %s", (player,))
        game.execute("DELETE FROM players WHERE id = %s", (player,))
        version = game.info.server_version // 10000

    def quantiles(seconds: list[float]) -> str:
        ordered = sorted(seconds)
        p99 = ordered[min(len(ordered) - 1, round(0.99 * len(ordered)))]
        return (
            f"p50 {1000 * statistics.median(ordered):.1f} ms, p99 {1000 * p99:.1f} ms, max {1000 * ordered[-1]:.1f} ms"
        )

    print(f"PostgreSQL {version}, {len(delays)} changes at up to {options.rate:g} a second")  # noqa: T201
    print(f"COMMIT → /metrics   {quantiles(delays)}")  # noqa: T201
    print(f"one scrape          {quantiles(scrapes)}")  # noqa: T201


if __name__ == "__main__":
    main()
