"""The inputs that are kept for each target: an archive of small files, tests/corpora/TARGET.zip.

What once made a target fail stands beside it, by itself: tests/corpora/TARGET-crash-...
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "corpora"
WHEN = (1980, 1, 1, 0, 0, 0)    # of every member, so that the same inputs make the same archive


def targets() -> list[str]:
    """The targets that have a corpus."""
    return sorted(path.stem for path in FOLDER.glob("*.zip"))


def inputs(target: str) -> list[tuple[str, bytes]]:
    """Name and octets of each input, those that once failed included."""
    found = [(path.name, path.read_bytes()) for path in FOLDER.glob(f"{target}-crash-*")]
    with zipfile.ZipFile(FOLDER / f"{target}.zip") as archive:
        found += [(name, archive.read(name)) for name in archive.namelist()]
    return sorted(found)


def unpack(target: str, to: Path) -> None:
    """Write each input as a file of its own, where libFuzzer finds it."""
    to.mkdir(parents=True, exist_ok=True)
    if (FOLDER / f"{target}.zip").exists():
        for name, octets in inputs(target):
            (to / name).write_bytes(octets)


def pack(target: str, paths: Iterable[Path]) -> None:
    """Keep these files, and none but them."""
    with zipfile.ZipFile(FOLDER / f"{target}.zip", "w") as archive:
        for path in sorted(paths, key=lambda path: path.name):
            archive.writestr(zipfile.ZipInfo(path.name, WHEN), path.read_bytes(),
                             zipfile.ZIP_DEFLATED, 9)
