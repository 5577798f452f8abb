"""Writes docs/profile.schema.json and docs/profile.md from the model; `python -m ndakit.load.reference` rewrites both.

Every sentence about a key is that key's docstring, so the pages cannot say something else than the code.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic_core import PydanticUndefined

from ndakit.core.files import write_atomic
from ndakit.core.workspace import Workspace
from ndakit.load import dump, field_types, messages
from ndakit.load.json_schema import common_of, descriptions, kinds_of, models, schema
from ndakit.model import Model, Profile
from ndakit.model.base import Between

_BY_VALIDATOR = {
    "_address": "IP address",
    "_subnet": "subnet",
    "_host_or_subnet": "subnet",
    "_ssh_key": "SSH public key",
    "_text": "text of one line",
    "_url_path": "URL path",
    "_timezone": "time zone",
    "_host_or_address": "host name or address",
    "_release": "release",
    "_device": "device",
    "_ports": "port, range (`10000-10100`), or list of them",
    "_bridge": "`true`, or mapping",
    "_attach": "file, relative to the file that names it",
    "_bool": "`true` or `false`",
    "_host_regex": "regular expression",
    "_trust": "`system` \\| `none`, or file of CAs, relative to the file that names it",
}
_BY_PATTERN = {
    "name": "name",
    "nic": "network card",
    "package-name": "package name",
    "host-name": "host name",
    "service-name": "host name, or `*.` and a host name",
}

INTRO = """\
# The profile language, format 1

*Generated from the model by `python -m ndakit.load.reference`; edit the docstrings in `src/ndakit/model/`, not this
page.*

One YAML file per balancer pair: `profiles/NAME.yaml`. The smallest one is [bakery](../profiles/bakery.yaml), a
richer one [apache-pair](../profiles/apache-pair.yaml); [examples](examples.md) has more. `./inv check NAME` shows the
mistakes of a profile, each with file, line and column, as many at once as can be seen; `./inv show NAME --origin`
prints the merged profile with every default and where each value was written. For completion in an editor with the YAML
language server, begin the file with

    # yaml-language-server: $schema=../docs/profile.schema.json

## How a profile is read

- **Text stays text.** Nothing is guessed from how a value looks: `24.10.8` and `52:54:00:12:34:56` mean what they
  say. Booleans are `true` and `false` only.
- **Names** (of networks, nodes, VIPs, pools, services …) are lower-case letters, digits and `-`, start with a
  letter, and have at most 32 characters.
- **An address is one value, or a list** with at most one IPv4 and one IPv6 value; so are subnets and gateways.
  Inside `[ ]` and `{ }` quote an IPv6 address that begins or ends with `::`.
- **Short forms:** a server is its address, a check its type.
- **Refused,** each with a message of its own: unknown keys, duplicate keys, YAML tags, the merge key `<<`, several
  documents in a file, tabs, and files over 1 MiB. Anchors and aliases are fine; top-level keys that begin with
  `x-` are yours and can hold them.
- **`null`** (or a key without a value) takes an inherited value away; where nothing is inherited, it is a mistake.

## Inheriting: `extends`

`extends: [_house, base]` merges the named fragments or profiles below this file, left to right. They are looked
for beside the file that names them, then in `profiles/`.

- Mappings merge by key; single values and lists replace what was inherited; `null` takes it away.
- A mapping of another kind (another `type`; `page` instead of `pool`) replaces the inherited one whole.
- A mapping merges onto an inherited short form: `web1: {weight: 2}` keeps the address from `web1: 192.0.2.21`.
- Files whose name begins with `_` are fragments: never built, and free to state any part of a profile.
- A profile states its own `name`. Relative paths belong to the file that writes them. What they name is for everybody
  to see in the image: a file outside of the workspace (links are followed), in `secrets/` or a hidden folder, with a
  private key in it, or that others may not read while they may read the profile, is refused.

## Secrets

A field of secret type takes a reference only, `{secret: NAME}`. The value comes from the environment variable
`NDAKIT_SECRET_<PROFILE>__<NAME>` (upper case; `-` becomes `_`, `.` becomes `_DOT_`; a name with capitals or `_` gets a
suffix, and the error that misses it says the whole variable) or from the file `secrets/<PROFILE>/<NAME>`
in the workspace, which nobody else may be able to read and git must not track. `check`, `render` and `build` say all
that are missing at once; `check --without-secrets` checks the rest without them.

