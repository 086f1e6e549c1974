"""Runs whose files follow one another: live, with deaths, HUP and service.user; and over files."""

from __future__ import annotations

import contextlib
import gzip
import os
import re
import shutil
import signal
import stat
import time
from collections import Counter
from pathlib import Path

import msgpack
import pytest
import yaml

from gazer.config.patterns import Names
from tests.conftest import CAPTURES, GID, UID, eventually
from tests.oracle import compare
from tests.sensor import ended, expected, frames, key

pytest_plugins = ["tests.sensor"]

RESOLVER = CAPTURES / "resolver.pcap"


def ordered(path: Path, *, running: bool = False) -> list[Path]:
    """The files of an output, in the order in which they were written.  `running`: one may just be
    being compressed."""
    names = Names(str(path))
    found = {}
    for entry in sorted(path.parent.iterdir()):
        parsed = names.parse(entry.name)
        if parsed is None or (running and parsed.part):
            continue
        assert not parsed.part, f"{entry} was left"
        key = parsed.base, parsed.number
        assert running or key not in found, f"{entry} is there twice"
        found[key] = entry
    here = [path] if path.exists() else []
    return [entry for _, entry in sorted(found.items())] + here


def closed(path: Path) -> list[bytes]:
    """What stands in the compressed files of a run that goes on."""
    return [content(one) for one in ordered(path, running=True) if one.suffix == ".gz"]


def count(path: Path) -> int:
    """The events of a run that goes on."""
    try:
        return len(lines(path, running=True))
    except FileNotFoundError:
        return 0


def content(path: Path) -> bytes:
    data = path.read_bytes()
    return gzip.decompress(data) if path.suffix == ".gz" else data


def lines(path: Path, *, running: bool = False) -> list[str]:
    text = b"".join(content(one) for one in ordered(path, running=running)).decode()
    return [line for line in text.split("\n")[:-1] if "\tdns-gazer.stats\t" not in line]


def outputs(*each, **rotate):
    return [{"type": "text", "path": str(path), "rotate": rotate} for path in each]


# -------------------------------------------------------------------------------------------- live


def test_each_event_once_whatever_dies(sensor):
    """A new file each second, compressed; the sink is killed, and HUP comes, in between."""
    folder = sensor.folder / "log"
    folder.mkdir()
    timed, plain = folder / "t-%Y%m%d-%H%M%S.log", folder / "dns.log"
    live = sensor.configured(
        outputs=outputs(timed, plain, interval="1s", compress="gzip", mode="0604"))
    for step in range(7):
        sensor.send(frames(*range(step * 200, step * 200 + 200)))
        if step in (1, 3, 4):
            old = live.part("gazer:sink").pid
            os.kill(old, signal.SIGKILL)
            eventually(lambda old=old: live.parts().get("gazer:sink") not in (None, old))
        elif step in (2, 5):
            live.signal(signal.SIGHUP)
        time.sleep(0.5)
    for path in (timed, plain):
        eventually(lambda path=path: count(path) >= 1400, 20.0)
    ended(live)
    for path in (timed, plain):
        assert Counter(map(key, lines(path))) == expected(*range(1400))
        parts = ordered(path)
        assert len(parts) >= 4 and sum(part.suffix == ".gz" for part in parts) >= 2
        assert {stat.S_IMODE(part.stat().st_mode) for part in parts} == {0o604}
        assert all(content(part)[-1:] in (b"", b"\n") for part in parts)


