"""Benchmarks: `python -m benchmarks` generates traffic, runs the sensor on it and prints figures.

names     the universe of domain names
wire      DNS messages of all kinds as templates, compressed as servers compress them
traffic   the capture file: a million query/reply pairs, with its exact counts
stream    captures too long for a file: the same traffic many times over; a flood of queries
baseline  the same job in plain Python: dnslib, a dict and json
measure   one run of a command: wall, CPU of each process, peak memory
jobs      what is run
report    the table, the requirements beside it
"""
