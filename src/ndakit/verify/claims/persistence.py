"""Claims about services of HAProxy that keep clients with their servers: a client stays with its server, and when that
one dies it gets what the profile says."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

from ndakit.lab.clients import ServicePort
from ndakit.lab.host.measure import Answer
from ndakit.lab.network import LabNetwork
from ndakit.model import Profile
from ndakit.model.persistence import (
    CookiePersistence,
    HeaderPersistence,
    ParameterPersistence,
    Persistence,
    RdpCookiePersistence,
    TlsSessionPersistence,
)
from ndakit.verify.claims.base import SLACK_S, Claim, LeftOut, Outcome, targets

REQUESTS = 4
"""Requests of one client: with servers taken in turn the second one would show that nobody is kept."""
UNAVAILABLE = 503
_numbers = itertools.count(1)


def about_service(profile: Profile, name: str) -> Iterator[Claim | LeftOut]:
    """What is claimed of a service that keeps its clients' servers."""
    kept = profile.persistence(name)
    if kept is None:
        return
    if why := why_not(profile, name, kept):
        yield LeftOut(f"persistence/{name}", why)
        return
    then = "is turned away until the server is back" if kept.refuses else "gets another one and keeps it"
    text = f"a client of {name}, known by {known_by(kept)}, keeps its server; when that dies, the client {then}"
    yield Claim(f"persistence/{name}", text, partial(persistence, name=name))


def known_by(kept: Persistence) -> str:
    """What clients are known by, in words."""
    match kept:
        case CookiePersistence() | HeaderPersistence() | ParameterPersistence():
            return f"its {kept.type} {kept.name}"
        case RdpCookiePersistence():
            return "its RDP name"
        case TlsSessionPersistence():
            return "its TLS session"
        case _:
            return "its address"


def why_not(profile: Profile, name: str, kept: Persistence) -> str:
    """Why nobody tries it; empty if it is tried."""
    pool = profile.services[name].main_pool
    if isinstance(kept, TlsSessionPersistence):
        return "the lab's servers of tcp services end no TLS"
    if sum(1 for server in profile.pools[pool].servers.values() if server.weight) < 2:
        return "only one server of its pool takes anything: everybody has the same one"
    limits = [kept.table_s] + ([kept.max_idle_s, kept.max_life_s] if isinstance(kept, CookiePersistence) else [])
    shortest_s = min((limit for limit in limits if limit is not None), default=None)
    if shortest_s is not None and shortest_s < profile.detection_s(pool) + profile.recovery_s(pool) + 2 * SLACK_S:
        return "a client is forgotten before a dead server is noticed and back"
    return ""


@dataclass
class KeptClient:
    """A client of a service, and what it is known by. `word` tells it from others, but by address."""

    front: ServicePort
    kept: Persistence
    word: str = field(default_factory=lambda: f"lab{next(_numbers)}")
    cookie: str = ""
    """What HAProxy's cookie says of its server, as it came with an answer."""

    def ask(self, lab: LabNetwork) -> tuple[str, str]:
        """The server that answers, "" if none does, and what came then."""
        service, endpoint, port = self.front
        pool, address = lab.profile.services[service].main_pool, endpoint.address
        point = lab.client_for(endpoint, service)
        match self.kept:
            case RdpCookiePersistence():
                answer = lab.talk(point, address, port, rdp_request(self.word))
                server = lab.server_of(pool, answer) if answer.ok else ""
            case _ if lab.profile.services[service].protocol == "http":
                answer = lab.get(point, address, port, path=self._path(lab.path), headers=self._headers())
                server = lab.server_of(pool, answer) if answer.status == 200 else ""
                self._told(answer)
            case _:
                load = lab.load(point, address, port, pool, 1)
                return next(iter(load.shares), ""), load.first_error
        return server, answer.error or f"status {answer.status}"

    def _path(self, path: str) -> str:
        if not isinstance(self.kept, ParameterPersistence):
            return path
        return f"{path}{'&' if '?' in path else '?'}{self.kept.name}={self.word}"

    def _headers(self) -> dict[str, str]:
        match self.kept:
            case HeaderPersistence():
                return {self.kept.name: self.word}
            case CookiePersistence(mode="existing"):
                return {"Cookie": f"{self.kept.name}={self.word}"}
            case CookiePersistence(mode="prefix"):
                # The application's answer with the cookie is missing here; its value is what stands behind the server.
                return {"Cookie": f"{self.kept.name}={self.cookie}~{self.word}"} if self.cookie else {}
            case CookiePersistence():
                return {"Cookie": f"{self.kept.name}={self.cookie}"} if self.cookie else {}
            case _:
                return {}

    def _told(self, answer: Answer) -> None:
        """Do what a browser does with the cookie of an answer."""
        if isinstance(self.kept, CookiePersistence):
            for name, value in answer.headers:
                pattern = rf"{re.escape(self.kept.name)}=([^;]*)(;|$)"
                if name.lower() == "set-cookie" and (matched := re.match(pattern, value)):
                    self.cookie = matched[1]


