"""Opening captures: detection, compression, pipes, and what is refused."""

import bz2
import gzip
import lzma
import os
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import threading
import time
import zlib

import pytest
import zstandard
from capture_writers import NANO, enhanced, interface, pcap, section
from hypothesis import given, settings
from hypothesis import strategies as st

from gazer.capture.decompress import ZSTD_WINDOW
from gazer.capture.files import open_source
from gazer.capture.testing import count_all, read_all, read_one
from gazer.errors import InputError

RECORDS = [(n, n, bytes([n % 256]) * (n % 300)) for n in range(2000)]
PCAP = pcap(RECORDS)
PCAPNG = section() + interface() + b"".join(
    enhanced(d, s * 10**6 + f) for s, f, d in RECORDS
)  # fmt: skip
FRAMES = [(d, len(d), len(d), s * NANO + f * 1000, 1, 0) for s, f, d in RECORDS]


def zstd(data, **how):
    return zstandard.ZstdCompressor(**how).compress(data)


def many(compress, data, size):
    return b"".join(compress(data[n : n + size]) for n in range(0, len(data), size))


def skippable(n, size):
    return (0x184D2A50 + n).to_bytes(4, "little") + size.to_bytes(4, "little") + bytes(size)


def streaming_zstd(data):
    """No content size in the header, with a check sum, in small pieces."""
    c = zstandard.ZstdCompressor(write_checksum=True, write_content_size=False).compressobj()
    parts = [c.compress(data[n : n + 999]) + c.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
             for n in range(0, len(data), 999)]  # fmt: skip
    return b"".join(parts) + c.flush()


FORMS = {
    "plain": lambda d: d,
    "gzip": gzip.compress,
    "gzip, stored": lambda d: gzip.compress(d, 0),
    "gzip, members": lambda d: many(gzip.compress, d, 777),
    "gzip, an empty member": lambda d: gzip.compress(b"") + gzip.compress(d) + gzip.compress(b""),
    "gzip, padded": lambda d: gzip.compress(d) + bytes(100_001),
    "zstd": zstd,
    "zstd, check sum": lambda d: zstd(d, write_checksum=True),
    "zstd, streamed": streaming_zstd,
    "zstd, frames": lambda d: many(zstd, d, 777),
    "zstd, skippable": lambda d: skippable(0, 70_000) + zstd(d) + skippable(15, 0),
    "zstd, an empty frame": lambda d: zstd(b"") + zstd(d) + zstd(b""),
}


@pytest.fixture(autouse=True)
def nothing_left_open():
    """Every test closes what it opens: descriptors and threads."""
    before = sorted(os.listdir("/proc/self/fd"))
    yield
    assert [t for t in threading.enumerate() if t.name.endswith("-pump")] == []
    assert sorted(os.listdir("/proc/self/fd")) == before


def written(tmp_path, content, name="x.cap"):
    path = tmp_path / name
    path.write_bytes(content)
    return str(path)


def read(path, **how):
    s = open_source(path, snaplen=65535, **how)
    frames, result, error = read_all(s)
    s.close()
    return frames, result, error


def refused(path, **how):
    """The text of the InputError, without the file's name."""
    with pytest.raises(InputError) as e:
        open_source(path, snaplen=65535, **how)
    assert str(e.value).startswith(f"{path}: ")
    assert "\n" not in str(e.value)
    return str(e.value).removeprefix(f"{path}: ")


