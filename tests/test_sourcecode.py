"""Rules about the source, as tests.  A rule that has to be broken is changed here, with its reason.

Imports point down (ARCHITECTURE.md): a module imports what stands lower in RANKS, or in its own
room; `capture`, `workers` and `sinks` never import one another.  Bytes that strangers sent are read
through a cursor, and what a cursor gave is not indexed beyond what was asked of it.
"""

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GAZER = ROOT / "gazer"

PYTHON = sorted(p for p in GAZER.rglob("*.py"))
CYTHON = sorted(p for p in GAZER.rglob("*") if p.suffix in (".pyx", ".pxd"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))

# Doors: compiled modules for tests and benchmarks, which see a part from Python.
DOORS = {
    "gazer.guarded",
    "gazer.capture.doors",
    "gazer.capture.testing",
    "gazer.testing",
    "gazer.workers.doors",
    "gazer.workers.mortal",
    "gazer.workers.probe",
    "gazer.workers.stream_door",
    "gazer.workers.transfer_door",
}

ROOMS = (
    "gazer.capture", "gazer.workers", "gazer.sinks", "gazer.config", "gazer.observe",
    "gazer.service",
)  # fmt: skip

# What stands lower may be imported.  A room's modules have its rank, but for the process mains.
RANKS = {
    0: "gazer atomics block cursor errors event units",
    1: "config quarantine ring system text tunnel",
    2: "packet privileges seccomp",
    3: "counters entry flow pidfile segment",
    4: "capture workers sinks topology observe.meaning observe.table",
    5: "child docgen summary",
    6: "capture.process workers.process sinks.process init observe",
    7: "service",
    8: "check supervisor",
    9: "cli",
    10: "compat",
    11: "__main__",
}

EXCEPTIONS = {
    # The ledger has a counter for each anomaly, whose closed list stands in the workers' room.
    ("gazer.counters", "gazer.workers.anomaly"),
    # A live run has a segment for each worker's samples, whose size their layout decides.
    ("gazer.topology", "gazer.workers.sample"),
    # Kinds and limits, which are constants of the packet's own structures.
    ("gazer.tunnel", "gazer.packet"),
}

MAX_LINES = 600
LONGER = {
    "gazer/sinks/spool.py": 630,    # a tenth of it says what is promised of a crash and of damage
    "tests/test_spool_damage.py": 610,      # one thing, in all its forms
}


def name_of(path):
    """gazer/capture/source.pyx -> gazer.capture.source"""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module):
    return next((room for room in ROOMS if module == room or module.startswith(room + ".")), None)


def rank_of(module):
    """The rank of a module, or of the longest part of its name that has one."""
    known = {
        ("gazer." + n if n != "gazer" else n): r for r, ns in RANKS.items() for n in ns.split()}
    while module not in known:
        module, _, last = module.rpartition(".")
        if module in ("gazer", ""):
            raise KeyError(last)
    return known[module]


def code_of(text):
    """Cython source without comments and docstrings, its lines in their places."""
    text = re.sub(r'"""(?:.|\n)*?"""', lambda m: "\n" * m[0].count("\n"), text)
    return re.sub(r"#.*", "", text)


def imports_of(path):
    """The gazer modules that a file imports, at the top or within a function."""
    if path.suffix == ".py":
        found = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: imports are absolute"
                found |= from_import(node.module, [alias.name for alias in node.names])
        return {name for name in found if name.split(".")[0] == "gazer"}
    return cython_imports(path.read_text())


def cython_imports(text):
    code = code_of(text).replace("\\\n", " ")
    found = set()
    for module, rest in re.findall(
            r"^\s*from\s+(gazer[\w.]*)\s+c?import\s+(\([^)]*\)|[^\n]*)", code, re.M):
        found |= from_import(module, re.findall(r"(\w+)(?:\s+as\s+\w+)?", rest))
    for modules in re.findall(r"^\s*c?import\s+([^\n]*)", code, re.M):
        found |= {m for m in re.findall(r"[\w.]+", modules) if m.split(".")[0] == "gazer"}
    return found


