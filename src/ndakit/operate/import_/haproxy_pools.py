"""Backends of haproxy.cfg as pools: servers, balancing, checks, persistence, sorry pages, TLS to the servers."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from ndakit.lint.config_text import Line
from ndakit.load import foreign_words
from ndakit.model import Address
from ndakit.model.traffic import RETRIES
from ndakit.operate.import_ import haproxy_checks, haproxy_persistence
from ndakit.operate.import_.draft import Draft, address, number, slug
from ndakit.operate.import_.haproxy_reasons import LATER, reason
from ndakit.operate.import_.haproxy_text import ProxyPart, plain, seconds
from ndakit.operate.import_.sources import NodeFiles

_BALANCE = {w: w for w in ("roundrobin", "leastconn", "source", "first", "uri", "random")} | {"static-rr": "roundrobin"}
_WITH_VALUE = {
    "port",
    "inter",
    "fastinter",
    "downinter",
    "rise",
    "fall",
    "weight",
    "maxconn",
    "minconn",
    "slowstart",
    "cookie",
    "ca-file",
    "crt",
    "verify",
    "verifyhost",
    "sni",
    "check-sni",
    "track",
    "resolvers",
    "init-addr",
    "on-marked-down",
    "on-marked-up",
    "on-error",
    "observe",
    "error-limit",
    "source",
    "ciphers",
    "ciphersuites",
    "ssl-min-ver",
    "ssl-max-ver",
    "alpn",
    "check-alpn",
    "namespace",
    "pool-max-conn",
    "pool-purge-delay",
    "resolve-prefer",
    "addr",
    "agent-port",
    "agent-addr",
    "agent-inter",
    "agent-send",
    "maxqueue",
    "proto",
    "check-proto",
    "id",
    "redir",
    "crl-file",
    "tcp-ut",
    "max-reuse",
    "resolve-opts",
    "resolve-net",
    "curves",
    "sigalgs",
    "ws",
    "log-proto",
}


@dataclass
class ServerWords:
    """The words of a `server` (or `default-server`) line: what is used, what is left."""

    values: dict[str, str] = field(default_factory=dict)
    flags: list[str] = field(default_factory=list)


def parse(words: tuple[str, ...]) -> ServerWords:
    """Take the words behind a server's address apart."""
    result, at = ServerWords(), 0
    while at < len(words):
        word = words[at]
        if word in _WITH_VALUE and at + 1 < len(words):
            result.values[word] = words[at + 1]
            at += 2
            if word == "source" and at + 1 < len(words) and words[at] == "usesrc":
                at += 2
        else:
            result.flags.append(word)
            at += 1
    return result


def socket(text: str) -> tuple[Address | None, int | None]:
    """`192.0.2.1:80`, `[2001:db8::1]:80`, `192.0.2.1`, `ipv4@192.0.2.1:80`."""
    text = re.sub(r"^(ipv4|ipv6)@", "", text)
    whole = address(text)
    if whole is not None and not (":" in text and text.count(":") == 1):
        return whole, None
    host, _, port = text.rpartition(":")
    return address(host), number(port, 1, 65535)


@dataclass
class PoolDraft:
    """A backend, read: the pool's keys, and what belongs to the services that use it."""

    part: ProxyPart
    pool: str
    keys: dict[str, Any] = field(default_factory=dict)
    timeouts: dict[str, Any] = field(default_factory=dict)
    transparent: bool = False
    persistence: dict[str, Any] | None = None
    host: str | None = None
    """The Host of its http check."""
    follows: str = ""
    """The pool of which it is a second use."""


def pools(draft: Draft, node: NodeFiles, parts: list[ProxyPart]) -> dict[str, PoolDraft]:
    """Backend → pool. Backends that ndakit made for a second use of a pool are that pool."""
    names = {p.name for p in parts if p.proxy.kind in ("backend", "listen") and p.own("server")}
    result: dict[str, PoolDraft] = {}
    for part in parts:
        if part.proxy.kind == "frontend" or part.name not in names or part.name.startswith("_"):
            continue
        base = part.name.partition(".")[0]
        second = base if "." in part.name and base in names else ""
        pool = result[second].pool if second and second in result else slug(part.name, "pool", draft.pools)
        one = PoolDraft(part, pool, follows=second)
        result[part.name] = one
        _backend(draft, node, one)
        if second and second in result:
            _second_use(draft, result[second], one)
        else:
            draft.pools[pool] = one.keys
            one.keys["_host"] = one.host
            draft.aliases["backend", part.name] = ("backend", pool)
    return result


