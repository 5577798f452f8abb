"""Virtual servers of keepalived.conf, and of `ipvsadm-save`: services of topology nat, dr and tun with their pools.

The same service for both families, or on several addresses, is put together again where nothing but the addresses
differs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from ndakit.lint.config_text import Block
from ndakit.load import foreign_words
from ndakit.model import Address
from ndakit.operate.import_ import keepalived_checks
from ndakit.operate.import_.draft import PORT_NAMES, Draft, address, number, slug
from ndakit.operate.import_.keepalived_checks import numbers, told
from ndakit.operate.import_.ledger import SourceFile

_KINDS = {"NAT": "nat", "DR": "dr", "TUN": "tun", "MASQ": "nat", "GATE": "dr", "IPIP": "tun"}
BALANCE = {
    "wrr": "roundrobin",
    "wlc": "leastconn",
    "sh": "source",
    "dh": "destination",
    "lblc": "locality",
    "lblcr": "locality-replica",
    "sed": "shortest-delay",
    "rr": "rr",
    "lc": "lc",
    "nq": "nq",
    "fo": "fo",
    "ovf": "ovf",
    "mh": "mh",
}


@dataclass
class RealServerDraft:
    """A server of a virtual server."""

    address: Address
    port: int | None
    weight: int = 1
    upper: int | None = None
    lower: int | None = None


@dataclass
class VirtualDraft:
    """One virtual server, as a file has it."""

    address: Address | None
    port: int | None
    mark: int | None
    version: int
    file: SourceFile
    line: int
    topology: str = "nat"
    protocol: str = "tcp"
    pool: dict[str, Any] = field(default_factory=dict)
    """The pool's keys beside its servers."""
    servers: list[RealServerDraft] = field(default_factory=list)
    sorry: tuple[Address, int | None] | None = None
    sorry_line: int = 0
    host: str | None = None
    """The name that its http checks ask for."""

    def like(self, other: VirtualDraft) -> bool:
        """True if the two could be one service: nothing but addresses differs."""
        mine = [(s.port, s.weight, s.upper, s.lower) for s in self.servers]
        theirs = [(s.port, s.weight, s.upper, s.lower) for s in other.servers]
        same = (self.port, self.mark, self.topology, self.protocol, self.host) == (
            other.port,
            other.mark,
            other.topology,
            other.protocol,
            other.host,
        )
        mine_pool, their_pool = _comparable(self.pool), _comparable(other.pool)
        sorry = (self.sorry is None) == (other.sorry is None)
        if self.version == other.version:
            return (
                same
                and sorry
                and mine_pool == their_pool
                and self.servers == other.servers
                and self.sorry == other.sorry
            )
        return same and sorry and mine_pool == their_pool and mine == theirs


def _comparable(pool: dict[str, Any]) -> dict[str, Any]:
    """A pool's keys without those that only one family has."""
    kept = {k: v for k, v in pool.items() if k != "persistence"}
    persistence = pool.get("persistence")
    if persistence is not None:
        kept["persistence"] = {k: v for k, v in persistence.items() if not k.startswith("netmask")}
    return kept


def read(node: str, file: SourceFile, root: Block) -> list[VirtualDraft]:
    """The virtual servers of a keepalived.conf."""
    result = []
    for block in root.inner("virtual_server"):
        one = _virtual(file, block)
        if one is not None:
            result.append(one)
            continue
        why = next((f.what for f in file.fates.get(block.number, []) if f.kind == "unsaid"), "")
        for line_number in numbers(block):
            file.hint(line_number, why)
    for block in root.inner("virtual_server_group"):
        for line_number in numbers(block):
            file.unsaid(
                line_number, "write a service for each address and port: there are no groups of virtual servers"
            )
    return result