def from_import(module, names):
    """`from gazer.workers import slow` imports gazer.workers.slow."""
    folder = ROOT.joinpath(*module.split("."))
    modules = {f"{module}.{n}" for n in names if any(folder.glob(f"{n}.p*"))}
    return modules or {module}


def relative(path):
    return str(path.relative_to(ROOT))


MODULES = [p for p in PYTHON + CYTHON if name_of(p) not in DOORS]


@functools.cache
def imports():
    """What each module imports."""
    return {path: imports_of(path) for path in MODULES}


# --- imports -------------------------------------------------------------------------------------


def test_imports_are_found():
    """What the rules below stand on."""
    assert cython_imports(
        "from gazer.ring cimport (\n    Ring,  # why\n    bell_wait)\n"
        "from gazer.workers import slow\n    from gazer.text cimport put, \\\n    put_u16\n"
        'cimport gazer.packet\nimport os\n"""\nfrom gazer.cli import x\n"""\n'
    ) == {"gazer.ring", "gazer.workers.slow", "gazer.text", "gazer.packet"}
    found = {name_of(p): i for p, i in imports().items() if p.suffix != ".pxd"}
    assert "gazer.capture.process" in found["gazer.supervisor"]     # within a function
    assert "gazer.workers.slow" in found["gazer.workers.rdata"]
    assert "gazer.ring" in found["gazer.sinks.merge"]


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_imports_point_down(path):
    ours = name_of(path)
    try:
        rank = rank_of(ours)
    except KeyError:
        pytest.fail(f"{ours} has no place in RANKS yet")
    for theirs in imports()[path] - {ours, "gazer"}:
        if (ours, theirs) in EXCEPTIONS or room_of(ours) == room_of(theirs) is not None:
            continue
        assert rank_of(theirs) < rank, f"{ours} imports {theirs}, which does not stand lower"


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_capture_workers_and_sinks_never_import_one_another(path):
    ours = room_of(name_of(path))
    apart = ROOMS[:3]
    ours = ours if ours in apart else None
    for theirs in {room_of(module) for module in imports()[path]} & {*apart}:
        assert ours in (None, theirs), f"{relative(path)} imports from {theirs}"


def test_the_parts_know_nothing_of_the_process_around_them():
    """Only a room's process.py knows the child, the topology and the configuration as a whole."""
    for path, modules in imports().items():
        if room_of(name_of(path)) in ROOMS[:3] and path.name != "process.py":
            assert not modules & {"gazer.child", "gazer.topology", "gazer.supervisor"}, path


def test_exceptions_are_still_needed():
    for ours, theirs in EXCEPTIONS:
        assert any(theirs in imports()[p] for p in MODULES if name_of(p) == ours), (ours, theirs)


def test_nobody_imports_a_door():
    for path, modules in imports().items():
        assert not modules & DOORS, relative(path)


def test_workers_touch_neither_sockets_nor_files():
    for path in PYTHON:
        if room_of(name_of(path)) == "gazer.workers":
            names = {n.split(".")[0] for n in re.findall(
                r"^\s*(?:from|import)\s+([\w.]+)", path.read_text(), re.M)}
            assert not names & {"io", "os", "pathlib", "select", "shutil", "socket", "subprocess"}


def test_libpcap_is_declared_in_one_place():
    found = [relative(p) for p in CYTHON if "pylibpcap" in code_of(p.read_text())]
    assert found == ["gazer/capture/libpcap.pxd"]


# --- form ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PYTHON + CYTHON, ids=relative)
def test_every_module_says_what_it_is(path):
    text = path.read_text().strip()
    if path.stem == "__init__" and not text:
        return
    assert re.match(r'"""\S', text), "begins with its docstring"


