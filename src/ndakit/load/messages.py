"""The words for a value that the model does not take: what is wrong, and what to write instead.

Owns the sentences; which place is wrong and why is decided by the model and found by `validation`.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from pydantic import ValidationError

from ndakit.core import names
from ndakit.core.errors import Location
from ndakit.core.mistakes import KeyPath, ProfileMistake, clean, dotted, guess, show
from ndakit.load import field_types, foreign_words, variants
from ndakit.load.yaml_nodes import MapNode, Node
from ndakit.model import Model, Profile

Facts = Mapping[str, Any]


EXAMPLES: Mapping[str, str] = {
    "name": "name: bakery",
    "release": "release: 24.10.8",
    "access": "access: {ssh_keys: {me: ssh-ed25519 AAAA… me}, sources: {office: 192.0.2.0/24}}",
    "ssh_keys": "ssh_keys: {me: ssh-ed25519 AAAA… me}",
    "sources": "sources: {office: 192.0.2.0/24}",
    "networks": "networks: {lan: {nics: [eth0], subnet: 192.0.2.0/24}}",
    "nodes": "nodes: {lb1: {addresses: {lan: 192.0.2.11}}}",
    "nics": "nics: [eth0]",
    "subnet": "subnet: 192.0.2.0/24",
    "addresses": "addresses: {lan: 192.0.2.11}",
    "network": "network: lan",
    "address": "address: 192.0.2.10",
    "servers": "servers: {web1: 192.0.2.21}",
    "vip": "vip: www",
    "port": "port: 80",
    "protocol": "protocol: http",
    "pool": "pool: web",
    "mode": "mode: active-backup",
    "to": "to: 198.51.100.0/24",
    "via": "via: 192.0.2.254",
    "secret": "secret: name",
    "certificates": "certificates: [{secret: shop.pem}]",
    "ca": "ca: partners.pem",
    "redirect": "redirect: https",
    "redirect.to": "to: https",
    "vips": "vips: {www: {network: lan, address: 192.0.2.10}}",
    "pools": "pools: {web: {check: http, servers: {web1: 192.0.2.21}}}",
    "services": "services: {web: {vip: www, port: 80, protocol: http, pool: web}}",
    "check": "check: http, or check: {type: http, path: /health}",
    "sorry": "sorry: {page: sorry.html}",
    "bond": "bond: {mode: active-backup}",
    "vrrp": "vrrp: {prefer: lb1}",
    "image": "image: {rootfs_mib: 256}",
    "routes": "routes: [{to: 198.51.100.0/24, via: 192.0.2.254}]",
    "packages": "packages: {tcpdump: add}",
    "labels": "labels: {site: ulm}",
    "expect": "expect: {status: 200}",
    "limits": "limits: {connections: {count: 500}}",
    "count": "count: 500",
    "length": "length: 200",
    "type": "type: source",
    "persistence": "persistence: {type: source, timeout_s: 300}",
    "persistence.name": "name: SRV",
}
"""How a key is written, where it matters below another one (`redirect.to`); a test asks for every required key of the
model."""

_PATTERNS: Mapping[str, tuple[str, str, str]] = {
    "Name": ("name", "is not a name", "use lower-case letters, digits and '-', starting with a letter, at most 32"),
    "NicName": ("nic", "is not the name of a network card", "write the kernel's name, such as eth0 (ip link shows it)"),
    "PackageName": ("package-name", "is not a package name", "use lower-case letters, digits and . _ + -, at most 64"),
    "HostName": (
        "host-name",
        "is not a host name",
        "write lower-case letters, digits, '-' and '.', such as www.example.com",
    ),
    "ServiceName": (
        "service-name",
        "is not a host name",
        "write lower-case letters, digits, '-' and '.', such as www.example.com; * only as the whole first label",
    ),
}


def _pattern(alias: Any) -> str:
    return str(next(m.pattern for m in field_types.metadata(alias) if hasattr(m, "pattern")))


_BY_PATTERN = {_pattern(getattr(names, n)): facts for n, facts in _PATTERNS.items()}


def kind_of_pattern(pattern: str) -> str:
    """Which of the constrained names a pattern belongs to."""
    return _BY_PATTERN[pattern][0]


def mistake(path: KeyPath, facts: Facts, tree: MapNode, at: Location) -> ProfileMistake:
    """What is wrong at `path`, from pydantic's facts about it."""
    node = node_at(tree, path)
    kind = facts["type"]
    expected = field_types.at(path)
    if isinstance(node, MapNode) and expected is not None and not field_types.is_mapping(expected):
        return _wrong_kind(path, facts, node, at)
    if facts["loc"] and facts["loc"][-1] == "[key]" and kind.startswith("string_"):
        return _bad_key(path, facts, node_at(tree, path[:-1]), at)
    if kind == "address" and isinstance(node, str) and (socket := _socket(node)) is not None:
        return _with_port(path, node, socket, at)
    make = PYDANTIC_TYPES.get(kind)
    if make is not None:
        return make(path, facts, node, at)
    if kind.endswith("_type") or kind in ("is_instance_of", "model_attributes_type"):
        return _wrong_kind(path, facts, node, at)
    context = facts.get("ctx") or {}
    return ProfileMistake(
        kind.replace("_", "-"),
        clean(str(facts["msg"])),
        at=at,
        fix=clean(str(context.get("fix", "compare it with docs/profile.md"))),
    )


