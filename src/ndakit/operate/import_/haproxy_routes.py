"""Which requests of a frontend go to which pool: `default_backend`, `use_backend`, ACLs about the Host header."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from ndakit.lint.config_text import Line
from ndakit.operate.import_.draft import Draft
from ndakit.operate.import_.haproxy_pools import PoolDraft
from ndakit.operate.import_.haproxy_text import ProxyPart

_HOST_FETCHES = (
    "hdr(host)",
    "req.hdr(host)",
    "req.fhdr(host)",
    "req.fhdr(host),field(1,:)",
    "req.fhdr(host),field(1,:),lower",
    "hdr(host),field(1,:)",
    "hdr(host),lower",
    "req.hdr(host),field(1,:),lower",
    "hdr(host),field(1,:),lower",
)
_SNI_FETCHES = ("req.ssl_sni", "req.ssl_sni,lower", "req_ssl_sni", "req_ssl_sni,lower")
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?")
_WILDCARD = re.compile(r"\^\[\^\.\]\+((?:\\\.[a-z0-9\\-]+)+)\$")


@dataclass
class HostCondition:
    """What an ACL asks of the name that the client wants."""

    host: list[str] = field(default_factory=list)
    host_regex: list[str] = field(default_factory=list)
    sni: list[str] = field(default_factory=list)
    """Names in the hello of TLS that passes through."""
    lines: list[Line] = field(default_factory=list)
    ours: bool = True
    """False if it asks for something else as well."""


def routes_and_pool(
    draft: Draft, part: ProxyPart, name: str, service: dict[str, Any], pools: dict[str, PoolDraft]
) -> None:
    at = f"services.{name}"
    conditions = _conditions(part)
    default = part.find("default_backend")
    target = default.words[1] if default is not None and len(default.words) > 1 else ""
    if part.own("server"):
        target = part.name
    for line in part.own("use_backend"):
        _use_backend(draft, part, service, line, conditions, pools, at)
    if target in pools:
        one = pools[target]
        service["pool"] = one.pool
        if default is not None:
            part.key(default, f"{at}.pool")
        if one.transparent:
            service["topology"] = "tproxy"
        if one.timeouts:
            service["timeouts"] = {**one.timeouts, **service.get("timeouts", {})}
        if (
            one.follows
            and one.persistence is not None
            and _without_tls(one.persistence) != _without_tls(pools[one.follows].persistence)
        ):
            service["persistence"] = one.persistence
    elif service.get("routes"):
        service["pool"] = service["routes"][0]["pool"]
        part.file.unsaid(
            part.proxy.number,
            f"requests for other names go to a pool as well: {service['pool']} is written; "
            "unknown_hosts: refuse turns them away",
        )
    elif default is not None:
        part.file.unsaid(default.number, f"there is no pool of a backend '{target[:40]}'")
    _unknown_hosts(part, service, conditions, at)


def _without_tls(persistence: dict[str, Any] | None) -> dict[str, Any]:
    """A cookie is for TLS only where the service has it, without being told."""
    return {key: value for key, value in (persistence or {}).items() if key != "_secure"}


def _conditions(part: ProxyPart) -> dict[str, HostCondition]:
    result: dict[str, HostCondition] = {}
    for line in part.own("acl"):
        if len(line.words) < 4:
            continue
        one = result.setdefault(line.words[1], HostCondition())
        one.lines.append(line)
        if not _host_test(one, list(line.words[2:])):
            one.ours = False
    return result


def _host_test(one: HostCondition, words: list[str]) -> bool:
    """Add what a test asks of the Host header; False if it asks for something else."""
    fetch, rest = words[0], words[1:]
    method = {
        "hdr_reg(host)": "reg",
        "hdr_end(host)": "end",
        "hdr_beg(host)": "beg",
        "hdr_dom(host)": "dom",
        "req.hdr_reg(host)": "reg",
        "req.hdr_end(host)": "end",
    }.get(fetch, "str")
    passed = fetch in _SNI_FETCHES
    if method == "str" and fetch not in _HOST_FETCHES and not passed:
        return False
    names = one.sni if passed else one.host
    values: list[str] = []
    while rest:
        word = rest.pop(0)
        if word == "-m" and rest:
            method = rest.pop(0)
        elif word == "--":
            values += rest
            break
        elif word in ("-i", "-n"):
            continue
        elif word.startswith("-"):
            return False
        else:
            values.append(word)
    for value in values:
        wildcard = _WILDCARD.fullmatch(value)
        if method == "reg" and wildcard is not None and "lower" in fetch:
            names.append("*" + wildcard[1].replace("\\", ""))
        elif passed and (method != "str" or not _NAME.fullmatch(value.lower())):
            return False
        elif method == "reg":
            one.host_regex.append(value)
        elif method == "str" and _NAME.fullmatch(value.lower()):
            names.append(value.lower())
        elif method == "end" and re.fullmatch(r"\.[a-z0-9]([a-z0-9.-]*[a-z0-9])?", value.lower()):
            one.host_regex.append(f"{re.escape(value.lower())}$".replace("\\-", "-"))
        elif method == "beg" and re.fullmatch(r"[a-z0-9.-]+", value.lower()):
            one.host_regex.append(f"^{re.escape(value.lower())}".replace("\\-", "-"))
        else:
            return False
    return bool(values)


def _use_backend(
    draft: Draft,
    part: ProxyPart,
    service: dict[str, Any],
    line: Line,
    conditions: dict[str, HostCondition],
    pools: dict[str, PoolDraft],
    at: str,
) -> None:
    words = line.words
    target = pools.get(words[1]) if len(words) > 1 else None
    if target is None:
        part.file.hint(line.number, f"there is no pool of a backend '{words[1][:40] if len(words) > 1 else ''}'")
        return
    text = " ".join(words[2:])
    stands_in = re.fullmatch(
        r"if((?: [a-zA-Z0-9_.:-]+)*?)(?: \{ dst [0-9a-f.: ]+ \})?((?: \{ nbsrv\([A-Za-z0-9_.:-]+\) lt 1 \})*)", text
    )
    if stands_in is not None and (stands_in[2] or "{ dst" in text):
        empty = re.findall(r"nbsrv\(([^)]+)\)", stands_in[2])
        for acl in stands_in[1].split():
            _told(part, conditions.get(acl), f"{at}.routes")
        if target.transparent:
            service["topology"] = "tproxy"
        if empty and empty[-1] in pools and pools[empty[-1]].pool != target.pool:
            draft.pools[pools[empty[-1]].pool]["sorry"] = {"pool": target.pool}
        part.key(
            line,
            f"pools.{target.pool}"
            if not empty
            else f"pools.{pools[empty[-1]].pool}.sorry"
            if empty[-1] in pools
            else at,
        )
        return
    if words[2:3] != ("if",):
        return
    names = list(words[3:])
    either = HostCondition()
    if names[:1] == ["{"] and names[-1:] == ["}"] and names.count("{") == 1:
        either.ours = _host_test(either, names[1:-1])
        chosen = [either]
    else:
        alternatives = [n for n in names if n not in ("or", "||")]
        chosen = [conditions[n] for n in alternatives if n in conditions]
        if len(chosen) != len(alternatives) or not chosen:
            return
        if len(alternatives) != len(names):
            if len(names) != 2 * len(alternatives) - 1:
                return
            for one in chosen:
                either.host += one.host
                either.host_regex += one.host_regex
                either.sni += one.sni
                either.lines += one.lines
                either.ours = either.ours and one.ours
            if either.host and either.host_regex:
                return
            chosen = [either]
    passes = service["protocol"] == "tcp"
    if any(bool(one.sni) != passes or (passes and (one.host or one.host_regex)) for one in chosen):
        return  # of TLS that passes through only the name in its hello is seen, and of HTTP only the Host header
    if not all(one.ours for one in chosen) or (len(chosen) > 1 and not _joined(chosen)):
        return
    for one in chosen:
        if len(chosen) == 1 and one.host and one.host_regex:
            _add_route(service, target, HostCondition(host=one.host))
            _add_route(service, target, HostCondition(host_regex=one.host_regex))
        elif len(chosen) == 1:
            _add_route(service, target, one)
        _told(part, one, f"{at}.routes")
    if len(chosen) > 1:
        _add_route(
            service,
            target,
            HostCondition([h for c in chosen for h in c.host], [r for c in chosen for r in c.host_regex]),
        )
    part.key(line, f"{at}.routes")
    if target.transparent:
        service["topology"] = "tproxy"


def _joined(chosen: list[HostCondition]) -> bool:
    """True if several conditions that must all hold are one of names and one of expressions, as a route has them."""
    return (
        len(chosen) == 2
        and {bool(c.host) for c in chosen} == {True, False}
        and all(bool(c.host) != bool(c.host_regex) for c in chosen)
    )


def _add_route(service: dict[str, Any], target: PoolDraft, condition: HostCondition) -> None:
    route: dict[str, Any] = {}
    if condition.host:
        route["host"] = list(dict.fromkeys(condition.host))
    if condition.host_regex:
        route["host_regex"] = list(dict.fromkeys(condition.host_regex))
    if condition.sni:
        route["sni"] = list(dict.fromkeys(condition.sni))
    route["pool"] = target.pool
    service.setdefault("routes", []).append(route)


def _told(part: ProxyPart, condition: HostCondition | None, key: str) -> None:
    for line in condition.lines if condition is not None else ():
        part.key(line, key)


def _unknown_hosts(part: ProxyPart, service: dict[str, Any], conditions: dict[str, HostCondition], at: str) -> None:
    known = conditions.get("known-host")
    for line in part.own("http-request"):
        text = " ".join(line.words)
        action = {
            "http-request deny deny_status 421 unless { var(req.known) -m bool }": "refuse",
            "http-request tarpit unless { var(req.known) -m bool }": "tarpit",
        }.get(text)
        if action is not None:
            service["unknown_hosts"] = action
            part.key(line, f"{at}.unknown_hosts")
            if known is not None:
                service["hostnames"] = known.host
                _told(part, known, f"{at}.hostnames")
    by_name = conditions.get("known-name")
    for line in part.own("tcp-request", "content", "reject", "unless", "known-name"):
        if by_name is not None:
            service["unknown_hosts"] = "refuse"
            routed = {name for route in service.get("routes", []) for name in route.get("sni", [])}
            service["hostnames"] = [name for name in by_name.sni if name not in routed]
            part.key(line, f"{at}.unknown_hosts")
            _told(part, by_name, f"{at}.hostnames")
