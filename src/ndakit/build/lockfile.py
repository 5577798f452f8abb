"""Lock files: what a profile's images were built from, `profiles/<name>.lock`, to be kept under version control.

Owns their form (TOML, one section per kind of builder), and the differences between what is pinned and what would be or
was built, in words. Refusing a build because of them is the business of `pipeline`.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ndakit.core.errors import BuildError, InputError
from ndakit.core.files import write_atomic
from ndakit.core.mistakes import clean
from ndakit.image.artifacts import Record
from ndakit.load.loaded import Loaded

FORMAT = 1
_SHOWN = 12


class LockMissing(InputError):
    """`--locked`, and nothing is pinned for this builder."""

    def __init__(self, path: Path, profile: str, kind: str, called: str = "") -> None:
        missing = f"it pins nothing for --builder {kind}" if path.is_file() else "there is no lock file"
        super().__init__(
            f"{profile} cannot be built with --locked: {missing}",
            where=str(path),
            fix=f"build without --locked, then pin what was built: ./inv lock {called or profile} --update",
        )


class LockBroken(InputError):
    """A lock file that cannot be read."""

    def __init__(self, path: Path, detail: str) -> None:
        super().__init__(
            f"the lock file cannot be used: {detail}",
            where=str(path),
            fix=f"take it from version control, or make it anew: rm {path}, build, ./inv lock {path.stem} --update",
        )


class LockDrift(BuildError):
    """What is built is not what the lock file pins."""

    def __init__(self, path: Path, profile: str, differences: Sequence[str], called: str = "") -> None:
        shown = "".join(f"\n         | {line}" for line in differences[:_SHOWN])
        more = f"\n         | … and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
        super().__init__(
            f"this is not what the lock file of {profile} pins (pinned → now):{shown}{more}",
            where=str(path),
            fix="restore what is pinned, or accept the new: build without --locked, "
            f"./inv lock {called or profile} --update",
        )


class LockMixed(BuildError):
    """The images of a profile's nodes come from different ImageBuilders, so that no one thing can be pinned."""

    def __init__(self, profile: str, nodes: Sequence[str], called: str = "") -> None:
        super().__init__(
            f"the images of {profile}'s nodes {', '.join(nodes)} were not built by the same ImageBuilder",
            where=f"images/{profile}",
            fix=f"build all nodes, then pin them: ./inv build {called or profile} --builder openwrt (or lab)",
        )


@dataclass(frozen=True)
class Base:
    """What all nodes of a profile are built from. `archive` and `sha256` are empty for what was not fetched."""

    release: str
    target: str
    device: str
    imagebuilder: str
    fingerprint: str
    archive: str = ""
    sha256: str = ""