@pytest.mark.parametrize("path", [p for p in CYTHON if p.suffix == ".pyx"], ids=relative)
def test_a_pyx_has_its_pxd(path):
    """Types in the .pxd, code in the .pyx; doors and what only Python calls share nothing."""
    if name_of(path) not in DOORS | {"gazer.system"}:
        assert path.with_suffix(".pxd").exists()


def test_no_include():
    for path in CYTHON:
        assert not re.search(r"^\s*include\s", code_of(path.read_text()), re.M), relative(path)


@pytest.mark.parametrize("path", PYTHON + CYTHON + TESTS, ids=relative)
def test_no_bare_except(path):
    if path.suffix == ".py":
        bare = [n.lineno for n in ast.walk(ast.parse(path.read_text()))
                if isinstance(n, ast.ExceptHandler) and n.type is None]
    else:
        bare = re.findall(r"^\s*except\s*:", code_of(path.read_text()), re.M)
    assert not bare


@pytest.mark.parametrize("path", PYTHON + CYTHON + TESTS, ids=relative)
def test_files_are_short(path):
    lines = path.read_text().count("\n")
    assert lines <= LONGER.get(relative(path), MAX_LINES)


def test_longer_files_are_still_longer():
    for name in LONGER:
        assert (ROOT / name).read_text().count("\n") > MAX_LINES, f"{name} needs no exception"


@pytest.mark.parametrize("path", CYTHON + sorted(GAZER.rglob("*.h")), ids=relative)
def test_lines_are_short(path):
    """Ruff sees to the .py files."""
    long = [n for n, line in enumerate(path.read_text().splitlines(), 1) if len(line) > 100]
    assert not long


def bare_nogil(text):
    """cdef functions that run without the GIL and do not say that they raise nothing."""
    flat = re.sub(r"\s*\n\s+", " ", code_of(text))
    heads = re.findall(r"^\s*cdef [^=\n]*?\)[^\n=:]*nogil", flat, re.M)
    return [head for head in heads if "noexcept" not in head and "extern" not in head]


def enum_numbers(text):
    """The members of enums that have a name: C has a type for them, without a sign."""
    found = set()
    for body in re.findall(r"^cp?def enum \w+:\n((?:[ \t]+\S.*\n|[ \t]*\n)+)", code_of(text), re.M):
        found |= set(re.findall(r"^\s+(\w+)", body, re.M))
    return found


ENUMS = set().union(*(enum_numbers(path.read_text()) for path in CYTHON))


@pytest.mark.parametrize("path", [p for p in CYTHON if p.suffix == ".pyx"], ids=relative)
def test_no_loop_compares_a_sign_with_none(path):
    """A C compiler warns of `range(MEMBER)` where the loop counts an int; not of <int>MEMBER."""
    assert enum_numbers("cdef enum A:\n    B     # c\n    D = 3\ncdef enum:\n    E\n") == {"B", "D"}
    assert {"STATUSES", "SUCCESS"} <= ENUMS
    assert not set(re.findall(r"\brange\(([A-Z_]+)\)", code_of(path.read_text()))) & ENUMS


@pytest.mark.parametrize("path", CYTHON, ids=relative)
def test_what_runs_without_the_gil_raises_nothing(path):
    """Else each call would be followed by a look for an exception, which takes the GIL."""
    assert bare_nogil("cdef int f(int a,\n        int b) nogil\n")
    assert not bare_nogil("cdef int f(int a,\n        int b) noexcept nogil\n")
    assert not bare_nogil(path.read_text())


# --- bytes that strangers sent -------------------------------------------------------------------

DECODERS = [ROOT / name for name in (
    "gazer/flow.pyx",
    "gazer/packet.pyx",
    "gazer/tunnel.pyx",
    "gazer/capture/fragments.pyx",
    "gazer/workers/connections.pyx",
    "gazer/workers/dso.pyx",
    "gazer/workers/edns.pyx",
    "gazer/workers/engine.pyx",
    "gazer/workers/framing.pyx",
    "gazer/workers/matcher.pyx",
    "gazer/workers/message.pyx",
    "gazer/workers/outer.pyx",
    "gazer/workers/names.pyx",
    "gazer/workers/pieces.pyx",
    "gazer/workers/question.pyx",
    "gazer/workers/rdata.pyx",
    "gazer/workers/rdata_opt.pyx",
    "gazer/workers/rdata_svcb.pyx",
    "gazer/workers/stream.pyx",
    "gazer/workers/transaction.pyx",
    "gazer/workers/transfer.pyx",
)]

