"""The draft as a profile: YAML in the order, the short forms and the layout of the profiles that ndakit ships."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ndakit.core.mistakes import clean
from ndakit.load.dump import flow, scalar
from ndakit.model import Service
from ndakit.model.engines import HAPROXY
from ndakit.operate.import_.draft import FILL_IN, Draft, NetworkDraft
from ndakit.operate.import_.ledger import Unsaid

_TOPOLOGY: str = Service.model_fields["topology"].default
"""The topology of a service that states none."""

WIDTH = 120
_SCHEMA = "# yaml-language-server: $schema=../docs/profile.schema.json"
_NO_RELEASE = "24.10.8"


def write(draft: Draft, sources: Sequence[str], unsaid: Sequence[Unsaid]) -> str:
    """The text of the profile; what a person has to fill in, and what no key says, stand in comments."""
    lines = [_SCHEMA, "#", f"# Imported from {', '.join(sources)}."]
    lines += _paragraph(
        "What no key says is at the end of this file, each with its place."
        if unsaid
        else "Every line of its files is said here, or is what ndakit does anyway."
    )
    for words in draft.fill_in:
        lines += _paragraph(f"{FILL_IN}: {words}")
    lines += [f"name: {draft.name}"]
    for key, value in (("customer", draft.customer), ("description", draft.description)):
        if value:
            lines.append(f"{key}: {scalar(value)}")
    lines.append(f"release: {draft.release or _NO_RELEASE}" + ("" if draft.release else f"  # {FILL_IN}: see above"))
    if draft.device:
        lines.append(f"device: {draft.device}")
    if draft.platform:
        lines.append(f"platform: {draft.platform}")
    image: dict[str, Any] = {k: v for k, v in (("firmware", draft.firmware), ("packages", draft.packages)) if v}
    if image:
        lines += ["", f"image: {flow(image)}"]
    lines += ["", *_access(draft)]
    system = _system(draft)
    if system:
        lines += ["", f"system: {flow(system)}"]
    lines += ["", *_entries("networks", {n.name: _network(draft, n) for n in draft.networks.values()})]
    lines += ["", *_entries("nodes", {n: {"addresses": _addresses(draft, n)} for n in draft.node_names})]
    if draft.vips:
        lines += ["", *_entries("vips", {v.name: _vip(v) for v in draft.vips})]
    vrrp = _vrrp(draft)
    if vrrp:
        lines += ["", f"vrrp: {flow(vrrp)}"]
    if draft.pools:
        lines += ["", *_deep("pools", {n: _pool(draft, n, p) for n, p in draft.pools.items()})]
    if draft.services:
        lines += ["", *_deep("services", {n: _service(draft, s) for n, s in draft.services.items()})]
    if draft.sysctl:
        lines += ["", *_deep("tuning", {"sysctl": draft.sysctl})]
    firewall = {kind: rules for kind, rules in (("allow", draft.allow), ("deny", draft.deny)) if rules}
    if firewall:
        lines += ["", *_deep("firewall", {k: {n: _rule(r) for n, r in v.items()} for k, v in firewall.items()})]
    if draft.statistics is not None and (draft.statistics.get("port") != 8404 or not _proxied(draft)):
        wanted = {} if draft.statistics.get("port") == 8404 else draft.statistics
        lines += ["", f"monitoring: {{statistics: {flow(wanted)}}}"]
    if unsaid:
        lines += [
            "",
            "# What no key of this version says, and ndakit does not do anyway. What of it is needed: see",
            "# docs/operations.md.",
        ]
        for nodes, one in _alike(unsaid):
            lines += _paragraph(f"{', '.join(nodes)}{one.place.removeprefix(one.node)}: {one.text}", "#   ")
            lines += _paragraph(one.why, "#       ")
    return "\n".join(lines) + "\n"


def _alike(unsaid: Sequence[Unsaid]) -> Iterator[tuple[list[str], Unsaid]]:
    """What is the same on several nodes is told once."""
    nodes: dict[Unsaid, list[str]] = {}
    for one in unsaid:
        nodes.setdefault(replace(one, node=""), []).append(one.node)
    for one in unsaid:
        names = nodes.pop(replace(one, node=""), None)
        if names is not None:
            yield names, one


def _proxied(draft: Draft) -> bool:
    return any(s.get("topology", _TOPOLOGY) in HAPROXY.topologies for s in draft.services.values())


def _paragraph(text: str, begin: str = "# ") -> list[str]:
    """A comment in lines of the usual length."""
    text = clean(" ".join(text.split()))
    lines, line = [], begin
    for word in text.split():
        if len(line) + len(word) + 1 > WIDTH and line.strip("# "):
            lines.append(line.rstrip())
            line = begin
        line += f"{word} "
    return [*lines, line.rstrip()]


def _access(draft: Draft) -> Iterator[str]:
    yield "access:"
    yield "  ssh_keys:" if draft.ssh_keys else "  ssh_keys: {}"
    for name, key in draft.ssh_keys.items():
        yield f"    {name}: {scalar(key)}"
    one = {name: _single(group) for name, group in draft.sources.items()}
    yield f"  sources: {flow(one)}"
    if draft.ssh_port != 22:
        yield f"  ssh: {{port: {draft.ssh_port}}}"


def _system(draft: Draft) -> dict[str, Any]:
    usual = [f"{n}.openwrt.pool.ntp.org" for n in range(4)]
    result: dict[str, Any] = {}
    if draft.timezone and draft.timezone != "UTC":
        result["timezone"] = draft.timezone
    if draft.ntp is not None and draft.ntp != usual:
        result["ntp"] = draft.ntp
    return result


def _single(values: Sequence[Any]) -> Any:
    """One value stands alone."""
    texts = [str(v) for v in values]
    return texts[0] if len(texts) == 1 else texts


def _network(draft: Draft, net: NetworkDraft) -> dict[str, Any]:
    facts: dict[str, Any] = {"nics": net.nics}
    if net.bond is not None:
        facts["bond"] = {"mode": net.bond}
    if net.bridge is not None:
        facts["bridge"] = {"stp": True} if net.bridge.get("stp") else True
    if net.vlan is not None:
        facts["vlan"] = net.vlan
    facts["subnet"] = _single(net.subnets)
    if net.gateways:
        facts["gateway"] = _single(net.gateways)
    if net.dns:
        facts["dns"] = [str(a) for a in net.dns]
    if net.routes:
        facts["routes"] = net.routes
    if net.egress != "none":
        kind, _, text = net.egress.partition(":")
        vip = next((v.name for v in draft.vips if text and text in map(str, v.addresses)), "node")
        facts["egress"] = vip if kind == "vip" else net.egress
    if net.heartbeat:
        facts["role"] = "heartbeat"
    if net.vrid is not None and len(draft.node_names) > 1:
        facts["vrid"] = net.vrid
    return facts


def _addresses(draft: Draft, node: str) -> dict[str, Any]:
    return {n.name: _single(own) for n in draft.networks.values() if (own := n.addresses.get(node))}


def _vip(vip: Any) -> dict[str, Any]:
    facts: dict[str, Any] = {"network": vip.network, "address": _single(vip.addresses)}
    if vip.gateway:
        facts["role"] = "gateway"
    if vip.group != "main":
        facts["group"] = vip.group
    if vip.routed:
        facts["routed"] = True
    return facts


def _vrrp(draft: Draft) -> dict[str, Any]:
    if len(draft.node_names) < 2:
        return {}
    given, result = draft.vrrp, {}
    if given.get("prefer"):
        result["prefer"] = given["prefer"]
    if given.get("preempt"):
        result["preempt"] = True
    for key, default in (
        ("preempt_delay_s", 0),
        ("advert_interval_s", "1"),
        ("unicast", True),
        ("connection_sync", False),
    ):
        if given.get(key, default) != default:
            result[key] = given[key]
    if given.get("demote_on"):
        result["demote_on"] = given["demote_on"]
    return result


def _pool(draft: Draft, name: str, pool: Mapping[str, Any]) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    servers = pool["servers"]
    used = [s for s in draft.services.values() if name in _reached(draft, s)]
    ports = {s["port"] for s in servers.values()}
    of_services = {str(s["port"][0]) if len(s["port"]) == 1 else "" for s in used}
    common = ports.pop() if len(ports) == 1 else None
    if common is not None and of_services != {str(common)}:
        facts["port"] = common
    if pool.get("balance", "roundrobin") != "roundrobin":
        facts["balance"] = pool["balance"]
    check = pool.get("check")
    if check is not None:
        kept = {k: check[k] for k in _CHECK_ORDER if k in check and (k, str(check[k])) not in _CHECK_DEFAULTS}
        if "retry_delay_s" in kept and str(kept["retry_delay_s"]) == str(kept.get("interval_s", 2)):
            del kept["retry_delay_s"]
        if kept != {"type": "tcp"}:
            facts["check"] = check["type"] if len(kept) == 1 else kept
    for key in ("sorry", "quorum", "persistence", "retries", "slow_start_s", "reply_route", "to_servers"):
        if pool.get(key) is not None:
            facts[key] = pool[key]
    facts["servers"] = {
        n: _server(
            s,
            (common is None and len({one["port"] for one in servers.values()}) > 1)
            or (common is None and s["port"] is not None),
        )
        for n, s in servers.items()
    }
    return facts


_CHECK_ORDER = (
    "type",
    "path",
    "host",
    "helo",
    "query",
    "record",
    "send",
    "script",
    "arguments",
    "run_as",
    "port",
    "expect",
    "interval_s",
    "timeout_s",
    "retry_delay_s",
    "rise",
    "fall",
)
_CHECK_DEFAULTS = {
    ("interval_s", "2"),
    ("timeout_s", "2"),
    ("rise", "2"),
    ("fall", "3"),
    ("run_as", "nobody"),
    ("query", "."),
    ("path", "/"),
    ("record", "SOA"),
}
_TIMEOUTS = {"connect_s": 5, "client_s": 60, "server_s": 60, "queue_s": 30, "tunnel_s": 3600}


def _timeouts(service: Mapping[str, Any]) -> dict[str, Any]:
    """The time-outs that are not the usual ones; a tcp service has no tunnel_s unless it states one."""
    given = service.get("timeouts", {})
    http = service.get("protocol") == "http"
    return {
        k: given[k]
        for k, usual in _TIMEOUTS.items()
        if k in given and (given[k] != usual or (k == "tunnel_s" and not http))
    }


def _reached(draft: Draft, service: Mapping[str, Any]) -> list[str]:
    names = [service.get("pool"), *(r["pool"] for r in service.get("routes", []))]
    result: list[str] = []
    while names:
        name = names.pop()
        if name is not None and name not in result:
            result.append(name)
            names.append((draft.pools.get(name, {}).get("sorry") or {}).get("pool"))
    return result


def _server(server: Mapping[str, Any], own_port: bool) -> Any:
    facts: dict[str, Any] = {"address": _single(server["address"])}
    if own_port and server["port"] is not None:
        facts["port"] = server["port"]
    if server.get("weight", 1) != 1:
        facts["weight"] = server["weight"]
    if server.get("backup"):
        facts["backup"] = True
    for key in ("max_connections", "resume_below"):
        if server.get(key) is not None:
            facts[key] = server[key]
    return facts["address"] if len(facts) == 1 else facts


def _service(draft: Draft, service: Mapping[str, Any]) -> dict[str, Any]:
    addresses = service.get("vip", [])
    vips = [v for v in draft.vips if any(a in addresses for a in v.addresses)]
    families = sorted({a.version for a in addresses})
    theirs = sorted({a.version for v in vips for a in v.addresses})
    facts: dict[str, Any] = {"vip": _single([v.name for v in vips]) if vips else "none"}
    if families and families != theirs:
        facts["families"] = [f"ipv{v}" for v in families]
    facts["port"] = service["port"][0] if len(service["port"]) == 1 else service["port"]
    for key in (
        "topology",
        "protocol",
        "hostnames",
        "tls",
        "pool",
        "redirect",
        "routes",
        "unknown_hosts",
        "timeouts",
        "maintenance",
        "limits",
        "error_pages",
        "persistence",
    ):
        value = _timeouts(service) if key == "timeouts" else service.get(key)
        if value not in (None, [], {}) and (key, value) != ("topology", _TOPOLOGY):
            facts[key] = value
    return facts


def _rule(rule: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v[0] if isinstance(v, list) and len(v) == 1 else v for k, v in rule.items()}


def _entries(key: str, entries: Mapping[str, Any]) -> Iterator[str]:
    """`key:` with one entry a line, and in more lines what is too long for one."""
    yield f"{key}:" if entries else f"{key}: {{}}"
    width = max((len(scalar(n)) for n in entries), default=0) if key == "vips" else 0
    for name, facts in entries.items():
        head = f"  {scalar(name)}:"
        text = f"{head.ljust(width + 3)} {flow(facts)}"
        if len(text) <= WIDTH or not isinstance(facts, dict):
            yield text
            continue
        yield head
        yield from _lines(facts, 4)


def _deep(key: str, entries: Mapping[str, Any]) -> Iterator[str]:
    yield f"{key}:"
    yield from _lines(entries, 2)


def _lines(facts: Mapping[str, Any], depth: int) -> Iterator[str]:
    for name, value in facts.items():
        head = f"{' ' * depth}{scalar(name)}:"
        text = f"{head} {flow(value) if isinstance(value, dict | list) else scalar(value)}"
        if isinstance(value, dict) and value and (len(text) > WIDTH or _nested(value)):
            yield head
            yield from _lines(value, depth + 2)
        elif isinstance(value, list) and len(text) > WIDTH and value:
            yield head
            for item in value:
                yield f"{' ' * (depth + 2)}- {flow(item) if isinstance(item, dict | list) else scalar(item)}"
        else:
            yield text


def _nested(value: Mapping[str, Any]) -> bool:
    """True for what reads better in several lines: mappings of mappings of mappings."""
    inner = [v for v in value.values() if isinstance(v, dict)]
    return any(isinstance(deeper, dict) for v in inner for deeper in v.values()) or len(inner) > 2
