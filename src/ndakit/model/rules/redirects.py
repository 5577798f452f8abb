"""Cross-checks: redirects that lead back to where they come from, or to where nobody listens.

The profile tells where a redirect leads if its target is `https`, the address of a VIP, or a name that a service states
(`hostnames`, `host` of a route): such a name leads to the VIPs of the services that state it. About other names it
tells nothing. Where such a one could be a service's own, because that service states no names, or because another one
states a wildcard for it, that is a warning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from ndakit.core.addresses import literal
from ndakit.core.mistakes import KeyPath, listing
from ndakit.model.base import Address
from ndakit.model.http import covers
from ndakit.model.profile import Profile
from ndakit.model.rules.findings import Finding, error, warning
from ndakit.model.traffic import Service


@dataclass(frozen=True)
class _Target:
    """Where a redirect to a URL leads, as far as the profile tells: the addresses, and the place that says so."""

    addresses: frozenset[Address]
    told_by: KeyPath | None
    exact: bool
    """False for a name of which only a wildcard is stated, or none: others may have it."""


def _services(profile: Profile) -> Iterator[tuple[str, Service]]:
    """The services whose VIPs are all there."""
    for name, service in profile.services.items():
        if set(service.vip) <= profile.vips.keys():
            yield name, service


def _addresses(profile: Profile, name: str) -> frozenset[Address]:
    return frozenset(endpoint.address for endpoint in profile.endpoints(name))


def _target(profile: Profile, host: str) -> _Target:
    for vip, facts in profile.vips.items():
        for number, address in enumerate(facts.address):
            if host == literal(address):
                return _Target(frozenset({address}), ("vips", vip, "address", number), True)
    stating = {
        name: [pattern for pattern in service.client_names if covers(pattern, host)]
        for name, service in _services(profile)
    }
    exactly = [name for name, patterns in stating.items() if host in patterns]
    names = exactly or [name for name, patterns in stating.items() if patterns]
    addresses = frozenset[Address]().union(*(_addresses(profile, name) for name in names))
    if not names:
        return _Target(addresses, None, False)
    by_name = any(covers(pattern, host) for pattern in profile.services[names[0]].hostnames)
    return _Target(addresses, ("services", names[0], "hostnames" if by_name else "routes"), bool(exactly))


def _listeners(profile: Profile, addresses: frozenset[Address], port: int) -> list[str]:
    return [
        name for name, service in _services(profile)
        if service.transport == "tcp" and service.has_port(port) and addresses & _addresses(profile, name)
    ]  # fmt: skip


def _understands(service: Service, scheme: str) -> bool:
    """False if a service certainly does not speak http (or https) with its clients."""
    if service.tls is not None or service.passes_tls:
        return scheme == "https"
    return scheme == "http" or service.protocol != "http"


def _next(profile: Profile, name: str) -> tuple[list[str], list[str]]:
    """The services to which a redirect leads, and those to which it may lead."""
    service = profile.services[name]
    if service.redirect is None:
        return [], []
    own = _addresses(profile, name)
    if service.redirect.to_https:
        sure = [
            other for address in own if (port := profile.https_port(address)) is not None
            for other in _listeners(profile, frozenset({address}), port)
        ]  # fmt: skip
        return list(dict.fromkeys(sure)), []
    scheme, host, port = service.redirect.goal
    target = _target(profile, host)
    there = _listeners(profile, target.addresses or own, port)
    there = [other for other in there if _understands(profile.services[other], scheme)]
    if target.told_by is not None:
        mine = any(covers(pattern, host) for pattern in service.client_names)
        if target.exact or mine:
            return there, []
    elif host.startswith("[") or host.replace(".", "").isdigit():
        return [], []  # an address, and none of ours
    names = {other: profile.services[other].client_names for other in there}
    return [], [one for one in there if not names[one] or any(covers(pattern, host) for pattern in names[one])]


def _way_back(start: str, ways: Mapping[str, list[str]]) -> list[str] | None:
    """The shortest way from a service to itself, with it at both ends."""
    ahead, seen = [[start]], {start}
    while ahead:
        way = ahead.pop(0)
        for after in ways.get(way[-1], ()):
            if after == start:
                return [*way, start]
            if after not in seen:
                seen.add(after)
                ahead.append([*way, after])
    return None


def circles(profile: Profile) -> Iterator[Finding]:
    """Redirects that lead back to where they come from."""
    ways = {name: _next(profile, name) for name, _ in _services(profile)}
    sure = {name: way for name, (way, _) in ways.items()}
    perhaps = {name: [*way, *maybe] for name, (way, maybe) in ways.items()}
    told: set[str] = set()
    for name, service in _services(profile):
        if service.redirect is not None and service.redirect.to_https and service.tls is not None:
            told.add(name)
            yield error(
                "redirect-loop",
                f"service {name} ends TLS itself, and redirects to https: clients would go in a circle",
                ("services", name, "redirect"),
                "delete redirect and name a pool; the redirect belongs to the service on port 80",
                other=("services", name, "tls"),
            )  # fmt: skip
    for known in (True, False):
        for name in ways:
            way = _way_back(name, sure if known else perhaps)
            if way is not None and not told & set(way):
                told |= set(way)
                yield _circle(profile, way) if known else _perhaps_circle(profile, way)


def _circle(profile: Profile, way: list[str]) -> Finding:
    name = way[0]
    redirect = profile.services[name].redirect
    assert redirect is not None, "looked at before"
    if len(way) == 2:
        return error(
            "redirect-loop",
            f"service {name} redirects to {redirect.to}, which is its own address: clients would go in a circle",
            ("services", name, "redirect"), "redirect to another name or port",
            other=_target(profile, redirect.goal[1]).told_by, also=(("services", name, "vip"),),
        )  # fmt: skip
    return error(
        "redirect-loop",
        f"the redirects of services {' → '.join(way)} lead clients in a circle",
        ("services", name, "redirect"), "name a pool in one of them, or redirect to a name that none of them serves",
        other=("services", way[1], "redirect"), also=tuple(("services", one) for one in way),
    )  # fmt: skip


def _perhaps_circle(profile: Profile, way: list[str]) -> Finding:
    places = dict.fromkeys(way)
    hosts = [r.goal[1] for one in places if (r := profile.services[one].redirect) is not None and not r.to_https]
    circle = (
        f"service {way[0]} redirects to its own scheme and port" if len(way) == 2
        else f"the redirects of services {' → '.join(way)} follow each other"
    )  # fmt: skip
    bare = next((one for one in (*list(places)[1:], way[0]) if not profile.services[one].client_names), None)
    return warning(
        "redirect-perhaps-loop",
        f"{circle}: if {listing(list(dict.fromkeys(hosts)))} leads to VIP {profile.services[way[0]].vip[0]}, clients "
        "go in a circle",
        ("services", way[0], "redirect"),
        "make sure that it leads elsewhere"
        + (f"; service {bare} can say what it is asked for itself: hostnames: [NAME]" if bare else ""),
        other=("services", way[0], "vip"), also=tuple(("services", one) for one in places),
    )  # fmt: skip


def nowhere(profile: Profile) -> Iterator[Finding]:
    """Redirects to where nobody listens, or where something else is spoken."""
    for name, service in _services(profile):
        if service.redirect is None:
            continue
        if service.redirect.to_https:
            yield from _no_https(profile, name) if service.tls is None else ()
            continue
        scheme, host, port = service.redirect.goal
        target = _target(profile, host)
        if not target.exact:
            continue
        there = _listeners(profile, target.addresses, port)
        vip = next(v for v, facts in profile.vips.items() if set(facts.address) & target.addresses)
        if not there:
            yield error(
                "redirect-to-nothing",
                f"service {name} redirects to {service.redirect.to}, and no service listens at VIP {vip}, port {port}",
                ("services", name, "redirect"),
                f"add a service with vip: {vip} and port: {port}, or redirect to a port that one has",
                other=target.told_by, also=(("services",), ("vips", vip)),
            )  # fmt: skip
        elif not any(_understands(profile.services[other], scheme) for other in there):
            speaks = "https" if scheme == "http" else "http"
            yield error(
                "redirect-to-other-scheme",
                f"service {name} redirects to {service.redirect.to}, and service {there[0]}, which listens there, "
                f"speaks {speaks}",
                ("services", name, "redirect"), f"write {speaks}:// for it, or the port of another service",
                other=("services", there[0]), also=(("services",), ("vips", vip)),
            )  # fmt: skip


def _no_https(profile: Profile, name: str) -> Iterator[Finding]:
    for endpoint in profile.endpoints(name):
        if profile.https_port(endpoint.address) is None:
            yield error(
                "redirect-to-nothing",
                f"service {name} redirects to https, and no http service with tls listens at {endpoint.address}",
                ("services", name, "redirect"),
                f"add a service with vip: {endpoint.vip}, port: 443, protocol: http and tls; or redirect to a URL",
                other=("vips", endpoint.vip, "address"), also=(("services",),),
            )  # fmt: skip


RULES: tuple[Callable[[Profile], Iterator[Finding]], ...] = (circles, nowhere)
