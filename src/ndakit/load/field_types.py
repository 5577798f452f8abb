"""What the model expects at a place in a profile, read from the model's own annotations.

Answers questions about types by key path (which class, which short form, which allowed words), so that the loader's
messages and the documentation cannot drift from the model. Validation itself is pydantic's.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from ndakit.core.mistakes import KeyPath
from ndakit.model import Model, Profile


def bare(annotation: Any) -> Any:
    """The type without Annotated around it."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    return annotation


def alternatives(annotation: Any) -> Iterator[Any]:
    """The members of a union (without None), or the type itself."""
    inner = bare(annotation)
    if get_origin(inner) in (Union, types.UnionType):
        for member in get_args(inner):
            if member is not type(None):
                yield from alternatives(member)
    else:
        yield inner


def models_of(annotation: Any) -> tuple[type[Model], ...]:
    """The model classes that a type may be: several where a key, such as a check's `type`, decides."""
    return tuple(m for m in alternatives(annotation) if isinstance(m, type) and issubclass(m, Model))


def model_of(annotation: Any) -> type[Model] | None:
    """The model class that a type is or may be; of several that a key decides between, what they have in common."""
    members = models_of(annotation)
    if len(members) < 2:
        return members[0] if members else None
    above = (c for c in members[0].__mro__ if issubclass(c, Model) and c is not Model)
    return next((c for c in above if all(issubclass(m, c) for m in members)), members[0])


def variant(annotation: Any, tag: int | str) -> type[Model] | None:
    """The one of several model classes that a part of pydantic's location names; None if it names none."""
    members = models_of(annotation)
    return next((m for m in members if m.__name__ == tag), None) if len(members) > 1 else None


@functools.cache
def field_type(model: type[Model], key: str) -> Any:
    """A field's annotation, metadata included; None if there is no such field."""
    field = model.model_fields.get(key)
    if field is None:
        return None
    return Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation


def step(annotation: Any, part: str | int) -> Any:
    """The annotation one key or position further down; None if nothing is known there."""
    if isinstance(part, str) and (members := models_of(annotation)):
        inner = [kind for m in members if (kind := field_type(m, part)) is not None]
        return Union[tuple(inner)] if len(inner) > 1 else inner[0] if inner else None  # noqa: UP007  # made at run time
    for member in alternatives(annotation):
        origin = get_origin(member)
        if isinstance(part, str):
            if origin is dict:
                return get_args(member)[1]
        elif origin is tuple:
            return get_args(member)[0]
    return None


def at(path: KeyPath) -> Any:
    """The annotation at a path of the profile; None where the model has nothing."""
    annotation: Any = Profile
    for part in path:
        annotation = step(annotation, part)
        if annotation is None:
            return None
    return annotation


@functools.cache
def _places() -> dict[str, tuple[str, ...]]:
    """Every key of the model → the places that have it, as `pools.NAME`, `services.NAME.timeouts`; "" at the top."""
    above_of: dict[str, list[str]] = {}
    ahead: list[tuple[type[Model], tuple[str, ...]]] = [(Profile, ())]
    while ahead:
        model, above = ahead.pop()
        for key in model.model_fields:
            above_of.setdefault(key, []).append(".".join(above))
            for inner in alternatives(field_type(model, key)):
                named = get_origin(inner) is dict
                below = model_of(
                    get_args(inner)[1] if named else get_args(inner)[0] if get_origin(inner) is tuple else inner
                )
                if below is not None and len(above) < 8:
                    ahead.append((below, (*above, key, *(["NAME"] if named else []))))
    return {key: tuple(sorted(set(places), key=lambda p: (p.count("."), p))) for key, places in above_of.items()}


def places_of(key: str) -> tuple[str, ...]:
    """Where the model has a key, the nearest to the top first: `pools.NAME`; "the top of a profile" for the top."""
    return tuple(place or "the top of a profile" for place in _places().get(key, ()))


def words(annotation: Any) -> tuple[str, ...]:
    """The words a Literal type takes; empty for other types."""
    listed: list[str] = []
    for member in alternatives(annotation):
        if get_origin(member) is Literal:
            listed += [str(a).lower() if isinstance(a, bool) else str(a) for a in get_args(member)]
    return tuple(listed)


def is_mapping(annotation: Any) -> bool:
    """True if a mapping is (one of what is) expected."""
    return any(get_origin(m) is dict for m in alternatives(annotation)) or model_of(annotation) is not None


def is_named_map(annotation: Any) -> bool:
    """True for a mapping whose keys the user chooses."""
    return any(get_origin(m) is dict for m in alternatives(annotation))


def is_list(annotation: Any) -> bool:
    """True if a list is expected."""
    return any(get_origin(m) is tuple for m in alternatives(annotation))


def takes_single(annotation: Any) -> bool:
    """True if one value stands for the list of it."""
    return any(getattr(m, "func", None) is not None and m.func.__name__ in ("as_list", "_ports")
               for m in metadata(annotation))  # fmt: skip


def metadata(annotation: Any) -> Iterable[Any]:
    """Everything that Annotated carries."""
    while get_origin(annotation) is Annotated:
        annotation, *more = get_args(annotation)
        yield from more
    if get_origin(annotation) in (Union, types.UnionType):
        for member in get_args(annotation):
            yield from metadata(member)


def needs_entries(annotation: Any) -> bool:
    """True for a mapping or list that may not be empty."""
    constraints = [m for outer in metadata(annotation) for m in (outer, *getattr(outer, "metadata", ()))]
    return any(getattr(m, "min_length", None) for m in constraints)
