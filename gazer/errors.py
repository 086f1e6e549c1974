"""Every error that gazer raises on purpose, and the exit code each one ends the program with.

    GazerError                 1   something the operator can act on; one line, no traceback
    ├── UsageError             2   the command line is wrong
    ├── ConfigError            2   the configuration is wrong (file, line, key, what was expected)
    ├── InputError             1   a capture file or interface can't be read, or broke off
    │   ├── InterfaceAbsent    1   no such interface, or it is not up: worth waiting for
    │   └── CaptureDenied      1   this process may not capture: waiting changes nothing
    ├── OutputError            1   an output can't be written
    ├── SharedMemoryError      1   a segment can't be made, or isn't what it should be
    └── ProcessError           1   a process of the pipeline died or did not start

What comes from the network is never an exception: it is counted (see gazer.counters).
"""

from __future__ import annotations


class GazerError(Exception):
    """Base of all; `str(error)` is the one line for the operator."""

    exit_code = 1


class UsageError(GazerError):
    """The command line is wrong."""

    exit_code = 2


class ConfigError(GazerError):
    """The configuration is wrong; the text names file, line, key and what was expected."""

    exit_code = 2


class InputError(GazerError):
    """A capture file or interface can't be opened or read, or breaks off."""


class InterfaceAbsent(InputError):
    """There is no such interface, or it is not up.  Either may change."""


class CaptureDenied(InputError):
    """The process lacks the permission to capture; the text says how it gets it."""


class OutputError(GazerError):
    """An output can't be opened or written."""


class SharedMemoryError(GazerError):
    """A shared-memory segment can't be made or attached, or is of another layout."""


class ProcessError(GazerError):
    """A process of the pipeline died, or did not start."""