def node_at(tree: Any, path: KeyPath) -> Any:
    """What stands at a path of a tree, or of a copy of it; None if nothing does."""
    node: Any = tree
    for part in path:
        if isinstance(node, dict):
            node = node.get(part)
        elif isinstance(node, list) and isinstance(part, int) and part < len(node):
            node = node[part]
        else:
            return None
    return node


def _missing(path: KeyPath, facts: Facts, node: Node | None, at: Location) -> ProfileMistake:
    key = str(path[-1])
    inside = f"{path[-2]}.{key}" if len(path) > 1 else ""
    example = EXAMPLES.get(inside, EXAMPLES.get(key, f"{key}: …"))
    above = dotted(path[:-1])
    what = f"'{key}' is missing" + (f" in {above}" if above else "")
    where = f"under {above}" if above else "at the beginning of a line"
    return ProfileMistake("missing-key", what, at=at, fix=f"add it {where}, for example: {example}")


def _unknown(path: KeyPath, facts: Facts, node: Node | None, at: Location) -> ProfileMistake:
    key = str(path[-1])
    common = field_types.model_of(field_types.at(path[:-1])) or Profile
    model = variants.owner(facts["loc"]) or common
    if key in model.planned:
        return ProfileMistake(
            "planned-key",
            f"'{key}' ({model.planned[key]}) is part of the profile language, but this version does not carry it yet",
            at=at,
            fix=f"leave '{key}' out until a version carries it",
        )
    if (other := variants.of_another(path, facts["loc"], node, at)) is not None:
        return other
    where = f"in {dotted(path[:-1])}" if len(path) > 1 else "at the top of a profile"
    what = f"there is no key '{show(key)}' {where}"
    near = guess(key, [*model.model_fields, *(["extends"] if model is Profile else [])])
    planned = guess(key, model.planned)
    elsewhere = field_types.places_of(key)
    if near is not None and near.lower() == key.lower():
        fix = f"did you mean '{near}'?"
    elif (known := foreign_words.key(key, common.__name__)) is not None:
        fix = _here(known, path)
        if isinstance(node, str) and node.isdecimal():
            fix = fix.replace("{count: …}", f"{{count: {show(node)}}}")
    elif near is not None:
        fix = f"did you mean '{near}'?"
    elif planned is not None:
        fix = (
            f"leave it out: if you mean '{planned}' ({model.planned[planned]}), that is part of the profile language, "
            "but this version does not carry it yet"
        )
    elif elsewhere:
        fix = _here(f"'{key}' is a key of {variants.either(elsewhere)}: move it there", path)
    else:
        fix = f"keys {where}: {', '.join(model.model_fields)}"
    return ProfileMistake("unknown-key", what, at=at, fix=fix)


def _here(text: str, path: KeyPath) -> str:
    """A text about `pools.NAME.servers.NAME` with the names of the place that it is said about."""
    named = [str(p) for p in path]
    for table, name in itertools.pairwise(named):
        text = text.replace(f"{table}.NAME", f"{table}.{show(name)}")
    return text


def meant(key: str, model: type[Model]) -> str | None:
    """The key of a class that was probably meant by one that it does not have."""
    known = foreign_words.key(key, model.__name__)
    if known is not None:
        word = known.removeprefix("write ")
        return word if word in model.model_fields else None
    return guess(key, model.model_fields)


