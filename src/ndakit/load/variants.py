"""Classes between which a key `type` decides, such as the checks: which one was meant, and whose key this is.

pydantic's location of an error names the class; that name is no part of the profile's own path.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ndakit.core.errors import Location
from ndakit.core.mistakes import KeyPath, ProfileMistake
from ndakit.load import field_types
from ndakit.model import Model, Profile


def either(words: Sequence[str]) -> str:
    """`tcp, udp or ping`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}" if words else "something else"


def owner(loc: Sequence[int | str]) -> type[Model] | None:
    """The class that pydantic was validating where a location ends."""
    expected: Any = Profile
    for part in loc[:-1]:
        expected = field_types.variant(expected, part) or field_types.step(expected, part)
    return field_types.model_of(expected)


def of_another(path: KeyPath, loc: Sequence[int | str], node: Any, at: Location) -> ProfileMistake | None:
    """A key that others of several classes have, between which a `type` decides; None if none has it."""
    expected, rest = _up_to_variant(loc)
    if not rest:
        return None
    members = field_types.models_of(expected)
    keys = [str(part) for part in rest[1:]]
    if isinstance(node, dict) and len(node) == 1 and any(_has(m, [*keys, *node]) for m in members):
        keys += node
    kinds = [_kind(m) for m in members if _has(m, keys)]
    if not kinds:
        return None
    key, name = ".".join(keys), str(path[path.index(keys[0]) - 1])
    this = next(_kind(m) for m in members if m.__name__ == rest[0])
    if len(kinds) == len(members) - 1:
        return ProfileMistake("key-of-type", f"a {this} {name} has no {key}", at=at, fix=f"leave {key} out")
    article = "an" if kinds[0] == "http" else "a"
    what = f"'{key}' belongs to {article} {either(tuple(kinds))} {name}, and this one is {this}"
    return ProfileMistake("key-of-type", what, at=at, fix=f"write type: {kinds[0]}, or leave {key} out")


def _up_to_variant(loc: Sequence[int | str]) -> tuple[Any, Sequence[int | str]]:
    """The annotation at which a location names one of several classes, and the rest of it from that name on."""
    expected: Any = Profile
    for number, part in enumerate(loc):
        if field_types.variant(expected, part) is not None:
            return expected, loc[number:]
        expected = field_types.step(expected, part)
    return expected, ()


def _kind(model: type[Model]) -> str:
    return str(model.model_fields["type"].default)


def _has(model: type[Model], keys: Sequence[str]) -> bool:
    annotation: Any = model
    for key in keys:
        annotation = field_types.step(annotation, key)
    return annotation is not None