@dataclass(frozen=True)
class PinnedNode:
    """One node: the packages asked for (PACKAGES), and every package of the image with its version."""

    asked: str
    packages: Mapping[str, str]

    @property
    def digest(self) -> str:
        """A hash of the versions, by which a record says which pins it was compared with."""
        return hashlib.sha256(json.dumps(self.packages, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class PinnedSection:
    """What one kind of builder is pinned to."""

    base: Base
    nodes: Mapping[str, PinnedNode]


@dataclass(frozen=True)
class Lock:
    """A lock file's content: builder kind → section."""

    sections: Mapping[str, PinnedSection]

    def node(self, kind: str, node: str) -> PinnedNode | None:
        """The pins of a node, if there are any."""
        section = self.sections.get(kind)
        return section.nodes.get(node) if section else None

    def text(self, profile: str) -> str:
        """As it stands in the file: stable, so that differences are short."""
        lines = [
            f"# What the images of profile {profile} are built from. Written by ./inv lock {profile} --update;",
            f"# ./inv build {profile} --locked builds exactly this or nothing.",
            f"format = {FORMAT}",
        ]
        for kind, section in sorted(self.sections.items()):
            lines += ["", f"[{_key(kind)}]", *_pairs({k: v for k, v in vars(section.base).items() if v})]
            for name, node in sorted(section.nodes.items()):
                lines += ["", f"[{_key(kind)}.nodes.{_key(name)}]", *_pairs({"asked": node.asked})]
                lines += [
                    "",
                    f"[{_key(kind)}.nodes.{_key(name)}.packages]",
                    *_pairs(dict(sorted(node.packages.items()))),
                ]
        return "\n".join(lines) + "\n"


def _key(text: str) -> str:
    return text if re.fullmatch(r"[A-Za-z0-9_-]+", text) else json.dumps(text, ensure_ascii=False)


def _pairs(pairs: Mapping[str, str]) -> list[str]:
    return [f"{_key(key)} = {json.dumps(value, ensure_ascii=False)}" for key, value in pairs.items()]


def path_of(loaded: Loaded) -> Path:
    """The lock file's place: beside the profile's file."""
    return loaded.path.with_suffix(".lock")


def read(path: Path) -> Lock:
    """The lock file; one without sections if there is none. Raises LockBroken."""
    try:
        tables = tomllib.loads(path.read_text())
    except FileNotFoundError:
        return Lock({})
    except (OSError, ValueError, RecursionError) as cause:
        raise LockBroken(path, clean(str(cause))[:200]) from cause
    try:
        if tables.pop("format") != FORMAT:
            raise LockBroken(path, f"this version reads format {FORMAT}")
        return Lock({kind: _section(dict(facts)) for kind, facts in tables.items()})
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as cause:
        raise LockBroken(path, f"it is incomplete or has something foreign in it ({clean(str(cause))[:80]})") from cause


def _section(facts: dict[str, Any]) -> PinnedSection:
    nodes = {
        name: PinnedNode(str(n["asked"]), {k: str(v) for k, v in n["packages"].items()})
        for name, n in facts.pop("nodes").items()
    }
    return PinnedSection(Base(**{key: str(value) for key, value in facts.items()}), nodes)


def write(path: Path, profile: str, lock: Lock) -> None:
    """Write it, whole or not at all."""
    write_atomic(path, lock.text(profile).encode())


def section_of(profile: str, records: Sequence[Record]) -> PinnedSection:
    """What these images of one kind of builder were built from. Raises LockMixed."""
    bases = {_base(record) for record in records}
    if len(bases) > 1:
        raise LockMixed(profile, [record.node for record in records])
    return PinnedSection(
        bases.pop(), {r.node: PinnedNode(str(r.inputs["packages"]), dict(r.packages)) for r in records}
    )


def _base(record: Record) -> Base:
    source = record.source
    return Base(
        record.release, record.target, record.device, record.imagebuilder,
        source.get("fingerprint", ""), source.get("archive", ""), source.get("sha256", ""),
    )  # fmt: skip


def base_differences(pinned: Base, now: Base) -> list[str]:
    """What differs in what all nodes are built from, pinned → now."""
    lines = [
        f"{what}: {getattr(pinned, what)} → {getattr(now, what)}"
        for what in ("release", "target", "device")
        if getattr(pinned, what) != getattr(now, what)
    ]
    if pinned.sha256 and now.sha256:  # the archive's hash says all; a folder can be compared by its contents only
        if pinned.sha256 != now.sha256:
            old, new = f"{pinned.archive} {pinned.sha256[:12]}…", f"{now.archive} {now.sha256[:12]}…"
            lines.append(f"ImageBuilder archive: {old} → {new}")
    elif pinned.fingerprint != now.fingerprint:
        old, new = f"{pinned.imagebuilder} {pinned.fingerprint[:12]}…", f"{now.imagebuilder} {now.fingerprint[:12]}…"
        lines.append(f"ImageBuilder: {old} → {new}")
    return lines


def asked_differences(node: str, pinned: PinnedNode | None, asked: str) -> list[str]:
    """What differs in the packages that are asked for; all of it if the node is not pinned."""
    if pinned is None:
        return [f"{node}: not pinned → in the profile"]
    old, new = set(pinned.asked.split()), set(asked.split())
    return [
        *(f"{node}: not asked for → {word}" for word in sorted(new - old)),
        *(f"{node}: {word} → not asked for" for word in sorted(old - new)),
    ]


def version_differences(node: str, pinned: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What differs in the packages of an image, pinned → now."""
    return [
        f"{node}: {name} {pinned.get(name, '(not there)')} → {now.get(name, '(not there)')}"
        for name in sorted(pinned.keys() | now.keys())
        if pinned.get(name) != now.get(name)
    ]


def differences(pinned: PinnedSection | None, now: PinnedSection) -> list[str]:
    """Everything that differs between what is pinned and what was built."""
    if pinned is None:
        return ["nothing was pinned"]
    lines = base_differences(pinned.base, now.base)
    for name in sorted(pinned.nodes.keys() | now.nodes.keys()):
        old, new = pinned.nodes.get(name), now.nodes.get(name)
        if new is None:
            lines.append(f"{name}: pinned → no longer in the profile")
        elif old is None:
            lines += asked_differences(name, None, new.asked)
        else:
            lines += asked_differences(name, old, new.asked) + version_differences(name, old.packages, new.packages)
    return lines