def _second_use(draft: Draft, first: PoolDraft, one: PoolDraft) -> None:
    """The same servers again, for another service, or at their address of the other family."""
    servers, theirs = draft.pools[first.pool]["servers"], one.keys["servers"]
    for name, facts in theirs.items():
        if name in servers:
            kept = servers[name]["address"]
            kept += [a for a in facts["address"] if a not in kept]


def _backend(draft: Draft, node: NodeFiles, one: PoolDraft) -> None:
    part, keys = one.part, one.keys
    at = f"pools.{one.pool}"
    part.head(at)
    line = part.find("mode")
    if line is not None and part.mode in ("http", "tcp"):
        part.key(line, "services.NAME.protocol")
    line = part.find("balance")
    if line is not None and len(line.words) > 1 and line.words[1] in _BALANCE:
        keys["balance"] = _BALANCE[line.words[1]]
        part.key(line, f"{at}.balance")
        if len(line.words) > 2:
            part.file.unsaid(line.number, f"balance has no options ({' '.join(line.words[2:])[:40]})")
    elif line is not None:
        part.file.unsaid(line.number, f"{at}.balance has no {' '.join(line.words[1:])[:40]}")
    for key, words in (("connect_s", "connect"), ("server_s", "server"), ("queue_s", "queue"), ("tunnel_s", "tunnel")):
        high = {"connect_s": 3600.0, "queue_s": 3600.0, "tunnel_s": 604800.0}.get(key, 86400.0)
        value = part.seconds(f"services.NAME.timeouts.{key}", "timeout", words, high=high)
        if value is not None:
            one.timeouts[key] = plain(value)
    line = part.find("retries")
    times = number(line.words[1], 0, 100) if line is not None and len(line.words) > 1 else None
    if line is not None and times is not None:
        part.key(line, f"{at}.retries")
        if times != RETRIES:
            keys["retries"] = times
    one.persistence = haproxy_persistence.read(part, f"{at}.persistence")
    if one.persistence is not None and not one.follows:
        keys["persistence"] = one.persistence
    _sorry_page(draft, node, one)
    keys["check"], one.host = haproxy_checks.read(part, f"{at}.check")
    keys["servers"] = {}
    _servers(draft, one)
    for own in part.proxy.lines:
        _why_not(part, own)


def _sorry_page(draft: Draft, node: NodeFiles, one: PoolDraft) -> None:
    part = one.part
    line = part.find("errorfile", "503")
    if line is None or len(line.words) < 3 or part.mode != "http":
        return
    content = node.files.get(line.words[2])
    if content is None:
        part.file.hint(
            line.number, f"the file {line.words[2]} is not in what was read: write {{page: FILE}} to pools.NAME.sorry"
        )
        draft.missing(
            f"pools: the page {line.words[2]} (errorfile 503) is not in what was read: put it beside the profile, and "
            "write sorry: {page: FILE}"
        )
        return
    body = re.split(rb"\r?\n\r?\n", content, maxsplit=1)
    page = body[1] if len(body) == 2 and content.startswith(b"HTTP/") else content
    if not page:
        part.file.hint(line.number, f"the file {line.words[2]} has no page in it")
        return
    name = f"{draft.name}-sorry-{one.pool}.html"
    same = next((n for n, other in draft.attachments.items() if other == page), None)
    draft.attachments[same or name] = page
    one.keys["sorry"] = {"page": same or name}
    part.key(line, f"pools.{one.pool}.sorry.page")


