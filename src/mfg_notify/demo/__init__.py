"""The demo: an embedded PostgreSQL, the game's tables, and a simulated game, for `mfg-notify demo` and the tests.

    embedded.py     a PostgreSQL server in a temporary folder
    world.py        what happens in one player's game, with the numbers of economy.py
    classic.py, construction.py   what happens only with one of the game's two daemons
    rows.py, statements.py   what the world yields
    commands.py     those statements as SQL
    game.py         plays the worlds of several players on a database

The exporter never imports this package.
"""