def test_an_idle_file_is_closed_and_compressed_within_a_second_or_so(sensor):
    folder = sensor.folder / "log"
    folder.mkdir()
    path = folder / "dns-%Y%m%d-%H%M%S.log"
    sensor.configured(outputs=outputs(path, interval="2s", compress="gzip"))
    begun = time.time()
    sensor.send(frames(1))
    eventually(lambda: closed(path), 8.0)
    assert time.time() < (begun // 2 + 1) * 2 + 4       # the flush may have come after its end
    (held,) = closed(path)
    assert held.count(b"\n") == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else")
def test_a_folder_that_is_closed_to_service_user_is_told(gazer, tmp_path):
    """A file that may be written is not enough: others have to follow it."""
    folder = Path("/var/tmp") / f"gazer-rotation-{os.getpid()}"
    folder.mkdir(mode=0o755)
    try:
        path = folder / "dns.log"
        path.touch()
        os.chmod(path, 0o666)
        said = []
        for rotate in ({}, {"rotate": {"size": "1MiB"}}):
            (tmp_path / "c.yaml").write_text(yaml.safe_dump({
                "capture": {"interfaces": ["lo"]}, "service": {"user": f"{UID}:{GID}"},
                "outputs": [{"type": "text", "path": str(path), **rotate}]}))
            done = gazer("check", "-c", tmp_path / "c.yaml", command="gazer")
            said.append([line for line in (done.stderr + done.stdout.decode()).splitlines()
                         if "outputs[0]" in line])
        assert said[0] == []
        (line,) = said[1]
        assert f"outputs[0].path: {folder}: files may not be made in it by user {UID}" in line
    finally:
        shutil.rmtree(folder)


# -------------------------------------------------------------------------------------- over files


def test_over_files_in_every_form(gazer, tmp_path):
    """By size, and whole events in each file; the next run goes on behind them."""
    made = [{"type": "text", "path": str(tmp_path / "t.log")},
            {"type": "text", "format": "json", "path": str(tmp_path / "j-%Y.json")},
            {"type": "msgpack", "path": str(tmp_path / "m.mp")}]
    for output in made:
        output["rotate"] = {"size": "256KiB", "compress": "gzip"}
    found = []
    for _ in range(2):
        done = gazer.configured({"outputs": made, "events": {"records": True}}, "-r", RESOLVER)
        assert done.code == 0, done.stderr
        found.append([[content(p) for p in ordered(Path(output["path"]))] for output in made])
    plain = [{**output, "path": str(tmp_path / f"whole{i}")} for i, output in enumerate(made)]
    for output in plain:
        del output["rotate"]
    assert gazer.configured(
        {"outputs": plain, "events": {"records": True}}, "-r", RESOLVER).code == 0
    for number, output in enumerate(made):
        whole = (tmp_path / f"whole{number}").read_bytes()
        first, second = (run[number] for run in found)
        assert b"".join(first) == whole and b"".join(second) == whole * 2
        assert len(second) > 3 and max(map(len, second)) <= 256 * 1024 + 1024
        for part in second:
            if output["type"] == "msgpack":
                unpacker = msgpack.Unpacker()
                unpacker.feed(part)
                assert sum(1 for _ in unpacker) and unpacker.tell() == len(part)
            else:
                assert part.endswith(b"\n")


def test_dns_gazer_s_own_flags_take_such_names(gazer, tmp_path):
    done = gazer("-r", RESOLVER, "-t", tmp_path / "dns-%Y%m%d-%%.log")
    assert done.code == 0, done.stderr
    (file,) = tmp_path.glob("dns-*")
    assert re.fullmatch(r"dns-20\d{6}-%\.log", file.name)
    assert compare.diff(compare.expected_lines(RESOLVER), file.read_text().splitlines()) == ""
    assert gazer("-r", RESOLVER, "-t", tmp_path / "a%Q").code == 2


def test_over_files_an_idle_run_closes_its_file_too(gazer, fifo, tmp_path):
    path = tmp_path / "log" / "dns-%Y%m%d-%H%M%S.log"
    path.parent.mkdir()
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({
        "capture": {"files": [str(fifo.path)]},
        "outputs": outputs(path, interval="1s", compress="gzip")}))
    live = gazer.start("run", "-c", tmp_path / "c.yaml", command="gazer")
    data = RESOLVER.read_bytes()
    fifo.write(data[:40_000])
    eventually(lambda: closed(path), 10.0)
    assert live.process.poll() is None
    fifo.write(data[40_000:])
    fifo.close()
    assert live.wait().code == 0
    assert len(ordered(path)) > 1
    full = gazer.configured({"outputs": [{"type": "text", "path": str(tmp_path / "whole")}]},
                            "-r", RESOLVER)
    assert full.code == 0
    assert b"".join(map(content, ordered(path))) == (tmp_path / "whole").read_bytes()


def test_check_says_how_and_what_is_in_the_way(gazer, tmp_path):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({
        "capture": {"files": [str(RESOLVER)]},
        "outputs": outputs(tmp_path / "dns-%H.log", size="1MiB", compress="gzip", keep_age="24h")
        + outputs(tmp_path / "no" / "dns.log", interval="1h")}))
    done = gazer("check", "-c", tmp_path / "c.yaml", command="gazer")
    said = done.stdout.decode() + done.stderr
    assert "a new file with each new name (UTC) or at 1MiB, gzip when closed, kept for 24h" in said
    assert "a new file each 1h (UTC), kept for ever" in said
    assert f"outputs[1].path: {tmp_path}/no/dns.log: there is no folder {tmp_path}/no" in said
    assert "outputs[0]" not in said
    assert not list(tmp_path.glob("dns*"))
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(tmp_path / "no")
