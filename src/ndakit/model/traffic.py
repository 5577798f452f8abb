"""What the balancer does with traffic: pools of servers with their checks, and the services in front of them."""

from __future__ import annotations

import itertools
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from ndakit.core.names import Name, ServiceName
from ndakit.model.base import (
    Address,
    Addresses,
    AttachedFile,
    Between,
    Bool,
    FamilyName,
    Int,
    Model,
    Number,
    Port,
    as_list,
    mistake,
)
from ndakit.model.checks import AnyCheck, TcpCheck
from ndakit.model.engines import HAPROXY, Engine, carrier
from ndakit.model.http import HostRoute, Redirect, covers
from ndakit.model.limits import ErrorPages, Limits
from ndakit.model.persistence import AnyPersistence
from ndakit.model.tls import Tls, ToServers

Balance = Literal[
    "roundrobin", "leastconn", "source", "first", "uri", "random",
    "destination", "locality", "locality-replica", "shortest-delay",
    "rr", "wrr", "lc", "wlc", "lblc", "lblcr", "dh", "sh", "sed", "nq", "fo", "ovf", "mh",
]  # fmt: skip

RETRIES = 3
"""How often HAProxy tries to connect anew, unless the pool says otherwise (HAProxy's own default)."""

TUNNEL_S = 3600.0
"""How long an http service's tunnel may be silent, in seconds, unless the service says otherwise."""


class Sorry(Model):
    """What clients get when no server of a pool is left: a page, or another pool."""

    page: AttachedFile | None = None
    """An HTML file of at most 16 KiB, relative to the file that writes it; sent with status 503."""
    pool: Name | None = None
    """Another pool, checked like any other."""

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if self.page is None and self.pool is None:
            raise mistake("one-of", "neither 'page' nor 'pool' is stated", fix="write {page: sorry.html}, or {pool: …}")
        if self.page is not None and self.pool is not None:
            raise mistake("one-of", "both 'page' and 'pool' are stated", fix="keep one of the two")
        return self


class Server(Model):
    """One real server of a pool."""

    short_form: ClassVar[str | None] = "address"
    planned: ClassVar = {"resolve": "servers found by DNS"}

    address: Addresses
    """Where it is. Services of topology proxy use the first address; all other topologies use the address of the
    client's family."""
    port: Port | None = None
    """Its port; default: the pool's, else the service's."""
    weight: Annotated[Int, Between(0, 256)] = 1
    """Its share, compared with the other servers' weights; with 0 it gets no new connections."""
    backup: Bool = False
    """It gets requests only while no other server of the pool is left; several backups share them. Who got its cookie
    meanwhile stays there (`persistence`). Topology proxy and tproxy only."""
    max_connections: Annotated[Int, Between(1, 1_000_000)] | None = None
    """Further connections wait in the balancer's queue. With topology nat, dr and tun there is no queue: they go to the
    other servers, and finished connections count for up to two minutes more, so write a larger number."""
    resume_below: Annotated[Int, Between(1, 1_000_000)] | None = None
    """A full server gets new connections again when it has fewer than this; default three quarters of
    `max_connections`. Services of topology nat, dr and tun only."""

    @property
    def share(self) -> int:
        """Its weight among servers that are all well."""
        return 0 if self.backup else self.weight

    def address_of(self, version: int) -> Address | None:
        """The address of an IP version."""
        return next((a for a in self.address if a.version == version), None)

    @model_validator(mode="after")
    def _thresholds(self) -> Self:
        if self.resume_below is not None and self.resume_below > (self.max_connections or 0):
            raise mistake(
                "thresholds", "resume_below {low} is above max_connections {high}", low=self.resume_below,
                high=self.max_connections or "(not stated)", fix="write resume_below below max_connections",
            )  # fmt: skip
        return self


