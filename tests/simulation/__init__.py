"""A seeded simulation of exporters, a game, a network and a database that fail in every way we know of.

No database, no clock, no asyncio: one `Agenda` owns the time and the order in which things happen, so a seed repeats a
run exactly. `database` models PostgreSQL, `game` writes, `exporter` drives the real objects of `mfg_notify.core` in the
order in which `mfg_notify.exporter.session` calls them, `world` makes the weather and checks the invariants, and
`mutations` takes out one rule of the protocol at a time: the simulation must find each.

    python -m tests.simulation --seed 7 --steps 100000
    python -m tests.simulation --without "a snapshot waits until the journal is drained"
"""
