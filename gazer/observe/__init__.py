"""What others can read of a running sensor: its counters, rings and processes.

    find ─▶ snapshot ─▶ stats, health, top      commands, each a process of its own
            snapshot ─▶ metrics ─▶ process      the sensor's own process that serves Prometheus

All of them only look: memory is mapped for reading, and no process of the sensor notices.
"""
