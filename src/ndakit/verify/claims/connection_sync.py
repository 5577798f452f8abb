"""The claim that what the nodes tell each other is enough: connections are held, and clients keep their servers, while
the VIPs move to the next node and back.

Three programs tell: conntrackd (the servers' connections to the outside), IPVS's sync daemon (topologies nat, dr, tun)
and HAProxy (which server a client keeps). One takeover and one return try them all. A connection that the new master
does not know can only die: neither conntrack with its source address translated nor IPVS picks one up in the middle.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ndakit.lab.clients import OUTSIDE_PORT, ServicePort
from ndakit.lab.host import Call, LabHostRefused
from ndakit.lab.network import LabNetwork
from ndakit.lab.plan import VantagePoint
from ndakit.model import Address, Endpoint, Profile
from ndakit.model.persistence import CookiePersistence, Persistence
from ndakit.verify.claims import persistence
from ndakit.verify.claims.base import Outcome, asked_services, first_service_port, targets
from ndakit.verify.claims.failover import gap_bound_s
from ndakit.verify.claims.firewall import egress_ways
from ndakit.verify.claims.persistence import KeptClient

BEGIN_S = 5.0
TOLD_S = 3.0
"""What IPVS has to tell it gathers for up to three seconds (Linux, IPVS_SYNC_FLUSH_TIME, IPVS_SYNC_CHECK_PERIOD)."""
STEADY_S, SELDOM_S = 0.05, 1.0
"""How often servers of the lab send a line of a download, and of a stream that is asked to be slow."""
STAYS_S = 1.0
"""How long a connection has to go on after it went on: a reset comes with the first acknowledgement."""
POLL_S = 0.1
RETURN_S = 20.0
TYPED_S = 0.5
KNOWN = 6
"""Clients of a service that are known by what they say."""
RETRANSMIT_S = 6.0
"""What lies unanswered during the gap is sent again after 0.2, 0.4, 0.8 … s (RFC 6298): the gap may nearly double."""


@dataclass(frozen=True)
class HandedOver:
    """What the nodes of a profile tell each other, as far as it is tried."""

    egress: tuple[str, ...]
    """Networks whose servers' connections to the outside are tracked."""
    carried: tuple[ServicePort, ...]
    """The kernel's services whose connections are tried: the first of each topology and address family."""
    kept: tuple[str, ...]
    """Proxied services whose clients keep their servers."""

    def __bool__(self) -> bool:
        return bool(self.egress or self.carried or self.kept)

    @property
    def words(self) -> str:
        """What it is, as the subject of a sentence."""
        services = list(dict.fromkeys(c.service for c in self.carried))
        parts = [f"connections of servers in {', '.join(self.egress)} to the outside"] if self.egress else []
        parts += [f"connections of {', '.join(services)}"] if services else []
        parts += [f"who keeps which server of {', '.join(self.kept)}"] if self.kept else []
        return " and ".join(parts)


def handed_over(profile: Profile) -> HandedOver:
    """What a profile promises to survive a change of the master (`vrrp.connection_sync`)."""
    return HandedOver(
        egress=tuple(
            name
            for name, network in profile.networks.items()
            if profile.tracks_connections and network.egress in profile.vips and egress_ways(profile, name)
        ),
        carried=tuple(_carried(profile)) if profile.syncs_ipvs else (),
        kept=tuple(
            name for name in asked_services(profile) if name in profile.haproxy_services and _kept(profile, name)
        ),
    )


def _kept(profile: Profile, name: str) -> bool:
    """True if clients of a service keep their servers also on the next node, which is told or reads a cookie. Of a
    cookie that the application sets (`prefix`) the lab's servers know nothing."""
    kept = profile.persistence(name)
    if kept is None or persistence.why_not(profile, name, kept):
        return False
    if isinstance(kept, CookiePersistence) and kept.mode == "prefix":
        return False
    synced = bool(profile.instances and profile.vrrp.connection_sync)
    return profile.shares_tables if kept.table_s is not None else synced


def _carried(profile: Profile) -> Iterator[ServicePort]:
    seen: set[tuple[str, int]] = set()
    for name in profile.ipvs_services:
        service = profile.services[name]
        for endpoint, port in targets(profile, name) if service.transport == "tcp" else ():
            if (service.topology, endpoint.address.version) not in seen:
                seen.add((service.topology, endpoint.address.version))
                yield ServicePort(name, endpoint, port)


