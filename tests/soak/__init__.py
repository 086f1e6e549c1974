"""The long run: a live sensor under load, to which things happen all the time.

    python -m tests.soak --minutes 3 [--seed S]         (`make soak`; needs root)

traffic sends exchanges whose names are unique; plan draws from the seed what happens and when;
machine does it to a sensor on a cable of its own; watch reads memory, descriptors and the account;
ledger reads what the sensor wrote.  What must hold is a *rule*; each breach is a line, and makes
the exit code 1:

- the service lives until it is told to stop, and then ends with exit code 0;
- every sum of the account holds whenever somebody looks, in every stats event and at the end;
- no name is in two events of one output, half a line in none, and no interval is missing among the
  stats events;
- a name that is in no event is explained by a frame that is counted as lost, or never came;
- a process's memory (PSS) and descriptors do not grow once it is warm, nor from one successor to
  the next;
- nothing has a name in /dev/shm, and nobody is left in the end.

The same seed draws the same actions at the same planned times.  What they meet there is not the
same: that is up to the machine.
"""
