"""`dns-gazer`, the drop-in command: the original tool's flags, turned into the same Config.

The flags are read by getopt as the original reads them: they may be joined (`-Rr FILE`), a value
may be joined too (`-t-`), and -v and -h take effect where they stand. Events have classic detail
unless told otherwise. Children of multiprocessing import this module again, as it is the main
one: imports stand inside the functions.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as in typing, which takes its time to import
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from gazer.config import Config, Output

USAGE = """\
usage: dns-gazer [-dR] -i IFACE ... | -r FILE ... [-t FILE] ... [-o FILE] ...
                 [-f HOST[:PORT]] ... [-p FILE]

  -i IFACE      capture from a network interface; "any" for all; repeat it for more
  -r FILE       read a capture file; "-" is standard input; repeat it for more, read in order
  -t FILE       write text to FILE; "-" is standard output
  -o FILE       write msgpack to FILE; "-" is standard output
  -f HOST[:PORT]  send to fluentd there, port 24224 if none is given
  -R            log records too, not transactions alone
  -p FILE       write the process id to FILE and refuse to run beside another that did
  -d            run in the background, once it is up
  -v            print the version
  -h            print this help

  --detail WORD   classic (the default) or full
  --workers N     processes that parse, "auto" (the default) or 1 to 64

-t, -o and -f may be repeated and mixed; at least one is needed.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `dns-gazer` with these arguments (this process's by default); the exit code."""
    import sys

    from gazer.cli import guarded

    return guarded("dns-gazer", _command, sys.argv[1:] if argv is None else argv)


def _command(argv: Sequence[str]) -> int:
    from gazer.cli import say

    parsed = parse(argv)
    if isinstance(parsed, str):
        say(parsed)
        return 0
    config, pid_file, daemon = parsed
    from gazer.supervisor import run

    return run(config, pid_file=pid_file, daemon=daemon)


def parse(argv: Sequence[str]) -> tuple[Config, str | None, bool] | str:
    """The configuration, the pid file and whether to be a daemon, as the flags ask for; or a text
    to print instead."""
    import getopt

    from gazer import __version__
    from gazer.config import Output, OutputKind
    from gazer.config.kinds import printable
    from gazer.errors import UsageError

    try:
        flags, rest = getopt.gnu_getopt(
            list(argv), "r:i:f:o:t:p:dRvh", ["detail=", "workers=", "version", "help"]
        )
    except getopt.GetoptError as error:
        raise UsageError(f"{printable(error.msg)}; dns-gazer -h shows the usage") from None

    files: list[str] = []
    interfaces: list[str] = []
    outputs: list[tuple[str, str, Output]] = []
    words = {"--detail": "classic", "--workers": "auto"}
    records = daemon = False
    pid_file = None
    for flag, value in flags:
        if flag in ("-v", "--version"):
            return f"dns-gazer (gazer) {__version__}\n"
        if flag in ("-h", "--help"):
            return USAGE
        if flag == "-R":
            records = True
            continue
        if flag == "-d":
            daemon = True
            continue
        if not value:
            raise UsageError(f"{flag}: its value is empty; dns-gazer -h shows the usage")
        if flag == "-r":
            files.append(value)
        elif flag == "-i":
            interfaces.append(value)
        elif flag in ("-t", "-o"):
            kind = OutputKind.TEXT if flag == "-t" else OutputKind.MSGPACK
            outputs.append((flag, value, Output(kind, value)))
        elif flag == "-f":
            outputs.append((flag, value, _fluentd(value)))
        elif flag == "-p":
            pid_file = value
        else:
            words[flag] = value
    if rest:
        raise UsageError(
            f"{printable(rest[0])} belongs to no flag; capture files are given with -r"
        )
    if not files and not interfaces:
        raise UsageError("nothing to read: give an interface with -i or a capture file with -r")
    if files and interfaces:
        raise UsageError("-i and -r: interfaces and files can't be read in one run")
    if not outputs:
        raise UsageError(
            'no output: give -t FILE for text, -o FILE for msgpack ("-" is stdout) or -f HOST for'
            " fluentd"
        )
    return _config(files, interfaces, outputs, records, words), pid_file, daemon


def _fluentd(value: str) -> Output:
    """The output that -f asks for."""
    from gazer.config import Forward, Output, OutputKind, Server
    from gazer.config.kinds import FORWARD_PORT, Address, shown
    from gazer.errors import UsageError

    try:
        address = Address().parse(value)
    except ValueError:
        raise UsageError(
            f"-f: expected HOST, HOST:PORT, [ADDRESS]:PORT or unix:///PATH, got {shown(value)}"
        ) from None
    port = "" if address.startswith("unix:") or address.rpartition("]")[2].count(":") else (
        f":{FORWARD_PORT}")
    return Output(OutputKind.MSGPACK_EVENT_TIME, "",
                  Forward(servers=(Server(address + port),)))


def _config(
    files: list[str],
    interfaces: list[str],
    outputs: list[tuple[str, str, Output]],
    records: bool,
    words: dict[str, str],
) -> Config:
    from dataclasses import replace

    from gazer.config import Config, Events, keys_of
    from gazer.config.kinds import printable, shown
    from gazer.errors import UsageError

    def value(flag: str, cls: type, name: str) -> Any:
        kind = keys_of(cls)[name][1].kind
        try:
            return kind.parse(words[flag])
        except ValueError:
            got = shown(words[flag])
            raise UsageError(f"{flag}: expected {kind.expected}, got {got}") from None

    config = Config()
    config = replace(
        config,
        capture=replace(config.capture, files=tuple(files), interfaces=tuple(interfaces)),
        workers=value("--workers", Config, "workers"),
        events=replace(config.events, detail=value("--detail", Events, "detail"), records=records),
        outputs=tuple(output for *_, output in outputs),
        # Several may run side by side on one machine, and there is no flag for an address.
        metrics=replace(config.metrics, listen=""),
    )
    # What is wrong is told with the flag that says it, as there is no file with keys.
    of_output = {
        f"outputs[{i}].{'servers[0]' if output.forward else 'path'}": f"{flag} {printable(value)}"
        for i, (flag, value, output) in enumerate(outputs)
    }
    of_interface = {
        f"capture.interfaces[{i}]": f"-i {printable(name)}" for i, name in enumerate(interfaces)
    }
    of_key = of_output | of_interface | {"capture.files": "-r", "capture.processes": "-i"}
    found = [f"{of_key.get(path, path)}: {text}" for path, text in config.problems()]
    if found:
        raise UsageError("\n".join(found))
    return config
