"""The documents: their examples are run, their links lead somewhere, their lists are complete."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from gazer import check, config, counters, docgen
from gazer.event import STATUSES
from gazer.packet import FATES
from gazer.summary import NOT_DNS, Account, summary
from gazer.workers.anomaly import NAMES
from tests.conftest import CAPTURES

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted(
    path
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("tests/captures/*.md")]
)
README = (ROOT / "README.md").read_text(encoding="utf-8")
OPERATIONS = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
CAPTURE = "captured.pcap"


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(text: str) -> list[list[str]]:
    """The indented blocks of a document, without their indent."""
    found: list[list[str]] = []
    inside = False
    for line in text.splitlines():
        if line.startswith("    "):
            if not inside:
                found.append([])
            found[-1].append(line[4:])
        inside = line.startswith("    ")
    return found


def examples(text: str) -> list[tuple[list[str], list[str]]]:
    """Each `$ command` of a document as its words, with the lines printed below it."""
    return [
        (shlex.split(block[0][2:]), block[1:]) for block in blocks(text) if block[0][:2] == "$ "
    ]


# README ------------------------------------------------------------------------------------


def test_the_first_line_says_what_is_needed():
    first = README.splitlines()[0]
    for word in ("Debian", "Ubuntu", "Python 3.11 or later", "make", "git"):
        assert word in first


def test_the_first_screen_has_both_commands():
    screen = "\n".join(README.splitlines()[:20])
    assert "    make run " in screen and "    make test " in screen
    made = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(r"^run:", made, re.M) and re.search(r"^test:", made, re.M)


def test_readme_has_the_examples():
    assert [" ".join(words) for words, _ in examples(README)] == [
        f"dns-gazer -r {CAPTURE} -t -",
        f"dns-gazer -r {CAPTURE} -R -t -",
        f"dns-gazer -r {CAPTURE} -t /dev/null",
    ]


@pytest.mark.parametrize(
    ("words", "printed"), examples(README), ids=[" ".join(words) for words, _ in examples(README)]
)
def test_each_example_prints_what_stands_below_it(gazer, words, printed):
    assert printed
    done = gazer(
        *words[1:], command=words[0], cwd=CAPTURES, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )  # fmt: skip
    assert done.code == 0
    # Without output to the terminal, what it shows is the summary.
    assert printed == (done.lines or done.said)


def test_the_pipes_of_the_readme_work(gazer, tmp_path):
    """The two lines with other commands, less the commands that may not be there."""
    assert "| dns-gazer -r - -t dns.log" in README
    with (CAPTURES / CAPTURE).open("rb") as file:
        assert gazer("-r", "-", "-t", tmp_path / "dns.log", stdin=file).code == 0
    assert len((tmp_path / "dns.log").read_text().splitlines()) == 1
    assert "cut -f 3 | jq -r 'select(.status == \"no_reply\").query[0].name'" in README
    done = gazer("-r", CAPTURES / "lossy.pcap", "-t", "-")
    cut = subprocess.run(["cut", "-f", "3"], input=done.stdout, capture_output=True, check=True)
    events = [json.loads(line) for line in cut.stdout.splitlines()]
    assert [e["query"][0]["name"] for e in events if e["status"] == "no_reply"]


def test_make_run_prints_what_the_readme_says(gazer):
    made = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "\nCAPTURE = tests/captures/raw-ip.pcap\n" in made
    assert "prints five lines" in README
    assert len(gazer("-r", CAPTURES / "raw-ip.pcap", "-t", "-").lines) == 5


@pytest.mark.parametrize("line", [
    line.split("   ")[0] for block in blocks(README) for line in block if line.startswith("gazer ")
    and not line.startswith("gazer: ")
])  # fmt: skip
def test_the_gazer_commands_of_the_readme(gazer, line):
    words = [str(CAPTURES / CAPTURE) if w == "FILE.pcap" else w for w in shlex.split(line)]
    done = gazer(*words[1:], command="gazer", cwd=ROOT)
    if "-r" in words:
        assert done.code == 0
    else:       # the shipped configuration names no files
        assert done.code == 2 and "nothing to read" in done.stderr


# Events ------------------------------------------------------------------------------------


def test_the_example_of_an_event(gazer):
    output = {"type": "text", "path": "-", "format": "json"}
    done = gazer.configured({"outputs": [output]}, "-r", CAPTURES / CAPTURE)
    assert done.lines == [docgen.EVENTS_EXAMPLE]


# Lists -------------------------------------------------------------------------------------


def rows(text: str, heading: str) -> dict[str, str]:
    """The tables below a heading: what stands in the first column, in code -> the rest."""
    level = heading.split(" ")[0]
    part = text.split(f"\n{heading}\n")[1]
    part = re.split(rf"\n#{{1,{len(level)}}} ", part)[0]
    return dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", part, re.M))


def test_every_fate_is_explained():
    found = rows(OPERATIONS, "### Frames")
    assert list(found) == [fate for fate in FATES[1:] if fate in NOT_DNS] + [
        fate for fate in FATES[1:] if fate not in NOT_DNS and fate != "fragment"
    ]
    assert "`dns`" in OPERATIONS and "the fate `fragment`" in OPERATIONS


def test_every_end_of_a_fragment_is_explained():
    found = rows(OPERATIONS, "### Fragments")
    assert list(found) == ["joined", *account(1).pieces()]


def test_every_anomaly_is_explained():
    found = rows(OPERATIONS, "### Messages")
    assert [anomaly for anomaly in found if anomaly in NAMES] == list(NAMES[1:])


def test_every_status_is_explained():
    assert list(rows(OPERATIONS, "### Transactions")) == list(STATUSES)


def account(value: int) -> Account:
    """One in which every counter has this value."""
    return Account(
        capture=dict.fromkeys(counters.CAPTURE, value),
        workers=dict.fromkeys(counters.WORKER, value),
        sink=dict.fromkeys(counters.SINK, value),
        outputs=(dict.fromkeys(counters.OUTPUT, value),),
        live=True,
    )


def test_every_line_of_the_summary_is_explained():
    """Numbers and names in a line are `...` in the document."""
    forwarding = replace(config.Config(), outputs=(config.Output(
        config.OutputKind.MSGPACK, "", config.Forward((config.Server("a"),))),))
    lines = {*summary(account(7), config.Config()), *summary(account(7), forwarding),
             *summary(account(7), config.Config(), broken=True)}
    table = OPERATIONS.split("### Further lines")[1].split("\n#")[0]
    patterns = [
        ".*".join(map(re.escape, text.split("...")))
        for text in re.findall(r"^\| `([^`]+)`", table, re.M)
    ]
    assert len(patterns) == 22
    used = set()
    for line in lines:
        if re.match(r"\d+ (frames read|fragments:|TCP segments|messages|transactions|events)",
                    line):
            for what in ("NOT written", "NOT delivered"):
                if what in line:
                    used.add(rf".* {what}")
            if " about the sensor" in line:
                used.add(".*; of these .* about the sensor")
            continue
        if re.match(r"\d+ frames received by the kernel", line):
            table = OPERATIONS.split("### Where frames can get lost")[1].split("\n#")[0]
            for text in re.findall(r"^\| `\.\.\. ([^`]+)`", table, re.M):
                assert text in line
            continue
        if line.startswith("the account does not add up"):
            assert "the account does not add up" in OPERATIONS
            continue
        matching = [pattern for pattern in patterns if re.match(pattern, line)]
        assert matching, line
        used.update(matching)
    assert len(used) == len(patterns), "the document explains lines that do not exist"


def test_every_counter_is_mentioned():
    """Under its name, or under the words that the summary has for it."""
    words = {
        "frames": "frames read", "delivered": "DNS", "clock_jumps": "time jumped",
        "bad_time": "impossible timestamp", "snapped": "cut by the capture's snaplen",
        "opened": "queries", "evicted": "left early", "dropped": "NOT written",
        "answered_forgotten": "forgotten early", "negative_latency": "older than their query",
        "omitted": "left out of events", "tunnelled": "tunnelled", "segments": "TCP segments",
        "stream_messages": "messages on connections", "streams_opened": "connections",
        "streams_evicted": "connections were forgotten early", "gaps": "holes in TCP streams",
        "broken_messages": "a message that it cuts is lost", "octets_framed": "octets of messages",
        "octets_old": "sent again", "octets_skipped": "skipped", "one_way_queries": "one_way",
        "one_way_replies": "one_way", "further": "further_reply",
        "incomplete": "zone transfers were not seen to the end",
        "crowded": "no room in TCP streams", "transfers_evicted": "zone transfers were ended early",
        "datagrams": "UDP frames",
        "duplicate_pieces": "`duplicate`", "bad_pieces": "`bad`", "expired_pieces": "`expired`",
        "lost_pieces": "`lost`", "kernel_received": "frames received by the kernel",
        "evicted_pieces": "`evicted`", "waiting_pieces": "`waiting`",
    }  # fmt: skip
    every = {*counters.CAPTURE, *counters.WORKER, *counters.SINK, *counters.OUTPUT}
    for counter in every:
        if "." not in counter:      # fates and anomalies have tests of their own
            assert words.get(counter, counter) in OPERATIONS, counter


def test_the_sizes_in_operations():
    """What the document works out, worked out again."""
    one = config.Config(workers=1)
    assert f"{check.ring_bytes(one) >> 20} MiB for each worker" in OPERATIONS
    assert f"{one.least_ring() >> 20} MiB with the default" in OPERATIONS
    three, four = (config.Config(workers=n) for n in (3, 4))
    assert check.ring_bytes(three) < 64 << 20 <= check.ring_bytes(four)
    assert "up to 3 workers with the defaults" in OPERATIONS
    limits = config.Transactions()
    assert f"up to {limits.max_pending:,} queries may wait" in OPERATIONS
    assert f"at most {limits.max_pending_bytes >> 20} MiB" in OPERATIONS


def test_the_limits_in_the_architecture():
    limits = config.Transactions()
    assert f"{limits.max_pending:,}; {limits.max_pending_bytes >> 20} MiB" in ARCHITECTURE
    assert f"`events.max_size` | {config.Events().max_size >> 10} KiB |" in ARCHITECTURE
    assert f"(`capture.snaplen`) | {config.Capture().snaplen >> 10} KiB |" in ARCHITECTURE
    assert f"| workers; outputs | {config.MAX_WORKERS}; {config.MAX_OUTPUTS} |" in ARCHITECTURE


def test_the_rooms_have_every_module():
    """The folder tree of ARCHITECTURE.md names every module, and none that is not there."""
    (tree,) = [block for block in blocks(ARCHITECTURE) if block[0] == "gazer/"]
    named: set[str] = set()
    room = ""
    for line in tree:
        if not line.startswith(" "):
            room = line.split()[0]
            continue
        indent = len(line) - len(line.lstrip())
        words = line.split()
        if indent == 2:
            room = "gazer/"
        if words[0].endswith("/"):
            room = f"gazer/{words[0]}"
            continue
        if indent > 4 or not room.startswith("gazer/"):
            continue        # a line goes on
        for word in re.findall(r"[\w*]+\.(?:py|pyx|pxd|h|\*)(?=[\s:]|$)", line):
            found = list((ROOT / room).glob(word))
            assert found, f"{room}{word} is not there"
            named.update(name(path) for path in found)
    every = {
        name(path)
        for path in (ROOT / "gazer").rglob("*")
        if path.suffix in (".py", ".pyx", ".pxd", ".h")
        and not path.name.startswith("__")
        and path.parent.name != "config"
    }
    assert every - named == set()


# Links -------------------------------------------------------------------------------------


def anchors(path: Path) -> set[str]:
    """What `#...` may lead to, as GitHub makes it from headings."""
    heads = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_links_lead_somewhere(path):
    text = re.sub(r"`[^`]*`", "", path.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), f"{name(path)}: {target}"
        assert there.is_relative_to(ROOT)
        if anchor:
            assert anchor in anchors(there), f"{name(path)}: {target}"


def test_every_document_is_linked_from_the_readme():
    for path in DOCUMENTS:
        assert path.name == "README.md" or f"]({name(path)})" in README, name(path)