def _virtual(file: SourceFile, block: Block) -> VirtualDraft | None:
    words = block.words[1:]
    mark = number(words[1], 1) if words[:1] == ("fwmark",) and len(words) > 1 else None
    ip = address(words[0]) if words and mark is None else None
    port = number(words[1], 1, 65535) if ip is not None and len(words) > 1 else None
    if mark is None and (ip is None or port is None):
        file.unsaid(block.number, "a service has an address and a port, and this virtual server is known by neither")
        return None
    family6 = block.value("ip_family") == "inet6"
    one = VirtualDraft(ip, port, mark, ip.version if ip is not None else (6 if family6 else 4), file, block.number)
    if mark is not None and family6:
        told(file, block.first("ip_family"), "services")
    kind = (block.value("lb_kind") or block.value("lvs_method") or "NAT").upper()
    if kind not in _KINDS:
        file.unsaid(block.number, f"topologies are nat, dr and tun, and this one is {kind[:20]}")
        return None
    one.topology = _KINDS[kind]
    one.protocol = "udp" if (block.value("protocol") or "TCP").upper() == "UDP" else "tcp"
    if (block.value("protocol") or "TCP").upper() not in ("TCP", "UDP"):
        file.unsaid(block.number, "services are tcp or udp")
        return None
    file.key(block.number, "services")
    scheduler = block.value("lb_algo") or block.value("lvs_sched") or "wlc"
    if scheduler in BALANCE:
        one.pool["balance"] = BALANCE[scheduler]
    for keyword, key in (
        ("lb_kind", "services.NAME.topology"),
        ("lvs_method", "services.NAME.topology"),
        ("protocol", "services.NAME.protocol"),
    ):
        told(file, block.first(keyword), key)
    if scheduler in BALANCE:
        for keyword in ("lb_algo", "lvs_sched"):
            told(file, block.first(keyword), "pools.NAME.balance")
    _persistence(file, block, one)
    sorry = block.first("sorry_server")
    if sorry is not None and len(sorry.words) > 1 and (theirs := address(sorry.words[1])) is not None:
        if theirs.is_loopback or theirs.is_unspecified:
            file.unsaid(
                sorry.number,
                "the sorry server is the balancer itself, where no web server is: write pools.NAME.sorry: {pool: POOL} "
                "with a server of its own",
            )
        else:
            one.sorry = (theirs, number(sorry.words[2], 1, 65535) if len(sorry.words) > 2 else None)
            one.sorry_line = sorry.number
            file.key(sorry.number, "pools.NAME.sorry")
    quorum, stated = number(block.value("quorum"), 1, 100000), block.first("quorum")
    if quorum is not None and stated is not None:
        if quorum > 1 and one.sorry is None:
            file.unsaid(stated.number, "a quorum is for a sorry server, and there is none")
        else:
            told(file, stated, "pools.NAME.quorum")
        if quorum > 1 and one.sorry is not None:
            one.pool["quorum"] = quorum
    host = block.value("virtualhost")
    if host is not None:
        one.host = host
        told(file, block.first("virtualhost"), "services.NAME.hostnames")
    for line in block.lines:
        file.hint(line.number, foreign_words.key(line.words[0]) or "there is no such key")
    checks: list[dict[str, Any]] = []
    for inner in block.blocks:
        if inner.words[0] != "real_server":
            file.hint(inner.number, "there is no such key")
            continue
        server = _real(file, inner)
        if server is None:
            continue
        one.servers.append(server)
        check, host = keepalived_checks.read(file, inner, block, one.protocol)
        one.host = host or one.host
        checks.append(check)
    if checks:
        one.pool["check"] = checks[0]
        for inner, check in zip([b for b in block.blocks if b.words[0] == "real_server"][1:], checks[1:], strict=False):
            if check != checks[0]:
                for other in inner.blocks:
                    for line_number in numbers(other):
                        file.fates.pop(line_number, None)
                        file.unsaid(line_number, "the servers of a pool have one check; the first one's is used")
    return one


def _persistence(file: SourceFile, block: Block, one: VirtualDraft) -> None:
    line = block.first("persistence_timeout")
    if line is None:
        return
    seconds = number(line.words[1] if len(line.words) > 1 else "360", 1, 86400)  # 6 minutes: keepalived.conf(5)
    if seconds is None:
        return
    one.pool["persistence"] = {"type": "source", "timeout_s": seconds}
    file.key(line.number, "pools.NAME.persistence")
    mask = block.value("persistence_granularity") or ""
    bits = number(mask, 16, 128) if one.version == 6 else None
    if one.version == 4 and re.fullmatch(r"[0-9.]{7,15}", mask) and (parsed := address(mask)) is not None:
        bits = f"{int(parsed):032b}".rstrip("0").count("1")
        bits = bits if f"{int(parsed):032b}" == "1" * bits + "0" * (32 - bits) and bits >= 8 else None
    if bits is not None:
        one.pool["persistence"]["netmask" if one.version == 4 else "netmask_ipv6"] = bits
        told(file, block.first("persistence_granularity"), "pools.NAME.persistence.netmask")


def _real(file: SourceFile, block: Block) -> RealServerDraft | None:
    words = block.words[1:]
    ip = address(words[0]) if words else None
    if ip is None:
        file.unsaid(block.number, "a server is an address, and a port")
        return None
    server = RealServerDraft(ip, number(words[1], 1, 65535) if len(words) > 1 else None)
    file.key(block.number, "pools.NAME.servers")
    weight = number(block.value("weight"), 0, 256)
    if weight is not None:
        server.weight = weight
        told(file, block.first("weight"), "pools.NAME.servers.NAME.weight")
    server.upper = number(block.value("uthreshold"), 1, 1_000_000)
    server.lower = number(block.value("lthreshold"), 1, 1_000_000)
    if server.upper is not None:
        told(file, block.first("uthreshold"), "pools.NAME.servers.NAME.max_connections")
    if server.lower is not None and server.lower <= (server.upper or 0):
        told(file, block.first("lthreshold"), "pools.NAME.servers.NAME.resume_below")
    else:
        server.lower = None
    for line in block.lines:
        word = line.words[0]
        file.hint(
            line.number,
            foreign_words.NOTIFY if word.startswith("notify") else foreign_words.key(word) or "there is no such key",
        )
    return server


