"""YAML -> Config, with the file, the line and the key in every error.

PyYAML only composes here: it gives a tree of nodes, each with its place in the file, and makes
no objects. The tree is then read along the keys that gazer.config knows, which has consequences:

- No tag can make anything; a tag other than YAML's own plain ones is an error.
- An alias is the same node again and is only ever looked at where a key allows it, so a file that
  multiplies itself by aliases, or contains itself, costs nothing.
- The depth and the number of nodes are bounded while they are composed, and the size of the file
  before: a hostile file fails in bounded time. (PyYAML takes about a second for MAX_FILE.)

All errors of a file are reported, in its order, one line each.
"""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any

import yaml

from gazer.config import (
    MAX_OUTPUTS,
    OUTPUT_PATH,
    OUTPUT_ROTATE,
    OUTPUT_TYPE,
    OUTPUT_TYPES,
    Config,
    Forward,
    Key,
    Output,
    OutputKind,
    Rotation,
    Server,
    keys_of,
    sections,
)
from gazer.config.forward import MAX_SECRET, MAX_SERVERS, SECRET_FILES, SERVER_ADDRESS
from gazer.config.keys import sections_of
from gazer.config.kinds import Kind, Listing, Secret, printable, shown
from gazer.errors import ConfigError

# configs/sensor.yaml with all its comments has 6 KB; 4096 capture files of 60 letters, the most
# that capture.files takes, just fit.
MAX_FILE = 256 * 1024
# The deepest legal value is outputs -> item -> servers -> item -> key: 7 levels.
MAX_DEPTH = 16
MAX_NODES = 10_000
# One slip can make many errors; nobody reads more than this.
MAX_ERRORS = 20

_PLAIN_TAGS = frozenset(
    f"tag:yaml.org,2002:{name}"
    for name in ("str", "int", "float", "bool", "null", "timestamp", "merge", "value", "seq", "map")
)
_NULL = "tag:yaml.org,2002:null"


def read(path: str) -> Config:
    """The configuration in the file `path`."""
    name = printable(path)
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_FILE + 1)
    except OSError as error:
        raise ConfigError(f"{name}: cannot be read: {error.strerror}") from None
    except ValueError:  # a NUL in the path
        raise ConfigError(f"{name}: cannot be read: not a path") from None
    if len(data) > MAX_FILE:
        raise ConfigError(f"{name}: larger than {MAX_FILE >> 10} KiB: not a configuration of ours")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{name}:{line}: not UTF-8 text") from None
    return parse(text, name)


def parse(text: str, source: str) -> Config:
    """The configuration in `text`; `source` stands for the file in errors."""
    root = _compose(text, source)
    reading = _Reading(source)
    # A file without a document, or with an empty one, sets nothing.
    config = Config() if root is None or _is_nothing(root) else reading.config(root)
    if not reading.errors:
        for path, problem in config.problems():
            reading.fail_at(path, problem)
    reading.finish()
    return config


# The keys of each type of output, beside `type`.
_OUTPUT_KEYS: dict[str, list[str]] = {
    type_: [OUTPUT_PATH.name, own.name, OUTPUT_ROTATE] for type_, (own, _) in OUTPUT_TYPES.items()
} | {
    "fluentd": ["servers", "time", *keys_of(Forward), *SECRET_FILES, *sections_of(Forward)],
}
_SERVERS = f"a list of 1 to {MAX_SERVERS} servers"


class _TooMuch(Exception):
    """The tree is deeper or larger than any configuration."""

    def __init__(self, line: int, text: str) -> None:
        super().__init__(text)
        self.line = line