def _not_allowed(path: KeyPath, facts: Facts, node: Node | None, at: Location) -> ProfileMistake:
    if not isinstance(node, str):
        return _wrong_kind(path, facts, node, at)
    allowed, planned, key = _words(path)
    if node in planned:
        return ProfileMistake(
            "planned-value",
            f"'{node}' ({planned[node]}) is part of the profile language, but this version does not carry it yet",
            at=at,
            fix=f"write {variants.either(allowed)}",
        )
    near = guess(node, allowed)
    fix = f"did you mean '{near}'? " if near and len(allowed) > 1 else ""
    of = "check" if _of_check(path) else "packages" if path[:2] == ("image", "packages") else key
    known = foreign_words.value(of, node)
    if known is not None:
        return ProfileMistake("not-allowed", f"'{show(node)}' is not one of the values of '{key}'", at=at, fix=known)
    return ProfileMistake(
        "not-allowed",
        f"'{show(node)}' is not one of the values of '{key}'",
        at=at,
        fix=f"{fix}write {variants.either(allowed)}",
    )


def _of_check(path: KeyPath) -> bool:
    """True for the type of a check, alone or in its mapping."""
    return path[-1:] == ("check",) or path[-2:] == ("check", "type")


def _words(path: KeyPath) -> tuple[tuple[str, ...], Mapping[str, str], str]:
    """The words a place takes, the ones it will take, and its key; a short form's are those of its key."""
    expected = field_types.at(path)
    model = field_types.model_of(expected)
    if model is not None and model.short_form is not None:
        key = model.short_form
        return field_types.words(field_types.step(expected, key)), model.planned_values.get(key, {}), str(path[-1])
    key = next((p for p in reversed(path) if isinstance(p, str)), "")
    owner = field_types.model_of(field_types.at(path[: -1 - path[::-1].index(key)])) if key else None
    return field_types.words(expected), owner.planned_values.get(key, {}) if owner is not None else {}, key


def _pattern_mismatch(path: KeyPath, facts: Facts, node: Node | None, at: Location) -> ProfileMistake:
    kind, what, fix = _BY_PATTERN.get(
        str(facts["ctx"]["pattern"]), ("text", "is not taken here", "see docs/profile.md")
    )
    parts = str(node).replace(",", " ").split()
    if kind == "nic" and (card := _card(str(node))) is not None:
        fix = card
    if len(parts) > 1 and field_types.takes_single(field_types.at(path)):
        fix = f"write a list: [{show(', '.join(parts))}]"
    return ProfileMistake(kind, f"'{show(str(node))}' {what}", at=at, fix=fix)


def _socket(text: str) -> tuple[str, str] | None:
    """Address and port of `192.0.2.1:80` or `[2001:db8::1]:80`."""
    parts = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([0-9.]+)):([0-9]{1,5})", text)
    try:
        return (str(ip_address(parts[1] or parts[2])), parts[3]) if parts is not None else None
    except ValueError:
        return None


def _with_port(path: KeyPath, text: str, socket: tuple[str, str], at: Location) -> ProfileMistake:
    address, port = socket
    quoted = f'"{address}"' if ":" in address else address
    named = [p for p in path if isinstance(p, str)]
    model = field_types.model_of(field_types.at(path))
    owner = field_types.model_of(field_types.at(tuple(path[: path.index(named[-1])])))
    if model is not None and "port" in model.model_fields:
        fix = f"write {named[-1]}: {{address: {quoted}, port: {port}}}"
    elif owner is not None and "port" in owner.model_fields:
        fix = f"write {named[-1]}: {quoted}, and port: {port} beside it"
    elif named[:1] == ["vips"]:
        fix = f"write {quoted}; the port is said by the services of the VIP: services.NAME.port: {port}"
    else:
        fix = f"write {quoted}: there is no port here"
    return ProfileMistake("address", f"'{show(text)}' is an address with a port", at=at, fix=fix)


