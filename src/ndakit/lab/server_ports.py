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
from ndakit.model import Check, Profile, Service
from ndakit.model.checks.base import WITHOUT_PORT, raw_bytes

Kind = Literal["http", "smtp", "tcp", "udp"]

_WANTED = 2
"""How much a port's kind matters: what a check or an http service needs; what is only better; what is there anyway."""
_BETTER = 1
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
class Page:
    """What a web server answers on a path; `digest` is the MD5 digest of the body, None for any body."""

    path: str
    status: int
    digest: str | None = None


@dataclass(frozen=True)
class ServerPort:
    """A port that a lab server answers on, and how: HTTP, SMTP, lines and an echo, or datagrams echoed (and DNS).

    `tls`: also HTTPS, for clients that begin with it. `exchanges`: what is answered to what, in bytes; for nothing
    said it is part of the greeting. `matters` decides between two pools that want different kinds of one port.
    """

    number: int
    kind: Kind
    matters: int = 0
    tls: bool = False
    pages: tuple[Page, ...] = ()
    exchanges: tuple[tuple[bytes, bytes], ...] = ()

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
            pages=tuple(dict.fromkeys((*self.pages, *other.pages))),
            exchanges=tuple(dict.fromkeys((*self.exchanges, *other.exchanges))),
        )


def joined(ports: Iterable[ServerPort]) -> tuple[ServerPort, ...]:
    """Each port once."""
    found: dict[tuple[int, bool], ServerPort] = {}
    for port in ports:
        key = (port.number, port.datagrams)
        found[key] = found[key].joined(port) if key in found else port
    return tuple(found.values())


def tried_ports(service: Service) -> tuple[int, ...]:
    """The ports of a service that are tried, and that the lab's servers therefore have: every one of a short range, of
    a longer one both ends and the watched ones."""
    watched = WATCHED_PORTS[service.transport]
    found: dict[int, None] = {}
    for low, high in service.port:
        short = high - low < RANGE_WHOLE_MAX
        found.update(dict.fromkeys(range(low, high + 1) if short else (low, high)))
        found.update(dict.fromkeys(p for p in watched if low <= p <= high))
    return tuple(sorted(found))


def ports_of(profile: Profile, pool: str, server: str) -> tuple[ServerPort, ...]:
    """What a server of a pool offers: its services' ports, and what the pool's check asks."""
    check = profile.pools[pool].check
    fixed = profile.pools[pool].servers[server].port or profile.pools[pool].port
    services = [profile.services[s] for s in profile.services_of(pool)]
    found: list[ServerPort] = []
    for service in services:
        kind, matters = _of_service(service.transport, service.protocol, shows_client=service.shows_client)
        found += [ServerPort(number, kind, matters) for number in ((fixed,) if fixed else tried_ports(service))]
    own = {p.number for p in found} or ({fixed} if fixed else set())
    for number in sorted({check.port} if check.port else own):
        found += _of_check(check, number, datagrams=any(p.datagrams for p in found if p.number == number))
    return joined(found)


def _of_service(transport: str, protocol: str, *, shows_client: bool) -> tuple[Kind, int]:
    if transport == "udp":
        return "udp", _WANTED
    if protocol == "http":
        return "http", _WANTED
    # Where a server sees the client one is as good as the other, and HTTP says whom it saw.
    return ("http", _BETTER) if shows_client else ("tcp", 0)


def _of_check(check: Check, number: int, *, datagrams: bool) -> list[ServerPort]:
    """What a check wants to find on a port. `datagrams`: the port is a UDP service's."""
    talk = (raw_bytes(check.send or ""), raw_bytes(check.expect.reply or ""))
    exchanges = (talk,) if talk[1] else ()
    if check.type in WITHOUT_PORT:
        return []
    if check.type in ("dns", "udp"):
        return [ServerPort(number, "udp", _WANTED, exchanges=exchanges)]
    if check.type == "smtp":
        return [ServerPort(number, "smtp", _WANTED)]
    if check.type in ("http", "https"):
        wanted = check.expect.status is not None or check.expect.digest is not None
        page = Page(check.request_path, check.expect.status or 200, check.expect.digest)
        return [ServerPort(number, "http", _WANTED, tls=check.type == "https", pages=(page,) if wanted else ())]
    if check.type == "script":
        # Nobody knows what the script asks: both ports are open, and HTTP is what it asks most likely.
        open_anyway = [] if datagrams and check.port is None else [ServerPort(number, "http", _BETTER)]
        return [*open_anyway, *([ServerPort(number, "udp")] if check.port is not None or datagrams else [])]
    # A greeting is what only a server that speaks first has.
    return [ServerPort(number, "tcp", _WANTED if exchanges and not talk[0] else 0, exchanges=exchanges)]


def pages_given(profile: Profile, given: Mapping[Path, bytes]) -> dict[str, bytes]:
    """The pages that checks know by their digests, by digest. Raises PageUnusable for one that no check knows."""
    wanted = {digest for _, digest in _digests(profile)}
    found: dict[str, bytes] = {}
    for path, content in given.items():
        digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if digest not in wanted:
            raise PageUnusable(path, f"its digest {digest} is in no check")
        found[digest] = content
    return found


def need_pages(profile: Profile, pages: Mapping[str, bytes]) -> None:
    """Raises PageMissing unless every page that a check knows by its digest is there."""
    for pool, digest in _digests(profile):
        if digest not in pages:
            raise PageMissing(pool, digest)


def _digests(profile: Profile) -> Sequence[tuple[str, str]]:
    return [(n, p.check.expect.digest) for n, p in profile.pools.items() if p.check.expect.digest is not None]


def path_asked(profile: Profile) -> str:
    """The path that the lab's clients ask for: one on which no check wants something else than the usual answer."""
    checks = [p.check for p in profile.pools.values() if p.check.type in ("http", "https")]
    special = {
        c.request_path for c in checks if c.expect.digest is not None or c.expect.status not in (None, 200)
    }  # fmt: skip
    return next(path for path in ("/", "/lab", *(f"/lab{n}" for n in range(len(special)))) if path not in special)
