"""What a lab server offers so that its profile's checks find it well: ports, what is spoken there, what is answered.

Pure. Every check of the model has its counterpart here; which server of which host gets it is the business of
`plan`, who starts it that of `clients`. A page known by its digest alone has to be given by the user.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ndakit.core.errors import InputError
from ndakit.model import Profile, Service
from ndakit.model.checks import HttpCheck, Page, Speaks
from ndakit.model.checks.base import ANYWAY, BETTER, NEEDED, Kind

RANGE_WHOLE_MAX = 64
"""Of a range with more ports than that the lab has samples only."""
WATCHED_PORTS: Mapping[Literal["tcp", "udp"], tuple[int, ...]] = {
    "tcp": (21, 22, 23, 25, 53, 80, 111, 179, 443, 3306, 8080, 8404, 9090, 10000),
    "udp": (53, 67, 123, 161, 514, 3780, 8848),
}
"""Ports tried from every network besides those the profile opens: of usual services, and of what the nodes tell each
other (10000, 3780, 8848), which is nobody else's business."""


class PageMissing(InputError):
    """A check knows a page by its digest, and nobody gave the page."""

    def __init__(self, pool: str, digest: str) -> None:
        super().__init__(
            f"pool {pool}'s check knows its page by the digest {digest} only, and the lab's servers need the page",
            where=f"pools.{pool}.check.expect.digest",
            fix="give the page, as a server answers it: ./inv verify PROFILE --page FILE",
        )


class PageUnusable(InputError):
    """A page was given that cannot be read, or that no check knows."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(
            f"the page cannot be used: {why}",
            where=f"--page {path}",
            fix="name a file whose md5sum is an expect.digest of the profile's checks, or leave --page out",
        )


@dataclass(frozen=True)
class ServerPort:
    """A port that a lab server answers on, and what it says there (model/checks/base.py, `Speaks`)."""

    number: int
    kind: Kind
    matters: int = 0
    tls: bool = False
    pages: tuple[Page, ...] = ()
    exchanges: tuple[tuple[bytes, bytes], ...] = ()
    code: int | None = None
    quiet: bool = False

    @classmethod
    def speaking(cls, number: int, what: Speaks) -> ServerPort:
        """The port of a number on which this is said."""
        return cls(number, what.kind, what.matters, what.tls, what.pages, what.exchanges, what.code, what.quiet)

    def lying(self, what: Speaks) -> ServerPort:
        """The port with a wrong answer among the right ones: those of other pools' checks stay."""
        pages = {page.path: page for page in (*self.pages, *what.pages)}
        exchanges = {**dict(self.exchanges), **dict(what.exchanges)}
        return replace(
            self, pages=tuple(pages.values()), exchanges=tuple(exchanges.items()), code=what.code or self.code
        )

    @property
    def datagrams(self) -> bool:
        """True for UDP."""
        return self.kind == "udp"

    def joined(self, other: ServerPort) -> ServerPort:
        """This port for what both want of it."""
        kept = max(self, other, key=lambda port: port.matters)
        return replace(
            kept,
            tls=self.tls or other.tls,
            quiet=self.quiet or other.quiet,
            pages=tuple(dict.fromkeys((*self.pages, *other.pages))),
            exchanges=tuple(dict.fromkeys((*self.exchanges, *other.exchanges))),
        )


def joined(ports: Iterable[ServerPort]) -> tuple[ServerPort, ...]:
    """Each port once."""
    by_number: dict[tuple[int, bool], ServerPort] = {}
    for port in ports:
        key = (port.number, port.datagrams)
        by_number[key] = by_number[key].joined(port) if key in by_number else port
    return tuple(by_number.values())


def tried_ports(service: Service) -> tuple[int, ...]:
    """The ports of a service that are tried, and that the lab's servers therefore have: every one of a short range, of
    a longer one both ends and the watched ones."""
    watched = WATCHED_PORTS[service.transport]
    numbers: dict[int, None] = {}
    for low, high in service.port:
        short = high - low < RANGE_WHOLE_MAX
        numbers.update(dict.fromkeys(range(low, high + 1) if short else (low, high)))
        numbers.update(dict.fromkeys(p for p in watched if low <= p <= high))
    return tuple(sorted(numbers))