def _card(text: str) -> str | None:
    """What to write for the name of something that is no card, but lies on one."""
    if tagged := re.fullmatch(r"([a-z][a-z0-9]{1,14})[.]([0-9]{1,4})", text):
        return f"write nics: [{tagged[1]}], and vlan: {int(tagged[2])} beside it"
    if alias := re.fullmatch(r"([a-z][a-z0-9]{1,14}):[a-z0-9]+", text):
        return f"write nics: [{alias[1]}]: further addresses on it are VIPs, in vips"
    if re.fullmatch(r"br-[a-z0-9-]+([.][0-9]+)?", text):
        return "name the cards of the bridge, and write bridge: true beside nics: the bridge is made from them"
    return None


def _text_too_long(path: KeyPath, facts: Facts, node: Node | None, at: Location) -> ProfileMistake:
    most = facts["ctx"]["max_length"]
    return ProfileMistake(
        "too-long", f"'{show(str(node), 20)}' has more than {most} characters", at=at, fix="shorten it"
    )


def _too_few(path: KeyPath, facts: Facts, node: Node | None, at: Location) -> ProfileMistake:
    key = str(path[-1]) if path else ""
    example = f", for example: {EXAMPLES[key]}" if key in EXAMPLES else ", or delete the key"
    return ProfileMistake("empty", f"'{key}' is empty", at=at, fix=f"put at least one entry into it{example}")


def _too_many(path: KeyPath, facts: Facts, node: Node | None, at: Location) -> ProfileMistake:
    most = facts["ctx"]["max_length"]
    return ProfileMistake("too-many", f"'{path[-1]}' has more than {most} entries", at=at, fix=f"keep at most {most}")


def better_name(key: str) -> str:
    """A key as the name that was probably meant; as it is if no name can be made of it."""
    meant = re.sub(r"^[^a-z]+|-+$", "", re.sub(r"[_.:/ ]", "-", key.lower()))
    return meant if names.is_name(meant) else key


@dataclass(frozen=True, eq=False)
class _Identical:
    """A mapping of the file, told from others by being itself."""

    node: MapNode

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identical) and self.node is other.node

    def __hash__(self) -> int:
        return id(self.node)


@functools.lru_cache(maxsize=1)
def _meant_names(around: _Identical) -> Counter[str]:
    """How many keys of a mapping mean each name. Counted once for all of its mistakes."""
    return Counter(map(better_name, map(str, around.node)))


def _meant_twice(name: str, around: Node | None) -> bool:
    """True if another key of the mapping means this name too: one more of that name would be refused."""
    return isinstance(around, MapNode) and _meant_names(_Identical(around))[name] > 1


def _bad_key(path: KeyPath, facts: Facts, around: Node | None, at: Location) -> ProfileMistake:
    key = str(path[-1]) if path else ""
    pattern = str((facts.get("ctx") or {}).get("pattern", ""))
    kind, what, fix = _BY_PATTERN.get(pattern, _PATTERNS["Name"])
    if facts["type"] == "string_too_long":
        what = f"has more than {facts['ctx']['max_length']} characters"
        fix = "shorten it"
    elif kind == "name" and (better := better_name(key)) != key and not _meant_twice(better, around):
        fix = f"write {better}: {fix}"
    return ProfileMistake(kind, f"'{show(key)}' {what}", at=at, fix=fix)


_COUNTED: Mapping[str, str] = {"servers": "server", "sources": "source"}
"""Mappings of names that people write as lists, and what the entries can be called. Those of `addresses` are networks,
which are not known here."""


def _scalar(text: str) -> str:
    """A value as it can be written inside { }."""
    shown = show(text)
    return shown if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9./_-]*", shown) else json.dumps(shown, ensure_ascii=False)


def _kept(model: type[Model], text: str) -> str | None:
    """A value that stands where a mapping is needed, inside that mapping, under the key that takes it; None if no key
    does. Keys that must be there come first: if one of them takes another value, this value is no part of the mapping.
    """
    if text.lower() in ("true", "false", "yes", "no", "on", "off"):
        return None
    needed = [name for name, field in model.model_fields.items() if field.is_required()]
    for name in needed or model.model_fields:
        word = (foreign_words.value(name, text) or "").removeprefix(f"write {name}: ")
        for value in (text, word):
            if value and _takes(model, name, value):
                rest = [EXAMPLES.get(other, f"{other}: …") for other in needed if other != name]
                return f"{{{', '.join([f'{name}: {_scalar(value)}', *rest])}}}"
        inner = field_types.model_of(field_types.field_type(model, name))
        below = _kept(inner, text) if inner is not None and len(model.model_fields) == 1 else None
        if below is not None:
            return f"{{{name}: {below}}}"
    return None


