"""The JSON Schema of profiles, for completion and hints in editors.

Made from the model; the loader is stricter than any schema can be. A profile that extends others, and a fragment, may
leave required keys out and take inherited ones away with `null`: the second half of the schema is for them.
"""

from __future__ import annotations

import ast
import copy
import functools
import inspect
import itertools
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from ndakit.load import field_types
from ndakit.model import Attachment, Model, Profile

DRAFT = "https://json-schema.org/draft/2020-12/schema"
_EXTENDS = {
    "description": "Fragments or profiles merged below this one, left to right.",
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
}

Schema = dict[str, Any]


def schema() -> Schema:
    """The whole schema, draft 2020-12."""
    made: Schema = copy.deepcopy(Profile.model_json_schema())
    strict: dict[str, Schema] = dict(made.pop("$defs"))
    strict["Profile"] = made
    for name, model in models().items():
        if name in strict:
            _complete(strict[name], model)
    strict["Profile"]["properties"] |= {"extends": _EXTENDS}
    strict["Profile"]["patternProperties"] = {"^x-": {"description": "Yours: a place for anchors."}}
    parts = {name: _tidy(part) for name, part in sorted(strict.items())}
    partial = {f"Partial{name}": _lenient(part, top=name == "Profile") for name, part in parts.items()}
    return {
        "$schema": DRAFT,
        "title": "ndakit profile",
        "description": "One YAML file per balancer pair; docs/profile.md explains every key.",
        "if": {"required": ["name"], "not": {"required": ["extends"]}},
        "then": {"$ref": "#/$defs/Profile"},
        "else": {"$ref": "#/$defs/PartialProfile"},
        "$defs": parts | partial,
    }


def models() -> Mapping[str, type[Model]]:
    """Every class of the model by name, in the order in which a profile meets them."""
    by_name: dict[str, type[Model]] = {}

    def visit(model: type[Model]) -> None:
        if model.__name__ not in by_name:
            by_name[model.__name__] = model
            for key in model.model_fields:
                annotation = field_types.field_type(model, key)
                if (
                    len(field_types.models_of(annotation)) > 1
                    and (common := field_types.model_of(annotation)) is not None
                ):
                    visit(common)
                for inner in _classes(annotation):
                    visit(inner)

    visit(Profile)
    return by_name


def common_of(model: type[Model]) -> type[Model] | None:
    """What a class has in common with others, between which a key `type` decides; None if it is none of several."""
    return next((c for c in models().values() if c is not model and issubclass(model, c)), None)


def kinds_of(model: type[Model]) -> tuple[type[Model], ...]:
    """The classes that have this one in common."""
    return tuple(m for m in models().values() if common_of(m) is model)


@functools.cache
def descriptions(model: type[Model]) -> Mapping[str, str]:
    """The text under each key of a class, where there is one.

    Pydantic can read it too (`use_attribute_docstrings`), but for every class each time anything starts.
    """
    text_of: dict[str, str] = {}
    for owner in reversed([c for c in model.__mro__ if issubclass(c, Model)]):
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
        body = tree.body if isinstance(tree, ast.ClassDef) else []
        for field, under in itertools.pairwise(body):
            match field, under:
                case ast.AnnAssign(target=ast.Name(id=key)), ast.Expr(value=ast.Constant(value=str(text))):
                    text_of[key] = inspect.cleandoc(text)
    return text_of


def _classes(annotation: Any) -> Iterator[type[Model]]:
    """The model classes in a type, if a profile writes them as mappings."""
    for member in field_types.alternatives(annotation):
        if isinstance(member, type) and issubclass(member, Model):
            if member is not Attachment:
                yield member
            continue
        for part in (field_types.step(member, "x"), field_types.step(member, 0)):
            if part is not None:
                yield from _classes(part)


def _complete(part: Schema, model: type[Model]) -> None:
    """Add the short forms that only the validators know."""
    body = next((b for b in part.get("anyOf", ()) if "properties" in b), part)
    common = common_of(model)
    if common is not None and model.model_fields["type"].default != common.model_fields["type"].default:
        body["required"] = ["type", *body.get("required", ())]
    for key in body["properties"]:
        if text := descriptions(model).get(key):
            body["properties"][key] = {"description": text} | body["properties"][key]
    for key, schema in body["properties"].items():
        annotation = field_types.field_type(model, key)
        if "minLength" in schema and schema.get("type") == "array":
            schema["minItems"] = schema.pop("minLength")
        if field_types.takes_single(annotation) and schema.get("type") == "array":
            array = {k: schema.pop(k) for k in ("type", "items", "minItems") if k in schema}
            schema["anyOf"] = [array["items"], array]
        if any(
            getattr(m, "func", None) is not None and m.func.__name__ == "_bridge"
            for m in field_types.metadata(annotation)
        ):
            schema["anyOf"].insert(0, {"type": "boolean"})


def _tidy(part: Any) -> Any:
    """Without pydantic's titles, its nulls for absent keys and the defaults of whole objects; maps are closed."""
    if isinstance(part, list):
        return [_tidy(p) for p in part]
    if not isinstance(part, dict):
        return part
    tidied = {}
    for key, value in part.items():
        if key == "title" and isinstance(value, str):
            continue
        if key == "default" and (value is None or isinstance(value, dict)):
            continue
        # Not `oneOf`: in a fragment, which may leave the type out, a key can fit several.
        to = "anyOf" if key == "oneOf" else key
        tidied[to] = {k: _tidy(v) for k, v in value.items()} if key == "properties" else _tidy(value)
    if isinstance(tidied.get("anyOf"), list):
        kept = [p for p in tidied["anyOf"] if p != {"type": "null"}]
        if len(kept) == 1:
            del tidied["anyOf"]
            tidied = kept[0] | tidied
        else:
            tidied["anyOf"] = kept
    if "patternProperties" in tidied and "additionalProperties" not in tidied:
        tidied["additionalProperties"] = False
    return tidied


def _lenient(part: Any, *, top: bool = False) -> Any:
    """The same with nothing required, and with `null` taken for every key."""
    if isinstance(part, list):
        return [_lenient(p) for p in part]
    if not isinstance(part, dict):
        return part
    lenient: Schema = {}
    for key, value in part.items():
        if key in ("required", "minProperties"):
            continue
        if key == "$ref":
            lenient[key] = value.replace("#/$defs/", "#/$defs/Partial")
        elif key in ("properties", "patternProperties"):
            lenient[key] = {
                k: _or_null(_lenient(v)) if k not in ("extends", "^x-", "name") else v for k, v in value.items()
            }
        else:
            lenient[key] = _lenient(value)
    return lenient


def _or_null(part: Schema) -> Schema:
    notes: Schema = {k: part.pop(k) for k in ("description", "default") if k in part}
    kinds = part["anyOf"] if set(part) == {"anyOf"} else [part]
    return {**notes, "anyOf": [*kinds, {"type": "null"}]}
