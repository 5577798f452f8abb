"""Who ends TLS: one row for each program, with all that the rest of the code asks about it.

Like `engines`: other modules never ask which terminator a service has. They ask `tls.ended_by` what it can do, or take
what follows from the profile (`inner_ports`, `terminators`). A further one is one more row here, its view and template,
and a file among the lint rules. No I/O.

Sources: pound(8) of 4.19; stunnel(8) of 5.68 and stunnel's NEWS; docs/pound.md, docs/stunnel.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ndakit.core.release import OLDEST
from ndakit.model.engines import Branch

Wanted = Literal["tcp", "h2", "client_certificates", "refuse", "both_families"]
"""What services may want of a terminator: protocol tcp; HTTP/2; clients with certificates of their own; that unknown
names are refused; topology tproxy on addresses of both families."""


@dataclass(frozen=True)
class Terminator:
    """A program that ends clients' TLS."""

    name: str
    """As the profile writes it."""
    title: str
    """As messages write it."""
    in_front: bool
    """True if it stands in front of HAProxy, and hands connections on to a port of the loopback."""
    service: str
    """The init script, and the daemon, that must run on a node for it."""
    configuration: str
    """Its file on the node."""
    packages: tuple[tuple[str, str], ...] = ()
    """What it needs on a node beside HAProxy: package, and what for."""
    since: Branch = OLDEST
    """The first release that can have it."""
    missing: str = ""
    """Why a release before that cannot have it, as the end of `which OpenWrt 18.06 cannot have: …`."""
    lacks: Mapping[Wanted, str] = field(default_factory=dict[Wanted, str])
    """What it cannot do, each with the end of `service x is http, and …`."""
    listeners_max: int | None = None
    """Addresses and ports of one service at most: each is a listener of its own. None: no limit."""
    connection_bytes: int = 0
    """What a client's connection costs it."""
    tells_client: Literal["", "header", "proxy-protocol"] = ""
    """How HAProxy behind it learns who the client is: by the last word of X-Forwarded-For, or by the PROXY protocol."""
    marks_requests: bool = False
    """True if it adds X-SSL-Request to every request."""
    order_counts: bool = False
    """True if the first certificate of the profile's order that fits is shown, wildcards taking dots."""

    def carries(self, wanted: Wanted) -> bool:
        """True if it can do something."""
        return wanted not in self.lacks


HAPROXY = Terminator(
    name="haproxy", title="HAProxy", in_front=False, service="haproxy", configuration="/etc/haproxy.cfg"
)
POUND = Terminator(
    name="pound",
    title="Pound",
    in_front=True,
    service="pound",
    configuration="/etc/pound/pound.cfg",
    packages=(("pound", "ends TLS in front of HAProxy"),),
    since=(19, 7),
    missing="its OpenSSL (1.0.2) is too old for it",
    lacks={
        "tcp": "Pound reads http only",
        "client_certificates": "what Pound tells of them is not what servers are promised",
        "refuse": "Pound gives everybody its first one",
        "h2": "Pound does not speak it",
        "both_families": "behind Pound HAProxy cannot tell by which of them a client came",
    },
    listeners_max=64,
    connection_bytes=96 * 1024,  # a thread's stack, as far as it is used, and OpenSSL's buffers (docs/pound.md)
    tells_client="header",
    marks_requests=True,
    order_counts=True,
)
STUNNEL = Terminator(
    name="stunnel",
    title="stunnel",
    in_front=True,
    service="stunnel",
    configuration="/etc/stunnel/stunnel.conf",
    packages=(("stunnel", "ends TLS in front of HAProxy"),),
    since=(19, 7),
    missing="its stunnel (5.44, with OpenSSL 1.0.2) cannot be told which TLS versions and suites to speak",
    lacks={
        "client_certificates": "stunnel tells nobody who they are",
        "refuse": "stunnel gives everybody the first one",
        "h2": "stunnel does not speak it",
    },
    listeners_max=64,
    connection_bytes=96 * 1024,  # 85 KiB each with 500 idle ones (docs/stunnel.md)
    tells_client="proxy-protocol",
)

TERMINATORS: Mapping[str, Terminator] = {row.name: row for row in (HAPROXY, POUND, STUNNEL)}
"""Every terminator, by its word in the profile."""
IN_FRONT = tuple(row for row in TERMINATORS.values() if row.in_front)
"""Those that stand in front of HAProxy."""