# The names by which decoders know a whole frame or message: nobody has looked yet how long it is.
RAW = re.compile(r"\b(?:wire|frame|message|base)\s*(?:\[|\+(?!=))")

# Where one of them is used all the same, and why that is sound.
SOUND = {
    "flow.pyx": {
        "cdef const uint8_t* addresses = frame + packet.addresses_offset":
            "flow_hash is for packets that packet_decode found whole: it stepped over both",
    },
    "rdata.pyx": {
        "w = put_ipv4(w, c.base + start) if type == TYPE_A else put_ipv6(w, c.base + start)":
            "`start` and the length were checked by the cursor for this type's length",
        "result = slow_render(type, c.base + start, length, arena, out)":
            "goes with its length, which the caller's cursor has checked",
        "w = put_generic(arena_end(arena), c.base + start, length, &escapes)": "the same",
    },
    "rdata_opt.pyx": {
        "w = put_generic(arena_end(arena), c.base + start, length, &escapes)":
            "goes with its length, which the caller's cursor has checked",
    },
    "transaction.pyx": {
        # What is stored here was decoded before: its length is at least a header's.
        "memcpy(<uint8_t*>self.at(cell) + 4, wire + n, size)": "a chunk within length",
        "wire + 4, m.wire + 4, 2) == 0 and memcmp(": "two stored headers",
        "wire + 12, m.wire + 12, n - 12) == 0:": "n is the length of both, and at least 12",
        "if (wire[4] << 8 | wire[5]) == m.counts[0] and question_equal(": "a stored header",
    },
}


def raw_uses(text):
    return {line.strip() for line in code_of(text).splitlines() if RAW.search(line)}


@pytest.mark.parametrize("path", DECODERS, ids=relative)
def test_a_frame_or_message_is_read_through_a_cursor(path):
    new = raw_uses(path.read_text()) - set(SOUND.get(path.name, ()))
    assert not new, "read it through a cursor, or say in SOUND why this can't go wrong"


def test_what_is_held_sound_is_still_there():
    for name, lines in SOUND.items():
        path = next(p for p in DECODERS if p.name == name)
        assert set(lines) <= raw_uses(path.read_text()), f"take it out of SOUND: {name}"


TAKEN = re.compile(r"\b(\w+) = cursor_take\([^,]*, (\d+)\)")
INDEXED = re.compile(r"\b(\w+)\[(\d+)\]")


def beyond_taken(text):
    """Uses of p[k] where the last cursor_take(..., n) that p came from had n <= k."""
    found, taken = [], {}
    for line in code_of(text).splitlines():
        if re.match(r"c(?:p)?def |def ", line):
            taken = {}
        for name, n in TAKEN.findall(line):
            taken[name] = int(n)
        for name in re.findall(r"\b(\w+) = cursor_take\(", line):
            if not any(name == known for known, _ in TAKEN.findall(line)):
                taken.pop(name, None)       # a length that is computed: not for this rule
        found += [line.strip() for name, k in INDEXED.findall(line)
                  if int(k) >= taken.get(name, 1 << 32)]
    return found


@pytest.mark.parametrize("path", [*DECODERS, *sorted(GAZER.glob("capture/*.pyx"))], ids=relative)
def test_nothing_is_indexed_beyond_what_was_taken(path):
    assert beyond_taken("cdef f():\n    p = cursor_take(&c, 4)\n    x = p[0] | p[4]\n")
    assert not beyond_taken("cdef f():\n    p = cursor_take(&c, 5)\n    x = p[0] | p[4]\n")
    assert not beyond_taken(path.read_text())
