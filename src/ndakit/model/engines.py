"""What carries a service: one row for each engine, with all that the rest of the code asks about it.

A new engine is one more row here, its view and templates, and a file each among the lint rules and the claims. Other
modules never ask which engine a service has. They ask `service.carried_by` what it can do, what it calls something, or
how much it takes; or they take the list of one engine's services from the profile (`ipvs_services_of`). No I/O.

Sources: docs/facts.md (Releases); HAProxy's configuration manual;
keepalived.conf(5) and ipvsadm(8) for IPVS.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ndakit.core.release import OLDEST, Release

Branch = tuple[int, int]
"""A release branch of OpenWrt: (24, 10)."""


@dataclass(frozen=True)
class Topology:
    """How an engine brings packets to a pool's servers, and who sees what."""

    shows_client: bool
    """True if servers see the client's own address in the packets."""
    returns: bool = False
    """True if servers that see the client's address must send their answers to it through the balancer."""
    since: Branch = OLDEST
    """The first release whose engine can do it."""


Feature = Literal[
    "timeouts", "limits", "error_pages", "maintenance",
    "routes", "unknown_hosts", "retries", "slow_start_s", "sorry.page", "quorum", "resume_below", "backup",
    "persistence.on_failure",
]  # fmt: skip
"""Keys of services, pools and servers that not every engine carries."""


@dataclass(frozen=True)
class Refused:
    """What an engine does not carry: the error's code, why it is one, and what to write instead.

    `why` and `fix` may name {service}, {topology}, {pool} and {server}. {or_topology} becomes `, or topology: proxy`
    where another engine could carry the service with it, {or_write} the same with `write`; else both are empty.
    """

    code: str
    why: str
    fix: str


@dataclass(frozen=True)
class Later:
    """What came with a later release than the engine itself, and what to write instead before it."""

    since: Branch | None
    """None: no release has it yet."""
    instead: str


@dataclass(frozen=True)
class Engine:
    """A program that carries services, or several that do so together."""

    name: str
    """As the profile writes it."""
    title: str
    """As messages write it."""
    topologies: Mapping[str, Topology]
    """The values of `topology` that it carries."""
    protocols: Mapping[str, Refused | None]
    """Every value of `protocol`: None if it carries it, else why not."""
    features: Mapping[Feature, Refused | None]
    """Every feature: None if it carries it, else why not."""
    balance: Mapping[str, str]
    """Word in the profile → its own word, for each way to choose a server that it has."""
    persistence: tuple[str, ...]
    """The types of persistence that it has."""
    checker: str
    """The program that checks its servers, as messages write it."""
    service: str
    """The init script, and the daemon, that must run on a node for it."""
    opens_sockets: bool
    """True if it opens a socket for each port, so that nobody else can have the port and a bound port is a service."""
    packages: tuple[tuple[str, str], ...]
    """What it needs on a node: package, and what for."""
    since: Branch = OLDEST
    """The first release that has it."""
    missing: str = ""
    """What a release before that lacks, as the end of `OpenWrt 18.06 has …`."""
    ports_max: int | None = None
    """Ports of one service at most; None: any range."""
    marked_services_max: int | None = None
    """Services with several ports at most: each takes a firewall mark. None: no marks are needed."""
    balance_since: Mapping[str, Later] = field(default_factory=dict[str, Later])
    """Own words that came with a later release than the engine itself."""
    weightless: frozenset[str] = frozenset()
    """Own words for ways to choose that look at no weight but 0."""
    one_server: frozenset[str] = frozenset()
    """Own words for ways to choose that send all connections of a client, or of a VIP, to one server."""
    refuses: frozenset[str] = frozenset()
    """Those of them that refuse clients, and choose no other server, while their server is full or drained."""
    counts_ended: bool = False
    """True if connections of a server that have ended go on counting against its `max_connections` for a while."""

    def is_in(self, release: Release) -> bool:
        """True if a release has it."""
        return release.branch >= self.since

    def speaks(self, protocol: str) -> bool:
        """True if it carries a protocol."""
        return protocol in self.protocols and self.protocols[protocol] is None

    def carries(self, feature: Feature) -> bool:
        """True if it carries a feature."""
        return self.features[feature] is None


HAPROXY = Engine(
    name="haproxy",
    title="HAProxy",
    topologies={"proxy": Topology(shows_client=False), "tproxy": Topology(shows_client=True, returns=True)},
    protocols={
        "http": None,
        "tcp": None,
        "udp": Refused(
            "udp-needs-kernel",
            "service {service} is udp, which HAProxy does not carry",
            "write topology: nat, dr or tun, or protocol: tcp",
        ),
    },
    features={
        "timeouts": None,
        "limits": None,
        "error_pages": None,
        "maintenance": None,
        "routes": None,
        "unknown_hosts": None,
        "retries": None,
        "slow_start_s": None,
        "sorry.page": None,
        "backup": None,
        "quorum": Refused(
            "quorum-needs-kernel",
            "pool {pool} has a quorum, which HAProxy, behind service {service}, has not",
            "delete it, or write a pool of its own for the service",
        ),
        "resume_below": Refused(
            "resume-needs-kernel",
            "server {server} has resume_below, which HAProxy, behind service {service}, has not: it queues",
            "delete it",
        ),
        "persistence.on_failure": None,
    },
    balance={word: word for word in ("roundrobin", "leastconn", "source", "first", "uri", "random")},
    balance_since={"random": Later((19, 7), "leastconn")},  # new in HAProxy 1.9; 18.06 has 1.8
    persistence=("source", "cookie", "tls-session", "rdp-cookie", "header", "parameter"),
    checker="HAProxy",
    service="haproxy",
    opens_sockets=True,
    packages=(("haproxy", "balances, checks the servers, answers when none is left"),),
    ports_max=4096,
)