def _takes(model: type[Model], name: str, value: str) -> bool:
    """True if a key of a class takes this value."""
    try:
        model.model_validate({name: value}, context={"attach": lambda _: b"x"})
    except ValidationError as error:
        return not any(facts["loc"][:1] == (name,) for facts in error.errors(include_url=False))
    return True


def _wrong_kind(path: KeyPath, facts: Facts, node: Node | None, at: Location) -> ProfileMistake:
    key = show(str(path[-1])) if path else ""
    name = f"'{key}'" if path and isinstance(path[-1], str) else "a list entry"
    expected = field_types.at(path)
    given = "a mapping" if isinstance(node, dict) else "a list" if isinstance(node, list) else f"'{show(str(node))}'"
    if isinstance(node, dict) and any("::" in k or k.endswith(":") for k in node):
        return ProfileMistake(
            "wrong-kind",
            f"{name} became a mapping, because of an unquoted IPv6 address",
            at=at,
            fix='quote IPv6 addresses inside [ ] and { }: ["fd00::"]',
        )
    single = field_types.takes_single(expected)
    model = field_types.model_of(expected)
    if field_types.is_named_map(field_types.at(path[:-1])) and model is not None and key in model.model_fields:
        return ProfileMistake(
            "indentation", f"'{key}' stands where the names of {dotted(path[:-1])} stand", at=at,
            fix="indent it deeper, under the name it belongs to",
        )  # fmt: skip
    if field_types.is_named_map(expected):
        wanted = "a mapping of names"
    elif field_types.is_mapping(expected):
        wanted = "a mapping"
    elif field_types.is_list(expected):
        wanted = "one value or a list of them" if single else "a list"
    else:
        wanted = "one value"
    scalars = [n for n in node if isinstance(n, str)] if isinstance(node, list) else []
    values = [node] if isinstance(node, str) else scalars
    if key == "protocol" and {"tcp", "udp"} <= set(scalars):
        fix = foreign_words.TWO_SERVICES
    elif scalars and wanted == "one value":
        fix = f"write {key}: {show(scalars[0])}" + (", or another one of them" if len(scalars) > 1 else "")
    elif isinstance(node, str) and model is not None and (kept := _kept(model, node)) is not None:
        fix = f"write {key}: {kept}"
    elif values and field_types.is_named_map(expected) and key in _COUNTED:
        fix = f"write {key}: {{{', '.join(f'{_COUNTED[key]}{n}: {_scalar(v)}' for n, v in enumerate(values, 1))}}}"
    elif values and field_types.is_named_map(expected) and key == "addresses":
        listed = ", ".join(map(_scalar, values))
        fix = f"write addresses: {{NETWORK: {listed if len(values) == 1 else f'[{listed}]'}}}"
    elif (words := field_types.words(expected)) and EXAMPLES.get(key, "").rpartition(" ")[2] not in words:
        fix = f"write {key}: {words[0]}" + (f", or another one of {', '.join(words[1:])}" if words[1:] else "")
    elif key in EXAMPLES:
        fix = f"write {EXAMPLES[key]}"
    elif model is not None:
        keys = [k for k, f in model.model_fields.items() if f.is_required()] or list(model.model_fields)[:2]
        fix = f"write {key}: {{{', '.join(EXAMPLES.get(k, f'{k}: …') for k in keys)}}}"
    elif isinstance(node, str) and field_types.is_list(expected):
        fix = f"write {key}: [{show(node)}]"
    else:
        fix = f"write {wanted} there"
    return ProfileMistake("wrong-kind", f"{name} is {given}, and {wanted} is needed", at=at, fix=fix)


PYDANTIC_TYPES: Mapping[str, Callable[[KeyPath, Facts, Node | None, Location], ProfileMistake]] = {
    "missing": _missing,
    "extra_forbidden": _unknown,
    "literal_error": _not_allowed,
    "union_tag_invalid": _not_allowed,
    "string_pattern_mismatch": _pattern_mismatch,
    "string_too_long": _text_too_long,
    "too_short": _too_few,
    "too_long": _too_many,
}
"""pydantic's own error types with words of ours; the others are wrong kinds of values, or messages of the model."""
