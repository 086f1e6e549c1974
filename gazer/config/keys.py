"""What is known about one key of the configuration, and how a section says it."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from gazer.config.kinds import Kind

TYPE_CHECKING = False  # as in typing, which takes its time to import
if TYPE_CHECKING:
    from typing import Any


@dataclass(frozen=True, slots=True)
class Key:
    """What is known about one key: its name in the file, what it takes, and why it is there."""

    name: str
    kind: Kind
    why: str


def key(name: str, default: Any, kind: Kind, why: str, *, secret: bool = False) -> Any:
    """A dataclass field that one key of the file sets.  What is secret stands in no repr."""
    kind.usual(default)
    return field(default=default, metadata={"key": Key(name, kind, why)}, repr=not secret)


def section(cls: type, why: str) -> Any:
    """A dataclass field that is a section of the file, or a mapping within one."""
    return field(default_factory=cls, metadata={"section": cls, "why": why})


def keys_of(cls: type) -> dict[str, tuple[str, Key]]:
    """The keys of a section: name in the file -> (name of the attribute, key)."""
    found: dict[str, tuple[str, Key]] = {}
    for item in fields(cls):
        known = item.metadata.get("key")
        if known is not None:
            found[known.name] = (item.name, known)
    return found


def sections_of(cls: type) -> dict[str, type]:
    """The sections in it: name -> class."""
    return {f.name: f.metadata["section"] for f in fields(cls) if "section" in f.metadata}
