"""An exporter that writes down which files its event loop opens from SIGUSR1 on: `… opening FILE run …`."""

import asyncio
import signal
import sys
import threading
from pathlib import Path

from mfg_notify.cli import main

if __name__ == "__main__":
    file = Path(sys.argv[1])
    sys.argv[:2] = ["mfg-notify"]
    opened: list[str] = []

    def note(event: str, arguments: tuple[object, ...]) -> None:
        """Note what is opened or listed, except by other threads and outside of the loop."""
        if (
            event not in ("open", "os.listdir", "os.scandir")
            or threading.current_thread() is not threading.main_thread()
        ):
            return
        if asyncio._get_running_loop() is not None:
            opened.append(f"{event} {arguments[0]}")

    signal.signal(signal.SIGUSR1, lambda *_: opened.clear())
    sys.addaudithook(note)
    try:
        main()
    finally:
        file.write_text("\n".join(opened), encoding="utf-8")