def _servers(draft: Draft, one: PoolDraft) -> None:
    part, at = one.part, f"pools.{one.pool}"
    shared = ServerWords()
    bases = [*haproxy_checks.of_defaults(part, "default-server"), *part.own("default-server")]
    for line in bases:
        words = parse(line.words[1:])
        shared.values |= words.values
        shared.flags += words.flags
        part.key(line, f"{at}.check")
        _left(part, line, words, at)
    seen: list[tuple[Line, ServerWords]] = []
    for line in part.own("server"):
        if len(line.words) < 3:
            part.file.unsaid(line.number, "a server has a name and an address")
            continue
        words = parse(line.words[3:])
        ip, port = socket(line.words[2])
        if ip is None:
            part.file.unsaid(
                line.number,
                "a server is an IP address: servers found by DNS are not carried yet (servers.NAME.resolve)",
            )
            continue
        name = slug(line.words[1], "srv", one.keys["servers"])
        facts: dict[str, Any] = {"address": [ip], "port": port}
        weight = number(words.values.get("weight", shared.values.get("weight")), 0, 256)
        facts["weight"] = 1 if weight is None else weight
        facts["max_connections"] = number(words.values.get("maxconn", shared.values.get("maxconn")), 1, 1_000_000)
        if "backup" in words.flags:
            facts["backup"] = True
        one.keys["servers"][name] = facts
        part.key(line, f"{at}.servers.{name}")
        seen.append((line, words))
        _left(part, line, words, at)
    _pace(part, one, shared, seen)
    _tls(draft, one, shared, seen)
    if all(facts.get("backup") for facts in one.keys["servers"].values()):
        for facts in one.keys["servers"].values():
            del facts["backup"]  # there are no others for which they would stand in
    backups = [line for line, words in seen if "backup" in words.flags]
    everyone = part.find("option", "allbackups")
    if everyone is not None and backups:
        part.key(everyone, f"{at}.servers")
    elif len(backups) > 1:
        for line in backups[1:]:
            part.file.unsaid(
                line.number, "backups share what comes while no other server is left; here only the first does"
            )
    if not one.keys["servers"]:
        part.file.unsaid(part.proxy.number, "a pool has at least one server with an address")
    source = next(iter(part.own("source")), None)
    if source is not None and source.words[2:] == ("usesrc", "clientip"):
        one.transparent = True
        part.key(source, "services.NAME.topology")


def _pace(part: ProxyPart, one: PoolDraft, shared: ServerWords, seen: list[tuple[Line, ServerWords]]) -> None:
    """`inter`, `fastinter`, `rise`, `fall`, `slowstart`, `port`: of the whole pool."""
    check, at = one.keys["check"], f"pools.{one.pool}.check"
    checked = [
        line for line, words in seen if "check" in words.flags or "check" in shared.flags or "track" in words.values
    ]
    for word, key in (
        ("inter", "interval_s"),
        ("fastinter", "retry_delay_s"),
        ("rise", "rise"),
        ("fall", "fall"),
        ("port", "port"),
        ("slowstart", "slow_start_s"),
    ):
        stated = [words.values.get(word, shared.values.get(word)) for _, words in seen]
        if stated and stated[0] is None:
            for (line, _), theirs in zip(seen, stated, strict=True):
                if theirs is not None:
                    part.file.unsaid(
                        line.number, f"{at}.{key} is one for all servers of a pool: no {word} at the first"
                    )
        if not stated or stated[0] is None:
            continue
        if word in ("rise", "fall", "port"):
            value: Any = number(stated[0], 1, 65535 if word == "port" else 100)
        else:
            value = seconds(stated[0])
            value = None if value is None else plain(value)
        if value is None:
            continue
        (one.keys if key == "slow_start_s" else check)[key] = value
        for (line, _), theirs in zip(seen, stated, strict=True):
            if theirs != stated[0]:
                part.file.unsaid(
                    line.number, f"{at}.{key} is one for all servers of a pool: {stated[0]}, and {theirs} here"
                )
    if seen and not checked:
        part.file.unsaid(seen[0][0].number, "no server is checked here: a pool's servers always are (check: tcp)")
    elif seen and len(checked) < len(seen):
        for line, _ in seen:
            if line not in checked:
                part.file.unsaid(line.number, "this server is not checked: all servers of a pool are")
    for word, default in (("inter", 2), ("rise", 2), ("fall", 3)):
        key = {"inter": "interval_s"}.get(word, word)
        if check.get(key) == default:
            del check[key]


