"""Validates a tree of nodes and says every mistake in it in the user's words and at the user's line.

pydantic decides what is wrong; its error types never reach the user. Afterwards the wrong entries are cut out, so that
the rest of the profile can still be checked and one run reports everything; what was cut out is remembered, so that
nothing is said about what follows from it. Rules over several objects are in `model.rules`.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from ndakit.core.errors import Location
from ndakit.core.mistakes import KeyPath, ProfileMistake, dotted
from ndakit.load import field_types, messages
from ndakit.load.yaml_nodes import ListNode, MapNode, Node, with_key
from ndakit.model import Profile

_ROUNDS_MAX = 64
NO_SUCH_VARIANT = "union_tag_invalid"
"""pydantic's word for a `type` that is none."""

_STAND_INS: Mapping[str, Any] = {
    "release": "24.10.8",
    "access": {
        "ssh_keys": {"x": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f x"},
        "sources": {"x": "0.0.0.0/0"},
    },
    "networks": {"x": {"nics": "eth0", "subnet": "192.0.2.0/24"}},
    "nodes": {"x": {"addresses": {"x": "192.0.2.1"}}},
    "name": "x",
}
"""Takes the place of required parts that are wrong; nothing is ever said about them."""


@dataclass
class Diagnosis:
    """The profile if the tree is right; else the mistakes, and what is left for the cross-checks."""

    profile: Profile | None
    mistakes: list[ProfileMistake] = field(default_factory=list)
    rest: Profile | None = None
    cut: frozenset[KeyPath] = frozenset()

    def touches(self, path: KeyPath) -> bool:
        """True if something at, above or below the path was cut out."""
        return path in self._above_cut or any(path[:end] in self.cut for end in range(len(path) + 1))

    @functools.cached_property
    def _above_cut(self) -> set[KeyPath]:
        """Every path at or above something that was cut out."""
        return {path[:end] for path in self.cut for end in range(len(path) + 1)}


def diagnose(tree: MapNode, attach: Callable[[str], bytes], empty: frozenset[KeyPath] = frozenset()) -> Diagnosis:
    """Validate the tree.

    `attach` reads a file that a scalar names; `empty` are the keys whose lack of a value was reported already.
    """
    context = {"attach": attach}
    try:
        return Diagnosis(Profile.model_validate(tree, context=context))
    except ValidationError as cause:
        error = cause
    mistakes: list[ProfileMistake] = []
    cut: set[KeyPath] = set(empty)
    plain: Any = _plain(tree)
    first = True
    for _ in range(_ROUNDS_MAX):
        paths: set[KeyPath] = set()
        faults = list(_faults(error, tree if first else plain))
        meant = set(_meant(faults))
        inside = {path[:end] for path, _ in faults for end in range(len(path))}
        for path, facts in faults:
            known = any(c[: len(path)] == path or path[: len(c)] == c for c in cut)
            # A list whose only entry is wrong is no empty one.
            hollow = facts["type"] == "too_short" and path in inside
            if not known and not hollow and path not in meant:
                mistakes.append(messages.mistake(path, facts, tree, _place_of(tree, path, facts)))
            # Without its type nothing can be said about the other keys.
            paths.add(path[:-1] if facts["type"] == NO_SUCH_VARIANT and path[-1] == "type" else path)
            if facts["loc"][-1] == "[key]":
                cut.add((*path[:-1], messages.better_name(str(path[-1]))))
        for path in sorted(paths, key=lambda p: (-len(p), str(p))):
            cut.add(_cut(plain, path))
        first = False
        try:
            rest = Profile.model_validate(plain, context=context)
        except ValidationError as cause:
            error = cause
        else:
            return Diagnosis(None, mistakes, rest, frozenset(cut))
    return Diagnosis(None, mistakes, None, frozenset(cut))


def place(tree: MapNode, path: KeyPath) -> Location:
    """Where the value at a path was written; where a short form hides it, or it is missing: the value around it."""
    node: Node = tree
    at = tree.at
    depth = 0
    for part in path:
        if isinstance(node, MapNode) and isinstance(part, str) and part in node:
            key_at, node = node.keys_at[part], node[part]
            at = key_at if isinstance(node, MapNode | ListNode) else node.at
        elif isinstance(node, ListNode) and isinstance(part, int) and part < len(node):
            node = node[part]
            at = node.at
        else:
            break
        depth += 1
    if depth == 0 and path:
        return Location(tree.at.file, key=f"{dotted(path)} (by default)")
    return with_key(at, dotted(path[:depth]))


def _place_of(tree: MapNode, path: KeyPath, facts: Mapping[str, Any]) -> Location:
    """Where a fault is: at the key if the key is wrong, at the file if a key is missing at the top."""
    if facts["type"] == "missing":
        return place(tree, path[:-1]) if len(path) > 1 else Location(tree.at.file)
    if facts["type"] == "extra_forbidden" or facts["loc"][-1] == "[key]":
        parent: Any = tree
        for part in path[:-1]:
            parent = parent[part]
        if isinstance(parent, MapNode) and path[-1] in parent.keys_at:
            return with_key(parent.keys_at[str(path[-1])], dotted(path))
    return place(tree, path)


def _meant(faults: list[tuple[KeyPath, Mapping[str, Any]]]) -> Iterator[KeyPath]:
    """The missing keys that are there under a misspelt name."""
    missing = {path for path, facts in faults if facts["type"] == "missing"}
    for path, facts in faults if missing else ():
        if facts["type"] == "extra_forbidden":
            model = field_types.model_of(field_types.at(path[:-1]))
            near = messages.meant(str(path[-1]), model) if model is not None else None
            if near is not None and (*path[:-1], near) in missing:
                yield (*path[:-1], near)


def _faults(error: ValidationError, tree: Any) -> Iterator[tuple[KeyPath, Mapping[str, Any]]]:
    """pydantic's errors by the profile's own paths, one per path: the one that says most."""
    faults: dict[KeyPath, Mapping[str, Any]] = {}
    for facts in error.errors(include_url=False, include_input=False):
        path = _own_path(facts["loc"], tree, missing=facts["type"] == "missing")
        if facts["type"] == NO_SUCH_VARIANT and isinstance(messages.node_at(tree, path), dict):
            path = (*path, "type")
        before = faults.get(path)
        if before is None or _weight(facts) > _weight(before):
            faults[path] = facts
    yield from faults.items()


def _weight(facts: Any) -> int:
    """A message of our own says most, a wrong kind of value least."""
    if facts["type"] in messages.PYDANTIC_TYPES:
        return 1
    return 0 if facts["type"].endswith("_type") else 2


def _own_path(loc: tuple[int | str, ...], tree: Any, *, missing: bool) -> KeyPath:
    """The part of pydantic's location that is a path of the profile (unions and key checks add words of their own)."""
    path: list[int | str] = []
    node: Any = tree
    expected: Any = Profile
    for number, part in enumerate(loc):
        if part == "[key]":
            break
        last = number == len(loc) - 1
        if (chosen := field_types.variant(expected, part)) is not None:
            expected = chosen
            continue
        if isinstance(node, dict) and isinstance(part, str):
            if part not in node and not (missing and last):
                break
            node = node.get(part)
        elif isinstance(node, list) and isinstance(part, int) and part < len(node):
            node = node[part]
        else:
            model = field_types.model_of(expected)
            if model is None or part != model.short_form:
                break
            continue
        path.append(part)
        expected = field_types.step(expected, part)
    return tuple(path)


def _plain(node: Any) -> Any:
    """A copy whose containers can be changed; scalars keep their places."""
    if isinstance(node, dict):
        return {key: _plain(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_plain(value) for value in node]
    return node


def _cut(plain: dict[str, Any], path: KeyPath) -> KeyPath:
    """Take out the smallest part around `path` that the profile can do without; the path of what was taken out."""
    while len(path) > 1:
        parent: Any = plain
        for part in path[:-1]:
            try:
                parent = parent[part]
            except (KeyError, IndexError, TypeError):
                parent = None
                break
        if isinstance(parent, dict) and _optional(path, parent):
            parent.pop(path[-1], None)
            return path
        path = path[:-1]
    key = str(path[0]) if path else ""
    if key in _STAND_INS:
        plain[key] = copy.deepcopy(_STAND_INS[key])
    else:
        plain.pop(key, None)
    return path


def _optional(path: KeyPath, parent: dict[str, Any]) -> bool:
    above = field_types.at(path[:-1])
    model = field_types.model_of(above)
    if model is not None:
        known = model.model_fields.get(str(path[-1]))
        return known is None or not known.is_required()
    return len(parent) > 1 or not field_types.needs_entries(above)
