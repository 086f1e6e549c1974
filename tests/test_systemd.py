"""The unit under a real systemd: what it lets gazer do, what it doesn't; signals, watchdog, exit
codes.  systemd runs in namespaces (systemd_machine.py)."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import systemd_probe as probe
from tests.conftest import CAPTURES, eventually
from tests.systemd_machine import Machine, Unavailable, python_places

ROOT = Path(__file__).resolve().parent.parent
LOGS = "/var/log/gazer"
UNIT = "gazer.service"
DROP_IN = "/etc/systemd/system/gazer.service.d/test.conf"

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """With a gazer in /opt that is this tree's, and its user."""
    try:
        with Machine.boot(ROOT, *python_places()) as made:
            # The tree may lie where only root gets to: that is changed in the machine alone.
            above = {str(p) for path in (ROOT, *python_places()) for p in path.parents} - {"/"}
            made.sh(f"""
                ip link set lo up
                useradd --system --user-group --shell /usr/sbin/nologin gazer
                chmod o+x {" ".join(sorted(above))}
                mkdir -p /opt/gazer/bin
                printf '#!/bin/sh\\nPYTHONPATH={ROOT} exec {sys.executable} -m gazer "$@"\\n' \\
                    >/opt/gazer/bin/gazer
                chmod 755 /opt/gazer/bin/gazer
            """)
            yield made
    except Unavailable as why:
        pytest.skip(str(why))


@pytest.fixture
def laid(machine: Machine) -> Iterator[Machine]:
    """With the files of `gazer init` in /etc/gazer, the unit enabled."""
    machine.sh(f"""
        rm -rf /etc/gazer {LOGS}
        /opt/gazer/bin/gazer init /etc/gazer --prefix /opt/gazer -i lo
        systemctl enable /etc/gazer/{UNIT}
    """)
    yield machine
    machine.run("systemctl", "kill", "-s", "KILL", UNIT)
    machine.run("systemctl", "stop", UNIT)
    machine.sh(f"""
        systemctl reset-failed {UNIT} || true
        systemctl disable {UNIT}
        rm -rf {Path(DROP_IN).parent} && systemctl daemon-reload
    """)


def drop_in(machine: Machine, *lines: str) -> None:
    """Change the unit; also so that it sees the tree, which may lie where it hides things."""
    text = "\n".join(["[Service]", "ProtectHome=read-only", "PrivateTmp=no", *lines])
    machine.sh(f"""
        mkdir -p {Path(DROP_IN).parent}
        cat >{DROP_IN} <<'END'
{text}
END
        systemctl daemon-reload
    """)


def probing(*how: str) -> tuple[str, str]:
    command = f"{sys.executable} {ROOT}/tests/systemd_probe.py {LOGS} {' '.join(how)}"
    return "ExecStart=", f"ExecStart={command}"


def test_the_service_may_do_what_gazer_does_and_no_more(laid: Machine) -> None:
    drop_in(laid, *probing())
    code, said = laid.run("systemctl", "start", UNIT)
    assert code == 0, said + laid.run("systemctl", "status", UNIT)[1]
    known = laid.show(UNIT)
    assert (known["ActiveState"], known["StatusText"]) == ("active", "probing")

    found = json.loads(laid.sh(f"cat {LOGS}/probe.json"))
    uid, gid = laid.sh("id -u gazer; id -g gazer").split()
    assert (found["Uid"].split(), found["Gid"].split()) == ([uid] * 4, [gid] * 4)
    net_raw = f"{1 << 13:016x}"
    assert [found[name] for name in ("CapEff", "CapBnd", "CapAmb")] == [net_raw] * 3
    assert found["NoNewPrivs"] == "1"
    assert {name: found[name] for name in probe.ALLOWED} == dict.fromkeys(probe.ALLOWED, "done")
    assert not {name for name in probe.REFUSED if found[name] == "done"}
    assert laid.sh(f"stat -c '%U %G %a' {LOGS} {LOGS}/dns.log").splitlines() == [
        "gazer gazer 750", "gazer gazer 640",
    ]  # fmt: skip

    # A reload and a stop reach gazer's supervisor alone, which tells the others.
    laid.sh(f"systemctl reload {UNIT}")
    eventually(lambda: "SIGHUP" in laid.sh(f"cat {LOGS}/signals"))
    laid.sh(f"systemctl stop {UNIT}")
    assert laid.sh(f"cat {LOGS}/signals") == "SIGHUP SIGTERM alone"
    known = laid.show(UNIT)
    assert (known["ActiveState"], known["Result"]) == ("inactive", "success")
    assert known["NRestarts"] == "0"
    assert "systemd_probe" not in laid.sh("cat /proc/[0-9]*/cmdline | tr '\\0' ' '")


