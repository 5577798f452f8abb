"""Which packages an image gets, and the messages of opkg and apk when that cannot be.

Owns packages.toml. What the packages' files are is the business of `tree`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .families import Family

_ABSENT = "absent"
_OTHER_SUITES = ("bookworm",)


@dataclass(frozen=True)
class Package:
    """One entry of packages.toml."""

    name: str
    debian: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    autoload: tuple[str, ...] = ()
    base: tuple[str, ...] = ()
    depends: tuple[str, ...] = ()
    conflicts: tuple[str, ...] = ()
    users: tuple[str, ...] = ()
    nothing: str = ""
    archive: Path | None = None
    """The package file, for one of the ImageBuilder's own packages/ folder; it has a version and a digest, too."""
    version: str = ""
    digest: str = ""
    conffiles: tuple[str, ...] = ()
    suites: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)
    """What is different where the files come from another suite than the lab's first: suite to `debian` and `files`."""

    def of_suite(self, suite: str) -> Package:
        """The same package, with the files that this Debian suite has for it."""
        return replace(self, **self.suites.get(suite, {}))  # type: ignore[arg-type]  # checked where it is read

    @property
    def absent(self) -> bool:
        """True when the lab knows the name and has nothing for it."""
        return self.nothing == _ABSENT

    @property
    def hidden(self) -> bool:
        """True for what only the lab needs: it is in no list that people see."""
        return self.name.endswith("-lab")


class Unresolvable(Exception):
    """The packages cannot be installed; `lines` is what the package manager says, `code` how it ends."""

    def __init__(self, lines: Sequence[str], code: int) -> None:
        super().__init__("\n".join(lines))
        self.code = code


def feed(table: Path, family: Family) -> dict[str, Package]:
    """The packages this release has."""
    by_name = {}
    for name, entry in tomllib.loads(table.read_text()).items():
        if "since" in entry and family.number < _number(entry.pop("since")):
            continue
        if "before" in entry and family.number >= _number(entry.pop("before")):
            continue
        if family.target.x86:
            entry["modules"] = entry.get("modules", []) + entry.get("modules-x86", [])
        others = {suite: _lists(entry.pop(suite), family) for suite in _OTHER_SUITES if suite in entry}
        nothing = entry.pop("nothing", "")
        by_name[name] = Package(name, nothing=nothing, suites=others, **_lists(entry, family))
    return by_name


def _lists(entry: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """The lists of an entry, with the architecture's names filled in."""
    filled = {key: [line.replace("@triplet@", family.target.triplet) for line in lines] for key, lines in entry.items()}
    return {key: tuple(lines) for key, lines in filled.items() if key != "modules-x86"}


def selection(
    packages: dict[str, Package], defaults: Iterable[str], wanted: str, family: Family, say: Callable[[str], None]
) -> list[Package]:
    """The packages of an image, dependencies included, sorted by name.

    `wanted` is PACKAGES: names to add, `-name` to take out of the defaults (of an unknown name as well: the real one
    says nothing then). Raises Unresolvable.
    """
    words = wanted.split()
    removed = {w[1:] for w in words if w.startswith("-")}
    asked = [w for w in words if not w.startswith("-")]
    names = list(dict.fromkeys([*asked, *(d for d in defaults if d not in removed)]))
    unknown = [n for n in names if n not in packages or packages[n].hidden]
    if unknown:
        raise _unknown(unknown, family, say)
    chosen: dict[str, Package] = {}
    queue = names
    while queue:
        name = queue.pop(0)
        # A dependency that this release does not have is part of another package there.
        if name not in chosen and name in packages:
            chosen[name] = packages[name]
            queue.extend(packages[name].depends)
            missing = [d for d in packages[name].depends if d not in packages]
            if packages[name].archive is not None and missing:
                raise _unsatisfied(packages[name], missing, family)
    for package in chosen.values():
        for other in package.conflicts:
            if other in chosen:
                raise _conflict(package.name, other, family)
    return [chosen[n] for n in sorted(chosen)]


def _unknown(names: list[str], family: Family, say: Callable[[str], None]) -> Unresolvable:
    if family.apk:
        lines = ["ERROR: unable to select packages:"]
        for name in names:
            lines += [f"  {name} (no such package):", f"    required by: world[{name}]"]
        return Unresolvable(lines, len(names))
    for name in names:
        say(f"Unknown package '{name}'.")
    return Unresolvable(
        ["Collected errors:", *(f" * opkg_install_cmd: Cannot install package {name}." for name in names)], 255
    )


def _unsatisfied(package: Package, missing: list[str], family: Family) -> Unresolvable:
    if family.apk:
        lines = ["ERROR: unable to select packages:"]
        for name in missing:
            lines += [f"  {name} (no such package):", f"    required by: {package.name}-{package.version}[{name}]"]
        return Unresolvable(lines, len(missing))
    return Unresolvable(
        [
            "Collected errors:",
            f" * satisfy_dependencies_for: Cannot satisfy the following dependencies for {package.name}:",
            *(f" * \t{name}" for name in missing),
            f" * opkg_install_cmd: Cannot install package {package.name}.",
        ],
        255,
    )


def _conflict(name: str, other: str, family: Family) -> Unresolvable:
    if family.apk:
        version = family.package_version("1")
        return Unresolvable(
            [
                "ERROR: unable to select packages:",
                f"  {name}-{version}:",
                f"    conflicts: {other}-{version}",
                f"    satisfies: world[{name}]",
            ],
            1,
        )
    return Unresolvable(
        [
            "Collected errors:",
            f" * check_conflicts_for: The following packages conflict with {name}:",
            f" * check_conflicts_for: \t{other} * ",
            f" * opkg_install_cmd: Cannot install package {name}.",
        ],
        255,
    )


def _number(text: str) -> tuple[int, int]:
    year, month = text.split(".")
    return int(year), int(month)
