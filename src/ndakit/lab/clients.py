"""Who asks in a running lab: clients, admins and strangers, and what they can do.

Owns the questions that claims are made of: a request, a load, a poller, a scan, a login, the statistics page, and the
names under which servers answer. The machines' lives, faults and the nodes' consoles are the business of `network`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, NamedTuple

from ndakit.core.addresses import authority
from ndakit.core.errors import VerifyError
from ndakit.lab.host import Answer, Host, Load, Poller, SshProbe, TlsWanted, Watch
from ndakit.lab.plan import LabPlan, VantagePoint
from ndakit.lab.running_server import RunningServer
from ndakit.lab.server_ports import path_asked
from ndakit.load.certificates import CertificateBundle, read
from ndakit.model import Address, Endpoint, Profile
from ndakit.model.checks.base import Kind
from ndakit.model.links import WayOut
from ndakit.node.facts import OutputNotUnderstood, ServerState, parse_statistics

WATCH_INTERVAL_S = 0.01
"""How finely a gap is measured."""
REQUEST_INTERVAL_S = 0.1
"""How often a whole HTTP request is made beside that: one costs HAProxy, a server and the client some 10 ms of their
emulated processors, a bare connection 2 ms."""
POLL_TIMEOUT_S = 0.25
PAGE_TIMEOUT_S = 0.9
"""A page of a busy machine may take that long and was no gap; shorter than a lost SYN is waited for (1 s, RFC 6298), so
that a request made during an outage is a failure."""
SCAN_TIMEOUT_S = 1.0
REQUEST_TIMEOUT_S = 5.0
TIME_OUT = "time-out"
"""What a lab machine calls it if nothing came in time."""
BATCH = 5
"""Requests that a lab machine makes one after the other before it is asked for what came of them."""
UNANSWERED = 2
"""After so many requests to which nothing came in time the rest of a load is not waited for: none may fail."""
OUTSIDE_PORT = 80
"""Where the web server outside is."""


class LabNotReady(VerifyError):
    """The lab did not reach the state in which claims can be tried."""

    def __init__(self, what: str, where: str) -> None:
        super().__init__(
            what, where=where, fix="read the consoles' logs named above; `./inv boot PROFILE` tries one node by hand"
        )


class LabLacks(VerifyError):
    """A profile leaves no room for somebody that a claim needs."""

    def __init__(self, who: str, network: str) -> None:
        super().__init__(
            f"the lab has no {who}",
            where=f"network {network}",
            fix="leave an address of that network unused, in every IP version that it has: the lab takes it",
        )


@dataclass(frozen=True)
class LoadResult:
    """Requests through a VIP: how many, who answered (names of servers in the pool), how many failed and why."""

    total: int
    shares: dict[str, int]
    failures: int
    first_error: str = ""


class ServicePort(NamedTuple):
    """Where clients ask for a service: one of its endpoints, and a port there."""

    service: str
    endpoint: Endpoint
    port: int


class LabPeople:
    """The hosts of a lab as people use them; `hosts` and `servers` are filled when the lab's machines run."""

    def __init__(
        self,
        profile: Profile,
        plan: LabPlan,
        identity: str | None,
        tell: Callable[[str], None],
        certificates: Mapping[str, CertificateBundle] | None = None,
    ) -> None:
        self.profile = profile
        self.certificates = certificates or {}
        """The certificates that the profile's services are to show, by the names of their secrets."""
        self.plan = plan
        self.identity = identity
        self.tell = tell
        self.hosts: dict[str, Host] = {}
        self.servers: dict[tuple[str, str], RunningServer] = {}
        self.path = path_asked(profile)
        """What is asked for over HTTP."""

    def statistics(
        self, point: VantagePoint, address: Address, timeout_s: float = REQUEST_TIMEOUT_S
    ) -> list[ServerState]:
        """The statistics page of a node's address, as somebody gets it; empty if it does not answer in time."""
        port = self.profile.monitoring.statistics.port
        url = f"http://{authority(address, port)}/;csv"
        answer = self._host(point).get(url, source=self._source(point, address), timeout_s=timeout_s)
        if answer.status != 200:
            return []
        try:
            return parse_statistics(answer.body)
        except OutputNotUnderstood:
            return []

    def client_for(self, endpoint: Endpoint, service: str = "") -> VantagePoint:
        """Somebody who uses a service on an endpoint: in the VIP's network; beyond its gateway where servers in that
        network would answer a neighbour directly (nat, tproxy). Raises LabLacks if nobody can."""
        point = self.plan.clients.get(endpoint.network)
        if service and self._answers_neighbours(endpoint, service):
            point = self.plan.outside.get(endpoint.network)
        if point is None or point.address(endpoint.address.version) is None:
            raise LabLacks(f"client who could ask {endpoint.address}", endpoint.network)
        return point

    def _answers_neighbours(self, endpoint: Endpoint, service: str) -> bool:
        settings = self.profile.services[service]
        if not settings.returning:
            return False
        servers = self.profile.pools[settings.main_pool].servers.values()
        return any(self.profile.network_of(a) == endpoint.network for s in servers for a in s.address)

    def get(
        self,
        point: VantagePoint,
        address: Address,
        port: int,
        *,
        path: str = "",
        headers: Mapping[str, str] | None = None,
        name: str | None = None,
        method: str = "GET",
    ) -> Answer:
        """One HTTP request without a body, whatever its headers say of one; `name`: who is asked for over TLS, empty
        for nobody, instead of the service's own name."""
        scheme, tls = self._asked_by("http", address, port)
        tls = tls if name is None else TlsWanted(name)
        url = f"{scheme}://{authority(address, port)}{path or self.path}"
        source = self._source(point, address)
        asked = self.by_name(address, port) | dict(headers or {})
        return self._host(point).get(
            url, method=method, headers=asked, source=source, timeout_s=REQUEST_TIMEOUT_S, tls=tls
        )

    def say(self, point: VantagePoint, address: Address, port: int, said: bytes) -> Answer:
        """Something said to a port, inside of TLS where that is spoken there; the first line that comes back."""
        scheme, tls = self._asked_by("tcp", address, port)
        url, source = f"{scheme}://{authority(address, port)}", self._source(point, address)
        return self._host(point).ask(url, said, source=source, timeout_s=REQUEST_TIMEOUT_S, tls=tls)

    def handshake(self, point: VantagePoint, address: Address, port: int, wanted: TlsWanted) -> Answer:
        """A TLS handshake, and nothing more: what was agreed, or why nothing was."""
        return self._host(point).ask(
            f"tls://{authority(address, port)}", source=self._source(point, address), lines=0,
            timeout_s=REQUEST_TIMEOUT_S, tls=wanted,
        )  # fmt: skip

    def _asked_by(self, kind: str, address: Address, port: int) -> tuple[str, TlsWanted]:
        """The scheme of a URL for what is spoken at an address, and how TLS is asked for if it is there."""
        for name, service in self.profile.services.items():
            if (service.tls is None and not service.passes_tls) or not service.has_port(port):
                continue
            if any(e.address == address for e in self.profile.endpoints(name)):
                scheme = {"http": "https", "tcp": "tls"}.get(kind, kind)
                return scheme, TlsWanted(self.name_asked(name))
        return kind, TlsWanted()

    def name_asked(self, service: str) -> str:
        """The name by which a service is asked over TLS: one whose requests go to its own pool, else one of its first
        certificate; empty if neither has one."""
        settings = self.profile.services[service]
        if settings.own_name is not None:
            return settings.own_name
        first = self.certificates.get(settings.tls.certificates[0].secret) if settings.tls is not None else None
        names = (name.replace("*", "any", 1) for name in (first.names if first is not None else ()))
        return next((name for name in names if not name[-1].isdigit() and ":" not in name), "")

    def by_name(self, address: Address, port: int) -> dict[str, str]:
        """The Host header of who asks a service by the name that leads to its own pool; empty where it has no names."""
        for name, service in self.profile.services.items():
            own = service.own_name if service.protocol == "http" and service.has_port(port) else None
            if own is not None and any(e.address == address for e in self.profile.endpoints(name)):
                return {"Host": own}
        return {}

    def certificate_of(self, label: str) -> str:
        """The SHA-256, in hex, of the certificate of the server that calls itself so; empty for nobody."""
        own = next((server.certificate for server in self.servers.values() if server.label == label), "")
        return read(own.encode()).fingerprint if own else ""

    def load(
        self, point: VantagePoint, address: Address, port: int, pool: str, requests: int, transport: str = "tcp"
    ) -> LoadResult:
        """Requests one after the other in small batches; who answered, in names of the pool's servers. Fewer than
        `requests` if `UNANSWERED` of them timed out: each of those takes five seconds. A service that limits the
        requests of a client is asked half as often as it allows."""
        names = self._names(pool)
        host, source = self._host(point), self._source(point, address)
        shares: Counter[str] = Counter()
        errors: list[str] = []
        kind = _scheme(self._kind(pool, port, transport))
        scheme, tls = self._asked_by(kind, address, port)
        url = f"{scheme}://{authority(address, port)}"
        total = 0
        if kind == "http":
            each_s, started_s = self._each_s(address, port), time.monotonic()
            for batch in _batches(requests, BATCH):
                total += batch
                measured: Load = host.load(
                    f"{url}{self.path}", batch, at_once=1, sources=[source], timeout_s=REQUEST_TIMEOUT_S,
                    headers=self.by_name(address, port), tls=tls,
                )  # fmt: skip
                for attempt in measured.tries:
                    if attempt.ok and attempt.status == 200:
                        shares[names.get(attempt.server, attempt.server or "?")] += 1
                    else:
                        errors.append(attempt.error or f"status {attempt.status}")
                self.tell(f"{authority(address, port)} " + _bar(shares))
                if errors.count(TIME_OUT) >= UNANSWERED:
                    break
                time.sleep(max(0.0, started_s + total * each_s - time.monotonic()))
        else:
            for _ in range(requests):
                total += 1
                answer = host.ask(url, b"who\n", source=source, timeout_s=REQUEST_TIMEOUT_S, tls=tls)
                if answer.ok:
                    label = answer.server or answer.body.strip()
                    shares[names.get(label, label)] += 1
                else:
                    errors.append(answer.error)
                    if errors.count(TIME_OUT) >= UNANSWERED:
                        break
            self.tell(f"{authority(address, port)} " + _bar(shares))
        return LoadResult(total, dict(shares), len(errors), errors[0] if errors else "")

    def _each_s(self, address: Address, port: int) -> float:
        """How many seconds a request to a service may not be shorter than, so that others may ask beside it."""
        for name, service in self.profile.services.items():
            limit = service.limits.requests if service.limits is not None else None
            if limit is None or not service.has_port(port):
                continue
            if any(e.address == address for e in self.profile.endpoints(name)):
                return 2 * limit.per_s / limit.count
        return 0.0

    def ask(self, service_port: ServicePort, requests: int = 30) -> LoadResult:
        """Some requests to a service."""
        name, endpoint, port = service_port
        service = self.profile.services[name]
        point = self.client_for(endpoint, name)
        return self.load(point, endpoint.address, port, service.main_pool, requests, service.transport)

    def outside(self, way: WayOut) -> tuple[VantagePoint, Address]:
        """Who gets out by a way out, and the web server that they ask there. Raises LabLacks if nobody can."""
        point, beyond = self.plan.inside.get((way.network, way.version)), self.plan.outside.get(way.through)
        address = beyond.address(way.version) if beyond is not None else None
        if point is None or address is None:
            raise LabLacks(f"IPv{way.version} host that could get out through {way.gateway}", way.network)
        return point, address

    def ask_out(self, way: WayOut) -> Answer:
        """One request from inside to the web server outside, which says whom it saw."""
        point, address = self.outside(way)
        return self.get(point, address, OUTSIDE_PORT)

    def watch(self, service_port: ServicePort | WayOut, interval_s: float = WATCH_INTERVAL_S) -> Watch:
        """Ask a service, or from inside the web server outside, over fresh connections until the context ends: every
        `interval_s` who answers, behind TCP and UDP; behind HTTP whether it lets connect, and for the page every 100 ms
        at most."""
        if isinstance(service_port, WayOut):
            point, address = self.outside(service_port)
            asked = (self._poll(point, address, OUTSIDE_PORT, "http", max(REQUEST_INTERVAL_S, interval_s)),
                     self._poll(point, address, OUTSIDE_PORT, "tcp", interval_s))  # fmt: skip
            return Watch(*asked)
        name, _, port = service_port
        service = self.profile.services[name]
        if _scheme(self._kind(service.main_pool, port, service.transport)) != "http":
            return Watch(self.poller(service_port, interval_s))
        pages_s = max(REQUEST_INTERVAL_S, interval_s)
        return Watch(self.poller(service_port, pages_s), self._poller(service_port, "tcp", interval_s))

    def poller(self, service_port: ServicePort, interval_s: float) -> Poller:
        """Ask a service who answers, over fresh connections, until the context ends."""
        name, _, port = service_port
        service = self.profile.services[name]
        kind = _scheme(self._kind(service.main_pool, port, service.transport))
        return self._poller(service_port, kind, interval_s, lines=1 if kind == "tcp" else 0)

    def _poller(self, service_port: ServicePort, kind: str, interval_s: float, lines: int = 0) -> Poller:
        name, endpoint, port = service_port
        return self._poll(self.client_for(endpoint, name), endpoint.address, port, kind, interval_s, lines)

    def _poll(
        self, point: VantagePoint, address: Address, port: int, kind: str, interval_s: float, lines: int = 0
    ) -> Poller:
        # Whether somebody takes a connection is seen without TLS as well.
        scheme, tls = (kind, TlsWanted()) if kind == "tcp" and not lines else self._asked_by(kind, address, port)
        return self._host(point).poller(
            f"{scheme}://{authority(address, port)}" + (self.path if kind == "http" else ""),
            interval_s=interval_s,
            timeout_s=PAGE_TIMEOUT_S if kind == "http" else POLL_TIMEOUT_S,
            source=self._source(point, address),
            lines=lines,
            headers=self.by_name(address, port) if kind == "http" else (),
            tls=tls,
        )

    def client_seen(self, point: VantagePoint, address: Address, port: int, pool: str) -> str:
        """The client's address as a server sees it that answers on a VIP's TCP port; `nobody` and why if none does."""
        kind = self._kind(pool, port, "tcp")
        if kind == "http":
            asked = self.get(point, address, port)
            return str(asked.seen.get("client", "")) or f"nobody: {asked.error}"
        question = b"HELO lab.invalid\r\n" if kind == "smtp" else b"client?\n"
        scheme, tls = self._asked_by("tcp", address, port)
        answer = self._host(point).ask(
            f"{scheme}://{authority(address, port)}", question,
            source=self._source(point, address), lines=2, timeout_s=REQUEST_TIMEOUT_S, tls=tls,
        )  # fmt: skip
        return answer.body.split()[-1] if answer.ok else f"nobody: {answer.error}"

    def speaks(self, service: str, port: int) -> Kind:
        """What the lab's servers speak behind a service's port."""
        settings = self.profile.services[service]
        return self._kind(settings.main_pool, port, settings.transport)

    def _kind(self, pool: str, port: int, transport: str) -> Kind:
        """What a pool's servers in the lab speak on a service's port: http (also behind tcp), smtp, tcp, udp."""
        if transport == "udp":
            return "udp"
        settings = self.profile.pools[pool]
        name, server = next(iter(settings.servers.items()))
        ports = self.plan.hosts[self.plan.servers[pool, name].host].ports
        kinds = {p.number: p.kind for p in ports if not p.datagrams}
        return kinds.get(server.port or settings.port or port, "tcp")

    def scan(
        self, point: VantagePoint, address: Address, ports: Sequence[int], protocol: Literal["tcp", "udp"] = "tcp"
    ) -> dict[int, str]:
        """Port → open, closed (refused), filtered (nothing came within a second), …; more about UDP at Host.scan."""
        host, source = self._host(point), self._source(point, address)
        return host.scan(address, ports, protocol=protocol, source=source, timeout_s=SCAN_TIMEOUT_S)

    def scan_all(
        self, wanted: Sequence[tuple[VantagePoint, Address, Sequence[int], Literal["tcp", "udp"]]]
    ) -> list[dict[int, str]]:
        """Several scans at once, for each spends its time waiting for ports that keep silent."""
        with ThreadPoolExecutor(max_workers=max(1, len(wanted))) as pool:
            return list(pool.map(lambda one: self.scan(*one), wanted))

    def ssh_probe(self, point: VantagePoint, address: Address) -> SshProbe:
        """Banner and ways to authenticate."""
        return self._host(point).ssh_probe(address, self.profile.ssh_port, source=self._source(point, address))

    def ssh_run(self, point: VantagePoint, address: Address, argv: Sequence[str]) -> str:
        """Log in with the key that the user gave, and run a command; its output, "" if the login fails."""
        host, port, source = self._host(point), self.profile.ssh_port, self._source(point, address)
        ran = host.ssh_run(address, self.identity or "", argv, port=port, source=source)
        return ran.stdout if ran.returncode == 0 else ""

    def _host(self, point: VantagePoint) -> Host:
        return self.hosts[point.host]

    def _source(self, point: VantagePoint, address: Address) -> str:
        source = point.address(address.version)
        if source is None:
            host = self.plan.hosts[point.host]
            raise LabLacks(f"IPv{address.version} address for {host.name}, who is to ask {address}", host.network)
        return str(source)

    def pools_of(self, label: str) -> tuple[str, ...]:
        """The pools of the server that calls itself so; one machine may be in several."""
        return tuple(dict.fromkeys(pool for (pool, _), server in self.servers.items() if server.label == label))

    def talk(self, point: VantagePoint, address: Address, port: int, words: bytes) -> Answer:
        """One line of what a tcp service's server says to a client's first words."""
        scheme, tls = self._asked_by("tcp", address, port)
        return self._host(point).ask(
            f"{scheme}://{authority(address, port)}", words, source=self._source(point, address),
            timeout_s=REQUEST_TIMEOUT_S, tls=tls,
        )  # fmt: skip

    def server_of(self, pool: str, answer: Answer) -> str:
        """The name of the server that gave an answer, in a pool; empty if it was none of the lab's."""
        label = answer.server or answer.body.strip()
        return self._names(pool).get(label, "")

    def _names(self, pool: str) -> dict[str, str]:
        """What the lab's servers call themselves → their names, those of this pool first."""
        everyone = {r.label: f"{p}/{s}" for (p, s), r in self.servers.items()}
        chain, at = {pool}, self.profile.pools[pool].sorry
        while at is not None and at.pool is not None and at.pool not in chain:
            chain.add(at.pool)
            at = self.profile.pools[at.pool].sorry
        near = {r.label: s for (p, s), r in self.servers.items() if p in chain and p != pool}
        own = {r.label: s for (p, s), r in self.servers.items() if p == pool}
        return everyone | near | own


def _scheme(kind: Kind) -> str:
    """How it is asked who answers: servers of tcp and smtp begin with their names."""
    return "tcp" if kind == "smtp" else kind


def _batches(total: int, size: int) -> Iterator[int]:
    while total > 0:
        yield min(size, total)
        total -= size


def _bar(shares: Counter[str]) -> str:
    """`web1 ######## 40  web2 #### 20`."""
    total = sum(shares.values()) or 1
    return "  ".join(f"{n} {'#' * round(20 * c / total)} {c}" for n, c in sorted(shares.items())) or "no answer"