class Pool(Model):
    """Servers that can stand in for each other."""

    planned: ClassVar = {
        "raw": "the escape hatch",
        "on_down": "what becomes of a dead server's connections",
    }

    port: Port | None = None
    """The servers' port, for servers without a `port`; default: the service's."""
    balance: Balance = "roundrobin"
    """How a server is chosen. By HAProxy (proxy, tproxy): `roundrobin`, `leastconn`, `source`, `first`, `uri`,
    `random`. By IPVS (nat, dr, tun): `roundrobin` (wrr), `leastconn` (wlc), `source` (sh), `destination` (dh),
    `locality` (lblc), `locality-replica` (lblcr), `shortest-delay` (sed), or IPVS's own names; what each does is in
    topologies.md."""
    check: AnyCheck = TcpCheck()
    """How the servers are checked: a type, or a mapping."""
    sorry: Sorry | None = None
    """What clients get when no server is left. Without it they get HAProxy's plain 503, or (topology nat, dr, tun)
    nothing. With IPVS it is one sorry server, which is not checked."""
    quorum: Annotated[Int, Between(1, 100_000)] | None = None
    """Below this sum of weights the sorry server takes over. Services of topology nat, dr and tun only."""
    persistence: AnyPersistence | None = None
    """A client keeps its server; a service may say otherwise."""
    retries: Annotated[Int, Between(0, 100)] = RETRIES
    """If a server refuses a connection, or does not accept it in time, HAProxy tries so many times more, each time with
    another server. With 0 the client gets the error at once. A request that a server may have got is never repeated.
    Topology proxy and tproxy only: with nat, dr and tun the client itself connects."""
    slow_start_s: Annotated[Number, Between(1, 3600, "s")] | None = None
    """When a server returns, its share grows to the full one over so many seconds. Topology proxy and tproxy only: IPVS
    cannot do that."""
    reply_route: Literal["default", "policy"] = "default"
    """The way of the servers' answers. `default`: their default route. `policy`: a rule of their own, for these answers
    only; so that nat and tproxy work beside another default gateway, and dr and tun beside one that is the balancer.
    With nat, tproxy and servers behind a router of a network (`routes`), that router has the rule: `./inv servers`
    writes it."""
    to_servers: ToServers | None = None
    """How HAProxy speaks to the servers (topology proxy or tproxy); default: without TLS."""
    servers: Annotated[dict[Name, Server], Field(min_length=1)]
    """The servers by name: an address, or a mapping."""

    @property
    def speaks_tls(self) -> bool:
        """True if HAProxy speaks TLS with its servers."""
        return self.to_servers is not None and self.to_servers.tls

    @property
    def total_weight(self) -> int:
        """The sum of the servers' weights, without backups."""
        return sum(s.share for s in self.servers.values())

    @property
    def backups(self) -> tuple[str, ...]:
        """The servers that get requests only while no other one is left."""
        return tuple(name for name, server in self.servers.items() if server.backup and server.weight)


class Timeouts(Model):
    """How long HAProxy waits, in seconds. A connection of protocol tcp on which both sides are silent ends after the
    shorter one of `client_s` and `server_s`, so state both for sessions that idle (databases, SSH); or `tunnel_s`,
    which then takes the place of both."""

    connect_s: Annotated[Number, Between(0.1, 3600, "s")] = 5.0
    """For a server to accept a connection."""
    client_s: Annotated[Number, Between(0.1, 86400, "s")] = 60.0
    """For a silent client. http: while its request or its next one is awaited. tcp: while nothing goes either way."""
    server_s: Annotated[Number, Between(0.1, 86400, "s")] = 60.0
    """For a silent server. http: while its answer is awaited. tcp: while nothing goes either way."""
    queue_s: Annotated[Number, Between(0.1, 3600, "s")] = 30.0
    """In the queue when all servers are full."""
    tunnel_s: Annotated[Number, Between(0.1, 604800, "s")] | None = None
    """For a connection that became a tunnel and on which both sides are silent; from then on `client_s` and `server_s`
    do not count. http: WebSocket and CONNECT, default 3600. tcp: every connection is a tunnel once it reached a server;
    default none, so that the other two count."""


PortRange = tuple[int, int]