@pytest.mark.parametrize("content", [PCAP, PCAPNG], ids=["pcap", "pcapng"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_file(tmp_path, form, content):
    assert read(written(tmp_path, FORMS[form](content))) == (FRAMES, "end", None)


class Feeder(threading.Thread):
    """Writes to a descriptor in pieces, then closes it."""

    def __init__(self, fd, content, piece):
        super().__init__()
        self.fd, self.content, self.piece = fd, content, piece
        self.start()

    def run(self):
        try:
            for n in range(0, len(self.content), self.piece):
                os.write(self.fd, self.content[n : n + self.piece])
        except BrokenPipeError:
            pass
        finally:
            os.close(self.fd)


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


# What breaks on the way.


@pytest.mark.parametrize("form", [f for f in FORMS if f not in ("plain", "gzip, padded")])
def test_a_compressed_stream_cut_at_every_byte(tmp_path, form):
    """A cut between two members is whole gzip and whole zstd; then the capture is cut."""
    content = FORMS[form](PCAP[:1200])
    whole = read(written(tmp_path, content))[0]
    assert len(whole) == len(read(written(tmp_path, PCAP[:1200]))[0]) > 20
    step = len(content) // 3000 + 1     # a skippable frame is long, and all the same
    for n in range(1, len(content), step):
        path = written(tmp_path, content[:n])
        try:
            frames, result, error = read(path)
        except InputError as e:
            assert any(w in str(e) for w in ("cut off", "truncated", "empty", "not a pcap"))
            continue
        assert frames == whole[: len(frames)]
        # Cut within what comes after the capture (an empty member, a skippable frame) it may be
        # whole, but PCAP[:1200] is not.
        assert result == "broken"
        assert "cut off" in error


def test_a_cut_is_told_by_the_stream_that_has_it(tmp_path):
    path = written(tmp_path, gzip.compress(PCAP)[:-20])
    frames, result, error = read(path)
    assert (frames, result) == (FRAMES[: len(frames)], "broken")
    size = os.path.getsize(path)
    assert error == (
        f"{path}: the gzip stream is cut off at byte {size} (after frame {len(frames)})"
    )
    path = written(tmp_path, zstd(PCAP)[:-20])
    frames, result, error = read(path)
    assert error == (
        f"{path}: the zstd stream is cut off at byte {os.path.getsize(path)} "
        f"(after frame {len(frames)})"
    )


@pytest.mark.parametrize("form", ["gzip", "zstd, check sum"])
def test_a_wrong_check_sum(tmp_path, form):
    content = bytearray(FORMS[form](PCAP))
    content[-8 if form == "gzip" else -1] ^= 1
    frames, result, error = read(written(tmp_path, bytes(content)))
    # Frames from before the sum was known are given; then the doubt is told.
    assert frames == FRAMES[: len(frames)]
    assert len(frames) > 1000
    assert result == "broken"
    assert "incorrect data check" in error or "checksum" in error


@pytest.mark.parametrize("form", ["gzip", "zstd"])
def test_something_else_after_the_stream(tmp_path, form):
    path = written(tmp_path, FORMS[form](PCAP) + b"something else")
    frames, result, error = read(path)
    assert (frames, result) == (FRAMES, "broken")
    assert error.startswith(f"{path}: the {form} stream has bytes that are not {form} at byte ")


def test_padding_with_something_in_it(tmp_path):
    path = written(tmp_path, gzip.compress(PCAP) + bytes(100_000) + b"x")
    frames, result, error = read(path)
    assert (frames, result) == (FRAMES, "broken")
    assert "has bytes that are not gzip before byte" in error


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_broken_streams_never_crash(tmp_path_factory, data):
    form = data.draw(st.sampled_from([f for f in FORMS if f != "plain"]))
    content = bytearray(FORMS[form](PCAP[:5000]))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(4, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = written(tmp_path_factory.getbasetemp(), bytes(content))
    try:
        _, result, error = read(path)
    except InputError as e:
        assert str(e).startswith(f"{path}: ")
        return
    assert result == "broken"       # 5000 bytes end in the middle of a frame
    assert error.startswith(f"{path}: ")
    assert "\n" not in error


def in_memory(code, *arguments):
    """Run it in a process of its own; the growth of its peak memory from `begin()` on, in MiB."""
    prelude = """
        import resource, sys
        from gazer.capture.files import open_source
        from gazer.capture.testing import read_all, count_all
        def peak():
            for line in open("/proc/self/status"):
                if line.startswith("VmHWM"):
                    return int(line.split()[1]) / 1024
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(prelude) + textwrap.dedent(code), *arguments],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    return done.stdout.split()


def gzip_bomb(header, size):
    c = zlib.compressobj(9, wbits=31)
    out = [c.compress(header)]
    zeros = bytes(2**20)
    out += [c.compress(zeros) for _ in range(size >> 20)]
    return b"".join(out) + c.flush()


def zstd_bomb(header, size):
    """By hand: the header as a raw block, then nothing but RLE blocks of 128 KiB, four bytes each:
    32,000 : 1, where a real compressor gets to about 10,000 : 1."""
    block = (128 * 1024 << 3 | 1 << 1).to_bytes(3, "little") + b"\0"
    head = b"\x28\xb5\x2f\xfd" + b"\0" + bytes([(17 - 10) << 3])
    first = (len(header) << 3).to_bytes(3, "little") + header
    return head + first + block * (size // (128 * 1024)) + (1).to_bytes(3, "little")


@pytest.mark.parametrize("bomb", [gzip_bomb, zstd_bomb])
def test_bombs_take_no_memory(tmp_path, bomb):
    """1 GiB of zeros in a valid file, in a block of a type that is skipped."""
    head = section() + interface() + enhanced(b"x") + struct.pack("<II", 4711, 2**30 + 8)
    content = bomb(head, 2**30)
    assert len(content) < 2 * 2**20
    path = written(tmp_path, content)
    frames, result, error, grown = in_memory(
        """
        before = peak()
        s = open_source(sys.argv[1], snaplen=65535)
        frames, _, result = count_all(s)
        error = s.error.replace(" ", "_")
        s.close()
        print(frames, result, error, peak() - before)
        """,
        path,
    )
    assert (frames, result) == ("1", "broken")
    assert error.endswith("the_block's_length_is_1073741832_at_its_begin_and_0_at_its_end")
    assert float(grown) < 16


def test_a_zstd_window_beyond_the_limit(tmp_path):
    how = zstandard.ZstdCompressionParameters(window_log=28, enable_ldm=True)
    c = zstandard.ZstdCompressor(compression_params=how).compressobj()
    path = written(tmp_path, c.compress(PCAP) + c.flush())
    assert refused(path) == (
        f"the zstd stream is broken before byte 6: its window is over {ZSTD_WINDOW >> 20} MiB"
    )
    how = zstandard.ZstdCompressionParameters(window_log=27, enable_ldm=True)
    c = zstandard.ZstdCompressor(compression_params=how).compressobj()
    assert read(written(tmp_path, c.compress(PCAP) + c.flush())) == (FRAMES, "end", None)


# Stopping.


@pytest.mark.parametrize("form", ["gzip", "zstd, streamed"])
def test_closing_early_ends_the_pump(tmp_path, form):
    """While it waits for room in the pipe; and while it waits for input that doesn't come."""
    big = FORMS[form](pcap([(n, 0, os.urandom(1000)) for n in range(5000)]))
    s = open_source(written(tmp_path, big), snaplen=100)
    assert read_one(s)[0] == "frame"
    s.close()
    assert read_one(s) == ("end", None)

    out, into = os.pipe()
    os.write(into, big[:60_000])
    s = open_source("-", snaplen=100, stdin_fd=out)
    assert read_one(s)[0] == "frame"
    while read_one(s)[0] != "idle":     # the writer lives, and says nothing
        pass
    s.close()
    os.close(out)
    os.close(into)


def test_a_source_that_is_dropped_ends_its_pump(tmp_path):
    big = gzip.compress(pcap([(n, 0, os.urandom(1000)) for n in range(5000)]))
    s = open_source(written(tmp_path, big), snaplen=100)
    assert read_one(s)[0] == "frame"
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
    while True:
        result, frame = read_one(s)
        if result == "idle":
            break
        frames.append(frame)
    began = time.monotonic()
    assert read_one(s) == ("idle", None)
    assert 0.05 < time.monotonic() - began < 5      # it waits, and not for long
    feeder = Feeder(into, content[at:], 10**9)
    more, result, error = read_all(s)
    assert (frames + more, result, error) == (FRAMES, "end", None)
    feeder.join()
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
        out, err = process.communicate(timeout=20)
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
