"""Frontends (and `listen` sections) of haproxy.cfg as services: where they listen, routes by name, redirects, TLS."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ndakit.lint.config_text import Line, Proxy
from ndakit.model import Address
from ndakit.operate.import_ import haproxy_limits
from ndakit.operate.import_ import haproxy_routes as routes
from ndakit.operate.import_.draft import PORT_NAMES, Draft, VipDraft, address, number, slug
from ndakit.operate.import_.haproxy_pools import PoolDraft, socket
from ndakit.operate.import_.haproxy_reasons import reason
from ndakit.operate.import_.haproxy_text import ProxyPart, plain
from ndakit.operate.import_.haproxy_tls import BindTls, of_bind
from ndakit.operate.import_.pound import PoundListener
from ndakit.operate.import_.sources import NodeFiles

STATISTICS = "_statistics"
_PREFIX = "service:"
_SAME: tuple[tuple[str, str], ...] = (
    (r"option (http|tcp)log", "connections are logged anyway"),
    (r"option dontlog(null|-normal)", "connections are logged anyway"),
    (r"log global", "connections are logged anyway"),
    (r"option forwardfor\b.*", "services of protocol http set X-Forwarded-For anyway, and drop what a client claims"),
    (
        r"http-request (set|add)-header X-Forwarded-Proto (https?)( if !?\{ ssl_fc \}| if !?\{ ssl_fc,not \})?",
        "services of protocol http set X-Forwarded-Proto anyway",
    ),
    (r"http-request (set|add)-header X-Forwarded-For %\[src\]", "services of protocol http set X-Forwarded-For anyway"),
    (r"option (http-server-close|http-keep-alive|forceclose|httpclose)", "how connections are kept is ndakit's"),
    (r"option redispatch\b.*", "every retry goes to another server anyway"),
    (
        r"(daemon|chroot .*|user .*|group .*|pidfile .*|master-worker.*)",
        "HAProxy is started with rights of its own anyway",
    ),
    (r"stats socket .*", "ndakit's own tasks need this socket, and make it"),
    (r"stats timeout .*", "ndakit's own tasks need this socket, and make it"),
    (r"(nbthread|nbproc|cpu-map|ulimit-n)\b.*", "HAProxy counts processors and file descriptors itself"),
    (r"tune\.ssl\.default-dh-param .*", "it is part of tls.policy"),
)


def services(
    draft: Draft,
    node: NodeFiles,
    sections: list[Proxy],
    parts: list[ProxyPart],
    pools: dict[str, PoolDraft],
    tls_of: Callable[[BindTls, str], dict[str, Any] | None],
    listeners: Mapping[int, PoundListener],
) -> None:
    """Put the services of haproxy.cfg into the draft. `tls_of` makes the keys of `tls` of a bind's words."""
    for part in parts:
        if part.proxy.kind in ("frontend", "listen"):
            _frontend(draft, node, part, pools, tls_of, listeners)
    for section in sections:
        if parts and section.kind == "peers":
            draft.vrrp["connection_sync"] = True
            part_file = parts[0].file
            part_file.key(section.number, "vrrp.connection_sync")
            for line in section.lines:
                part_file.key(line.number, "vrrp.connection_sync")
    if parts:
        _same(sections, parts[0])


def _same(sections: list[Proxy], part: ProxyPart) -> None:
    """What ndakit does without being told, wherever it stands; and reasons for what is left."""
    for section in sections:
        for line in section.lines:
            text = " ".join(line.words)
            same = next((why for pattern, why in _SAME if re.fullmatch(pattern, text)), None)
            if same is not None:
                part.file.same(line.number, same)
            elif section.kind == "global":
                part.file.hint(line.number, _global(line.words))
            else:
                part.file.hint(line.number, reason(line.words))
        if section.kind in ("global", "defaults"):
            part.file.same(section.number, "ndakit writes this section itself")
        elif section.kind not in ("frontend", "backend", "listen", "peers"):
            why = f"a section '{section.kind}' has no key"
            part.file.hint(section.number, why)
            for line in section.lines:
                part.file.hints[line.number] = why


