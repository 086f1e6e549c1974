"""What the chaos tests share.  They kill, freeze, cut and fill, and then hold against one another
what was captured, what receivers acknowledged, what the spool has and what the ledger counts:

    captured = delivered + spooled + counted drops

Each record has a number `n`, from 0 on without a gap, and an `event_id`.

    sinks.py        a whole sink over real rings, as a process that can be killed
    sensors.py      a whole sensor in a network namespace
    memory.py       a folder in memory
    receivers.py    receivers that are slow, flap or are refused things; one that is a process
"""