def join(
    draft: Draft,
    virtuals: list[VirtualDraft],
    ports: dict[int, tuple[list[tuple[int, int]], list[Address], str, str]],
    named: dict[tuple[str, str, str], str],
) -> None:
    """Services and pools of all virtual servers. `ports`: firewall mark → ports, addresses, protocol and service name
    of the rule that sets it; `named`: (address, protocol, ports) → the name that a firewall rule has for it."""
    left = list(virtuals)
    while left:
        one = left.pop(0)
        group = [one]
        for other in list(left):
            fits = all(g.like(other) for g in group) and (
                other.address is None or other.address not in [g.address for g in group]
            )
            if fits and _of_one_rule(one, other, named):
                group.append(other)
                left.remove(other)
        _service(draft, group, ports, named)


def _of_one_rule(one: VirtualDraft, other: VirtualDraft, named: dict[tuple[str, str, str], str]) -> bool:
    names = {named.get((str(v.address), v.protocol, str(v.port))) for v in (one, other)}
    return one.mark is not None or len(names) == 1


def _service(
    draft: Draft,
    group: list[VirtualDraft],
    ports: dict[int, tuple[list[tuple[int, int]], list[Address], str, str]],
    named: dict[tuple[str, str, str], str],
) -> None:
    one = group[0]
    addresses = [v.address for v in group if v.address is not None]
    spans = [(one.port, one.port)] if one.port is not None else []
    protocol, name = one.protocol, named.get((str(one.address), one.protocol, str(one.port)), "")
    if one.mark is not None:
        if one.mark not in ports:
            for v in group:
                v.file.unsaid(v.line, f"no firewall rule was found that sets mark {one.mark}: write services.NAME.port")
            return
        spans, addresses, protocol, name = ports[one.mark]
    label = name or PORT_NAMES.get(spans[0][0], f"{protocol}-{spans[0][0]}")
    service = slug(label, f"{protocol}-{spans[0][0]}", draft.services)
    pool = slug(service, service, draft.pools)
    draft.services[service] = {
        "vip": addresses,
        "port": [f"{a}-{b}" if a != b else a for a, b in spans],
        "topology": one.topology,
        "protocol": protocol,
        "pool": pool,
    }
    keys = dict(one.pool)
    for other in group:
        for key, value in (other.pool.get("persistence") or {}).items():
            keys["persistence"][key] = value
    check = dict(keys.pop("check", {"type": "tcp"}))
    if check.get("type") == "script":
        source = check.pop("script")
        check = {"type": "script", "script": f"/usr/libexec/ndakit/script-{source}", **check}
        pool = slug(source, pool, draft.pools)
        draft.services[service]["pool"] = pool
    host = next((v.host for v in group if v.host), None)
    if host is not None and check["type"] in ("http", "https"):
        draft.services[service]["hostnames"] = [host]
    servers: dict[str, dict[str, Any]] = {}
    firsts = [next((v for v in group if v.version == version), None) for version in (4, 6)]
    of_families = [v for v in firsts if v is not None]
    for position, server in enumerate(of_families[0].servers, 1):
        theirs = [v.servers[position - 1].address for v in of_families]
        facts: dict[str, Any] = {"address": list(dict.fromkeys(theirs)), "port": server.port, "weight": server.weight}
        facts |= {"max_connections": server.upper, "resume_below": server.lower}
        servers[f"srv{position}"] = facts
    if one.sorry is not None and (draft.own(one.sorry[0]) or draft.vip_with(one.sorry[0]) is not None):
        one.file.fates.pop(one.sorry_line, None)
        one.file.unsaid(
            one.sorry_line,
            f"the sorry server {one.sorry[0]} is the balancer itself: write pools.NAME.sorry: {{pool: POOL}}",
        )
    elif one.sorry is not None:
        spare = slug(f"{pool}-sorry", "sorry", [*draft.pools, pool])
        theirs = [v.sorry[0] for v in of_families if v.sorry is not None]
        draft.pools[spare] = {"servers": {"sorry": {"address": list(dict.fromkeys(theirs)), "port": one.sorry[1]}}}
        keys["sorry"] = {"pool": spare}
    draft.pools[pool] = {**keys, "check": check, "servers": servers}
