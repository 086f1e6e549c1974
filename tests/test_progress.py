"""gazer.observe.progress: the line on a terminal, and that it is gone again."""

from __future__ import annotations

import os
import pty
import re
import struct
import time
from pathlib import Path

import pytest

from gazer.observe import progress
from gazer.observe.progress import Progress, progress_for
from tests.conftest import CAPTURES

RESOLVER = (CAPTURES / "resolver.pcap").read_bytes()
ERASE = "\r\x1b[K"


class Drawn:
    """A Progress whose clock is turned by hand, on a terminal."""

    def __init__(self, total: int) -> None:
        self.master, self.slave = pty.openpty()
        self.clock = 1000.0
        self.progress = Progress(self.slave, total, now=lambda: self.clock)

    def at(self, seconds: float, position: int, frames: int) -> str:
        """What is written when so many seconds have passed."""
        self.clock = 1000.0 + seconds
        self.progress.update(position, frames)
        return self.read()

    def read(self) -> str:
        os.set_blocking(self.master, False)
        try:
            return os.read(self.master, 65536).decode()
        except BlockingIOError:
            return ""

    def close(self) -> None:
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def drawn():
    made = []

    def make(total: int) -> Drawn:
        made.append(Drawn(total))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_the_line(drawn):
    d = drawn(1_000_000)
    assert d.at(0.5, 100_000, 500) == ""        # most reads are done by then
    assert d.at(1.0, 200_000, 1000) == (
        f"{ERASE} 20 % [####................] 1.0 k frames, 1.0 k/s, 5 s left")
    assert d.at(1.1, 210_000, 1100) == ""       # not at each step
    assert d.at(9.0, 999_999, 123_456_789).startswith(f"{ERASE} 99 % [")
    assert d.at(10.0, 1_200_000, 1).startswith(f"{ERASE}100 % [{'#' * 20}]")    # a file that grew


def test_the_rate_is_that_of_the_last_seconds(drawn):
    d = drawn(10_000_000)
    for second in range(1, 21):
        d.at(second, 1000 * second, 10 * second)
    for second in range(21, 40):
        last = d.at(second, 20_000 + 100_000 * (second - 20), 200 + 1000 * (second - 20))
    assert "1.0 k/s, 1 min 21 s left" in last


def test_nothing_is_left_of_it(drawn):
    d = drawn(100)
    d.progress.clear()
    assert d.read() == ""       # nothing was there
    assert d.at(2, 50, 1)
    d.progress.clear()
    assert d.read() == ERASE
    d.progress.clear()
    assert d.read() == ""


def test_it_fits_a_narrow_terminal(drawn):
    import fcntl
    import termios

    d = drawn(100)
    fcntl.ioctl(d.slave, termios.TIOCSWINSZ, struct.pack("4H", 24, 30, 0, 0))
    assert len(d.at(2, 50, 10).removeprefix(ERASE)) == 29


def test_without_a_total_there_are_frames_and_their_rate(drawn):
    assert drawn(0).at(2.0, 12345, 5000) == f"{ERASE}5.0 k frames, 2.5 k/s"


def test_a_terminal_that_is_gone_is_no_error():
    master, slave = pty.openpty()
    os.close(master)
    os.close(slave)
    clock = [0.0]
    gone = Progress(slave, 10, now=lambda: clock[0])
    clock[0] = 5.0
    gone.update(5, 5)
    gone.clear()


@pytest.mark.parametrize(("seconds", "text"), [
    (0, "1 s"), (58.5, "59 s"), (59.5, "1 min 0 s"), (3599.5, "1 h 0 min"), (1e12, "9999 h "),
])  # fmt: skip
def test_time_left(seconds, text):
    assert progress._left(seconds).startswith(text)