@dataclass
class _Connection:
    """A connection that is held."""

    name: str
    call: Call
    every_s: float = 0.0
    """How often the other side sends something by itself; 0: it is silent until spoken over."""
    words: bytes = b""
    """What is said over one that idles; it is answered."""
    mark: int = 0

    def again(self) -> None:
        """From now on something new has to come."""
        self.mark = self.call.heard().heard
        self.speak()

    def speak(self) -> None:
        """Say something over one that idles; that it has ended is told by its error."""
        if not self.every_s:
            with contextlib.suppress(LabHostRefused):
                self.call.say(self.words)

    @property
    def error(self) -> str:
        """Why it has ended; "" if it has not, as far as its host has noticed."""
        return self.call.heard().error

    @property
    def goes_on(self) -> bool:
        """True if something new has come."""
        return self.call.heard().heard > self.mark


@dataclass
class _Clients:
    """Clients of a service and the server that each of them has."""

    service_port: ServicePort
    servers: dict[tuple[str, Address], str] = field(default_factory=dict)
    known: dict[int, tuple[KeptClient, str]] = field(default_factory=dict)
    """Clients that are known by what they say: number → the client and the server that it has."""

    def ask(self, lab: LabNetwork) -> list[str]:
        """Let every client connect anew; who has not the server that it had before. Those of one server come one after
        the other: a node that knew nothing of them would spread them."""
        service, endpoint, port = self.service_port
        kept = lab.profile.persistence(service)
        if kept is not None and not kept.by_address:
            return self._ask_known(lab, kept)
        order = sorted(self.servers, key=lambda client: self.servers[client]) or _clients(lab, endpoint)
        if not order:
            return [f"nobody in the lab is a client of {service}"]
        pool = lab.profile.services[service].main_pool
        wrong = []
        for host, source in order:
            result = lab.load(VantagePoint(host, (source,)), endpoint.address, port, pool, 1)
            server = next(iter(result.shares), "") or f"nobody ({result.first_error})"
            had = self.servers.setdefault((host, source), server)
            if server != had or not result.shares:
                wrong.append(f"{source} had {had} of {service} and got {server}")
        return wrong

    def _ask_known(self, lab: LabNetwork, kept: Persistence) -> list[str]:
        """The same for clients that are known by what they say."""
        wrong = []
        for number in sorted(self.known, key=lambda one: self.known[one][1]) or range(KNOWN):
            client, had = self.known.get(number) or (KeptClient(self.service_port, kept), "")
            server, said = client.ask(lab)
            self.known[number] = (client, had or server)
            if not server or server != (had or server):
                wrong.append(f"client {number} of {self.service_port.service} had {had} and got {server or said}")
        return wrong

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.servers) + len(self.known)


def _clients(lab: LabNetwork, endpoint: Endpoint) -> list[tuple[str, Address]]:
    """Everybody in the VIP's network, or behind its routers, who is no server: each has an address of its own."""
    servers = {a for pool in lab.profile.pools.values() for s in pool.servers.values() for a in s.address}
    return [
        (host.name, address)
        for host in lab.plan.hosts.values()
        if host.network == endpoint.network and host.role != "server"
        for address in (*(i.address for i in host.addresses), *host.behind)
        if address.version == endpoint.address.version and address not in servers
    ]


def connections(lab: LabNetwork) -> Outcome:
    """Hold connections and ask for servers; keepalived stops on the master, and starts again."""
    wanted = handed_over(lab.profile)
    with contextlib.ExitStack() as stack:
        held: list[_Connection] = []
        for one in _open(lab, wanted):
            stack.enter_context(one.call)
            held.append(one)
        clients = [_Clients(first_service_port(lab.profile, name)) for name in wanted.kept]
        silent = [f"{h.name}: {h.error or 'no answer'}" for h in _waited(held, BEGIN_S)]
        silent += [wrong for each in clients for wrong in each.ask(lab)]
        if silent:
            return Outcome(False, "not tried", "; ".join(silent))
        return _moved(lab, held, clients)


def _open(lab: LabNetwork, wanted: HandedOver) -> Iterator[_Connection]:
    for network in wanted.egress:
        way = egress_ways(lab.profile, network)[0]
        point, target = lab.outside(way)
        homes = {s.host: s.address(way.version) for s in lab.plan.servers.values()}
        others = [
            host for host, own in homes.items()
            if lab.plan.hosts[host].role == "server" and own is not None and lab.profile.network_of(own) == network
        ]  # fmt: skip
        for name in dict.fromkeys((point.host, *others[:2])):
            # Only the outside speaks, and seldom: a packet from inside, and be it an acknowledgement on its way when
            # the VIPs move, would teach a node the connection that it does not know.
            payload = f"GET /lab-stream?{SELDOM_S * 1000:.0f} HTTP/1.1\r\nHost: outside\r\n\r\n".encode()
            call = lab.hosts[name].call(target, OUTSIDE_PORT, payload=payload)
            yield _Connection(f"{name} to the outside", call, SELDOM_S)
    for one in wanted.carried:
        yield from _open_service(lab, one)


