"""mfg-notify whose event loop hangs for good from SIGUSR1 on, while the process and its other threads go on."""

import signal
import threading

from mfg_notify.cli import main

if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, lambda *_: threading.Event().wait())
    main()
