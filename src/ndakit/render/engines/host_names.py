"""Routes by name, and unknown names, as HAProxy's ACLs: how the Host header is read, and what it is compared with.

Fetches and converters: HAProxy's configuration manual, 7 (`req.fhdr`, `req.fhdr_cnt`, `field`, `lower`; the same from
1.8 on). `req.hdr` would not do: it takes commas for the end of a value, and an ACL then asks each part.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ndakit.model import Service
from ndakit.model.http import TARPIT_S
from ndakit.model.http import HostRoute as ProfileRoute

HOST = "req.fhdr(host),field(1,:)"
"""The Host header without its port. Only of a Host that is `WELL_FORMED`: what follows the first colon is not seen."""
WELL_FORMED = r"^(\[[0-9a-f:.]+\]|[a-z0-9_-]+(\.[a-z0-9_-]+)*\.?)(:[0-9]{1,5})?$"
"""A Host that is wholly a name or an address, and perhaps a port (RFC 9110, 7.2; in either case). Servers may read any
other one differently than HAProxy: `name:@other` has another host for some of them."""
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
    tarpit_s: float
    known: Condition | None


def form(service: Service) -> HostForm | None:
    """What a Host has to be; None for a service that looks at none."""
    if service.redirect is None and not service.routes and service.unknown_hosts == "pool":
        return None
    return HostForm(WELL_FORMED, FINAL_DOT, needed=service.redirect is not None)


def conditions(route: ProfileRoute, number: int) -> tuple[Condition, ...]:
    """The conditions of a route, which must all hold; `number` tells it from the service's others."""
    by_host = Condition(f"route-{number}-host", tuple(_tests(route.host or ())))
    # `--` ends the flags: an expression may begin with a hyphen (configuration manual, 7.1).
    expressions = tuple(HostTest(HOST, "-m reg -i --", expression) for expression in route.host_regex or ())
    return tuple(c for c in (by_host, Condition(f"route-{number}-host-regex", expressions)) if c.tests)


def unknown(service: Service) -> UnknownHosts | None:
    """What becomes of unknown names; None where nothing does."""
    if service.unknown_hosts == "pool":
        return None
    known = Condition("known-host", tuple(_tests(service.hostnames))) if service.hostnames else None
    return UnknownHosts(service.unknown_hosts, TARPIT_S, known)


def _tests(names: Iterable[str]) -> Iterator[HostTest]:
    for name in names:
        if name.startswith("*"):  # the whole first label, whatever it is
            yield HostTest(f"{HOST},lower", "-m reg", rf"^[^.]+{re.escape(name[1:])}$")
        else:
            yield HostTest(f"{HOST},lower", "-m str", name)