def _open_service(lab: LabNetwork, one: ServicePort) -> Iterator[_Connection]:
    """Two connections: a download, and one over which nothing goes until the client says something, as with SSH."""
    point = lab.client_for(one.endpoint, one.service)
    address, source = one.endpoint.address, point.address(one.endpoint.address.version)
    kind = lab.speaks(one.service, one.port)
    asked = {"http": f"GET {lab.path} HTTP/1.1\r\nHost: lab\r\n\r\n".encode(), "smtp": b"NOOP\r\n", "tcp": b"hello\n"}
    endless = {"http": b"GET /lab-stream HTTP/1.1\r\nHost: lab\r\n\r\n", "tcp": b"stream\n"}
    name = f"{one.service} ({lab.profile.services[one.service].topology}, IPv{address.version})"
    host = lab.hosts[point.host]
    if kind in endless:
        call = host.call(address, one.port, payload=endless[kind], source=source or "")
        yield _Connection(f"{name}, a download", call, STEADY_S)
    call = host.call(address, one.port, payload=asked[kind], source=source or "")
    yield _Connection(f"{name}, an idle session", call, words=asked[kind])


def _waited(held: Sequence[_Connection], timeout_s: float) -> list[_Connection]:
    """Wait until something has come over each of them; those over which nothing came in time."""
    waiting, end_s = list(held), time.monotonic() + timeout_s
    while waiting and time.monotonic() < end_s:
        waiting = [one for one in waiting if not one.goes_on]
        time.sleep(POLL_S if waiting else 0)
    return waiting


def _moved(lab: LabNetwork, held: list[_Connection], clients: list[_Clients]) -> Outcome:
    master = lab.one_master()
    bound_s = gap_bound_s(lab.profile, master) + RETRANSMIT_S
    time.sleep(TOLD_S)
    for one in held:
        one.call.heard(anew=True)
    lab.run(master, "/etc/init.d/keepalived stop")
    try:
        moved = lab.wait_other_master(master, timeout_s=bound_s)
        pause_ms, alive, wrong = _after(lab, held, clients, f"when {moved or 'no other node'} became master", bound_s)
    finally:
        _come_back(lab, master, held)
    return_ms, _, more = _after(lab, alive, clients, f"when {master} had returned", bound_s)
    wrong += more
    if not moved:
        wrong.insert(0, f"the VIPs stayed on {master}")
    figure = f"to {moved} and back: " + ", ".join(_figures(held, clients, pause_ms, return_ms))
    values: dict[str, float | int | str] = {
        "connections": len(held), "clients": sum(c.count for c in clients),
        "pause_ms": round(pause_ms), "return_ms": round(return_ms),
    }  # fmt: skip
    return Outcome(not wrong, "broken" if wrong else figure, "; ".join(wrong[:6]), values)


def _come_back(lab: LabNetwork, node: str, held: list[_Connection]) -> None:
    """Start keepalived again and wait for the VIPs. Somebody types in the idle sessions meanwhile: IPVS tells the node
    that returns of a connection when its next packet comes, and not before."""
    lab.run(node, "/etc/init.d/keepalived start")
    end_s = time.monotonic() + lab.profile.vrrp.preempt_delay_s + RETURN_S
    while lab.profile.vrrp.preempt and lab.master() != lab.profile.preferred() and time.monotonic() < end_s:
        for one in held:
            one.speak()
        time.sleep(TYPED_S)
    lab.settle()


def _after(
    lab: LabNetwork, held: list[_Connection], clients: list[_Clients], moment: str, bound_s: float
) -> tuple[float, list[_Connection], list[str]]:
    """Does everything go on? By how much the other side was late at most in milliseconds, what lives, what is wrong."""
    for one in held:
        one.again()
    dead = {one.name: one for one in _waited(held, bound_s)}
    time.sleep(STAYS_S if held else 0)
    dead |= {one.name: one for one in held if one.error}
    names = ", ".join(f"{name} ({one.error or 'silence'})" for name, one in dead.items())
    wrong = [f"{moment}, {len(dead)} of {len(held)} connections died: {names}"] if dead else []
    pauses = [
        one.call.heard(anew=True).longest_ms - one.every_s * 1000
        for one in held
        if one.every_s and one.name not in dead
    ]
    wrong += [f"{moment}, {trouble}" for each in clients for trouble in each.ask(lab)]
    return max(pauses, default=0.0), [one for one in held if one.name not in dead], wrong


def _figures(held: list[_Connection], clients: list[_Clients], pause_ms: float, return_ms: float) -> Iterator[str]:
    if any(one.every_s for one in held):
        yield f"{len(held)} connections went on, after {pause_ms / 1000:.1f} s and {return_ms / 1000:.1f} s at most"
    elif held:
        yield f"{len(held)} connections went on"
    for each in clients:
        yield f"{each.count} clients of {each.service_port.service} kept their servers"
