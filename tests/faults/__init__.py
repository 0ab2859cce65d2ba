"""The fault harness: writers play the game, a nemesis does harm, and what was promised is checked all the while.

    rig.py       one run of one fault: server, writers, exporters, what must hold in the end, the report
    watch.py     looks at /metrics every 50 ms: nothing falls (I2), nothing is ahead of what was committed (I3)
    writer.py    the simulated game as a process that survives a lost connection and no other error (I4)
    dying.py     an exporter that kills itself at a named step of its fold
    proxy.py     a TCP proxy that cuts and stalls
    processes.py, network.py, storage.py, statements.py, strangers.py, sessions.py   the faults, by what is harmed
    deck.py          all of them together
    test_faults.py   each fault in its short form, by `make test`
    test_soak.py     all faults in random order for half an hour and more, by `make soak`

The truth is that of `tests.truth`: recounted in SQL, it shares no code with the exporter. Invariants are numbered as in
docs/design.md.
"""