class _Loader(yaml.SafeLoader):
    """Composes nodes, within bounds."""

    depth = 0
    nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.depth += 1
        self.nodes += 1
        if self.depth > MAX_DEPTH or self.nodes > MAX_NODES:
            event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
            line = event.start_mark.line + 1 if event.start_mark else 1
            if self.depth > MAX_DEPTH:
                raise _TooMuch(line, f"nested more than {MAX_DEPTH} levels deep")
            raise _TooMuch(line, f"more than {MAX_NODES} values")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _compose(text: str, source: str) -> yaml.Node | None:
    try:
        loader = _Loader(text)
        try:
            return loader.get_single_node()
        finally:
            loader.dispose()
    except _TooMuch as error:
        raise ConfigError(f"{source}:{error.line}: {error}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        character = f"U+{ord(text[error.position]):04X}"
        raise ConfigError(f"{source}:{line}: not text: it contains {character}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        said = ", ".join(part for part in (error.context, error.problem) if part)
        raise ConfigError(f"{source}:{line}: not valid YAML: {printable(said)[:200]}") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        # PyYAML lets a few slips of its own through, chr() of an escape beyond Unicode for one.
        said = printable(" ".join(str(error).split()))[:200]
        raise ConfigError(f"{source}: not valid YAML: {said}") from None


class _Reading:
    """One file being read: its errors, and the line of every key that it sets."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.errors: list[tuple[int, str]] = []
        self.lines: dict[str, int] = {}

    def fail(self, node: yaml.Node, path: str, text: str) -> None:
        place = f"{path}: " if path else ""
        self.errors.append((node.start_mark.line + 1, f"{place}{text}"))

    def fail_at(self, path: str, text: str) -> None:
        """An error between keys: it stands where `path` or the nearest part of it is set."""
        known = path
        while known and known not in self.lines:
            known = known[: max(known.rfind("."), known.rfind("["), 0)]
        self.errors.append((self.lines.get(known, 1), f"{path}: {text}"))

    def finish(self) -> None:
        """Raise what was found, in the order of the file."""
        if not self.errors:
            return
        self.errors.sort(key=lambda error: error[0])
        lines = [f"{self.source}:{line}: {text}" for line, text in self.errors[:MAX_ERRORS]]
        if len(self.errors) > MAX_ERRORS:
            lines.append(f"{self.source}: and {len(self.errors) - MAX_ERRORS} more errors")
        raise ConfigError("\n".join(lines))

    # The tree ------------------------------------------------------------------------------

    def config(self, root: yaml.Node) -> Config:
        known = sections()
        keys = keys_of(Config)
        values: dict[str, Any] = {}
        for name, node in self.pairs(root, "", [*known, *keys, "outputs"]):
            if name in known:
                values[name] = self.section(known[name], node, name)
            elif name in keys:
                self.value(values, keys[name], node, name)
            else:
                outputs = self.outputs(node)
                if outputs is not None:
                    values[name] = outputs
        return Config(**values)

    def section(self, cls: type, node: yaml.Node, path: str) -> Any:
        keys = keys_of(cls)
        values: dict[str, Any] = {}
        # A section whose keys are all commented out is nothing: it has its defaults.
        if not _is_nothing(node):
            for name, child in self.pairs(node, path, list(keys)):
                self.value(values, keys[name], child, f"{path}.{name}")
        return cls(**values)

    def value(
        self, values: dict[str, Any], known: tuple[str, Key], node: yaml.Node, path: str
    ) -> None:
        attribute, key = known
        found = self.parsed(key.kind, node, path)
        if found is not None:
            values[attribute] = found

    def outputs(self, node: yaml.Node) -> tuple[Output, ...] | None:
        expected = f"a list of 1 to {MAX_OUTPUTS} outputs"
        if not self.tag_is_plain(node, "outputs"):
            return None
        if not isinstance(node, yaml.SequenceNode):
            self.fail(node, "outputs", f"expected {expected}, got {_got(node)}")
            return None
        if not 1 <= len(node.value) <= MAX_OUTPUTS:
            self.fail(node, "outputs", f"expected {expected}, got {len(node.value)}")
            return None
        read = [self.output(item, f"outputs[{i}]") for i, item in enumerate(node.value)]
        return tuple(output for output in read if output is not None)

    def output(self, node: yaml.Node, path: str) -> Output | None:
        self.lines[path] = node.start_mark.line + 1
        given: dict[str, yaml.Node] = {}
        for name, child in self.pairs(node, path, ["type", *dict.fromkeys(
            name for names in _OUTPUT_KEYS.values() for name in names
        )]):  # fmt: skip
            given[name] = child
        before = len(self.errors)
        type_ = self.required(OUTPUT_TYPE, node, given, path)
        if type_ is None:
            return None
        own, kinds = OUTPUT_TYPES[type_]
        word = next(iter(kinds))
        target = "" if type_ == "fluentd" else self.required(OUTPUT_PATH, node, given, path)
        for name, child in given.items():
            if name != "type" and name not in _OUTPUT_KEYS[type_]:
                owners = " or ".join(t for t, names in _OUTPUT_KEYS.items() if name in names)
                self.fail(child, f"{path}.{name}", f"goes with type {owners} only")
            elif name == own.name:
                word = self.parsed(own.kind, child, f"{path}.{name}") or word
        kind = kinds[word]
        forward = None
        if type_ == "fluentd":
            forward = self.forward(node, given, path, kind)
        rotation = None
        if OUTPUT_ROTATE in given and type_ != "fluentd":
            rotation = self.section(Rotation, given[OUTPUT_ROTATE], f"{path}.{OUTPUT_ROTATE}")
        if target is None or len(self.errors) != before:
            return None
        return Output(kind, target, forward, rotation)

    def forward(self, node: yaml.Node, given: dict[str, yaml.Node], path: str,
                kind: OutputKind) -> Forward:
        """What a fluentd output is told."""
        values: dict[str, Any] = {"event_time": kind is OutputKind.MSGPACK_EVENT_TIME}
        secrets = []
        keys, nested = keys_of(Forward), sections_of(Forward)
        if "servers" not in given:
            self.fail(node, f"{path}.servers", f"missing: expected {_SERVERS}")
        for name, child in given.items():
            where = f"{path}.{name}"
            if name == "servers":
                values[name] = self.servers(child, where)
            elif name in nested:
                before = len(self.lines)
                values[name] = self.section(nested[name], child, where)
                # A spool that was meant and is none shows when events are lost.
                if name == "spool" and len(self.lines) > before and (
                        f"{where}.path" not in self.lines):
                    self.fail(child, f"{where}.path", "missing: without it there is no spool")
            elif name in keys:
                self.value(values, keys[name], child, where)
                if isinstance(keys[name][1].kind, Secret) and values.get(name):
                    secrets.append((name, self.source))
            elif name in SECRET_FILES:
                attribute, key = SECRET_FILES[name]
                file = self.parsed(key.kind, child, where)
                if attribute in given:
                    self.fail(child, where, f"{attribute} is given too: which of the two is it?")
                elif file is not None:
                    values[attribute] = self.secret(file, child, where)
                    secrets.append((name, file))
        if values.get("username") and not {"shared_key", "shared_key_file"} & {*given}:
            self.fail(given["username"], f"{path}.username", "a server asks for a user only along "
                      'with its shared_key: give that, or shared_key: "" where it is empty')
        return Forward(**values, secrets=tuple(secrets))

    def servers(self, node: yaml.Node, path: str) -> tuple[Server, ...]:
        if not self.tag_is_plain(node, path):
            return ()
        if not isinstance(node, yaml.SequenceNode):
            self.fail(node, path, f"expected {_SERVERS}, got {_got(node)}")
            return ()
        if not 1 <= len(node.value) <= MAX_SERVERS:
            self.fail(node, path, f"expected {_SERVERS}, got {len(node.value)}")
            return ()
        found: list[Server] = []
        keys = keys_of(Server)
        for number, item in enumerate(node.value):
            where = f"{path}[{number}]"
            self.lines[where] = item.start_mark.line + 1
            values: dict[str, Any] = {}
            if isinstance(item, yaml.MappingNode):
                given = dict(self.pairs(item, where, ["address", *keys]))
                values["address"] = self.required(SERVER_ADDRESS, item, given, where)
                for name, child in given.items():
                    if name in keys:
                        self.value(values, keys[name], child, f"{where}.{name}")
            else:
                values["address"] = self.parsed(SERVER_ADDRESS.kind, item, where)
            if values["address"] is not None:
                found.append(Server(**values))
        return tuple(found)

    def secret(self, file: str, node: yaml.Node, path: str) -> str:
        """The first line of this file."""
        name = printable(file)
        try:
            with open(file, "rb") as opened:
                data = opened.read(MAX_SECRET + 2)
            text = data.partition(b"\n")[0].removesuffix(b"\r").decode()
            if not text:
                self.fail(node, path, f"{name}: its first line is empty")
            return str(Secret(MAX_SECRET).parse(text))
        except OSError as error:
            self.fail(node, path, f"{name}: cannot be read: {error.strerror}")
        except ValueError:      # UnicodeDecodeError is one, and says what stood there
            self.fail(node, path, f"{name}: expected a line of printable text, at most "
                                  f"{MAX_SECRET} octets")
        return ""

    def required(
        self, key: Key, node: yaml.Node, given: dict[str, yaml.Node], path: str
    ) -> Any | None:
        child = given.get(key.name)
        if child is None:
            if isinstance(node, yaml.MappingNode):
                self.fail(node, f"{path}.{key.name}", f"missing: expected {key.kind.expected}")
            return None
        return self.parsed(key.kind, child, f"{path}.{key.name}")

    # Nodes ---------------------------------------------------------------------------------

    def pairs(
        self, node: yaml.Node, path: str, known: list[str]
    ) -> Iterator[tuple[str, yaml.Node]]:
        """The known keys of a mapping with their values; all else is an error."""
        if not self.tag_is_plain(node, path):
            return
        if not isinstance(node, yaml.MappingNode):
            self.fail(node, path, f"expected a mapping of keys, got {_got(node)}")
            return
        seen: dict[str, int] = {}
        for at, value in node.value:
            if not isinstance(at, yaml.ScalarNode):
                self.fail(at, path, f"expected the name of a key, got {_got(at)}")
                continue
            name = at.value
            line = at.start_mark.line + 1
            full = f"{path}.{name}" if path else name
            if name not in known:
                self.fail(at, _short(full), f"no such key{_suggestion(name, path, known)}")
            elif name in seen:
                self.fail(at, full, f"given twice, first on line {seen[name]}")
            else:
                seen[name] = line
                self.lines[full] = line
                yield name, value

    def parsed(self, kind: Kind, node: yaml.Node, path: str) -> Any | None:
        """The value of a node, or None after noting what is wrong with it."""
        if not self.tag_is_plain(node, path):
            return None
        if isinstance(kind, Listing):
            return self.listing(kind, node, path)
        if isinstance(node, yaml.ScalarNode) and not _is_nothing(node):
            try:
                return kind.parse(node.value)
            except ValueError:
                pass
        got = "something else" if isinstance(kind, Secret) else _got(node)
        self.fail(node, path, f"expected {kind.expected}, got {got}")
        return None

    def listing(self, kind: Listing, node: yaml.Node, path: str) -> tuple[Any, ...] | None:
        if not isinstance(node, yaml.SequenceNode):
            self.fail(node, path, f"expected {kind.expected}, got {_got(node)}")
            return None
        count = len(node.value)
        if not kind.low <= count <= kind.high:
            bounds = f"{kind.low} to {kind.high}" if kind.low else f"at most {kind.high}"
            self.fail(node, path, f"expected {kind.expected}, {bounds} of them, got {count}")
            return None
        read = []
        for index, item in enumerate(node.value):
            self.lines[f"{path}[{index}]"] = item.start_mark.line + 1
            read.append(self.parsed(kind.item, item, f"{path}[{index}]"))
        return tuple(read) if None not in read else None

    def tag_is_plain(self, node: yaml.Node, path: str) -> bool:
        if node.tag in _PLAIN_TAGS:
            return True
        self.fail(node, path, f"the tag {shown(node.tag)} is not allowed here")
        return False


def _is_nothing(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == _NULL


def _got(node: yaml.Node) -> str:
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    return "nothing" if _is_nothing(node) else shown(node.value)


def _short(text: str) -> str:
    return printable(text if len(text) <= 80 else f"{text[:80]}...")


def _suggestion(name: str, path: str, known: list[str]) -> str:
    """The key that was perhaps meant: one beside it, or one of that name in another section."""
    if len(name) > 80:
        return ""
    if name in ("host", "port") and "address" in known:     # as fluentd's own configuration says it
        return f"; did you mean {path}.address, with host:port?"
    near = get_close_matches(name, known, n=1)
    if near:
        return f"; did you mean {path}.{near[0]}?" if path else f"; did you mean {near[0]}?"
    elsewhere: dict[str, str] = {}
    for section, cls in sections().items():
        for leaf in keys_of(cls):
            elsewhere.setdefault(leaf, f"{section}.{leaf}")
    elsewhere |= {leaf: leaf for leaf in [*keys_of(Config), "outputs"]}
    near = get_close_matches(name, list(elsewhere), n=1, cutoff=0.75)
    return f"; did you mean {elsewhere[near[0]]}?" if near else ""
