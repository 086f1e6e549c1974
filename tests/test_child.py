"""What every child does before its work."""

from __future__ import annotations

import os
import signal

from gazer.child import NOTICE, Boot, Child, run
from gazer.config import Config
from gazer.counters import ledger_bytes, ledger_create
from gazer.segment import PREFIX, Segment, new_token
from gazer.topology import Part


def test_a_cpu_that_has_gone_meanwhile_is_a_line_and_no_death():
    segment = Segment.create(f"{PREFIX}{new_token()}-ledger", ledger_bytes(1))
    ledger_create(segment.buf, captures=1, workers=1, outputs=1)
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        def work(child: Child) -> None:
            os._exit(42)

        boot = Boot(part=Part("worker", 0, "gazer:worker0"), config=Config(),
                    segments={"ledger": segment}, bells=(), stdin=-1, seed=1,
                    supervisor=os.getppid(), reports=theirs, cpus=(1023,))
        try:
            run(boot, work)
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.close(theirs)
    segment.close()
    said = os.read(ours, 1000).decode()
    os.close(ours)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 42, said
    assert said == f"{NOTICE} gazer:worker0 can't be kept on CPU 1023: Invalid argument\n"