def _ports(value: Any) -> Any:
    ranges: list[PortRange] = []
    for item in as_list(value):
        if isinstance(item, list | tuple) and len(item) == 2 and all(isinstance(i, int) for i in item):
            ranges.append((item[0], item[1]))
            continue
        words = str(item).split("-")
        if not 1 <= len(words) <= 2 or not all(w.isascii() and w.isdigit() and len(w) <= 5 for w in words):
            raise mistake(
                "port", "'{got}' is not a port", got=str(item)[:40], fix="write 80, 10000-10100, or a list of them"
            )
        low, high = int(words[0]), int(words[-1])
        if low < 1 or high > 65535:
            raise mistake("port", "'{got}' is not a port", got=str(item)[:40], fix="choose ports from 1 to 65535")
        if low > high:
            raise mistake("port", "'{got}' ends before it begins", got=str(item)[:40], fix=f"write {high}-{low}")
        ranges.append((low, high))
    if not ranges:
        raise mistake("empty", "an empty list", fix="state at least one port")
    ordered = sorted(ranges)
    for before, after in itertools.pairwise(ordered):
        if after[0] <= before[1]:
            raise mistake("port-twice", "port {got} is stated twice", got=after[0], fix="state every port once")
    return tuple(ordered)


_PORT_SCHEMA = {"anyOf": [{"type": "integer", "minimum": 1, "maximum": 65535}, {"type": "string"}]}
Ports = Annotated[
    tuple[PortRange, ...],
    BeforeValidator(_ports),
    PlainSerializer(
        lambda spans: [f"{low}-{high}" if low != high else str(low) for low, high in spans], return_type=list[str]
    ),
    WithJsonSchema({"anyOf": [*_PORT_SCHEMA["anyOf"], {"type": "array", "items": _PORT_SCHEMA}]}),
]


def _families(value: tuple[FamilyName, ...]) -> tuple[FamilyName, ...]:
    if not value or len(set(value)) != len(value):
        raise mistake("families", "each family once, and at least one", fix="write [ipv4], [ipv6] or leave the key out")
    return value


_NAME_OR_LIST = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}


