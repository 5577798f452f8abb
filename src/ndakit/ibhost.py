"""What an ImageBuilder needs of this machine: looked for before anything is copied, and remembered once it was there.

Owns the list of programs with the reason for each, and the result of the ImageBuilder's own check. That check takes a
second and leaves links to the machine's programs in the folder, so a working copy gets the links and the mark of an
earlier one, as long as every program behind them is still the same file.
Programs: openwrt/openwrt `include/prereq-build.mk` (with IB=1), `include/prereq.mk`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from ndakit import jsontext, process
from ndakit.ibdiagnose import PrerequisitesMissing

MARK = "staging_dir/host/.prereq-build"
_BIN = "staging_dir/host/bin"

# Program, Debian's package, what the ImageBuilder does with it.
_PROGRAMS = (
    ("make", "make", "runs every step"),
    ("bash", "bash", "runs the packages' installation scripts"),
    ("gawk", "gawk", "reads package lists"),
    ("perl", "perl", "reads the lists of devices"),
    ("python3", "python3", "writes profiles.json"),
    ("tar", "tar", "unpacks packages"),
    ("gzip", "gzip", "packs images"),
    ("bzip2", "bzip2", "unpacks what is packed with it"),
    ("unzip", "unzip", "unpacks what is packed with it"),
    ("patch", "patch", "is asked for by its own check"),
    ("diff", "diffutils", "is asked for by its own check"),
    ("find", "findutils", "collects files"),
    ("xargs", "findutils", "collects files"),
    ("getopt", "util-linux", "reads the arguments of its scripts"),
    ("file", "file", "tells programs from other files"),
    ("wget", "wget", "downloads packages"),
    ("which", "debianutils", "finds programs"),
    ("setpriv", "util-linux", "ends make when this program ends"),
)


def check(where: str) -> None:
    """Raise PrerequisitesMissing for every program that is missing here, with what it is for."""
    missing = [(program, package, use) for program, package, use in _PROGRAMS if process.find(program) is None]
    if missing:
        wishes = [f"{program} ({use})" for program, _, use in missing]
        raise PrerequisitesMissing(wishes, list(dict.fromkeys(package for _, package, _ in missing)), where)


def facts(root: Path) -> str:
    """What the ImageBuilder's own check left in its folder: links to programs, and which files those are."""
    links = {name: [target, _identity(target)] for name, target in _links(root)}
    return json.dumps({"links": links, "path": process.environment()["PATH"]}, sort_keys=True)


def restore(root: Path, text: str) -> bool:
    """Put a folder into the state after its check, by the `facts` of another copy; False if a program has changed."""
    try:
        known = jsontext.mapping(text)
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
        found = Path(target).stat()
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns]