def test_when_there_is_one(tmp_path, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    file = tmp_path / "a"
    file.write_bytes(bytes(1000))
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    master, slave = pty.openpty()
    out = str(tmp_path / "out")

    def total(files, outputs=(out,), stream=slave):
        made = progress_for(stream, map(str, files), outputs)
        return None if made is None else made._total

    try:
        assert total([file, file]) == 2000
        assert total([file, tmp_path / "missing"]) == 1000
        assert total([file, fifo]) == 0
        assert total(["-"]) == 0
        assert total([file], ["/dev/null"]) == 1000
        assert total([file], [out, os.ttyname(slave)]) is None
        monkeypatch.setattr(os, "isatty", lambda fd: True)
        assert total([file], ["-"]) is None
        monkeypatch.undo()
        monkeypatch.setenv("TERM", "dumb")
        assert total([file]) is None
        monkeypatch.setenv("TERM", "xterm")
        with file.open() as plain:
            assert total([file], stream=plain.fileno()) is None
        assert total([file], stream=999) is None
    finally:
        os.close(master)
        os.close(slave)


# --------------------------------------------------------------------------------- a whole run


def run_in(terminal, *args: object, out: Path | str, **options: object):
    """dns-gazer in a terminal."""
    return terminal("run", "-c", config(out), *args, **options)


def config(out: Path | str) -> Path:
    path = Path(f"{out}.yaml")
    path.write_text(f"workers: 1\noutputs: [{{type: text, path: {out}}}]\n")
    return path


def test_a_long_read_shows_it_and_takes_it_away(terminal, fifo, tmp_path):
    run = run_in(terminal, "-r", fifo.path, out=tmp_path / "out")
    fifo.write(RESOLVER[:40_000])
    run.shows(b" frames, ", seconds=20)
    fifo.write(RESOLVER[40_000:])
    fifo.close()
    assert run.end() == 0
    text = run.output.decode()
    assert re.match(r"(\r\x1b\[K\d+ frames, [\d.]+( k)?/s)+\r\x1b\[Kgazer: 439 frames read", text)
    assert not re.search(r"frames, [\d.]+/s", text.rpartition(ERASE)[2])
    assert text.count("gazer: ") == text.count("\n")


def test_lines_of_the_run_stand_alone(terminal, fifo, tmp_path):
    run = run_in(terminal, "-r", fifo.path, out=tmp_path / "out")
    fifo.write(RESOLVER[:40_000])
    run.shows(b" frames, ", seconds=20)
    run.press(b"\x03")
    assert run.end() == 1
    text = run.output.decode()
    for line in text.split("\r\n")[:-1]:
        assert line.rpartition(ERASE)[2].startswith(("gazer: ", "^Cgazer: ")), line


def test_none_without_a_terminal(gazer, fifo, tmp_path, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    live = gazer.start("run", "-c", config(tmp_path / "out"), "-r", fifo.path, command="gazer")
    fifo.write(RESOLVER[:40_000])
    time.sleep(progress.PATIENCE + 0.8)     # by now there would be a line
    fifo.write(RESOLVER[40_000:])
    fifo.close()
    done = live.wait()
    assert done.code == 0
    assert "\r" not in done.stderr and "\x1b" not in done.stderr and "/s" not in done.stderr


@pytest.mark.parametrize("name", ["resolver.pcap", "resolver.pcap.gz", "resolver.pcap.zst",
                                  "mixed.pcapng"])
def test_how_far_it_has_come_is_counted(tmp_path, name):
    """At the end: all bytes of the file, as it is on disk."""
    import gzip

    import zstandard

    from gazer.capture.files import open_source
    from gazer.capture.testing import read_all

    path = tmp_path / name
    data = (CAPTURES / "mixed.pcapng").read_bytes() if name.endswith("ng") else RESOLVER
    if name.endswith("gz"):
        data = gzip.compress(data)
    elif name.endswith("zst"):
        data = zstandard.ZstdCompressor().compress(data)
    path.write_bytes(data)
    source = open_source(str(path), snaplen=262144)
    read_all(source)
    assert source.taken == len(data)
    source.close()
