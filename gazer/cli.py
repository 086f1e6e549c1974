"""gazer's command line: `gazer run`, `gazer check`, `gazer init`; and `gazer stats`, `gazer top`,
`gazer health`, which look at a running sensor (gazer.observe).

Nothing is run here: `run` turns its arguments into a Config and hands it to the supervisor.

Exit codes: 0 it went well; 1 it went wrong while running; 2 the command line or the configuration
is wrong; 130 interrupted before anything ran. Whatever goes wrong is told on stderr in one line
each, after the command's name, and never as a traceback (`guarded`, which dns-gazer uses too).
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace

from gazer import __version__
from gazer.config import Config, load
from gazer.config.kinds import printable
from gazer.errors import ConfigError, GazerError, OutputError, UsageError

TYPE_CHECKING = False  # as in typing, which takes its time to import
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence
    from typing import Any, NoReturn

INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def main(argv: Sequence[str] | None = None) -> int:
    """Run `gazer` with these arguments (this process's by default); the exit code."""
    return guarded("gazer", _command, sys.argv[1:] if argv is None else argv)


def guarded(name: str, command: Callable[[Sequence[str]], int], argv: Sequence[str]) -> int:
    """The exit code of `command(argv)`, with every failure of ours told in one line each."""
    # Paths may hold bytes that are not text; they are shown escaped and never stop a report.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        return command(argv)
    except SystemExit as leaving:  # argparse, after -h and --version
        try:
            say("")
        except GazerError as error:
            return _told(name, error)
        return leaving.code if isinstance(leaving.code, int) else 0
    except GazerError as error:
        return _told(name, error)
    except KeyboardInterrupt:
        return INTERRUPTED


def _told(name: str, error: GazerError) -> int:
    for line in str(error).splitlines():
        print(f"{name}: {line}", file=sys.stderr)
    return error.exit_code


def say(text: str) -> None:
    """Write `text` to stdout at once. A reader that has gone (`| head`) is no error."""
    if sys.stdout is None:  # closed by whoever started us
        return
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        _drop_stdout()
    except OSError as error:
        _drop_stdout()
        raise OutputError(f"standard output: {error.strerror}") from None


def _drop_stdout() -> None:
    """Point stdout at nothing, so that the interpreter's last flush does not fail once more."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def _command(argv: Sequence[str]) -> int:
    arguments = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int] = arguments.command
    return command(arguments)


def _parser() -> argparse.ArgumentParser:
    import argparse  # here, as dns-gazer has no use for it

    class Parser(argparse.ArgumentParser):
        """argparse, but a wrong command line is an exception of ours and so one line."""

        def error(self, message: str) -> NoReturn:
            raise UsageError(f"{printable(message)}; {self.prog} -h shows the usage")

    parser = Parser(
        prog="gazer",
        description="A passive DNS sensor: matches queries with replies, logs the transactions.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"gazer {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, command, summary in (
        ("run", _run, "run the sensor until its input ends or a signal stops it"),
        ("check", _check, "check a configuration and show what would run"),
    ):
        sub = commands.add_parser(
            name, help=summary, description=f"{summary.capitalize()}.", allow_abbrev=False
        )
        sub.add_argument(
            "-c", "--config", metavar="FILE", required=True, help="the configuration, in YAML"
        )
        sub.add_argument(
            "-r",
            "--read",
            metavar="FILE",
            nargs="+",
            action="extend",
            default=[],
            help='capture files to read, in this order ("-" is standard input), in place of '
            "the configuration's capture.files",
        )
        sub.add_argument(
            "-i",
            "--interface",
            metavar="NAME",
            nargs="+",
            action="extend",
            default=[],
            help='network interfaces to capture from ("any" for all), in place of the '
            "configuration's capture.interfaces",
        )
        sub.add_argument(
            "-p", "--pid-file", metavar="FILE",
            help="write the process id to FILE, and refuse to run beside another that did",
        )  # fmt: skip
        if command is _run:
            sub.add_argument(
                "-d", "--daemon", action="store_true",
                help="run in the background; this command ends as soon as the sensor is up",
            )  # fmt: skip
        sub.set_defaults(command=command)
    _add_init(commands)
    from gazer.observe.commands import add

    add(commands, say)
    return parser


def _add_init(commands: argparse._SubParsersAction[Any]) -> None:
    summary = "lay a first configuration and service files into a folder"
    sub = commands.add_parser(
        "init", help=summary, description=f"{summary.capitalize()}.", allow_abbrev=False
    )
    sub.add_argument("folder", metavar="DIR", help="where to, such as /etc/gazer")
    sub.add_argument(
        "-i",
        "--interface",
        metavar="NAME",
        action="append",
        default=[],
        help='an interface to watch, repeatable; without one, "any" for all',
    )
    sub.add_argument(
        "--user", metavar="NAME", default="gazer", help="whom it runs as (default: gazer)"
    )
    sub.add_argument(
        "--log-dir",
        metavar="DIR",
        default="/var/log/gazer",
        help="where events are written (default: /var/log/gazer)",
    )
    sub.add_argument(
        "--prefix", metavar="DIR", help="where gazer is installed (default: this one's place)"
    )
    sub.add_argument("--force", action="store_true", help="overwrite files that are there")
    sub.set_defaults(command=_init)


def _config(arguments: argparse.Namespace) -> Config:
    config = load(arguments.config)
    files, interfaces = tuple(arguments.read), tuple(arguments.interface)
    if not files and not interfaces:
        return config
    if files and interfaces:
        raise UsageError("-i and -r: interfaces and files can't be read in one run")
    # What is asked for here takes the place of whatever the file has.
    capture = replace(config.capture, files=files, interfaces=interfaces)
    return replace(config, capture=capture).checked()


def _run(arguments: argparse.Namespace) -> int:
    config = _config(arguments)
    if not config.capture.files and not config.capture.interfaces:
        raise UsageError(_nothing_to_read(arguments.config))
    from gazer.supervisor import run

    return run(
        config,
        pid_file=arguments.pid_file,
        daemon=arguments.daemon,
        read_again=lambda: _config(arguments),
    )


def _nothing_to_read(source: str) -> str:
    return (
        "nothing to read: give interfaces with -i or capture files with -r, or name them under "
        f"capture.interfaces or capture.files in {printable(source)}"
    )


def _check(arguments: argparse.Namespace) -> int:
    from gazer.check import obstacles, outline

    config = _config(arguments)
    found = list(obstacles(config, arguments.pid_file))
    if not config.capture.files and not config.capture.interfaces:
        found.insert(0, _nothing_to_read(arguments.config))
    source = printable(arguments.config)
    say("\n".join([*outline(config), "" if found else f"{source} is valid\n"]))
    if found:
        raise ConfigError("\n".join(found))
    return 0


def _init(arguments: argparse.Namespace) -> int:
    from gazer.init import first_config, lay, report, site_for

    site = site_for(
        arguments.folder,
        prefix=arguments.prefix,
        log_dir=arguments.log_dir,
        user=arguments.user,
    )
    config = first_config(site, arguments.interface or ["any"])
    lay(arguments.folder, site, config, force=arguments.force)
    say("\n".join([*report(arguments.folder, site, config), ""]))
    return 0
