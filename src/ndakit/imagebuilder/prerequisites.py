"""What an ImageBuilder needs of this machine: looked for before anything is copied, and remembered once it was there.

The programs stand in `programs`; this owns the result of the ImageBuilder's own check. That check takes a
second and leaves links to the machine's programs in the folder, so a working copy gets the links and the mark of an
earlier one, as long as every program behind them is still the same file.
Programs: openwrt/openwrt `include/prereq-build.mk` (with IB=1), `include/prereq.mk`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from ndakit.core import json_text, process
from ndakit.core.programs import needed
from ndakit.imagebuilder.failures import PrerequisitesMissing

MARK = "staging_dir/host/.prereq-build"
_BIN = "staging_dir/host/bin"


def check(where: str) -> None:
    """Raise PrerequisitesMissing for every program that is missing here, with what it is for.

    Files are left to the ImageBuilder's own check: the list names Debian's places of them.
    """
    programs = [row for row in needed() if "driver" in row.who and not row.names[0].startswith("/")]
    missing = [row for row in programs if not any(map(process.find, row.names))]
    if missing:
        wishes = [f"{row.names[0]} ({row.use})" for row in missing]
        raise PrerequisitesMissing(wishes, list(dict.fromkeys(row.package for row in missing)), where)


def facts(root: Path) -> str:
    """What the ImageBuilder's own check left in its folder: links to programs, and which files those are."""
    links = {name: [target, _identity(target)] for name, target in _links(root)}
    return json.dumps({"links": links, "path": process.environment()["PATH"]}, sort_keys=True)


def restore(root: Path, text: str) -> bool:
    """Put a folder into the state after its check, by the `facts` of another copy; False if a program has changed."""
    try:
        known = json_text.mapping(text)
        links = {str(name): (str(target), was) for name, (target, was) in known["links"].items()}
        if any("/" in name or "\0" in name + links[name][0] or name in ("", ".", "..") for name in links):
            return False
    except (ValueError, KeyError, TypeError, AttributeError):
        return False
    if known.get("path") != process.environment()["PATH"]:
        return False
    if any(_identity(target) != was for target, was in links.values()):
        return False
    there = dict(_links(root))
    (root / _BIN).mkdir(parents=True, exist_ok=True)
    for name, (target, _) in links.items():
        if there.get(name) != target:
            place = root / _BIN / name
            place.unlink(missing_ok=True)
            place.symlink_to(target)
    (root / MARK).touch()
    return True


def _links(root: Path) -> Iterator[tuple[str, str]]:
    folder = root / _BIN
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_symlink() and path.readlink().is_absolute():
            yield path.name, str(path.readlink())


def _identity(target: str) -> list[int] | None:
    """Size and time of the program behind a link; None if there is none (an ImageBuilder ships such links)."""
    try:
        facts = Path(target).stat()
    except OSError:
        return None
    return [facts.st_size, facts.st_mtime_ns]
