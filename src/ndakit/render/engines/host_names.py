"""Routes by name, and unknown names, as HAProxy's ACLs: how the Host header is read, and what it is compared with.

Fetches and converters: HAProxy's configuration manual, 7 (`req.fhdr`, `req.fhdr_cnt`, `field`, `lower`; the same from
1.8 on). `req.hdr` would not do: it takes commas for the end of a value, and an ACL then asks each part.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ndakit.model import Service
from ndakit.model.http import HostRoute as ProfileRoute

HOST = "req.fhdr(host),field(1,:)"
"""The Host header without its port. Only of a Host that is `WELL_FORMED`: what follows the first colon is not seen."""
WELL_FORMED = r"^(\[[0-9a-f:.]+\]|[a-z0-9_-]+(\.[a-z0-9_-]+)*\.?)(:[0-9]{1,5})?$"
"""A Host that is wholly a name or an address, and perhaps a port (RFC 9110, 7.2; in either case). Servers may read any
other one differently than HAProxy: `name:@other` has another host for some of them."""
SNI = "req.ssl_sni,lower"
"""The name in a client's TLS hello (RFC 6066, 3), where TLS passes through; it has no port and no dot at its end."""
HELLO_S = 5.0
"""How long a client has for its TLS hello."""
FINAL_DOT = r"^([^:]*)\.(:[0-9]+)?$"
"""A well-formed Host whose name ends with a dot, in two parts around it: the same name (RFC 1034, 3.1)."""


@dataclass(frozen=True)
class HostForm:
    """What a Host has to be before anything looks at it; all others get status 400."""

    well_formed: str
    final_dot: str
    needed: bool
    """A request without a Host gets 400 as well; where not, it asks for no name that anybody knows."""


@dataclass(frozen=True)
class HostTest:
    """A question about the name that the client asked for: how it is read, how it is compared, and with what."""

    fetch: str
    method: str
    pattern: str


@dataclass(frozen=True)
class Condition:
    """An ACL: it holds if any of its tests does."""

    name: str
    tests: tuple[HostTest, ...]


@dataclass(frozen=True)
class UnknownHosts:
    """What becomes of requests for names that are neither of `known` nor of a route."""

    action: str
    known: Condition | None


@dataclass(frozen=True)
class PassedTls:
    """What is looked at where TLS passes through."""

    hello_s: float
    known: Condition | None
    """Who asks for another name, or for none, gets no connection; None: everybody is let through."""


def form(service: Service) -> HostForm | None:
    """What a Host has to be; None for a service that looks at none."""
    if service.redirect is None and not service.routes and service.unknown_hosts == "pool":
        return None
    return HostForm(WELL_FORMED, FINAL_DOT, needed=service.redirect is not None)


def conditions(route: ProfileRoute, number: int) -> tuple[Condition, ...]:
    """The conditions of a route, which must all hold; `number` tells it from the service's others."""
    if route.sni is not None:
        return (Condition(f"route-{number}-sni", tuple(_tests(route.sni, SNI))),)
    by_host = Condition(f"route-{number}-host", tuple(_tests(route.host or ())))
    # `--` ends the flags: an expression may begin with a hyphen (configuration manual, 7.1).
    expressions = tuple(HostTest(HOST, "-m reg -i --", expression) for expression in route.host_regex or ())
    return tuple(c for c in (by_host, Condition(f"route-{number}-host-regex", expressions)) if c.tests)


def unknown(service: Service) -> UnknownHosts | None:
    """What becomes of unknown names; None where nothing does."""
    if service.unknown_hosts == "pool" or service.passes_tls:
        return None
    known = Condition("known-host", tuple(_tests(service.hostnames))) if service.hostnames else None
    return UnknownHosts(service.unknown_hosts, known)


def passed(service: Service) -> PassedTls | None:
    """What is looked at in TLS that passes through; None where none does."""
    if not service.passes_tls:
        return None
    refuses = service.unknown_hosts != "pool"
    return PassedTls(HELLO_S, Condition("known-name", tuple(_tests(service.client_names, SNI))) if refuses else None)


def _tests(names: Iterable[str], fetch: str = f"{HOST},lower") -> Iterator[HostTest]:
    for name in names:
        if name.startswith("*"):  # the whole first label, whatever it is
            yield HostTest(fetch, "-m reg", rf"^[^.]+{re.escape(name[1:])}$")
        else:
            yield HostTest(fetch, "-m str", name)