def _global(words: tuple[str, ...]) -> str:
    if words[0].startswith("ssl-default") or words[0] in ("ca-base", "crt-base"):
        return "versions and ciphers of TLS are services.NAME.tls.policy and min_version"
    if words[0] == "maxconn":
        return "it is computed from sizing.sessions_per_second, sizing.session_duration_s and sizing.memory_mib"
    if words[0] == "log":
        return "the log is in memory; remote logs are not carried yet (monitoring.syslog)"
    return "settings of HAProxy itself are ndakit's"


def _frontend(
    draft: Draft,
    node: NodeFiles,
    part: ProxyPart,
    pools: dict[str, PoolDraft],
    tls_of: Callable[[BindTls, str], dict[str, Any] | None],
    listeners: Mapping[int, PoundListener],
) -> None:
    if _statistics(draft, part):
        return
    binds = _binds(draft, part, listeners)
    name = part.name.removeprefix(_PREFIX) or f"service-{part.proxy.number}"
    if part.mode not in ("http", "tcp"):
        part.file.unsaid(part.proxy.number, f"protocols are http and tcp, and this is {part.mode[:20]}")
        return
    if not binds:
        part.file.unsaid(part.proxy.number, "it listens on no address that a VIP could have")
        return
    made: list[str] = []
    encrypted = [b for b in binds if b.tls is not None]
    clear = [b for b in binds if b.tls is None]
    two = bool(encrypted and clear)
    groups = [("-http" if two else "", clear)] if clear else []
    for bind in encrypted:
        alike = next((g for _, g in groups if g[0].tls is not None and g[0].tls.meaning == bind.tls_meaning), None)
        if alike is not None:
            alike.append(bind)
        else:
            first = all(g[0].tls is None for _, g in groups)
            groups.append(("" if first else f"-{bind.ports[0]}", [bind]))
    for ending, group in groups:
        service = slug(f"{name}{ending}", "service", draft.services)
        draft.services[service] = {}
        made.append(service)
        _service(draft, node, part, service, group, pools, tls_of, both=two)
    if len(groups) == 1:
        draft.aliases[part.proxy.kind, part.name] = ("frontend", f"{_PREFIX}{made[0]}")


@dataclass
class BindDraft:
    """One place to listen on."""

    addresses: list[Address]
    ports: tuple[int, int]
    line: Line
    tls: BindTls | None

    @property
    def tls_meaning(self) -> object:
        """What the bind says of TLS; two binds that differ in it are two services."""
        return None if self.tls is None else self.tls.meaning


def _binds(draft: Draft, part: ProxyPart, listeners: Mapping[int, PoundListener]) -> list[BindDraft]:
    result: list[BindDraft] = []
    lines = part.own("bind")
    head = part.file.lines[part.proxy.number - 1].split()
    if len(head) > 2 and re.fullmatch(r"[^:]*:[0-9]+", head[2]):  # `listen web 192.0.2.10:80`, up to HAProxy 1.4
        lines = [Line(part.proxy.number, ("bind", head[2])), *lines]
    for line in lines:
        tls, left = of_bind(line.words[2:])
        behind = [_behind_terminator(part, line, text, listeners) for text in line.words[1:2]]
        if behind and behind[0] is not None:
            result += behind[0]
            continue
        for word in left:
            part.file.unsaid(line.number, f"bind: {word[:40]}: {reason((word,))}")
        for text in line.words[1].split(",") if len(line.words) > 1 else []:
            listens = _listens(draft, part, line, text)
            if listens is not None:
                result.append(BindDraft(*listens, line, tls))
    return result


def _behind_terminator(
    part: ProxyPart, line: Line, text: str, listeners: Mapping[int, PoundListener]
) -> list[BindDraft] | None:
    """Where Pound or stunnel listens for a port of the loopback; None if it is none of theirs."""
    ip, port = socket(text)
    if ip is None or port is None or not ip.is_loopback or port not in listeners:
        return None
    one = listeners[port]
    part.key(line, "services.NAME.tls.terminator")
    return [BindDraft(one.addresses, (p, p), line, one.tls) for p in one.ports]


