"""A lab in which the kernel chooses servers in every way there is, and clients with many addresses to try that with.

One balancer without VRRP. The same three servers stand behind almost every service; x, y and z are there to die.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ndakit.core.addresses import authority
from ndakit.lab.host import Answer, Held, Host
from ndakit.lab.network import LabNetwork

V4, V6 = 4, 6
CLIENTS = [f"198.18.1.{n}" for n in range(1, 17)]
NEIGHBOUR, LEAVER = CLIENTS[1], "198.18.3.1"
NEWCOMERS = ["198.18.4.1", "198.18.5.1", "198.18.6.1"]
SIX, SIX_NEIGHBOUR = "2001:2:0:1::11", "2001:2:0:1::12"
OUTSIDERS = {V4: [f"198.18.{n}.1" for n in (7, 8, 9)], V6: [f"2001:2:0:{n}::11" for n in (7, 8, 9)]}
"""Each in a network of its own."""
KEPT_S = 12
QUICK = "check: {type: tcp, interval_s: 0.5, timeout_s: 0.5, fall: 1}"


def servers(*weights: int, first: int = 31, names: str = "abc", more: Mapping[str, str] | None = None) -> str:
    """The servers of a pool, with their weights."""
    entries = [
        f'{name}: {{address: [192.168.0.{first + i}, "fd00:0:0:1::{first + i}"], weight: {weight}'
        f"{(more or {}).get(name, '')}}}"
        for i, (name, weight) in enumerate(zip(names, weights, strict=False))
    ]
    return "servers: {" + ", ".join(entries) + "}"


SCHEDULERS = {
    "rr": (1, 2, 3), "wrr": (1, 2, 3), "lc": (1, 2, 3), "wlc": (1, 2, 3), "sed": (1, 4), "nq": (1, 4),
    "sh": (1, 1, 1), "ovf": (3, 2, 1), "dh": (1, 1, 1), "lblc": (2, 2, 2), "lblcr": (2, 2, 2),
}  # fmt: skip
PORTS = {name: 8001 + number for number, name in enumerate(SCHEDULERS) if name not in ("dh", "lblc", "lblcr")}
BY_DESTINATION = {"dh": (8101, 8102), "lblc": (8111, 8112), "lblcr": (8121, 8122)}

PROFILE = """\
name: choice
release: 24.10.8
access:
  ssh_keys: {{admin: {key}}}
  sources: {{noc: 192.168.0.0/24}}
networks:
  wan: {{nics: [eth0], subnet: [203.0.113.0/24, "2001:db8:0:1::/64"], gateway: [203.0.113.1, "2001:db8:0:1::1"]}}
  lan: {{nics: [eth1], subnet: [192.168.0.0/24, "fd00:0:0:1::/64"]}}
system: {{ntp: []}}
nodes:
  lb1: {{addresses: {{wan: [203.0.113.11, "2001:db8:0:1::11"], lan: [192.168.0.11, "fd00:0:0:1::11"]}}}}
vips:
  www: {{network: wan, address: [203.0.113.10, "2001:db8:0:1::10"]}}
  one: {{network: wan, address: 203.0.113.21}}
  two: {{network: wan, address: 203.0.113.22}}
  three: {{network: wan, address: 203.0.113.23}}
  four: {{network: wan, address: 203.0.113.24}}
  lan-gw: {{network: lan, address: [192.168.0.1, "fd00:0:0:1::1"], role: gateway}}
pools:
{pools}
  fo: {{port: 80, balance: fo, {quick}, {dying}}}
  drained: {{port: 80, check: {{type: tcp, {slow}}}, {drained}}}
  limited: {{port: 80, balance: rr, check: {{type: tcp, {slow}}}, {limited}}}
  quorum: {{port: 80, quorum: 4, sorry: {{pool: spare}}, {quick}, {dying}}}
  sorry: {{balance: rr, sorry: {{pool: spare}}, check: {{type: tcp, port: 80, interval_s: 0.5, fall: 1}}, {dying}}}
  spare: {{{spare}}}
  kept: {{port: 80, balance: rr, persistence: {{type: source, timeout_s: {kept_s}, netmask: 24, netmask_ipv6: 64}},
    check: {{type: tcp, {slow}}}, {three}}}
  ftp: {{balance: rr, persistence: {{type: source}}, check: {{type: tcp, port: 80, {slow}}}, {three}}}
services:
{services}
  fo: {{vip: www, families: [ipv4], port: 8030, topology: nat, protocol: tcp, pool: fo}}
  drained: {{vip: www, families: [ipv4], port: 8031, topology: nat, protocol: tcp, pool: drained}}
  limited: {{vip: www, families: [ipv4], port: 8032, topology: nat, protocol: tcp, pool: limited}}
  quorum: {{vip: www, families: [ipv4], port: 8033, topology: nat, protocol: tcp, pool: quorum}}
  sorry: {{vip: www, port: 8034, topology: nat, protocol: tcp, pool: sorry}}
  sorry-udp: {{vip: www, port: 8034, topology: nat, protocol: udp, pool: sorry}}
  kept: {{vip: www, port: 8035, topology: nat, protocol: tcp, pool: kept}}
  kept-udp: {{vip: www, port: 8035, topology: nat, protocol: udp, pool: kept}}
  ftp: {{vip: www, port: [21, 10000-10010], topology: nat, protocol: tcp, pool: ftp}}
