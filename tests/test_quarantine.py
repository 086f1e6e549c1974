"""The quarantine file: frames that tcpdump can read, and nothing that was there is lost."""

import os
import resource
import signal
import stat
import struct
import subprocess

import pytest

from gazer import quarantine
from gazer.errors import OutputError
from gazer.quarantine import keep
from tests.conftest import COMMANDS

NS = 10**9
FRAME = bytes(range(60))


def frames(path):
    """(time, link type, length, bytes) by the record, read with nothing of ours."""
    data = path.read_bytes()
    magic, major, minor, _, _, snaplen, linktype = struct.unpack_from("=IHHiIII", data)
    assert (magic, major, minor, snaplen) == (0xA1B23C4D, 2, 4, 262144)
    at, found = 24, []
    while at < len(data):
        seconds, ns, caplen, length = struct.unpack_from("=IIII", data, at)
        found.append((seconds * NS + ns, linktype, length, data[at + 16 : at + 16 + caplen]))
        at += 16 + caplen
    assert at == len(data)
    return found


def test_frames_are_added(tmp_path):
    path = tmp_path / "q.pcap"
    first, second = (5 * NS + 7, 1, 60, FRAME), (6 * NS + 999_999_999, 1, 1500, FRAME[:20])
    assert keep(str(path), *first) == keep(str(path), *second) == str(path)
    assert frames(path) == [first, second]
    assert stat.S_IMODE(path.stat().st_mode) & ~0o640 == 0


def test_the_last_one_is_not_added_again(tmp_path):
    path = tmp_path / "q.pcap"
    for _ in range(3):
        keep(str(path), NS, 1, 60, FRAME)
    keep(str(path), 2 * NS, 1, 60, FRAME)
    keep(str(path), NS, 1, 60, FRAME)
    assert [f[0] for f in frames(path)] == [NS, 2 * NS, NS]


def test_another_link_type_has_its_own_file(tmp_path):
    path = tmp_path / "q.pcap"
    assert keep(str(path), NS, 1, 60, FRAME) == str(path)
    assert keep(str(path), NS, 113, 60, FRAME) == f"{path}.113"
    assert keep(str(path), NS, 101, 20, FRAME[:20]) == f"{path}.101"
    assert keep(str(path), 2 * NS, 1, 60, FRAME) == str(path)
    assert len(frames(path)) == 2 and len(frames(tmp_path / "q.pcap.113")) == 1


def test_it_does_not_fill_the_disk(tmp_path, monkeypatch):
    path = tmp_path / "q.pcap"
    monkeypatch.setattr(quarantine, "LIMIT", 24 + 3 * (16 + len(FRAME)))
    for n in range(3):
        keep(str(path), n * NS, 1, 60, FRAME)
    with pytest.raises(OutputError, match="already"):
        keep(str(path), 3 * NS, 1, 60, FRAME)
    assert keep(str(path), 2 * NS, 1, 60, FRAME) == str(path)      # the last one, once more
    assert len(frames(path)) == 3 and os.listdir(tmp_path) == ["q.pcap"]


@pytest.mark.parametrize("content", [b"notes\n", b"\0" * 100, b"\x4d"])
def test_another_file_is_left_alone(tmp_path, content):
    path = tmp_path / "q.pcap"
    path.write_bytes(content)
    assert keep(str(path), NS, 1, 60, FRAME) == f"{path}.1"
    assert path.read_bytes() == content
    (tmp_path / "q.pcap.1").write_bytes(content)
    with pytest.raises(OutputError, match="nor beside it"):
        keep(str(path), NS, 1, 60, FRAME)


def test_neither_fifos_nor_links_are_written(tmp_path):
    path = tmp_path / "q.pcap"
    os.mkfifo(path)
    assert keep(str(path), NS, 1, 60, FRAME) == f"{path}.1"     # and does not wait for a reader
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match="can't keep it"):
        keep(str(path), NS, 1, 60, FRAME)
    assert not (tmp_path / "elsewhere").exists()


def test_no_folder(tmp_path):
    with pytest.raises(OutputError, match="No such file"):
        keep(str(tmp_path / "none" / "q.pcap"), NS, 1, 60, FRAME)


def test_no_half_of_a_frame_stays(tmp_path):
    path = tmp_path / "q.pcap"
    keep(str(path), NS, 1, 60, FRAME)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, limits[1]))
    try:
        with pytest.raises(OutputError, match="can't keep it"):
            keep(str(path), 2 * NS, 1, 60, FRAME)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert path.read_bytes() == before


def test_gazer_reads_it(tmp_path):
    path = tmp_path / "q.pcap"
    keep(str(path), NS, 1, 70, FRAME)
    done = subprocess.run(
        [*COMMANDS["dns-gazer"], "-r", str(path), "-t", "-"],
        capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0 and "1 frame read" in done.stderr, done.stderr
