"""Outputs as files, pipes and full disks: nothing torn, nothing lost silently."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from functools import lru_cache
from pathlib import Path

import msgpack
import pytest

from tests.conftest import CAPTURES, COMMANDS, bound_by_permissions, eventually, whole_lines
from tests.oracle import build, compare

RESOLVER = CAPTURES / "resolver.pcap"


@lru_cache
def expected(**rules) -> list[str]:
    return compare.expected_lines(RESOLVER, **rules)


def not_written(stderr: str, name: object) -> tuple[int, int]:
    """(written, not written) of an output, as the summary has it."""
    found = re.search(rf"(\d+) events written to {re.escape(str(name))}(?:, (\d+) NOT written)?$",
                      stderr, re.MULTILINE)
    assert found, stderr
    return int(found[1]), int(found[2] or 0)


# ------------------------------------------------------------------------------------ full disks


def test_a_full_disk_makes_it_wait_and_room_lets_it_finish(gazer, disk):
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(40 * 1024))
    out = disk / "out"
    live = gazer.start("-r", RESOLVER, "-t", out)
    live.says(f"waiting for room to write to {out}: no space left on device")
    time.sleep(0.7)         # several tries
    assert live.process.poll() is None
    assert live.stderr.count("\n") == 1, live.stderr
    subprocess.run(["mount", "-o", "remount,size=1m", disk], check=True)
    done = live.wait(20.0)
    assert done.code == 0, done.stderr
    assert f"there is room again: writing to {out}" in done.stderr
    assert compare.diff(expected(), whole_lines(out.read_bytes())) == ""


@pytest.mark.parametrize("flag", ["-t", "-o"])
def test_an_interruption_says_what_was_not_written(gazer, disk, flag):
    """And the file ends with a whole event, though the block had been written in part."""
    out = disk / "out"
    live = gazer.start("-r", RESOLVER, "-R", flag, out)
    live.says("waiting for room")
    live.signal(signal.SIGINT)
    done = live.wait(10.0)
    assert done.code == 1
    assert f"interrupted while {out} had no room" in done.stderr
    want = expected(records=True)
    written, lost = not_written(done.stderr, out)
    assert (written + lost, lost > 0) == (len(want), True)
    if flag == "-t":
        assert compare.diff(want[:written], whole_lines(out.read_bytes())) == ""
    else:
        unpacker = msgpack.Unpacker(out.open("rb"))
        assert len(list(unpacker)) == written
        assert unpacker.tell() == out.stat().st_size


def test_the_other_output_is_complete(gazer, disk, tmp_path):
    """One gave up; the other has it all."""
    live = gazer.start("-r", RESOLVER, "-R", "-t", disk / "out", "-o", tmp_path / "all")
    live.says("waiting for room")
    live.signal(signal.SIGTERM)
    done = live.wait(10.0)
    assert done.code == 1
    everything = len(expected(records=True))
    assert len(list(msgpack.Unpacker((tmp_path / "all").open("rb")))) == everything
    assert not_written(done.stderr, tmp_path / "all") == (everything, 0)


def test_a_device_that_is_always_full(gazer):
    live = gazer.start("-r", RESOLVER, "-t", "/dev/full")
    live.says("waiting for room to write to /dev/full")
    live.signal(signal.SIGINT)
    done = live.wait(10.0)
    assert done.code == 1
    assert not_written(done.stderr, "/dev/full") == (0, len(expected()))


# ------------------------------------------------------------------------ what can't be written


def refused(done, path: Path) -> str:
    """The one line about it; nothing was read."""
    assert (done.code, done.stdout) == (1, b"")
    assert len(done.said) == 1, done.stderr
    assert str(path) in done.said[0]
    return done.said[0]


def test_a_missing_folder(gazer, tmp_path):
    path = tmp_path / "no" / "out"
    assert "No such file or directory" in refused(gazer("-r", RESOLVER, "-t", path), path)


def test_a_folder_as_output(gazer, tmp_path):
    assert "Is a directory" in refused(gazer("-r", RESOLVER, "-t", tmp_path), tmp_path)


def test_a_read_only_file_system(gazer, disk):
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    path = disk / "out"
    assert "Read-only file system" in refused(gazer("-r", RESOLVER, "-t", path), path)


def test_no_permission(gazer, tmp_path):
    path = tmp_path / "out"
    path.touch()
    path.chmod(0)
    done = gazer("-r", RESOLVER, "-t", path, **bound_by_permissions())
    assert "Permission denied" in refused(done, path)


def test_nothing_is_read_before_all_outputs_are_open(gazer, fifo, tmp_path):
    """A FIFO tells: what was written to it is all still there."""
    fifo.write(b"x" * 1000)
    path = tmp_path / "no" / "out"
    refused(gazer("-r", fifo.path, "-t", path), path)
    fd = os.open(fifo.path, os.O_RDONLY | os.O_NONBLOCK)
    assert len(os.read(fd, 2000)) == 1000
    os.close(fd)


# ---------------------------------------------------------------------------------------- stdout


def head(gazer, *args: object) -> tuple[bytes, object]:
    """`dns-gazer ... | head -1`"""
    live = gazer.start(*args)
    line = live.process.stdout.readline()
    live.process.stdout.close()
    live.process.stdout = None
    return line, live.wait(20.0)


@pytest.fixture
def long_capture(tmp_path) -> Path:
    """Makes more output than any pipe holds."""
    path = tmp_path / "long.pcap"
    build.write_pcap(path, [
        (10**18 + i * 10**6, build.frame(build.udp("198.51.100.7", 4000, "192.0.2.53", 53,
                                                   build.header(i) + QUESTION)))
        for i in range(20_000)
    ], nanoseconds=True)
    return path


QUESTION = build.question(build.labels("www", "example", "com"))


def test_a_reader_that_leaves_ends_it_quietly(gazer, long_capture):
    line, done = head(gazer, "-r", long_capture, "-t", "-")
    assert line.endswith(b"}\n")
    assert (done.code, done.stderr) == (0, "")


def test_a_reader_that_leaves_takes_nothing_from_a_file(gazer, long_capture, tmp_path):
    """The file beside standard output is complete, and the exit code still 0."""
    out = tmp_path / "out"
    _, done = head(gazer, "-r", long_capture, "-t", "-", "-o", out)
    assert done.code == 0
    assert "nobody reads standard output any more; the other outputs go on" in done.stderr
    assert len(list(msgpack.Unpacker(out.open("rb")))) == 20_000
    written, lost = not_written(done.stderr, "standard output")
    assert (written + lost, lost > 0) == (20_000, True)
    assert written > 0      # what went out before the reader left is not called lost


def test_a_closed_stdout(gazer):
    done = gazer("-c", 'exec "$@" >&-', "x", *COMMANDS["dns-gazer"], "-r", RESOLVER, "-t", "-",
                 command="bash")
    assert done.code == 1
    assert done.said == [
        "gazer: can't open standard output: it is closed, or open for reading only"
    ]


def test_all_standard_descriptors_closed(gazer, tmp_path):
    """What gets their numbers then must be no memory of ours, and no file."""
    out = tmp_path / "out"
    done = gazer("-c", 'exec "$@" <&- >&- 2>&-', "x", *COMMANDS["dns-gazer"], "-r", RESOLVER,
                 "-t", out, command="bash")
    assert done.code == 0
    assert compare.diff(expected(), whole_lines(out.read_bytes())) == ""
    done = gazer("-c", 'exec "$@" <&-', "x", *COMMANDS["dns-gazer"], "-r", "-", "-t", "-",
                 command="bash")
    assert done.code == 1
    assert "Bad file descriptor" in done.said[0]


def test_a_stdout_that_does_not_block(gazer, long_capture):
    """Someone else's setting: the pipe's, not ours."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    live = gazer.start("-r", long_capture, "-t", "-", stdout=write)
    os.close(write)
    time.sleep(0.5)         # it finds the pipe full
    with open(read, "rb") as pipe:
        lines = whole_lines(pipe.read())
    assert live.wait(20.0).code == 0
    assert len(lines) == 20_000


