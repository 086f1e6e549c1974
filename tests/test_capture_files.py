"""Opening captures: detection, compression, pipes, and what is refused."""

import bz2
import gzip
import lzma
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from gazer.capture.files import open_source
from gazer.capture.testing import count_all, read_all, read_one
from gazer.errors import InputError
from tests.capture_forms import (
    FORMS,
    FRAMES,
    PCAP,
    PCAPNG,
    RECORDS,
    Feeder,
    nothing_left_open,  # noqa: F401  (a fixture for every test here)
    read,
    refused,
    streaming_zstd,
    written,
    zstd,
)
from tests.capture_writers import pcap


@pytest.mark.parametrize("content", [PCAP, PCAPNG], ids=["pcap", "pcapng"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_file(tmp_path, form, content):
    assert read(written(tmp_path, FORMS[form](content))) == (FRAMES, "end", None)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("content", [PCAP, PCAPNG], ids=["pcap", "pcapng"])
@pytest.mark.parametrize("piece", [97, 10**9])
def test_every_form_through_a_pipe(form, content, piece):
    out, into = os.pipe()
    feeder = Feeder(into, FORMS[form](content), piece)
    assert read("-", stdin_fd=out) == (FRAMES, "end", None)
    feeder.join()
    os.close(out)       # it stayed the caller's


def test_byte_by_byte():
    for compress in (bytes, gzip.compress, streaming_zstd):
        form = compress(PCAP)[:3000]
        out, into = os.pipe()
        feeder = Feeder(into, form, 1)
        frames, result, error = read("-", stdin_fd=out)
        assert (frames, result) == (FRAMES[: len(frames)], "broken")
        assert len(frames) > 10
        assert "cut off" in error
        feeder.join()
        os.close(out)


def test_fifo(tmp_path):
    path = str(tmp_path / "fifo")
    os.mkfifo(path)
    writer = threading.Thread(target=lambda: Feeder(os.open(path, os.O_WRONLY), PCAP, 4000).join())
    writer.start()
    assert read(path) == (FRAMES, "end", None)
    writer.join()


def test_a_fifo_without_a_writer_can_be_stopped(tmp_path):
    path = str(tmp_path / "fifo")
    os.mkfifo(path)
    asked = []
    assert refused(path, stopped=lambda: bool(asked.append(1) or len(asked) == 3)) == (
        "stopped before it had begun"
    )
    assert len(asked) == 3


def test_standard_input_from_a_file_begins_where_it_stands(tmp_path):
    fd = os.open(written(tmp_path, b"something else" + PCAP), os.O_RDONLY)
    os.lseek(fd, 14, os.SEEK_SET)
    assert read("-", stdin_fd=fd) == (FRAMES, "end", None)
    os.close(fd)


def test_a_socket_as_standard_input():
    a, b = socket.socketpair()
    feeder = Feeder(a.detach(), PCAP, 1000)
    assert read("-", stdin_fd=b.fileno()) == (FRAMES, "end", None)
    feeder.join()
    b.close()


def test_snaplen_goes_through(tmp_path):
    for content in (PCAP, PCAPNG, gzip.compress(PCAP), zstd(PCAPNG)):
        s = open_source(written(tmp_path, content), snaplen=100)
        frames, result, _ = read_all(s)
        s.close()
        assert result == "end"
        expected = [(d[:100], min(len(d), 100), len(d)) for _, _, d in RECORDS]
        assert [f[:3] for f in frames] == expected


# What is refused at once.


def test_no_such_file(tmp_path):
    assert refused(str(tmp_path / "none.pcap")) == "no such file"
    assert refused(str(tmp_path / "no" / "dir.pcap")) == "no such file"


def test_a_directory(tmp_path):
    assert refused(str(tmp_path)) == "a directory, not a capture file"


def test_a_file_within_a_file(tmp_path):
    assert refused(written(tmp_path, PCAP) + "/x") == "Not a directory"


def test_names_that_are_none(tmp_path):
    with pytest.raises(InputError, match=r"^'x\\x00': not the name of a file$"):
        open_source("x\0", snaplen=100)
    with pytest.raises(InputError, match=r"^'two\\nlines': no such file$"):
        open_source("two\nlines", snaplen=100)


def test_no_permission(tmp_path):
    """As nobody, since root may read anything."""
    path = written(tmp_path, PCAP)
    os.chmod(path, 0)
    os.chmod(tmp_path, 0o755)
    code = textwrap.dedent("""
        import os, sys
        from gazer.capture.files import open_source
        from gazer.errors import InputError
        if os.getuid() == 0:
            os.seteuid(65534)
        sys.path[:] = []
        os.chdir(sys.argv[1])
        try:
            open_source("x.cap", snaplen=100)
        except InputError as e:
            print(e)
    """)
    # Opened relative to its directory: those above it may be closed to nobody.
    code = code.replace("if os.getuid", "os.chdir(sys.argv[1])\nif os.getuid").replace(
        "sys.path[:] = []\nos.chdir(sys.argv[1])\n", ""
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("x.cap: no permission to read it\n", "")


def test_empty(tmp_path):
    assert refused(written(tmp_path, b"")) == "empty file, not a capture"
    assert refused(written(tmp_path, gzip.compress(b""))) == "empty gzip file, not a capture"
    assert refused(written(tmp_path, zstd(b""))) == "empty zstd file, not a capture"
    out, into = os.pipe()
    os.close(into)
    assert refused("-", stdin_fd=out) == "empty file, not a capture"
    os.close(out)
    assert refused("/dev/null") == "empty file, not a capture"


INTO_A_PIPE = "; decompress it into a pipe and read that with -"


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"\x7fELF" + bytes(60), "; it looks like a program"),
        (b"\xff\xfe", " (first bytes ff fe)"),
        (b"hello, world of captures", " (first bytes 68 65 6c 6c)"),
        (bz2.compress(PCAP), f"; it looks like bzip2{INTO_A_PIPE}"),
        (lzma.compress(PCAP), f"; it looks like xz{INTO_A_PIPE}"),
        (b"snoop\0\0\0\0\0\0\2", "; it looks like a snoop capture; convert it with editcap"),
        (b"\xa1\xb2\xc3", " (first bytes a1 b2 c3)"),
    ],
)
def test_not_a_capture(tmp_path, content, what):
    path = written(tmp_path, content)
    assert refused(path) == f"not a pcap or pcapng file{what}"
    assert refused(written(tmp_path, gzip.compress(content))) == f"not a pcap or pcapng file{what}"