def test_one_that_shows_no_life_is_started_anew(laid: Machine) -> None:
    drop_in(laid, *probing("hang"), "WatchdogSec=1", "RestartSec=0.1")
    laid.sh(f"systemctl start {UNIT}")
    first = laid.show(UNIT)["MainPID"]
    eventually(lambda: int(laid.show(UNIT)["NRestarts"]) >= 1, 20.0)
    assert laid.show(UNIT)["MainPID"] != first


def test_one_that_is_killed_is_started_anew(laid: Machine) -> None:
    drop_in(laid, *probing(), "RestartSec=0.1")
    laid.sh(f"systemctl start {UNIT}")
    laid.sh(f"kill -9 {laid.show(UNIT)['MainPID']}")
    eventually(lambda: laid.show(UNIT)["NRestarts"] == "1", 20.0)
    eventually(lambda: laid.show(UNIT)["ActiveState"] == "active", 20.0)


def test_a_wrong_configuration_is_not_tried_again(laid: Machine) -> None:
    drop_in(laid, "RestartSec=0.1", "StandardError=truncate:/gazer.err")
    laid.sh("sed -i 's/^workers:.*/wrokers: 3/' /etc/gazer/sensor.yaml")
    assert laid.run("systemctl", "start", UNIT)[0] != 0
    known = laid.show(UNIT)
    assert (known["ActiveState"], known["NRestarts"]) == ("failed", "0")
    assert (known["Result"], known["ExecMainStatus"]) == ("exit-code", "2")
    assert "did you mean workers?" in laid.sh("cat /gazer.err")


def test_a_live_sensor_is_well_in_it(laid: Machine) -> None:
    """... in its own eyes too: who serves metrics sees the other processes."""
    drop_in(laid, "StandardError=truncate:/gazer.err")
    laid.sh(f"systemctl start {UNIT}")
    said = laid.sh("cat /gazer.err")
    assert laid.show(UNIT)["StatusText"] == "capturing on lo", said
    ask = (
        "import urllib.request as r\n"
        "for what in ('health', 'metrics'):\n"
        "    print(r.urlopen('http://127.0.0.1:9853/' + what).read().decode())"
    )

    def seen() -> str:
        """it is well, and its metrics are served"""
        code, answer = laid.run(sys.executable, "-c", ask)
        return answer if code == 0 else ""

    answer = eventually(seen, 20.0)
    assert isinstance(answer, str) and answer.startswith("well\n")
    up = [line for line in answer.splitlines() if line.startswith("gazer_process_up{")]
    assert len(up) >= 5 and all(line.endswith(" 1.0") for line in up)
    laid.sh(f"systemctl reload {UNIT}")
    laid.sh(f"systemctl stop {UNIT}")
    assert laid.show(UNIT)["Result"] == "success"


def test_gazer_runs_and_drains_in_it(laid: Machine) -> None:
    """Over a FIFO in its logs' folder, which stands for a source without an end."""
    run = f"/opt/gazer/bin/gazer run -c /etc/gazer/sensor.yaml -r {LOGS}/fifo"
    drop_in(
        laid, "Type=exec", "WatchdogSec=0", "ExecStart=", f"ExecStart={run}",
        "StandardError=truncate:/gazer.err",
    )  # fmt: skip
    laid.sh(f"""
        sed -i 's/^  interfaces:.*/  interfaces: []/' /etc/gazer/sensor.yaml
        install -d -o gazer -g gazer -m 0750 {LOGS}
        mkfifo -m 0666 {LOGS}/fifo
        exec 3<>{LOGS}/fifo
        cat {CAPTURES}/lossy.pcap >&3
        sleep 1000 <&3 >/dev/null 2>&1 &        # holds it open; it ends with the machine
        systemctl start {UNIT}
    """)
    log = f"{LOGS}/dns.log"
    eventually(lambda: laid.run("test", "-s", log)[0] == 0, 30.0)
    assert laid.sh(f"stat -c '%U %a' {log}") == "gazer 640\n"
    laid.sh(f"systemctl stop {UNIT}")
    said = laid.sh("cat /gazer.err")
    assert "transactions:" in said
    assert "Traceback" not in said
    assert laid.sh("ls /dev/shm") == ""