The certificates of `tls` are secrets. Whoever has an image that holds secrets has the secrets: its files are for their
owner alone (mode 0600), and its record names them. In records and ids a secret is a keyed hash; the key is
`.ndakit/private/hash.key`.
"""


def markdown() -> str:
    """The text of docs/profile.md."""
    parts = [INTRO, "## Keys\n"]
    for model in models().values():
        parts.append("\n".join(_section(model)))
    parts.append("\n".join(_planned()))
    return "\n".join(parts).rstrip() + "\n"


def _section(model: type[Model]) -> Iterator[str]:
    title = "At the top" if model is Profile else model.__name__
    yield f"### {title}\n"
    yield _doc(model)
    if (common := common_of(model)) is not None:
        link = f"[{common.__name__}](#{common.__name__.lower()})"
        yield f"Written as `type: {model.model_fields['type'].default}`; beside these keys it has those of {link}."
    elif model.short_form is not None:
        yield f"Short form: the value of `{model.short_form}` alone."
    yield ""
    yield "| key | value | default | meaning |"
    yield "|---|---|---|---|"
    if model is Profile:
        yield "| `extends` | name, or list of names | – | Fragments or profiles merged below this one; see above. |"
    common = common_of(model)
    for key, field in model.model_fields.items():
        if common is not None and key in common.model_fields:
            continue
        if key == "type" and (kinds := kinds_of(model)):
            words = " \\| ".join(f"[`{k.model_fields[key].default}`](#{k.__name__.lower()})" for k in kinds)
            yield f"| `type` | {words} | {_default(field)} | {_cell(descriptions(model)[key])} |"
            continue
        meaning = " ".join(descriptions(model).get(key, "").split()) or _class_words(field_types.field_type(model, key))
        yield f"| `{key}` | {_value(field_types.field_type(model, key))} | {_default(field)} | {_cell(meaning)} |"
    yield ""


def _doc(model: type[Model]) -> str:
    """The docstring without the source's indentation, which Python 3.13 takes away itself."""
    return inspect.cleandoc(model.__doc__ or "")


def _class_words(annotation: Any) -> str:
    model = field_types.model_of(annotation)
    return _doc(model) if model is not None else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _default(field: Any) -> str:
    if field.is_required():
        return "**required**"
    value = field.default
    if value is None or value is PydanticUndefined:
        return "–"
    if isinstance(value, Model):
        return "see there"
    if isinstance(value, tuple | list | dict) and not value:
        return "none"
    plain = [v.value if isinstance(v, Enum) else v for v in value] if isinstance(value, tuple | list) else value
    return f"`{_cell(dump.flow(plain))}`"


def _value(annotation: Any) -> str:
    """What may be written, in words."""
    validators = [getattr(m, "func", None) for m in field_types.metadata(annotation)]
    names = [f.__name__ for f in validators if f is not None]
    if special := next((name for name in ("_ports", "_bridge", "_trust") if name in names), None):
        return _BY_VALIDATOR[special]
    if (words := field_types.words(annotation)) and not field_types.is_list(annotation):
        return " \\| ".join(f"`{w}`" for w in words)
    for member in field_types.alternatives(annotation):
        origin = get_origin(member)
        if isinstance(member, type) and issubclass(member, Model):
            if member.__name__ == "Attachment":
                return _BY_VALIDATOR["_attach"]
            common = field_types.model_of(annotation) or member
            return f"[{common.__name__}](#{common.__name__.lower()})"
        if origin is dict:
            return f"{_key(get_args(member)[0])} → {_value(get_args(member)[1])}"
        if origin is tuple:
            inner = _value(get_args(member)[0])
            return f"{inner}, or list" if field_types.takes_single(annotation) else f"list of {inner}"
    return _scalar(annotation, names)


def _key(annotation: Any) -> str:
    return _scalar(annotation, [])


def _scalar(annotation: Any, validators: list[str]) -> str:
    for meta in field_types.metadata(annotation):
        if isinstance(meta, Between):
            unit = f" {meta.unit}" if meta.unit else ""
            return f"{meta.low:.10g} – {meta.high:.10g}{unit}"
        pattern = getattr(meta, "pattern", None)
        if pattern is not None:
            return _BY_PATTERN[messages.kind_of_pattern(str(pattern))]
    for validator in validators:
        if validator in _BY_VALIDATOR:
            return _BY_VALIDATOR[validator]
    return next(("number" for m in field_types.alternatives(annotation) if m in (int, float)), "text")


def _planned() -> Iterator[str]:
    yield "## Parts of the language that this version does not carry yet\n"
    yield "They are refused with a message that says so.\n"
    yield "| where | key or value | for |"
    yield "|---|---|---|"
    for name, model in models().items():
        where = "at the top" if model is Profile else f"[{name}](#{name.lower()})"
        if common_of(model) is not None:
            continue
        for key, what in model.planned.items():
            yield f"| {where} | `{key}` | {what} |"
        for key, values in model.planned_values.items():
            for value, what in values.items():
                yield f"| {where} | `{key}: {value}` | {what} |"
    yield ""


def write(folder: Path) -> tuple[Path, ...]:
    """Write both files into `folder` and say which."""
    page, machine = folder / "profile.md", folder / "profile.schema.json"
    write_atomic(page, markdown().encode())
    write_atomic(machine, (json.dumps(schema(), indent=1, ensure_ascii=False) + "\n").encode())
    return page, machine


if __name__ == "__main__":
    write(Workspace(Path.cwd()).shipped / "docs")