def test_unknown_version(tmp_path):
    assert "version 3.0" in refused(written(tmp_path, pcap([], version=(3, 0))))
    assert "version 3.0" in refused(written(tmp_path, gzip.compress(pcap([], version=(3, 0)))))


@pytest.mark.parametrize("outer", ["gzip", "zstd"])
@pytest.mark.parametrize("inner", ["gzip", "zstd"])
def test_compressed_twice(tmp_path, outer, inner):
    text = refused(written(tmp_path, FORMS[outer](FORMS[inner](PCAP))))
    assert text == f"compressed twice ({inner} in {outer}); decompress it once first"


def test_a_terminal():
    leader, follower = os.openpty()
    assert refused("-", stdin_fd=follower) == "a terminal; give it a capture file or a pipe"
    os.close(leader)
    os.close(follower)


def test_standard_input_is_closed():
    assert refused("-", stdin_fd=999_999) == "Bad file descriptor"


# Stopping.


def first_result(source):
    """Of the first frame, or what is there instead of it: a decompressor may take its time."""
    while (result := read_one(source)[0]) == "idle":
        pass
    return result


@pytest.mark.parametrize("form", ["gzip", "zstd, streamed"])
def test_closing_early_ends_the_pump(tmp_path, form):
    """While it waits for room in the pipe; and while it waits for input that doesn't come."""
    big = FORMS[form](pcap([(n, 0, os.urandom(1000)) for n in range(5000)]))
    s = open_source(written(tmp_path, big), snaplen=100)
    assert first_result(s) == "frame"
    s.close()
    assert read_one(s) == ("end", None)

    out, into = os.pipe()
    os.write(into, big[:60_000])
    s = open_source("-", snaplen=100, stdin_fd=out)
    assert first_result(s) == "frame"
    while read_one(s)[0] != "idle":     # the writer lives, and says nothing
        pass
    s.close()
    os.close(out)
    os.close(into)


def test_a_source_that_is_dropped_ends_its_pump(tmp_path):
    big = gzip.compress(pcap([(n, 0, os.urandom(1000)) for n in range(5000)]))
    s = open_source(written(tmp_path, big), snaplen=100)
    assert first_result(s) == "frame"
    del s
    for t in threading.enumerate():
        if t.name == "gzip-pump":
            t.join(10)


