"""What may go wrong in a phase of a run. Each phase draws its own: few kinds of trouble, but much of it."""

from dataclasses import dataclass
from random import Random

ONE_SESSION = ("crash", "disconnect", "pause", "stall", "stop", "hand over")
SERVER = ("restart", "fail over", "lose commits", "restore", "restore in place")
"""Faults of the database: all connections break, except when it is restored in place. To fail over loses nothing."""
FORGERY = ("forge", "repeat")
FLOOD = ("flood",)
FAULTS = (*ONE_SESSION, *SERVER, *FORGERY, *FLOOD)


@dataclass(slots=True)
class Weather:
    """Durations are means in seconds, everything else a probability."""

    latency: float = 0.002
    think: float = 0.3
    """Between two transactions of a writer."""
    burst: float = 0.3
    """That writers hardly think for a while."""
    statements: int = 3
    """In a transaction, at most."""
    statement: float = 0.01
    long_transaction: float = 0.05
    long: float = 3.0
    roll_back: float = 0.1
    truncate: float = 0.01
    unannounced: float = 0.1
    """Of an event whose payload would be too long, so that 'fold' goes out instead."""
    commit: float = 0.001
    """How long a notifying commit takes."""
    queue_full: bool = False
    faults: tuple[str, ...] = ()
    every: float = 0.0
    """Between two faults."""
    lingers: float = 0.0
    """Of a broken connection that the server does not notice at once."""


def fair(chance: Random) -> Weather:
    """Return weather without faults: what bounds hold for delays must hold here."""
    return Weather(
        latency=chance.choice((0.0005, 0.003)),
        think=chance.choice((0.05, 0.3, 1.0, 4.0)),
        burst=chance.choice((0.0, 0.3, 0.6)),
        statements=chance.choice((1, 3, 6)),
        statement=chance.choice((0.002, 0.02, 0.2)),
        long_transaction=chance.choice((0.0, 0.05, 0.3)),
        long=chance.choice((1.0, 5.0, 20.0)),
        roll_back=chance.choice((0.0, 0.1, 0.4)),
        truncate=chance.choice((0.0, 0.01, 0.1)),
        unannounced=chance.choice((0.0, 0.1, 0.6)),
        commit=chance.choice((0.0005, 0.004)),
    )


def foul(chance: Random, allowed: tuple[str, ...]) -> Weather:
    """Return weather with a few kinds of faults."""
    weather = fair(chance)
    weather.latency = chance.choice((0.0005, 0.01, 0.1, 0.25))
    weather.queue_full = chance.random() < 0.1
    weather.faults = tuple(chance.sample(allowed, min(len(allowed), chance.choice((1, 1, 2, 3, 5)))))
    weather.every = chance.choice((0.3, 1.0, 3.0))
    weather.lingers = chance.choice((0.0, 0.5))
    return weather