def _listens(draft: Draft, part: ProxyPart, line: Line, text: str) -> tuple[list[Address], tuple[int, int]] | None:
    text = re.sub(r"^(ipv4|ipv6)@", "", text)
    host, colon, ports = text.rpartition(":")
    span = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", ports)
    low, high = (int(span[1]), int(span[2] or span[1])) if span is not None else (0, 0)
    if not colon or not 1 <= low <= high <= 65535:
        part.file.unsaid(line.number, f"'{text[:60]}' is no address with a port")
        return None
    if host in ("", "*", "0.0.0.0", "::", "[::]"):
        addresses = _everywhere(draft, host)
        if not addresses:
            part.file.unsaid(
                line.number, "it listens on every address, and no VIP is known: write vips, and services.NAME.vip"
            )
            return None
        part.file.unsaid(
            line.number, "a service listens on VIPs only, and not on the nodes' own addresses"
        ) if not _single(draft) else None
    else:
        one = address(host)
        if one is None:
            part.file.unsaid(line.number, f"'{host[:60]}' is no address")
            return None
        if one.is_loopback:
            part.file.unsaid(line.number, "a service listens on VIPs, and this is the node's own loopback")
            return None
        if not _reached(draft, one):
            why = (
                "is a node's own address, and services listen on VIPs"
                if draft.own(one)
                else "is neither a VIP nor in a network that is known"
            )
            part.file.unsaid(line.number, f"{one} {why}")
            return None
        addresses = [one]
    part.key(line, "services.NAME.vip")
    return addresses, (low, high)


def _single(draft: Draft) -> bool:
    return len(draft.node_names) == 1


def _everywhere(draft: Draft, host: str) -> list[Address]:
    """All VIPs that can be meant; the node's own addresses for a box that is alone and has none."""
    version = 4 if host == "0.0.0.0" else None  # what a file says, nothing that we bind to
    everywhere = [a for v in draft.vips for a in v.addresses if version in (None, a.version)]
    if not everywhere and _single(draft):
        for net in draft.networks.values():
            for own in net.addresses.values():
                draft.vips.append(VipDraft(net.name, list(own)))
                everywhere += own
    return everywhere


def _reached(draft: Draft, one: Address) -> bool:
    """True if an address is a VIP; on a box that is alone it is made one."""
    if draft.vip_with(one) is not None:
        return True
    net = draft.network_of(one)
    if net is None or (not _single(draft) and draft.own(one)):
        return False
    draft.vips.append(VipDraft(net.name, [one]))
    return True


def _statistics(draft: Draft, part: ProxyPart) -> bool:
    """A section that only shows statistics."""
    if (
        not part.own("stats")
        or part.own("server")
        or part.find("default_backend") is not None
        or part.own("use_backend")
    ):
        return False
    port = None
    for line in part.own("bind"):
        port = number(line.words[1].rpartition(":")[2], 1, 65535) if len(line.words) > 1 else None
        if port is not None and (draft.statistics is None or draft.statistics.get("port") == port):
            draft.statistics = {"port": port}
            part.key(line, "monitoring.statistics.port")
    if port is None:
        return False
    part.head("monitoring.statistics")
    draft.aliases[part.proxy.kind, part.name] = ("frontend", STATISTICS)
    for line in part.own("stats"):
        if line.words[1:2] in (("enable",), ("refresh",), ("show-node",), ("hide-version",), ("show-legends",)):
            part.file.same(line.number, "the statistics page is ndakit's")
        elif line.words[1:2] == ("auth",):
            part.file.hint(line.number, "no password opens the page: access.sources says who may see it")
        elif line.words == ("stats", "uri", "/"):
            part.file.same(line.number, "the statistics page is at /")
        else:
            part.file.hint(line.number, "the statistics page is at /, and shows what ndakit wants")
    for line in part.own("mode"):
        part.key(line, "monitoring.statistics")
    return True