@pytest.mark.parametrize("form", ["plain", "gzip"])
@pytest.mark.parametrize("content", [PCAP, PCAPNG], ids=["pcap", "pcapng"])
def test_a_quiet_pipe_is_idle_and_goes_on(form, content):
    content = FORMS[form](content)
    out, into = os.pipe()
    at = min(len(content) // 2, 60_000)      # a pipe holds 64 KiB
    os.write(into, content[:at])
    s = open_source("-", snaplen=65535, stdin_fd=out)
    frames = []
    before = None
    while True:
        began = time.monotonic()
        result, frame = read_one(s)
        if result == before == "idle":
            break
        before = result
        if frame is not None:
            frames.append(frame)
    assert 0.05 < time.monotonic() - began < 5      # it waits, and not for long
    feeder = Feeder(into, content[at:], 10**9)
    more, result, error = read_all(s)
    assert (frames + more, result, error) == (FRAMES, "end", None)
    feeder.join()
    s.close()
    os.close(out)


def test_what_has_come_is_handed_on_before_a_wait():
    """Frames at distances below the longest wait: each of them is followed by an idle all the
    same, at which capture gives its batch to the workers."""
    out, into = os.pipe()
    content = pcap([(n, 0, bytes(1000)) for n in range(20)])
    os.write(into, content[:24])
    s = open_source("-", snaplen=65535, stdin_fd=out)
    results = []
    for at in range(24, len(content), 1016):
        os.write(into, content[at : at + 1016])
        results += [read_one(s)[0], read_one(s)[0]]
    assert results == ["frame", "idle"] * 20
    os.close(into)
    s.close()
    os.close(out)


def test_dripping_bytes_do_not_hold_next():
    """A byte each few milliseconds: no single wait is long, but all of them for one frame are."""
    out, into = os.pipe()
    content = pcap([(0, 0, bytes(1000))])
    os.write(into, content[:24])
    s = open_source("-", snaplen=65535, stdin_fd=out)
    stop = threading.Event()

    def drip():
        for n in range(24, len(content)):
            if stop.wait(0.005):
                break
            os.write(into, content[n : n + 1])
        os.close(into)

    writer = threading.Thread(target=drip)
    writer.start()
    assert read_one(s) == ("idle", None)
    stop.set()
    writer.join()
    assert read_all(s)[1] == "broken"
    s.close()
    os.close(out)


READER = """
    import signal, sys
    from gazer.capture.files import open_source
    from gazer.capture.testing import read_one
    caught = []
    signal.signal(signal.SIGTERM, lambda *_: caught.append(1))
    source = open_source("-", snaplen=65535, stopped=lambda: bool(caught))
    frames = 0
    print("opened", flush=True)
    while not caught:
        result, frame = read_one(source)
        frames += result == "frame"
        if result in ("end", "broken"):
            print(frames, result, source.error, flush=True)
            sys.exit()
    source.close()
    print(frames, "stopped", flush=True)
"""


def reader():
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(READER)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


@pytest.mark.parametrize("form", ["plain", "gzip, members"])
@pytest.mark.parametrize("content", [PCAP, PCAPNG], ids=["pcap", "pcapng"])
def test_sigterm_ends_a_wait_in_the_middle_of_a_frame(form, content):
    with reader() as process:
        process.stdin.write(FORMS[form](content)[:-100])
        process.stdin.flush()
        assert process.stdout.readline() == b"opened\n"
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=20)    # standard input stays open: its end would be another end
        out, err = process.communicate()
    assert out.endswith(b" stopped\n")
    assert (err, process.returncode) == (b"", 0)


@pytest.mark.parametrize("form", ["plain", "gzip", "zstd"])
def test_a_writer_that_dies(form):
    content = FORMS[form](PCAP)
    writer = subprocess.Popen(
        [sys.executable, "-c", "import os, sys, time\n"
         "data = sys.stdin.buffer.read()\n"
         "while data: data = data[os.write(1, data):]\n"
         "time.sleep(600)"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    writer.stdin.write(content[: len(content) * 2 // 3])
    writer.stdin.close()
    s = open_source("-", snaplen=65535, stdin_fd=writer.stdout.fileno())
    frames = []
    while True:     # all that it had to say
        result, frame = read_one(s)
        if result == "idle" and len(frames) > 100:
            break
        if result == "frame":
            frames.append(frame)
    writer.kill()
    writer.wait()
    more, result, error = read_all(s)
    assert result == "broken"
    assert frames + more == FRAMES[: len(frames) + len(more)]
    assert error.startswith("-: ")
    assert "cut off" in error
    s.close()
    writer.stdout.close()


def test_a_pipe_in_a_process_of_its_own():
    with reader() as process:
        for n in range(0, len(PCAP), 10_000):
            process.stdin.write(PCAP[n : n + 10_000])
            process.stdin.flush()
        out, err = process.communicate(timeout=60)
    assert (out, err) == (b"opened\n2000 end None\n", b"")


def test_counting_leaves_python_alone(tmp_path):
    """next() holds no GIL: another thread runs meanwhile."""
    out, into = os.pipe()
    os.write(into, PCAP[:24])
    s = open_source("-", snaplen=65535, stdin_fd=out)
    done = []
    counter = threading.Thread(target=lambda: done.append(count_all(s)))
    counter.start()
    os.write(into, PCAP[24:60_000])     # nobody would get here
    os.close(into)
    counter.join(20)
    assert done[0][2] == "broken"
    s.close()
    os.close(out)
