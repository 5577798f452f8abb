"""Reads a profile's file with everything it extends, merged into one tree of nodes.

Mappings merge by key, scalars and lists replace, `null` takes away, a mapping with another discriminator (`type`,
`page` or `pool`) is replaced whole. Nodes keep their places, so every value still knows the file and line that wrote
it. What the values mean is not known here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ndakit.core.errors import Location
from ndakit.core.mistakes import KeyPath, ProfileMistake, dotted, guess, listing, show
from ndakit.core.workspace import Workspace
from ndakit.load import field_types
from ndakit.load.yaml_nodes import SIZE_MAX, ListNode, MapNode, Node, NullNode, Scalar, parse, with_key

_FILES_MAX = 64


@dataclass
class Merged:
    """A profile's tree after merging, the files it came from, and the mistakes found on the way."""

    tree: MapNode
    sources: dict[str, Path] = field(default_factory=dict)
    """Every file that was read, by the name that places have for it."""
    mistakes: list[ProfileMistake] = field(default_factory=list)
    whole: bool = True
    """False if a file that is extended was not found, so that parts of the profile are missing."""
    empty: frozenset[KeyPath] = frozenset()
    """Where a key stands without a value."""


def shown(path: Path, workspace: Workspace) -> str:
    """The file's path as messages name it: relative to the workspace if it is inside."""
    return str(path.relative_to(workspace.root)) if path.is_relative_to(workspace.root) else str(path)


def read(workspace: Workspace, path: Path) -> Merged:
    """Read a profile's file and what it extends.

    Raises ProfileMistake if a file cannot be read at all; lesser mistakes are in the result.
    """
    reader = _Reader(workspace)
    tree = reader.resolve(path.resolve(), ())
    empty = dict(_nulls(tree, ()))
    tail = ", and nothing inherited that it could take away" if len(reader.sources) > 1 else ""
    for at_path, place in empty.items():
        what = f"'{show(at_path[-1])}' has no value{tail}" if isinstance(at_path[-1], str) else "an empty list entry"
        reader.mistakes.append(
            ProfileMistake(
                "no-value", what, at=with_key(place, dotted(at_path)), fix="write a value, or delete the line"
            )
        )
    return Merged(_without_nulls(tree), reader.sources, reader.mistakes, reader.whole, frozenset(empty))


def read_bytes(path: Path, at: Location, what: str) -> bytes:
    """A file's content, at most a little over 1 MiB of it. Raises ProfileMistake, placed at `at`."""
    try:
        if path.exists() and not path.is_file():
            raise ProfileMistake("not-a-file", f"{what} is not a file", at=at, fix="name a file")
        with path.open("rb") as source:
            return source.read(SIZE_MAX + 1)
    except OSError as cause:
        reason = cause.strerror or str(cause)
        raise ProfileMistake(
            "unreadable",
            f"{what} cannot be read: {reason}",
            at=at,
            fix="make it readable, or correct the path",
        ) from None


