"""A configuration that is read again while the service runs: what of it can change in place.

That is little, and all of it truly changes: what the supervisor itself obeys, and what the process
that serves metrics does, which holds nothing and is simply started again.  Everything else is in
tables that are full, rings that are mapped and sockets that are open; it is named, and needs a
restart.  (Outputs are opened again in any case, whatever has changed.)
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace

from gazer.config import Config, keys_of

TYPE_CHECKING = False  # as in typing, which takes its time to import
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

# Keys that can change in place.  `metrics.listen` can't begin or cease to be empty: then there is
# one process more, or less.
IN_PLACE = ("service.hang_timeout", "service.shutdown_timeout", "metrics.listen")


def changed(old: Any, new: Any, prefix: str = "") -> Iterator[str]:
    """The keys whose values differ, as the file has them: "ring.size", "outputs"."""
    names = {attribute: name for name, (attribute, _) in keys_of(type(old)).items()}
    for item in fields(old):
        before, after = getattr(old, item.name), getattr(new, item.name)
        path = prefix + names.get(item.name, item.name)
        if is_dataclass(before) and item.name not in names:
            yield from changed(before, after, f"{path}.")
        elif before != after:
            yield path


def merged(old: Config, new: Config) -> tuple[Config, list[str], list[str]]:
    """What holds from here on, the keys that have changed in place, and those that could not."""
    differ = [*changed(old, new)]
    now = [key for key in differ if key in IN_PLACE]
    if "metrics.listen" in now and not (old.metrics.listen and new.metrics.listen):
        now.remove("metrics.listen")
    for key in now:
        section, _, name = key.partition(".")
        part = getattr(old, section)
        attribute, _ = keys_of(type(part))[name]
        value = getattr(getattr(new, section), attribute)
        old = replace(old, **{section: replace(part, **{attribute: value})})
    return old, now, [key for key in differ if key not in now]