_OWN_SCHEDULERS = ("rr", "wrr", "lc", "wlc", "lblc", "lblcr", "dh", "sh", "sed", "nq", "fo", "ovf", "mh")

IPVS = Engine(
    name="ipvs",
    title="IPVS",
    topologies={name: Topology(shows_client=True, returns=name == "nat") for name in ("nat", "dr", "tun")},
    protocols={
        "http": Refused(
            "http-needs-proxy",
            "service {service} is {topology}, and the kernel reads no http",
            "write protocol: tcp{or_topology}",
        ),
        "tcp": None,
        "udp": None,
    },
    features={
        "timeouts": Refused(
            "timeouts-need-proxy",
            "service {service} is {topology}, and timeouts are HAProxy's",
            "delete timeouts{or_write}",
        ),
        "limits": Refused(
            "limits-need-proxy",
            "service {service} is {topology}, and the limits of a service are HAProxy's",
            "state max_connections for the servers instead{or_write}",
        ),
        "error_pages": Refused(
            "error-pages-need-proxy",
            "service {service} is {topology}, and the kernel sends no pages",
            "delete error_pages; or, for http, write topology: proxy and protocol: http",
        ),
        "maintenance": Refused(
            "maintenance-needs-proxy",
            "service {service} is {topology}, and the kernel sends every client to the same servers",
            "delete maintenance, and drain the servers instead (./inv drain){or_write}",
        ),
        "routes": Refused(
            "routes-need-proxy",
            "service {service} is {topology}, and the kernel reads no names of hosts",
            "delete routes; or, for http, write topology: proxy and protocol: http",
        ),
        "unknown_hosts": Refused(
            "routes-need-proxy",
            "service {service} is {topology}, and the kernel reads no names of hosts",
            "delete unknown_hosts; or, for http, write topology: proxy and protocol: http",
        ),
        "retries": Refused(
            "retries-need-proxy",
            "pool {pool} states retries, and behind service {service} ({topology}) the client itself connects",
            "delete it, or write a pool of its own for the service",
        ),
        "slow_start_s": Refused(
            "slow-start-needs-proxy",
            "pool {pool} has a slow start, and IPVS, behind service {service}, has none: a server that returns gets "
            "its full share at once",
            "delete it; roundrobin (wrr) floods a returning server less than leastconn",
        ),
        "sorry.page": Refused(
            "sorry-page-needs-proxy",
            "pool {pool} has a sorry page, and IPVS, behind service {service}, shows none",
            "write sorry: {{pool: …}} with a server that shows it{or_topology}",
        ),
        "backup": Refused(
            "backup-needs-proxy",
            "server {server} of pool {pool} is a backup, and IPVS, behind service {service}, has none",
            "write it into a pool of its own, and sorry: {{pool: …}} here{or_topology}",
        ),
        "quorum": None,
        "resume_below": None,
        "persistence.on_failure": Refused(
            "refuse-needs-proxy",
            "service {service} is {topology}, and IPVS gives a client whose server is gone another one",
            "write on_failure: reassign{or_topology}",
        ),
    },
    balance={
        "roundrobin": "wrr",
        "leastconn": "wlc",
        "source": "sh",
        "destination": "dh",
        "locality": "lblc",
        "locality-replica": "lblcr",
        "shortest-delay": "sed",
        **{word: word for word in _OWN_SCHEDULERS},
    },
    balance_since={"mh": Later(None, "source")},  # no release's kmod-nf-ipvs has it (docs/facts.md, Releases)
    persistence=("source",),
    checker="keepalived",
    service="keepalived",
    opens_sockets=False,
    packages=(
        ("kmod-nf-ipvs", "the kernel balances: services of topology nat, dr and tun"),
        ("keepalived", "gives the kernel its virtual servers, and checks the servers behind them"),
        ("ipvsadm", "shows the kernel's virtual servers and connections"),
    ),
    since=(19, 7),
    missing="no IPVS: no kernel module, no ipvsadm, and a keepalived without it",
    marked_services_max=255,  # eight bits of a packet's mark (render.firewall.MARK_MASK), without 0
    weightless=frozenset({"rr", "lc", "dh"}),
    one_server=frozenset({"sh", "dh", "lblc", "lblcr", "mh"}),
    refuses=frozenset({"dh"}),
    counts_ended=True,
)

ENGINES: tuple[Engine, ...] = (HAPROXY, IPVS)
"""Every engine, the one first that is taken where several carry a topology."""


def carrier(topology: str) -> Engine:
    """The engine that carries a topology. Raises KeyError for a topology that none has."""
    for engine in ENGINES:
        if topology in engine.topologies:
            return engine
    raise KeyError(topology)
