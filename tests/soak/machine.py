"""The sensor that is soaked, and what is done to it."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import json
import os
import re
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import yaml

from gazer.observe.find import find
from gazer.observe.snapshot import Observer
from tests.conftest import COMMANDS, Runner
from tests.netns import Lab
from tests.soak.delivered import Delivered
from tests.soak.ledger import Written
from tests.soak.plan import HANG, Action
from tests.soak.traffic import MOST, Load

PORTS = (9853, 9854)
PATIENCE = 25.0         # seconds until something has to have come right
DEATH = re.compile(r"gazer: (gazer:\S+) \(pid (\d+)\) (.*)")
SILENCE = re.compile(r"gazer: (gazer:\S+) has shown no sign of life")


class Machine:
    """A sensor on a cable.  breach: takes a line for each rule that is broken."""

    def __init__(self, folder: Path, lab: Lab, runner: Runner, captures: int,
                 breach: Callable[[str], None], seed: int = 1) -> None:
        self.folder = folder
        self.lab = lab
        self.breach = breach
        self.outputs = {kind: Written(kind, breach) for kind in ("text", "json")}
        self.receiver = Delivered(folder, seed, breach)
        self.done: Counter[str] = Counter()
        self.load: Load | None = None
        self.pids: set[int] = set()             # all that ever were of the family
        self._broken = False                    # the configuration is, just now
        self._moved: list[tuple[str, Path, int]] = []   # output, file, looks at it
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._ended: set[int] = set()           # pids that we killed
        self._stopped: dict[str, float] = {}    # name -> until when it was stopped, at most
        self._log_at = 0
        self._asked = ThreadPoolExecutor(4)
        self.config: dict[str, object] = {
            "capture": {"interfaces": ["gz0"], "processes": captures, "buffer": "8MiB"},
            "workers": 2, "ring": {"size": "4MiB"}, "transactions": {"timeout": "3s"},
            "streams": {"timeout": "10s"}, "fragments": {"timeout": "5s"},
            "events": {"detail": "classic"},
            "service": {"hang_timeout": f"{HANG:g}s", "stats_interval": "5s",
                        "quarantine": str(folder / "quarantine.pcap")},
            "metrics": {"listen": f"127.0.0.1:{PORTS[0]}"},
            "outputs": [{"type": "text", "format": kind, "path": str(folder / kind)}
                        for kind in self.outputs] + [{
                            "type": "fluentd", "servers": [self.receiver.address],
                            "chunk_size": "64KiB", "ack_timeout": "2s",
                            "spool": {"path": str(self.receiver.spool), "max_bytes": "64MiB"}}],
        }
        self._configure()
        self.live = runner.start("run", "-c", folder / "sensor.yaml", command="gazer",
                                 prefix=lab.argv([]), stdout=subprocess.DEVNULL)
        while "processes are up" not in self.live.stderr:
            if not self.alive():
                raise SystemExit(f"it does not start: {self.live.stderr}")
            time.sleep(0.05)

    def _configure(self, text: str = "") -> None:
        new = self.folder / ".new"
        new.write_text(text or yaml.safe_dump(self.config))
        new.rename(self.folder / "sensor.yaml")

    # --- looking -------------------------------------------------------------------------------

    def processes(self) -> dict[str, int]:
        """Name -> pid, those that run; the supervisor is `gazer`."""
        found = {"gazer": self.live.pid}
        found |= {name: part.pid for name, part in self.live.parts().items()
                  if name.startswith("gazer:")}
        self.pids |= {*found.values()}
        return found

    def alive(self) -> bool:
        return self.live.process.poll() is None

    def turn(self) -> None:
        """What is due: undo what was done for a while, read files that are over, read the log."""
        while self._later and self._later[0][0] <= time.monotonic():
            heapq.heappop(self._later)[2]()
        self._read_moved()
        self._read_log()

    def wake(self) -> None:
        """Undo all that was done for a while, now."""
        while self._later:
            heapq.heappop(self._later)[2]()

    def _in(self, seconds: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._later, (time.monotonic() + seconds, next(self._order), call))

    def _read_log(self) -> None:
        text = self.live.stderr
        end = text.rfind("\n") + 1
        new, self._log_at = text[self._log_at : end], end
        for line in new.splitlines():
            if (found := DEATH.match(line)) and int(found[2]) not in self._ended:
                self.breach(f"a death that nobody ordered: {line}")
            elif found := SILENCE.match(line):
                if time.monotonic() - self._stopped.get(found[1], 0.0) > 3 * HANG:
                    self.breach(f"hung without having been stopped: {line}")
                # Its death will be told with its pid.
                pid = self.processes().get(found[1])
                self._ended |= {pid} if pid else set()
            elif "Traceback" in line or "add up" in line or "internal error" in line:
                self.breach(f"in the log: {line}")

    # --- doing ---------------------------------------------------------------------------------

    def do(self, action: Action) -> None:
        self.done[action.what] += 1
        getattr(self, f"_do_{action.what}")(action)

    def _signal(self, pid: int, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    def _do_kill(self, action: Action) -> None:
        processes = self.processes()
        for name in action.who:
            if name in processes:
                self._ended.add(processes[name])
                self._signal(processes[name], signal.SIGKILL)

    _do_several = _do_kill

    def _stop(self, names: list[str], seconds: float) -> None:
        processes = self.processes()
        for name in names:
            if name in processes:
                self._stopped[name] = time.monotonic() + seconds
                with contextlib.suppress(psutil.NoSuchProcess):
                    process = psutil.Process(processes[name])
                    process.suspend()
                    self._in(seconds, lambda process=process: self._go_on(process))  # type: ignore[misc]

    @staticmethod
    def _go_on(process: psutil.Process) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.resume()

    def _do_nap(self, action: Action) -> None:
        now = time.monotonic()
        self._stop([n for n in action.who if self._stopped.get(n, 0.0) < now - 0.5], action.seconds)

    def _do_hang(self, action: Action) -> None:
        """Stopped for longer than a process may be silent: the supervisor kills it."""
        for name in action.who:
            if pid := self.processes().get(name):
                self._ended.add(pid)
        self._stop([*action.who], HANG * 3)

    def _do_freeze(self, action: Action) -> None:
        """All of it: what a virtual machine that is frozen looks like, and a clock that leaps."""
        self._stop([*self.processes()], action.seconds)

    def _do_boss_nap(self, action: Action) -> None:
        self._stop(["gazer"], action.seconds)

    def _do_hup(self, action: Action) -> None:
        self._signal(self.live.pid, signal.SIGHUP)

    def _do_usr1(self, action: Action) -> None:
        self._signal(self.live.pid, signal.SIGUSR1)

    def _rename(self) -> None:
        for kind in self.outputs:
            path = self.folder / kind
            if path.exists():           # else it has not been opened again since the last time
                moved = self.folder / f"{kind}.{next(self._order)}"
                path.rename(moved)
                self._moved.append((kind, moved, 0))

    def _do_rotate(self, action: Action) -> None:
        self._rename()
        self._signal(self.live.pid, signal.SIGHUP)

    def _do_rotate_twice(self, action: Action) -> None:
        self._do_rotate(action)
        self._in(0.1, lambda: self._do_rotate(action))

    def _do_rotate_and_kill(self, action: Action) -> None:
        """The sink dies with a file that has another name already."""
        self._rename()
        self._do_kill(action)
        self._signal(self.live.pid, signal.SIGHUP)

    def _do_bad_config(self, action: Action) -> None:
        if self._broken:
            return
        self._broken = True
        self._configure("capture: {interfaces: [gz0], nonsense: 1}\n")
        before = self.live.stderr.count("the configuration stays as it was")
        self._signal(self.live.pid, signal.SIGHUP)
        self._await_refusal(before, time.monotonic() + PATIENCE)

    def _await_refusal(self, before: int, deadline: float) -> None:
        refused = self.live.stderr.count("the configuration stays as it was") > before
        if not refused and time.monotonic() < deadline and self.alive():
            self._in(0.2, lambda: self._await_refusal(before, deadline))
            return
        if not refused:
            self.breach("a configuration that is wrong was not refused")
        self._configure()
        self._broken = False

    def _do_move_metrics(self, action: Action) -> None:
        if not self._broken:
            there = PORTS[self.done["move_metrics"] % 2]
            self.config["metrics"] = {"listen": f"127.0.0.1:{there}"}
            self._configure()
            if pid := self.processes().get("gazer:metrics"):
                self._ended.add(pid)
            self._signal(self.live.pid, signal.SIGHUP)

    def _do_cable_down(self, action: Action) -> None:
        self.lab.run(["ip", "link", "set", "gz0", "down"])
        self._in(action.seconds,
                 lambda: (self.lab.run(["ip", "link", "set", "gz0", "up"]), None)[1])

    def _do_cable_gone(self, action: Action) -> None:
        if self.lab.run(["ip", "link", "del", "gz0"]).returncode == 0:
            self._in(action.seconds, lambda: (self.lab.veth(), None)[1])

    def _do_burst(self, action: Action) -> None:
        if self.load:
            self.load.burst(10 * MOST)

    def _do_silence(self, action: Action) -> None:
        if self.load:
            load = self.load
            load.pause = True
            self._in(action.seconds, lambda: setattr(load, "pause", False))

    def _do_away(self, action: Action) -> None:
        """Nobody listens."""
        self.receiver.refuse()
        self._in(action.seconds, self._listen)

    def _listen(self) -> None:
        self.receiver.refuse()
        self.receiver.listen()

    def _do_stalled(self, action: Action) -> None:
        """The receiver reads nothing."""
        self.receiver.stalled.set()
        self._in(action.seconds, self.receiver.stalled.clear)

    def _do_odd(self, action: Action) -> None:
        self.receiver.odd = True
        self._in(action.seconds, lambda: setattr(self.receiver, "odd", False))

    # --- asking --------------------------------------------------------------------------------

    def _ask(self, what: str, call: Callable[[], None]) -> None:
        def asked() -> None:
            try:
                call()
            except Exception as error:
                if self.alive():
                    self.breach(f"{what}: {type(error).__name__}: {error}")

        self._asked.submit(asked)

    def gazer(self, *args: object) -> tuple[int, str]:
        """A command that looks at the sensor."""
        done = subprocess.run([*COMMANDS["gazer"], *map(str, args), "--pid", str(self.live.pid)],
                              capture_output=True, text=True, timeout=120, check=False)
        if done.returncode not in (0, 1) or "Traceback" in done.stderr:
            self.breach(f"gazer {' '.join(map(str, args))}: {done.returncode}: {done.stderr}")
        return done.returncode, done.stdout or done.stderr

    def _do_stats(self, action: Action) -> None:
        def stats() -> None:
            code, text = self.gazer("stats", "--json")
            tree = json.loads(text) if code == 0 else {}
            if code or not (tree["balances"]["hold"] or tree["balances"].get("waiting")):
                self.breach(f"gazer stats: {code}: {tree.get('balances', text)}")

        self._ask("gazer stats", stats)

    def _do_health(self, action: Action) -> None:
        def health() -> None:
            _, text = self.gazer("health")
            if "add up" in text:
                self.breach(f"gazer health: {text}")

        self._ask("gazer health", health)

    def _do_top(self, action: Action) -> None:
        def top() -> None:
            code, text = self.gazer("top", "--once", "--interval", 0.3)
            if code:
                self.breach(f"gazer top: {code}: {text}")

        self._ask("gazer top", top)

    def _do_scrape(self, action: Action) -> None:
        def scrape() -> None:
            deadline = time.monotonic() + PATIENCE
            while True:
                try:
                    text = self.lab.inside(self._scraped)
                    break
                except OSError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.2)
            for line in text.splitlines():
                if line.startswith("gazer_account_broken_sums") and float(line.split()[-1]):
                    self.breach(f"metrics: {line}")

        self._ask("a scrape of the metrics", scrape)

    @staticmethod
    def _scraped() -> str:
        for port in PORTS:
            with contextlib.suppress(ConnectionRefusedError, urllib.error.URLError):
                url = f"http://127.0.0.1:{port}/metrics"
                with urllib.request.urlopen(url, timeout=PATIENCE / 2) as answer:
                    return str(answer.read().decode())
        raise ConnectionRefusedError("on no port")

    def _do_look(self, action: Action) -> None:
        def look() -> None:
            with find(self.live.pid) as found:
                observer = Observer(found.attach, found.pid)
                try:
                    _, standing = observer.settled()
                finally:
                    observer.close()
            if standing.broken and not standing.waiting:
                self.breach(f"the account does not add up: {standing.broken}")

        self._ask("a look at the ledger", look)

    # --- files ---------------------------------------------------------------------------------

    def _held(self) -> set[tuple[int, int]] | None:
        """Files that the sink has open; None: there is no sink that writes to all outputs."""
        sink = self.processes().get("gazer:sink")
        found: set[tuple[int, int]] = set()
        try:
            for fd in os.listdir(f"/proc/{sink}/fd"):
                with contextlib.suppress(FileNotFoundError):
                    about = os.stat(f"/proc/{sink}/fd/{fd}")
                    found.add((about.st_dev, about.st_ino))
            wanted = [os.stat(self.folder / kind) for kind in self.outputs]
        except OSError:
            return None
        return found if all((w.st_dev, w.st_ino) in found for w in wanted) else None

    def _read_moved(self) -> None:
        """Read the files that nobody will write to or cut any more."""
        if not self._moved:
            return
        held = self._held()
        left = []
        for kind, path, looks in self._moved:
            about = path.stat()
            free = held is not None and (about.st_dev, about.st_ino) not in held
            if free and looks >= 2:
                self.outputs[kind].read(path)
                path.unlink()
            else:
                left.append((kind, path, looks + 1 if free else 0))
        self._moved = left

    # --- the end -------------------------------------------------------------------------------

    def well(self) -> bool:
        """All processes are there, and nothing is wrong with them; within some time."""
        deadline = time.monotonic() + PATIENCE
        text = ""
        while time.monotonic() < deadline and self.alive():
            code, text = self.gazer("health", "--restart", 0)
            if code == 0:
                return True
            self.turn()
            time.sleep(0.5)
        self.breach(f"it does not become well again: {text.strip()}")
        return False

    def answered(self) -> None:
        """Whoever was asked has answered."""
        self._asked.shutdown()

    def stop(self) -> tuple[int, str]:
        """TERM; the exit code, and what it said from then on."""
        self.turn()
        before = len(self.live.stderr)
        if self.alive():
            self.live.signal(signal.SIGTERM)
        try:
            code = self.live.process.wait(60.0)
        except subprocess.TimeoutExpired:
            self.breach("it does not end within a minute")
            self.live.process.kill()
            code = self.live.process.wait()
        self._read_log()
        self.receiver.end()
        for kind, path, _ in self._moved:
            self.outputs[kind].read(path)
        for kind, output in self.outputs.items():
            if (self.folder / kind).exists():
                output.read(self.folder / kind)
        return code, self.live.stderr[before:]


def folder_of(seed: int) -> Path:
    """Where all of a run stands; kept if something is wrong."""
    return Path(tempfile.mkdtemp(prefix=f"gazer-soak-{seed}-"))