"""


PROXIED = {
    "roundrobin": (3, 1, 1), "leastconn": (3, 1, 1), "random": (3, 1, 1), "source": (2, 1, 1), "first": (1, 3, 1),
    "uri": (2, 1, 1),
}  # fmt: skip
"""HAProxy's ways to choose, with the weights of a, b and c; each is there without weights as well (NAME-even)."""
PROXY_PORTS = {name: 8201 + number for number, name in enumerate(n + e for n in PROXIED for e in ("", "-even"))}


def _proxied() -> tuple[list[str], list[str]]:
    """Pools and services that HAProxy carries; leastconn and first over tcp, where a held connection counts."""
    pools, lines = [], []
    for name, port in PROXY_PORTS.items():
        balance = name.removesuffix("-even")
        weights = (1, 1, 1) if name.endswith("-even") else PROXIED[balance]
        protocol = "tcp" if balance in ("leastconn", "first") else "http"
        check = "check: {type: tcp, interval_s: 10, timeout_s: 4}"
        pools.append(f"  by-{name}: {{port: 80, balance: {balance}, {check}, {servers(*weights)}}}")
        lines.append(
            f"  by-{name}: {{vip: www, families: [ipv4], port: {port}, protocol: {protocol}, pool: by-{name}}}"
        )
    return pools, lines


def profile(key: str, *, proxied: bool = True) -> str:
    """The profile, with an admin's public key; with the services that HAProxy carries, or the kernel's alone."""
    slow = "interval_s: 4, timeout_s: 4"
    pools = [
        f"  {n}: {{balance: {n}, {servers(*SCHEDULERS[n])}, check: {{type: tcp, port: 80, {slow}}}"
        + (", port: 80}" if n in PORTS else "}")
        for n in (*PORTS, *BY_DESTINATION)
    ]
    common = "topology: nat, protocol: tcp"
    lines = [
        f"  {n}: {{vip: www, {'' if n == 'rr' else 'families: [ipv4], '}port: {p}, {common}, pool: {n}}}"
        for n, p in PORTS.items()
    ]
    lines += [
        f"  {n}: {{vip: [one, two, three, four], port: [{low}-{high}], {common}, pool: {n}}}"
        for n, (low, high) in BY_DESTINATION.items()
    ]
    more = _proxied() if proxied else ([], [])
    pools, lines = pools + more[0], lines + more[1]
    return PROFILE.format(
        key=key, pools="\n".join(pools), services="\n".join(lines), quick=QUICK, kept_s=KEPT_S, slow=slow,
        three=servers(1, 1, 1), dying=servers(3, 2, 1, first=41, names="xyz"),
        drained=servers(0, 1, 1), spare=servers(1, first=49, names="s"),
        limited=servers(1, 1, more={"a": ", max_connections: 4, resume_below: 3"}),
    )  # fmt: skip


class Clients:
    """Somebody with many addresses, beyond the router, who asks for services and holds connections."""

    def __init__(self, lab: LabNetwork) -> None:
        self.lab = lab
        self.host: Host = lab.hosts[lab.plan.outside["wan"].host]
        self._names = {running.label: server for (_, server), running in lab.servers.items()}
        self._held: list[Held] = []
        many = " ".join([*CLIENTS, LEAVER, *NEWCOMERS, SIX, SIX_NEIGHBOUR, *OUTSIDERS[V4], *OUTSIDERS[V6]])
        self.host.run(["dash", "-c", f"for a in {many}; do ip addr add $a dev lo || exit 1; done"])

    def url(self, service: str, version: int = V4, vip: str = "", port: int = 0) -> str:
        """Where a service is."""
        settings = self.lab.profile.services[service]
        address = self.lab.profile.vips[vip or settings.vip[0]].address_of(version)
        assert address is not None
        kind = "udp" if settings.transport == "udp" else "http"
        return f"{kind}://{authority(address, port or settings.first_port)}"

    def who(self, service: str, source: str = CLIENTS[0], *, vip: str = "", port: int = 0) -> str:
        """Who answers one connection, which ends at once; the error if nobody does."""
        url = self.url(service, V6 if ":" in source else V4, vip, port)
        if url.startswith("udp"):
            answer = self.host.ask(url, b"who\n", source=source, timeout_s=2)
        else:
            answer = self.host.get(url, source=source, timeout_s=2)
        return self.named(answer)

    def named(self, answer: Answer) -> str:
        """Who gave an answer; the error if nobody did."""
        return self._names.get(answer.server, answer.error)

    def all(self, service: str, requests: int, source: str = CLIENTS[0]) -> str:
        """Who answers a number of connections, one letter each."""
        return "".join(self.who(service, source) for _ in range(requests))

    def hold(self, service: str, count: int = 1, source: str = CLIENTS[0], *, vip: str = "") -> list[Held]:
        """Open connections one after the other, and keep them."""
        url = self.url(service, V4, vip)
        held = [self.host.hold(url, source=source, timeout_s=2) for _ in range(count)]
        self._held += held
        return held

    def name(self, held: Held) -> str:
        """Who answers a held connection."""
        return self._names.get(held.server, held.first.error)

    def names(self, held: Sequence[Held]) -> str:
        """Who answers held connections, one letter each, in their order."""
        return "".join(self.name(h) for h in held)

    def let_go(self, held: Sequence[Held] = (), server: str = "", *, reset: bool = False) -> None:
        """End held connections: these (default: all), or those of them that a server answers."""
        for each in [h for h in held or self._held if not server or self.name(h) == server]:
            each.close(reset=reset)
