"""Our decoder against two that we did not write, on mutated messages.

    mutate.py     messages, real and made up, and what is done to them
    readings.py   one message as dnspython, dnslib and gazer read it
    classes.py    the closed list of what they disagree on, each with its reason
    __main__.py   the long run: `make differential`; docs/testing.md has its figures

A disagreement that no class explains is a failure.  A class explains by undoing what it names and
finding the two equal; none just looks away from a type or a message.
"""