class _Reader:
    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.sources: dict[str, Path] = {}
        self.mistakes: list[ProfileMistake] = []
        self.done: dict[Path, MapNode] = {}
        self.whole = True

    def resolve(self, path: Path, below: tuple[Path, ...], at: Location | None = None) -> MapNode:
        """A file's tree, merged over what it extends; `below` are the files that led here."""
        if path in self.done:
            return self.done[path]
        file = shown(path, self.workspace)
        if len(self.sources) >= _FILES_MAX:
            raise ProfileMistake(
                "too-many-files",
                f"more than {_FILES_MAX} files are extended",
                at=at or Location(file),
                fix="extend fewer fragments",
            )
        data = read_bytes(path, at or Location(file), f"the profile {file}" if at is None else f"'{file}'")
        self.sources[file] = path
        own, mistakes = parse(data, file)
        self.mistakes += mistakes
        tree = MapNode(own.at)
        for parent, place in self._parents(own, path, (*below, path)):
            tree = merge(tree, self.resolve(parent, (*below, path), place))
        kept = MapNode(own.at)
        for key, value in own.items():
            if key != "extends" and not key.startswith("x-"):
                kept.put(key, value, own.keys_at[key])
        self.done[path] = merge(tree, kept)
        return self.done[path]

    def _parents(self, own: MapNode, path: Path, chain: tuple[Path, ...]) -> Iterator[tuple[Path, Location]]:
        """The files that `extends` names, with the place of each name."""
        named = own.get("extends")
        if named is None:
            return
        entries = named if isinstance(named, ListNode) else [named]
        for number, entry in enumerate(entries):
            at = with_key(entry.at, f"extends[{number}]" if isinstance(named, ListNode) else "extends")
            if not isinstance(entry, Scalar) or not entry.strip():
                self.whole = False
                self.mistakes.append(
                    ProfileMistake(
                        "extends",
                        "extends takes names of profiles or fragments",
                        at=at,
                        fix="write extends: [_house], or delete the line",
                    )
                )
                continue
            parent = self._find(entry, path)
            self.whole = self.whole and parent is not None and parent not in chain
            if parent is None:
                self.mistakes.append(self._missing(entry, path, at))
            elif parent in chain:
                loop = " → ".join(shown(p, self.workspace) for p in (*chain[chain.index(parent) :], parent))
                self.mistakes.append(
                    ProfileMistake(
                        "extends-cycle",
                        f"the profile extends itself: {loop}",
                        at=at,
                        fix="take one of the files out of the circle; put what both need into a fragment",
                    )
                )
            else:
                yield parent, at

    def _find(self, name: str, path: Path) -> Path | None:
        if "\0" in name or len(name) > 255:
            return None
        file = name if name.endswith(".yaml") else f"{name}.yaml"
        with contextlib.suppress(OSError):  # a name that no file can have, a folder that may not be looked into
            for folder in (path.parent, self.workspace.profiles):
                if (folder / file).is_file():
                    return (folder / file).resolve()
        return None

    def _missing(self, name: str, path: Path, at: Location) -> ProfileMistake:
        known = sorted({p.stem for folder in (path.parent, self.workspace.profiles) for p in folder.glob("*.yaml")})
        file = name if name.endswith(".yaml") else f"{name}.yaml"
        for place in (
            (path.parent / file, self.workspace.profiles / file) if len(name) < 200 and "\0" not in name else ()
        ):
            if place.is_symlink():
                where = shown(place, self.workspace)
                return ProfileMistake(
                    "unknown-parent",
                    f"'{show(name)}' is a link to '{show(str(place.readlink()))}', and no file is there",
                    at=at,
                    fix=f"put the file there, or replace the link {show(where, 200)} by a file",
                )
        near = guess(name, known)
        fix = f"did you mean '{near}'? " if near else ""
        return ProfileMistake(
            "unknown-parent",
            f"there is no profile or fragment '{show(name)}' to extend",
            at=at,
            fix=f"{fix}there are: {listing(known)}" if known else "write the fragment first",
        )


def merge(base: MapNode, over: MapNode, path: KeyPath = ()) -> MapNode:
    """`over` merged onto `base`; both stay as they are."""
    merged = MapNode(over.at)
    for key, value in base.items():
        merged.put(key, value, base.keys_at[key])
    for key, value in over.items():
        under = merged.get(key)
        if isinstance(value, NullNode) and under is not None and not isinstance(under, NullNode):
            del merged[key], merged.keys_at[key]
            continue
        if isinstance(value, MapNode) and under is not None:
            under = _long_form(under, (*path, key))
            if isinstance(under, MapNode) and not _other_kind(under, value):
                value = merge(under, value, (*path, key))
        merged.put(key, value, over.keys_at[key])
    return merged


def _long_form(node: Node, path: KeyPath) -> Node:
    """A short form as the mapping it stands for, so that a mapping can be merged onto it."""
    if isinstance(node, Scalar | ListNode):
        model = field_types.model_of(field_types.at(path))
        if model is not None and model.short_form is not None:
            long = MapNode(node.at)
            long.put(model.short_form, node, node.at)
            return long
    return node


def _other_kind(base: MapNode, over: MapNode) -> bool:
    """True if the two have different discriminators, so that keys of one mean nothing in the other."""
    if "type" in base and "type" in over:
        return base["type"] != over["type"]
    return ("page" in base and "pool" in over and "page" not in over) or (
        "pool" in base and "page" in over and "pool" not in over
    )


def _nulls(node: Node, path: KeyPath) -> Iterator[tuple[KeyPath, Location]]:
    """Every `null` that is left after merging."""
    if isinstance(node, NullNode):
        yield path, node.at
    elif isinstance(node, MapNode):
        for key, value in node.items():
            yield from _nulls(value, (*path, key))
    elif isinstance(node, ListNode):
        for number, value in enumerate(node):
            yield from _nulls(value, (*path, number))


def _without_nulls(node: MapNode) -> MapNode:
    cleaned = MapNode(node.at)
    for key, value in node.items():
        if not isinstance(value, NullNode):
            cleaned.put(key, _clean(value), node.keys_at[key])
    return cleaned


def _clean(node: Node) -> Node:
    if isinstance(node, MapNode):
        return _without_nulls(node)
    if isinstance(node, ListNode):
        cleaned = ListNode(node.at)
        cleaned.extend(_clean(n) for n in node if not isinstance(n, NullNode))
        return cleaned
    return node
