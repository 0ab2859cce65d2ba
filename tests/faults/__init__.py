"""The fault harness: writers play the game, faults break something, and the invariants are checked throughout.

    rig.py           one run of one fault: server, writers, exporters, invariants, report
    watch.py         scrapes /metrics every 50 ms: no counter falls (I2), none is ahead of the commits (I3)
    writer.py        the simulated game as a process that survives lost connections and no other error (I4)
    dying.py         an exporter that kills itself at a named step of its fold
    test_failover.py failovers of PostgreSQL under Patroni, in a short form by `make test-all`; make test-failover
    cluster.py       three servers that replicate, under Patroni and etcd
    proxy.py         a TCP proxy that cuts and stalls connections
    processes.py, network.py, storage.py, clocks.py, schema.py, statements.py, sessions.py, hostile.py
                     the faults, grouped by what they break
    all_faults.py    imports all of them
    test_faults.py   each fault in its short form, run by `make test`
    test_soak.py     all faults in random order for half an hour or longer, run by `make soak`

`tests.truth` recounts the truth in SQL and shares no code with the exporter. The numbers of the invariants are those of
docs/explanation/exactness.md.
"""