def ports_of(profile: Profile, pool: str, server: str) -> tuple[ServerPort, ...]:
    """What a server of a pool offers: its services' ports, and what the pool's check asks."""
    check = profile.pools[pool].check
    ports: list[ServerPort] = []
    for service in (profile.services[s] for s in profile.services_of(pool)):
        kind, matters = _of_service(service.transport, service.protocol, shows_client=service.shows_client)
        tls = profile.pools[pool].speaks_tls or service.passes_tls
        if tls and kind == "tcp":
            kind, matters = "http", NEEDED  # the lab's servers speak TLS with HTTP inside
        ports += [ServerPort(number, kind, matters, tls=tls) for number in _numbers(profile, pool, server, service)]
    for number in asked_ports(profile, pool, server):
        datagrams = any(p.datagrams for p in ports if p.number == number)
        offered = [ServerPort.speaking(number, what) for what in check.offered(datagrams=datagrams)]
        if profile.pools[pool].speaks_tls and not check.states_encryption:
            # As above: what is answered to what is answered inside TLS as well.
            offered = [replace(p, kind="http", matters=NEEDED, tls=True) if p.kind == "tcp" else p for p in offered]
        ports += offered
    return joined(ports)


def asked_ports(profile: Profile, pool: str, server: str) -> tuple[int, ...]:
    """The ports of a server on which it is well or not by its pool's check: the one that the check names, else those of
    its services."""
    asked = profile.pools[pool].check.asked_port
    fixed = profile.pools[pool].servers[server].port or profile.pools[pool].port
    services = [profile.services[s] for s in profile.services_of(pool)]
    own = {number for service in services for number in _numbers(profile, pool, server, service)}
    return (asked,) if asked else tuple(sorted(own or ({fixed} if fixed else ())))


def _numbers(profile: Profile, pool: str, server: str, service: Service) -> tuple[int, ...]:
    fixed = profile.pools[pool].servers[server].port or profile.pools[pool].port
    return (fixed,) if fixed else tried_ports(service)


def _of_service(transport: str, protocol: str, *, shows_client: bool) -> tuple[Kind, int]:
    if transport == "udp":
        return "udp", NEEDED
    if protocol == "http":
        return "http", NEEDED
    # Where a server sees the client one is as good as the other, and HTTP says whom it saw.
    return ("http", BETTER) if shows_client else ("tcp", ANYWAY)


def pages_given(profile: Profile, given: Mapping[Path, bytes]) -> dict[str, bytes]:
    """The pages that checks know by their digests, by digest. Raises PageUnusable for one that no check knows."""
    wanted = {digest for _, digest in _digests(profile)}
    contents: dict[str, bytes] = {}
    for path, content in given.items():
        digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if digest not in wanted:
            raise PageUnusable(path, f"its digest {digest} is in no check")
        contents[digest] = content
    return contents


def need_pages(profile: Profile, pages: Mapping[str, bytes]) -> None:
    """Raises PageMissing unless every page that a check knows by its digest is there."""
    for pool, digest in _digests(profile):
        if digest not in pages:
            raise PageMissing(pool, digest)


def _digests(profile: Profile) -> Sequence[tuple[str, str]]:
    checks = [(n, p.check) for n, p in profile.pools.items() if isinstance(p.check, HttpCheck)]
    return [(n, c.expect.digest) for n, c in checks if c.expect.digest is not None]


def path_asked(profile: Profile) -> str:
    """The path that the lab's clients ask for: one on which no check wants something else than the usual answer."""
    checks = [p.check for p in profile.pools.values() if isinstance(p.check, HttpCheck)]
    special = {c.request_path for c in checks if c.unusual}
    return next(path for path in ("/", "/lab", *(f"/lab{n}" for n in range(len(special)))) if path not in special)
