"""What hostile HTTP clients cost the exporter: `python -m benchmarks.overload`, ten minutes on an idle machine.

A game makes 3,000 changes a second while 100 or more clients overload the exporter in one of several ways. Prints a
line for each: the delay of events, reconnects to the database, peak memory, and the responses that were sent.

With `--port` it measures nothing: all loads at once overload an exporter that runs already, until they are stopped.
"""

import argparse
import asyncio
import signal
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from statistics import quantiles

from rich.console import Console

from benchmarks import witness
from benchmarks.stage import Running, Stage

say = Console(highlight=False, soft_wrap=True).print
RATE = 3_000
"""Changes a second."""
WRITERS = 8
_REQUEST = (
    b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nAccept-Encoding: gzip\r\n"
    b"Accept: application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3\r\n\r\n"
)
Client = Callable[[int], Awaitable[None]]
"""What one client does with a port: once, or until it is cancelled."""


@dataclass(frozen=True)
class Load:
    """A number of clients that repeat the same thing."""

    name: str
    number: int
    client: Client | None


async def scrape(port: int) -> None:
    """Scrape over one connection without a pause."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        while True:
            writer.write(_REQUEST)
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            await reader.readexactly(length)
    finally:
        writer.close()


async def ask_and_leave(port: int) -> None:
    """Ask for a page, and close the connection without reading."""
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(_REQUEST)
    await writer.drain()
    writer.close()


async def ask_and_never_read(port: int) -> None:
    """Ask for many pages and read none of them, until the connection is closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
    try:
        writer.write(_REQUEST.replace(b"gzip", b"identity") * 200)
        reader._transport.pause_reading()  # type: ignore[attr-defined]  # noqa: SLF001 - there is no public way
        while not writer.is_closing():
            writer.write(b"\r\n")
            await asyncio.sleep(0.5)
    finally:
        writer.close()


async def say_nothing(port: int) -> None:
    """Open a connection and send nothing until it is closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    await reader.read()
    writer.close()


async def stream(port: int) -> None:
    """Watch the board without reading, until the connection is closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
    writer.write(b"GET /-/board/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
    with suppress(asyncio.TimeoutError):
        await asyncio.wait_for(reader.read(), 30)
    writer.close()


LOADS = (
    Load("nobody", 0, None),
    Load("100 scrape without a pause", 100, scrape),
    Load("100 ask and leave", 100, ask_and_leave),
    Load("100 ask and never read", 100, ask_and_never_read),
    Load("1,100 say nothing", 1_100, say_nothing),
    Load("100 watch the board without reading", 100, stream),
)


def play(load: Load, port: int) -> None:
    """Run all clients of a load forever."""

    async def again_and_again(client: Client) -> None:
        while True:
            with suppress(OSError, EOFError):
                await client(port)
            await asyncio.sleep(0)

    async def everyone(client: Client) -> None:
        await asyncio.gather(*(again_and_again(client) for _ in range(load.number)))

    if load.client is not None:
        asyncio.run(everyone(load.client))


@contextmanager
def playing(load: Load, port: int) -> Iterator[None]:
    """Run the clients of a load beside the block, in their own process."""
    process = get_context("fork").Process(target=play, args=(load, port), daemon=True)
    process.start()
    try:
        yield
    finally:
        process.terminate()
        process.join()


def measure(stage: Stage, load: Load, seconds: float) -> None:
    """Run one load beside the game, and print what it cost."""
    stage.settle("ours")
    file = stage.scratch / "delays"
    with stage.exporter("ours", program=("benchmarks.witness", str(file))) as exporter:
        with playing(load, exporter.port):
            writing = stage.write("ours", "change.sql", WRITERS, seconds, RATE)
            waiting = stage.ask("ours", "SELECT count(*) FROM mfg_notify.event")
        exporter.wait_for("/-/ready")
        reconnects = exporter.number("mfg_notify_reconnects_total")
        answered = responses(exporter)
        peak = exporter.peak_mib
    delays = [1000 * (counted - at) for at, counted in witness.read(file)]
    late = sorted(delays[len(delays) // 10 :])
    cuts = quantiles(late, n=100)
    say(
        f"{load.name:<36} {writing.rate:6.0f}/s  p50 {cuts[49]:5.0f}  p99 {cuts[98]:5.0f}  most {late[-1]:5.0f} ms  "
        f"{waiting:6} rows waiting  {reconnects:.0f} reconnects  {peak:4.0f} MiB  "
        + ", ".join(f"{count / seconds:.0f}/s {status}" for status, count in sorted(answered.items()))
    )


def responses(exporter: Running) -> Counter[str]:
    """Return how many responses an exporter has sent, by status."""
    _, page = exporter.get("/metrics")
    found: Counter[str] = Counter()
    for line in page.splitlines():
        if line.startswith("mfg_notify_http_responses_total{"):
            found[line.partition('code="')[2][:3]] += int(float(line.rpartition(" ")[2]))
    return found


def main() -> int:
    """Run every load."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overload", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each load")
    parser.add_argument("--port", type=int, help="of an exporter on this machine")
    options = parser.parse_args()
    if options.port is not None:
        with ExitStack() as stack:
            for load in LOADS:
                stack.enter_context(playing(load, options.port))
            # Set when all clients run, which do not inherit it: they end with the block.
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
            signal.pause()
    with Stage() as stage:
        stage.make_game("ours", triggers=True)
        with stage.connect("ours") as connection:
            # The rate of changes should depend on the processor and not on the disk.
            connection.execute("ALTER DATABASE ours SET synchronous_commit = off")
        for load in LOADS:
            measure(stage, load, options.seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