# --------------------------------------------------------------------------------- existing files


def test_files_are_appended_to(gazer, tmp_path):
    text, packed = tmp_path / "text", tmp_path / "packed"
    for _ in range(2):
        assert gazer("-r", RESOLVER, "-t", text, "-o", packed).code == 0
    lines = whole_lines(text.read_bytes())
    assert compare.diff(expected() * 2, lines) == ""
    values = list(msgpack.Unpacker(packed.open("rb")))
    assert len(values) == len(lines)
    assert values[: len(values) // 2] == values[len(values) // 2 :]


def test_a_torn_last_line_is_left_alone(gazer, tmp_path):
    """Ours begin on a line of their own, so that a reader loses one line and not two."""
    out = tmp_path / "out"
    out.write_bytes(b'2015-10-11T02:40:12+00:00\tdns-gazer.dns.tx\t{"client')
    assert gazer("-r", RESOLVER, "-t", out).code == 0
    lines = whole_lines(out.read_bytes())
    assert lines[0].endswith('{"client')
    assert compare.diff(expected(), lines[1:]) == ""

    # A shell's >> is the same.
    out.write_bytes(b"torn")
    with out.open("ab") as append:
        assert gazer("-r", RESOLVER, "-t", "-", stdout=append).code == 0
    lines = whole_lines(out.read_bytes())
    assert lines[0] == "torn"
    assert compare.diff(expected(), lines[1:]) == ""


def test_a_shells_redirection_is_written_where_it_stands(gazer, tmp_path):
    out = tmp_path / "out"
    with out.open("wb") as file:
        file.write(b"first: ")
        file.flush()
        assert gazer("-r", RESOLVER, "-t", "-", stdout=file).code == 0
        os.write(file.fileno(), b"last\n")
    data = out.read_bytes()
    assert data.startswith(b"first: 20") and data.endswith(b"}\nlast\n")


def test_a_fifo_as_output(gazer, fifo):
    live = gazer.start("-r", RESOLVER, "-t", fifo.path)
    fd = os.open(fifo.path, os.O_RDONLY | os.O_NONBLOCK)
    data = b""

    def complete() -> bool:
        """all lines have come through the FIFO"""
        nonlocal data
        with contextlib.suppress(BlockingIOError):
            data += os.read(fd, 1 << 20)
        return data.count(b"\n") == len(expected())

    eventually(complete, 20.0)
    assert live.wait(20.0).code == 0
    os.close(fd)
    assert compare.diff(expected(), whole_lines(data)) == ""


def test_a_fifo_that_nobody_reads_is_waited_for_until_interrupted(gazer, tmp_path):
    path = tmp_path / "fifo"
    os.mkfifo(path)
    live = gazer.start("-r", RESOLVER, "-t", path)
    live.says(f"waiting for someone to read {path}")
    live.signal(signal.SIGTERM)
    done = live.wait(10.0)
    assert done.code == 1
    assert any(line.endswith(f"can't open {path}: nobody reads it") for line in done.said)


@pytest.mark.parametrize("stdout_last", [True, False])
def test_a_failure_beside_a_reader_that_left_is_told(gazer, stdout_last):
    """Both in the same flush: the one that is no error must not hide the one that is."""
    broken = "/proc/self/oom_score_adj"         # can be opened, takes no such thing
    outputs = [("-o", broken), ("-t", "-")]
    reader, stdout = os.pipe()
    os.close(reader)
    try:
        done = gazer("-r", CAPTURES / "captured.pcap", *outputs[0 if stdout_last else 1],
                     *outputs[1 if stdout_last else 0], stdout=stdout)
    finally:
        os.close(stdout)
    assert done.code == 1
    assert any(f"can't write to {broken}" in line for line in done.said)


def test_what_others_wrote_behind_ours_stays(tmp_path):
    """A write that fails takes back its own bytes, and only if they are the last ones."""
    from gazer.sinks.files import FileOutput

    path = tmp_path / "out"
    path.write_bytes(b"first\n")
    output = FileOutput(str(path), lines=True, notice=lambda _: None, giving_up=lambda: True,
                        waits=lambda _: None)
    with path.open("ab") as other:
        other.write(b"ours, theirs\n")
    output._take_back(6, 5)
    assert path.read_bytes() == b"first\nours, theirs\n"
    output._take_back(6, 13)
    assert path.read_bytes() == b"first\n"
    output.close()