class Service(Model):
    """Something clients reach on a VIP: address, port, topology and the pool behind it."""

    planned: ClassVar = {
        "headers": "changing headers",
        "engine": "the program that carries the service",
        "raw": "the escape hatch",
        "sources": "who may use it",
        "one_packet": "every datagram by itself",
        "rewrite": "changing paths and hosts",
        "proxy_protocol": "the PROXY protocol",
        "compression": "compressed answers",
    }
    vip: Annotated[tuple[Name, ...], BeforeValidator(as_list), Field(min_length=1), WithJsonSchema(_NAME_OR_LIST)]
    """The VIP, or a list of them. The VIP's network decides whom the firewall lets in: if it has a gateway, it is the
    outside, and everybody may come; if it has none, it is inside, and only clients that come in through this network
    may."""
    families: Annotated[tuple[FamilyName, ...], AfterValidator(_families)] | None = None
    """`ipv4`, `ipv6`; default: those of the VIP."""
    port: Ports
    """The port on the VIP: one, a range such as 10000-10100, or a list. HAProxy (proxy, tproxy) takes at most 4096
    ports. For the kernel (nat, dr, tun) any number of ports is one service, such as RTP's 10000-20000; at most 255
    services can have several ports. All ports lead a client to the same server only with `persistence`, or if the pool
    balances by source. No connection helper is loaded: an FTP server must name the VIP in its answers to PASV, and its
    data ports must be in the list."""
    topology: Literal["proxy", "tproxy", "nat", "dr", "tun"] = "proxy"
    """How traffic reaches the servers. `proxy`: HAProxy ends the connection and opens another one to the server.
    `tproxy`: the same, but with the client's address as the source, so that servers see it; their answers must come
    back through the balancer, the servers' gateway. With the other three the kernel balances (IPVS), and servers see
    the clients' addresses, too. `nat`: the kernel changes the destination, and answers come back through the balancer
    as with tproxy. `dr`: packets go unchanged to servers in the same network, which have the VIP on their loopback and
    answer directly. `tun`: the same through an IP tunnel, so that servers can be anywhere. OpenWrt 18.06 has `proxy`
    and `tproxy` only."""
    protocol: Literal["http", "tcp", "udp"]
    """The protocol; there is no default. `http` needs topology proxy or tproxy, `udp` needs nat, dr or tun."""
    hostnames: tuple[ServiceName, ...] = ()
    """The names clients use; a wildcard such as `"*.shop.example"` stands for one whole label (write it in quotes). The
    first one without a wildcard is the default Host of the pool's http check. With `tls` the certificates have to cover
    all of them."""
    tls: Tls | None = None
    """Clients speak TLS, and it ends here (topology proxy or tproxy): their requests are https, and with protocol tcp
    whatever is inside of TLS. Servers get what `to_servers` of the pool says."""
    pool: Name | None = None
    """Where requests go; left out where `redirect` answers all of them."""
    redirect: Redirect | None = None
    """http: every request is answered with a redirect, and no server is asked: `https` leads to the same name, path and
    query over TLS; a mapping leads elsewhere."""
    routes: tuple[HostRoute, ...] = ()
    """Requests for some names go to other pools, in this order: the first route that holds counts. What no route is for
    goes to `pool`. With http by the Host header. With tcp by the name in the client's TLS hello (`sni`), and TLS passes
    through to the servers; what is not TLS is refused there."""
    unknown_hosts: Literal["pool", "refuse", "tarpit"] = "pool"
    """What becomes of requests for a name that is neither in `hostnames` nor in a route: `pool`, they go to the
    service's pool; `refuse`, they get status 421, and where TLS passes through (`sni`) no connection; `tarpit` (http),
    they wait 30 seconds and get status 500, so that a scanner learns nothing and loses time. Clients that ask for the
    bare address ask for an unknown name. With http, here and with `routes` and `redirect`, `shop.example.` is
    `shop.example`, and a Host header gets status 400 that is not wholly a name or an address, with or without a port.
    """
    timeouts: Annotated[Timeouts, Field(validate_default=True)] = Timeouts()
    """How long HAProxy waits (topology proxy and tproxy)."""
    limits: Limits | None = None
    """What it takes at most (topology proxy and tproxy)."""
    error_pages: ErrorPages = Field(default={})
    """http: pages in place of HAProxy's own errors, by status: `{"503": busy.html}`, each an HTML file of at most 16
    KiB, relative to the file that writes it. Errors of the servers reach clients as they are. Where a pool has a sorry
    page, that is its 503."""
    maintenance: Bool = False
    """Everybody but `access.sources` gets what the pool's `sorry` says, so that you can look at the servers while
    nobody else does (topology proxy and tproxy). tcp needs a sorry pool."""
    persistence: AnyPersistence | None = None
    """A client keeps its server; default: the pool's."""

    @model_validator(mode="after")
    def _pool_or_redirect(self) -> Self:
        # A redirect has no servers that could see a client's address.
        if self.redirect is not None and (self.protocol != "http" or self.shows_client):
            raise mistake(
                "redirect-needs-http", "'redirect' needs protocol http and topology proxy, and this service is {got}",
                got=f"{self.protocol}, {self.topology}", fix="write protocol: http, and leave topology out",
            )  # fmt: skip
        if self.pool is None and self.redirect is None:
            raise mistake("missing-key", "'pool' is missing", fix="add pool: NAME, or redirect: https")
        of_servers = {"pool": self.pool, "routes": self.routes, "persistence": self.persistence}
        stated = next((key for key, value in of_servers.items() if value), None)
        if self.redirect is not None and stated is not None:
            raise mistake(
                "redirect-and-pool", "'redirect' answers every request, and '{got}' is stated as well", got=stated,
                fix="keep one of the two",
            )  # fmt: skip
        return self

    @field_validator("timeouts")
    @classmethod
    def _tunnel_of_http(cls, value: Timeouts, info: ValidationInfo) -> Timeouts:
        # HAProxy's tunnel time-out overrules the other two, so a tcp service has one only where it is stated.
        topology = info.data.get("topology")
        http = info.data.get("protocol") == "http" and topology is not None and carrier(topology).speaks("http")
        if http and value.tunnel_s is None:
            return value.model_copy(update={"tunnel_s": TUNNEL_S})
        return value

    @property
    def pools(self) -> tuple[str, ...]:
        """Every pool that its requests can go to, its own first; not those that stand in for them."""
        own = () if self.pool is None else (self.pool,)
        return tuple(dict.fromkeys((*own, *(route.pool for route in self.routes))))

    @property
    def main_pool(self) -> str:
        """The pool of its own. Raises ValueError for a service that redirects: it has none."""
        if self.pool is None:
            raise ValueError("a service that redirects has no pool")
        return self.pool

    def pool_for(self, name: str) -> str | None:
        """The pool that requests for a name go to; None if they are turned away."""
        route = next((route for route in self.routes if route.holds(name)), None)
        if route is not None:
            return route.pool
        known = any(covers(pattern, name) for pattern in self.hostnames)
        return self.pool if known or self.unknown_hosts == "pool" else None

    @property
    def passes_tls(self) -> bool:
        """True if clients' TLS passes through to the servers, and the name in it chooses the pool (`sni`)."""
        through = self.protocol == "tcp" and self.tls is None
        return through and any(route.sni is not None for route in self.routes)

    @property
    def client_names(self) -> tuple[str, ...]:
        """Every name or wildcard that clients ask for, by `hostnames` and by `host` or `sni` of its routes."""
        return tuple(dict.fromkeys((*self.hostnames, *(name for route in self.routes for name in route.names))))

    @property
    def own_name(self) -> str | None:
        """A name whose requests go to its own pool; None if it states none."""
        examples = (pattern.replace("*", "any", 1) for pattern in self.client_names)
        return next((name for name in examples if self.pool_for(name) == self.pool), None)

    def names_for(self, pool: str) -> tuple[str, ...]:
        """The names that clients ask for when they reach a pool through it, without wildcards."""
        names = [name for route in self.routes if route.pool == pool for name in route.names]
        if pool == self.pool or pool not in self.pools:
            names += self.hostnames
        return tuple(dict.fromkeys(name for name in names if not name.startswith("*")))

    @property
    def carried_by(self) -> Engine:
        """The engine that carries it."""
        return carrier(self.topology)

    @property
    def shows_client(self) -> bool:
        """True if its servers see the client's own address in the packets."""
        return self.carried_by.topologies[self.topology].shows_client

    @property
    def transparent(self) -> bool:
        """True if HAProxy connects to the servers from the clients' addresses (tproxy)."""
        return self.topology == "tproxy"

    @property
    def returning(self) -> bool:
        """True if servers see the clients' addresses and their answers must come back through the balancer."""
        return self.carried_by.topologies[self.topology].returns

    @property
    def transport(self) -> Literal["tcp", "udp"]:
        """The protocol in the packets' headers."""
        return "udp" if self.protocol == "udp" else "tcp"

    @property
    def first_port(self) -> int:
        """Its lowest port."""
        return self.port[0][0]

    @property
    def single_port(self) -> int | None:
        """Its only port; None if it has several."""
        return None if self.several else self.first_port

    @property
    def proxiable(self) -> bool:
        """True if HAProxy could carry it as well."""
        return HAPROXY.speaks(self.transport) and self.port_count <= (HAPROXY.ports_max or self.port_count)

    @property
    def several(self) -> bool:
        """True if it has more than one port."""
        return self.port != ((self.first_port, self.first_port),)

    @property
    def port_count(self) -> int:
        """How many ports it has."""
        return sum(high - low + 1 for low, high in self.port)

    def has_port(self, number: int) -> bool:
        """True if a port is one of its own."""
        return any(low <= number <= high for low, high in self.port)
