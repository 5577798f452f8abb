"""Routes by name, and unknown names, as HAProxy's ACLs: how the Host header is read, and what it is compared with.

Fetches and converters: HAProxy's configuration manual, 7 (`req.hdr`, `field`, `lower`; the same from 1.8 on).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ndakit.model import Service
from ndakit.model.http import TARPIT_S
from ndakit.model.http import HostRoute as ProfileRoute

HOST = "req.hdr(host),field(1,:)"
"""The Host header without its port."""


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
