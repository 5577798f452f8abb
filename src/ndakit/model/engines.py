"""What carries a service: one row for each engine, with all that the rest of the code asks about it.

A new engine is one more row here, its view and templates, and a file each among the lint rules and the claims. Other
modules never ask which engine a service has. They ask `service.carried_by` what it can do, what it calls something, or
how much it takes; or they take the list of one engine's services from the profile (`ipvs_services_of`). No I/O.

Sources: packages.md of the project's reference (A.1, A.2) for the releases; HAProxy's configuration manual;
keepalived.conf(5) and ipvsadm(8) for IPVS.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ndakit.core.release import OLDEST

Branch = tuple[int, int]
"""A release branch of OpenWrt: (24, 10)."""


@dataclass(frozen=True)
class Topology:
    """How an engine brings packets to a pool's servers, and who sees what."""

    shows_client: bool
    """True if servers see the client's own address in the packets."""
    since: Branch = OLDEST
    """The first release whose engine can do it."""


@dataclass(frozen=True)
class Engine:
    """A program that carries services, or several that do so together."""

    name: str
    """As the profile writes it."""
    title: str
    """As messages write it."""
    topologies: Mapping[str, Topology]
    """The values of `topology` that it carries."""
    protocols: tuple[str, ...]
    """The values of `protocol` that it carries."""
    balance: Mapping[str, str]
    """Word in the profile → its own word, for each way to choose a server that it has."""
    persistence: tuple[str, ...]
    """The types of persistence that it has."""
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
    balance_since: Mapping[str, Branch] = field(default_factory=dict[str, Branch])
    """Own words that came with a later release than the engine itself."""
    weightless: frozenset[str] = frozenset()
    """Own words for ways to choose that look at no weight but 0."""
    one_server: frozenset[str] = frozenset()
    """Own words for ways to choose that send all connections of a client, or of a VIP, to one server."""
    counts_ended: bool = False
    """True if connections of a server that have ended go on counting against its `max_connections` for a while."""


HAPROXY = Engine(
    name="haproxy",
    title="HAProxy",
    topologies={"proxy": Topology(shows_client=False)},
    protocols=("http", "tcp"),
    balance={word: word for word in ("roundrobin", "leastconn", "source", "first", "uri", "random")},
    balance_since={"random": (19, 7)},  # new in HAProxy 1.9; 18.06 has 1.8
    persistence=("source",),
    service="haproxy",
    opens_sockets=True,
    packages=(("haproxy", "balances, checks the servers, answers when none is left"),),
    ports_max=4096,
)

_OWN_SCHEDULERS = ("rr", "wrr", "lc", "wlc", "lblc", "lblcr", "dh", "sh", "sed", "nq", "fo", "ovf", "mh")

IPVS = Engine(
    name="ipvs",
    title="IPVS",
    topologies={name: Topology(shows_client=True) for name in ("nat", "dr", "tun")},
    protocols=("tcp", "udp"),
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
    balance_since={"mh": (99, 99)},  # no release's kmod-nf-ipvs has it (openwrt.md, 6)
    persistence=("source",),
    service="keepalived",
    opens_sockets=False,
    packages=(
        ("kmod-nf-ipvs", "the kernel balances: services of topology nat, dr and tun"),
        ("keepalived", "gives the kernel its virtual servers, and checks the servers behind them"),
        ("ipvsadm", "shows the kernel's virtual servers and connections"),
    ),
    since=(19, 7),
    missing="no IPVS: no kernel module, no ipvsadm, and a keepalived without it",
    marked_services_max=255,  # eight bits of a packet's mark (view_firewall.MARK_MASK), without 0
    weightless=frozenset({"rr", "lc", "dh"}),
    one_server=frozenset({"sh", "dh", "lblc", "lblcr", "mh"}),
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