def _tls(draft: Draft, one: PoolDraft, shared: ServerWords, seen: list[tuple[Line, ServerWords]]) -> None:
    """`ssl` on server lines: TLS to the servers; `check-ssl`: an https check."""
    part = one.part
    if not seen:
        return
    words = seen[0][1]
    values, flags = shared.values | words.values, [*shared.flags, *words.flags]
    check = one.keys["check"]
    _different_tls(draft, one, shared, seen)
    if "check-ssl" in flags and check["type"] == "http":
        check["type"] = "https"
    if "ssl" not in flags:
        return
    check_is_http = check["type"] == "http"
    if check_is_http and "no-check-ssl" not in flags and "port" not in values:
        check["type"] = "https"
    tls: dict[str, Any] = {"tls": True}
    name = re.sub(r"^str\((.*)\)$", r"\1", values.get("sni", "")) or values.get("verifyhost", "")
    ca = values.get("ca-file", "")
    if values.get("verify") == "none" or not ca:
        tls["verify"] = "none"
    elif ca in ("@system-ca", "/etc/ssl/certs/ca-certificates.crt", "/etc/ssl/cert.pem"):
        tls["verify"] = "system"
    else:
        tls["verify"] = ca  # the file is put beside the profile later
    if re.fullmatch(r"[a-z0-9][a-z0-9.-]*", name):
        tls["name"] = name
    elif name:
        part.file.unsaid(seen[0][0].number, f"to_servers.name is one host name, and this is {name[:40]}")
    one.keys["to_servers"] = tls


def _tls_meaning(shared: ServerWords, words: ServerWords) -> dict[str, object]:
    """What a server's line says of TLS to it, and of TLS in its check."""
    values, flags = shared.values | words.values, {*shared.flags, *words.flags}
    if "ssl" not in flags or "no-ssl" in words.flags:
        return {"ssl": False, "check-ssl": "check-ssl" in flags}
    meaning: dict[str, object] = {"ssl": True, "no-check-ssl": "no-check-ssl" in flags}
    for name in ("verify", "ca-file", "verifyhost", "sni", "check-sni", "crt", "crl-file", "ssl-min-ver"):
        meaning[name] = values.get(name)
    return meaning


def _different_tls(draft: Draft, one: PoolDraft, shared: ServerWords, seen: list[tuple[Line, ServerWords]]) -> None:
    """`to_servers` is one for all servers of a pool: a person decides where the lines differ."""
    first = _tls_meaning(shared, seen[0][1])
    others = [line for line, words in seen[1:] if _tls_meaning(shared, words) != first]
    for line in others:
        one.part.file.unsaid(
            line.number, f"pools.{one.pool}.to_servers is one for all servers of a pool: TLS of the first one is taken"
        )
    if others:
        draft.decide(
            f"pools.{one.pool}.to_servers: how is TLS spoken to its servers? Their lines in haproxy.cfg differ (server "
            f"{seen[0][0].words[1]} and line {others[0].number}), and a pool has one way for all: make two pools, or "
            "write the one that holds for all"
        )


_USED = {"check", "backup", "ssl", "check-ssl", "no-check-ssl", "track", "non-stick"}
_USED_VALUES = {
    "cookie",
    "id",
    "port",
    "inter",
    "fastinter",
    "rise",
    "fall",
    "weight",
    "maxconn",
    "slowstart",
    "track",
    "verify",
    "ca-file",
    "verifyhost",
    "sni",
    "check-sni",
}


def _left(part: ProxyPart, line: Line, words: ServerWords, at: str) -> None:
    """The words of a line that no key says."""
    for word in (*words.flags, *words.values):
        if word not in _USED and word not in _USED_VALUES:
            part.file.unsaid(
                line.number, f"{word}: {LATER.get(word) or foreign_words.key(word) or 'there is no such key'}"
            )


def _why_not(part: ProxyPart, line: Line) -> None:
    """Why a line of a backend is not in the pool, if it is not."""
    part.file.hint(line.number, reason(line.words))