def rdp_request(user: str) -> bytes:
    """A client's first words in RDP: an X.224 connection request with the user's name (MS-RDPBCGR, 2.2.1.1)."""
    cookie = f"Cookie: mstshash={user}\r\n".encode()
    length = 11 + len(cookie)
    return b"\x03\x00" + length.to_bytes(2, "big") + bytes((length - 5, 0xE0, 0, 0, 0, 0, 0)) + cookie


def persistence(lab: LabNetwork, name: str) -> Outcome:
    """One client asks several times, its server dies and comes back, and a new client comes meanwhile."""
    figures: list[str] = []
    wrong: list[str] = []
    seen: set[int] = set()
    for endpoint, port in targets(lab.profile, name):
        if endpoint.address.version not in seen:
            seen.add(endpoint.address.version)
            figure, faults = _tried(lab, ServicePort(name, endpoint, port))
            figures.append(figure)
            wrong += [f"at {endpoint.address}: {fault}" for fault in faults]
    return Outcome(not wrong, "; ".join(dict.fromkeys(figures)), "; ".join(wrong))


def _tried(lab: LabNetwork, front: ServicePort) -> tuple[str, list[str]]:
    profile, name = lab.profile, front.service
    pool, kept = profile.services[name].main_pool, profile.persistence(name)
    assert kept is not None, "the claim is made for such services only"
    client = KeptClient(front, kept)
    if isinstance(kept, CookiePersistence) and kept.mode == "prefix":
        client.cookie = next(n for n, s in profile.pools[pool].servers.items() if s.weight)
    server, said = client.ask(lab)
    if not server:
        return "not tried", [f"no server answered: {said}"]
    wrong = _asked_again(lab, client, server, "")
    if wrong:  # it says enough, and no server need die for it
        return f"{REQUESTS} requests to several servers", wrong
    with lab.server_down(pool, server):
        limit_s = profile.detection_s(pool) + SLACK_S
        if lab.wait_server(pool, server, up=False, timeout_s=limit_s) is None:
            return "not tried", [f"{server} was still in the pool after {limit_s:.0f} s"]
        then, said = client.ask(lab)
        if kept.refuses:
            wrong += _turned_away(lab, front, kept, server, (then, said))
        elif then in ("", server):
            wrong.append(f"when {server} was dead, it got {then or said}")
        elif not (isinstance(kept, CookiePersistence) and kept.mode == "prefix"):
            wrong += _asked_again(lab, client, then, f"when {server} was dead, ")
    limit_s = profile.recovery_s(pool) + SLACK_S
    if lab.wait_server(pool, server, up=True, timeout_s=limit_s) is None:
        wrong.append(f"{server} was not back in the pool after {limit_s:.0f} s")
    elif kept.refuses:
        wrong += _asked_again(lab, client, server, f"when {server} was back, ")
    figure = f"{REQUESTS} requests to {server}, " + (f"then {said}" if kept.refuses else f"then {then or said}")
    return figure, wrong


def _asked_again(lab: LabNetwork, client: KeptClient, server: str, moment: str) -> list[str]:
    """Whoever else answered."""
    others = {then or said for then, said in (client.ask(lab) for _ in range(REQUESTS - 1)) if then != server}
    return [f"{moment}a client that had {server} got {', '.join(sorted(others))}"] if others else []


def _turned_away(
    lab: LabNetwork, front: ServicePort, kept: Persistence, server: str, came: tuple[str, str]
) -> list[str]:
    """What is wrong with what a dead server's client got, and a new one, who has no server yet."""
    then, said = came
    http = lab.profile.services[front.service].protocol == "http"
    wrong = []
    if then or (http and said != f"status {UNAVAILABLE}"):
        wrong.append(f"when {server} was dead, its client was not turned away but got {then or said}")
    if not kept.by_address:
        new, said = KeptClient(front, kept).ask(lab)
        if new in ("", server):
            wrong.append(f"when {server} was dead, a new client got {new or said}")
    return wrong