def _service(
    draft: Draft,
    node: NodeFiles,
    part: ProxyPart,
    name: str,
    binds: list[BindDraft],
    pools: dict[str, PoolDraft],
    tls_of: Callable[[BindTls, str], dict[str, Any] | None],
    *,
    both: bool,
) -> None:
    service = draft.services[name]
    at = f"services.{name}"
    part.head(at)
    spans: list[tuple[int, int]] = []
    addresses: list[Address] = []
    for bind in binds:
        part.key(bind.line, f"{at}.vip")
        spans += [bind.ports] if bind.ports not in spans else []
        addresses += [a for a in bind.addresses if a not in addresses]
    for bind in binds:
        missing = [a for a in addresses if not any(a in b.addresses and b.ports == bind.ports for b in binds)]
        if missing:
            part.file.unsaid(
                bind.line.number,
                f"a service has the same ports on all its addresses, and {missing[0]} has not this one here",
            )
    service["vip"] = addresses
    service["port"] = [f"{a}-{b}" if a != b else a for a, b in sorted(spans)]
    service["protocol"] = part.mode
    mode = part.find("mode")
    if mode is not None:
        part.key(mode, f"{at}.protocol")
    if name.isdigit():
        service["name"] = PORT_NAMES.get(spans[0][0], name)
    encrypted = next((b for b in binds if b.tls is not None), None)
    if encrypted is not None and encrypted.tls is not None:
        tls = tls_of(encrypted.tls, name)
        if tls is None:
            part.file.unsaid(encrypted.line.number, "tls has certificates: which ones is not said here")
        else:
            service["tls"] = tls
        if encrypted.tls.names:
            service["hostnames"] = sorted(encrypted.tls.names, key=lambda one: one.startswith("*"))
    haproxy_limits.read(draft, node, part, name, service)
    redirect = _redirect(part, service, both=both)
    if redirect is not None:
        service["redirect"] = redirect
    _timeouts(part, at, service)
    if redirect is None or (both and encrypted is not None):
        service.pop("redirect", None)
        routes.routes_and_pool(draft, part, name, service, pools)
    for line in part.proxy.lines:
        part.file.hint(line.number, reason(line.words))


def _timeouts(part: ProxyPart, at: str, service: dict[str, Any]) -> None:
    client = part.seconds(f"{at}.timeouts.client_s", "timeout", "client")
    if client is not None:
        service["timeouts"] = {"client_s": plain(client)}


def _redirect(part: ProxyPart, service: dict[str, Any], *, both: bool) -> Any:
    """All requests are sent elsewhere: to https, or to a URL."""
    if service["protocol"] != "http":
        return None
    for line in (*part.own("redirect"), *part.own("http-request", "redirect")):
        words = list(line.words[1:] if line.words[0] == "redirect" else line.words[2:])
        condition = (
            words[words.index("if") + 1 :]
            if "if" in words
            else words[words.index("unless") :]
            if "unless" in words
            else []
        )
        text = " ".join(condition)
        clear = re.fullmatch(r"!\{ ssl_fc \}|unless \{ ssl_fc \}|\{ ssl_fc,not \}", text) is not None
        by_address = text == "{ req.fhdr(host) -m beg [ }"
        if condition and not by_address and not (clear and ("tls" not in service or both)):
            continue
        code = words[words.index("code") + 1] if "code" in words[:-1] else "302"
        status = number(code, 301, 308)
        if status not in (301, 302, 303, 307, 308):
            continue
        goal: dict[str, Any] | None = None
        if words[:2] == ["scheme", "https"]:
            goal = {"to": "https"}
        elif words[:1] in (["prefix"], ["location"]) and len(words) > 1:
            goal = _goal(words[0], words[1])
        if goal is None:
            continue
        part.key(line, "services.NAME.redirect")
        if by_address:
            continue
        if status != 301:
            goal["status"] = status
        return goal if goal != {"to": "https"} else "https"
    return None


def _goal(kind: str, text: str) -> dict[str, Any] | None:
    """A URL, or the same name by https."""
    ours = re.fullmatch(
        r"https://%\[(?:req\.)?f?hdr\(host\)(?:,field\(1,:\))?\](?::[0-9]+)?(/|%\[capture\.req\.uri\]|%\[path\])?", text
    )
    if ours is not None:
        return (
            {"to": "https"}
            if kind == "prefix" or (ours[1] or "").startswith("%")
            else {"to": "https", "keep_path": False}
        )
    if not re.fullmatch(r"https?://[a-z0-9.:\[\]-]+(/[A-Za-z0-9._~!$&()*+,;=:@/-]{0,200})?", text):
        return None
    return {"to": text} if kind == "prefix" else {"to": text, "keep_path": False}
