"""A loaded profile written back as YAML: everything it says and every default, each with its origin.

Owns the layout of that text. Secrets stay references, files stay paths. Reading is `load`'s.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ndakit.core.errors import Location
from ndakit.core.mistakes import KeyPath
from ndakit.core.names import UNSEEN
from ndakit.load import field_types
from ndakit.model import Profile

_PLAIN = re.compile(r"[A-Za-z0-9_./+(][A-Za-z0-9_./+() @=:,'-]*")


@dataclass(frozen=True)
class OriginLine:
    """A line of the merged profile and where its value was written: a place, `default`, or nothing for a heading."""

    text: str
    origin: str


def lines(profile: Profile, origins: Mapping[KeyPath, Location]) -> Iterator[OriginLine]:
    """The profile as YAML lines in the order of the model; without defaults that its device has no use for."""
    values = profile.model_dump(mode="json", exclude_none=True)
    if profile.on_flash:
        values["image"] = {k: v for k, v in values["image"].items() if k not in ("firmware", "rootfs_mib")}
    yield from _mapping(values, (), 0, origins)


def _mapping(
    values: Mapping[str, Any], path: KeyPath, depth: int, origins: Mapping[KeyPath, Location]
) -> Iterator[OriginLine]:
    for key, value in values.items():
        here: KeyPath = (*path, key)
        head = f"{'  ' * depth}{scalar(key)}:"
        if isinstance(value, list) and len(value) == 1 and field_types.takes_single(field_types.at(here)):
            (value,) = value
        if isinstance(value, dict) and value:
            yield OriginLine(head, "")
            yield from _mapping(value, here, depth + 1, origins)
        elif isinstance(value, list) and any(isinstance(v, dict) for v in value):
            yield OriginLine(head, "")
            for number, entry in enumerate(value):
                text = "{" + ", ".join(f"{k}: {flow(v)}" for k, v in entry.items()) + "}"
                yield OriginLine(f"{'  ' * (depth + 1)}- {text}", _origin((*here, number), origins))
        else:
            text = flow(value) if isinstance(value, list | dict) else scalar(value)
            yield OriginLine(f"{head} {text}", _origin(here, origins))


def _origin(path: KeyPath, origins: Mapping[KeyPath, Location]) -> str:
    """Where a value was written; the inner key of a short form has the short form's place."""
    at = origins.get(path)
    if at is None and path:
        model = field_types.model_of(field_types.at(path[:-1]))
        if model is not None and model.short_form == path[-1]:
            at = origins.get(path[:-1])
            if at is not None and any(p[: len(path) - 1] == path[:-1] and len(p) == len(path) for p in origins
                                      if isinstance(p[-1], str)):  # fmt: skip
                at = None  # a mapping that does not state the key
    return f"{at.file}:{at.line}" if at is not None else "default"


def flow(value: Any) -> str:
    """A value on one line, inside brackets or braces."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{scalar(k)}: {flow(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(flow(v) for v in value) + "]"
    text = scalar(value)
    return _quoted(text) if re.search(r"[,:\[\]{}]", text) and text[0] != '"' else text


def scalar(value: Any) -> str:
    """A scalar as YAML source: plain where that is safe, else in double quotes."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.10g}"
    text = str(value)
    if _PLAIN.fullmatch(text) and ": " not in text and text[-1] not in ": " and text.lower() not in ("null", "~"):
        return text
    return _quoted(text)


def _quoted(text: str) -> str:
    """In double quotes; what could act on a terminal as its code (YAML 1.2, 5.7)."""

    def code(char: re.Match[str]) -> str:
        return f"\\U{ord(char[0]):08X}" if ord(char[0]) > 0xFFFF else f"\\u{ord(char[0]):04X}"

    return UNSEEN.sub(code, json.dumps(text, ensure_ascii=False))
