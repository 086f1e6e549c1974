"""A fluentd output in a world of dice: time, servers and disk are simulated, all else is real.

    clock.py    one clock, and what is to happen when
    network.py  sockets, and the servers behind them
    disk.py     a disk that is full, broken, unreadable or gone
    world.py    one sink after the other over one spool and one ledger, and what must hold
"""
