"""Claims about services that HAProxy carries: whom servers are told about, whatever the client claims."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

from ndakit.lab.host.measure import Answer
from ndakit.lab.network import LabNetwork
from ndakit.model import Profile
from ndakit.verify.claims import persistence, transparent
from ndakit.verify.claims.base import Claim, LeftOut, Outcome, targets


def about_service(profile: Profile, name: str) -> Iterator[Claim | LeftOut]:
    """What is claimed of a service that HAProxy carries, beyond its answers and shares."""
    service = profile.services[name]
    if service.transparent:
        yield from transparent.about_service(name)
    yield from persistence.about_service(profile, name)
    if service.protocol == "http":
        text = f"servers of {name} learn the client's address, and clients cannot forge it"
        group = "client-headers" if service.transparent else "client-address"
        yield Claim(f"{group}/{name}", text, partial(client_address, name=name))
        yield from _about_names(profile, name)


def _about_names(profile: Profile, name: str) -> Iterator[Claim | LeftOut]:
    service = profile.services[name]
    if service.routes or service.unknown_hosts != "pool":
        text = f"the name that clients of {name} ask for decides who answers, and whether anybody does"
        yield Claim(f"names/{name}", text, partial(names, name=name))
    for number, route in enumerate(service.routes):
        if route.example is None:
            yield LeftOut(
                f"names/{name}/{number + 1}",
                "its expressions are HAProxy's to understand: there is no name of which the model is sure",
            )


UNKNOWN_NAME = "unknown.invalid"
"""A name of nobody's (RFC 2606, 2)."""
SILENCE_MS = 4000.0
"""Longer than any answer takes, and shorter than the lab's patience; a tarpit says nothing until much later."""
MISDIRECTED = 421


def names(lab: LabNetwork, name: str) -> Outcome:
    """Each name that the model is sure about, and one that nobody has: whose servers answer, or which status comes."""
    service = lab.profile.services[name]
    wrong: list[str] = []
    figures: list[str] = []
    asked = [route.example for route in service.routes if route.example is not None]
    asked += [service.own_name] if service.own_name is not None else []
    for endpoint, port in targets(lab.profile, name):
        point = lab.client_for(endpoint, name)
        for host in (*dict.fromkeys(asked), UNKNOWN_NAME):
            pool = service.pool_for(host)
            answer = lab.get(point, endpoint.address, port, headers={"Host": host})
            who = lab.pools_of(answer.server) if answer.status == 200 else ()
            if pool is not None:
                good, seen = pool in who, "/".join(who) or f"status {answer.status} {answer.error}".strip()
            elif service.unknown_hosts == "refuse":
                good, seen = answer.status == MISDIRECTED, f"status {answer.status}"
            else:
                good = not answer.status and answer.took_ms >= SILENCE_MS
                seen = "silence" if good else f"status {answer.status} after {answer.took_ms / 1000:.1f} s"
            figures.append(f"{host}: {seen}")
            if not good:
                wrong.append(f"{host} at {endpoint.address}: {seen}, expected {pool or service.unknown_hosts}")
    return Outcome(not wrong, ", ".join(dict.fromkeys(figures)), "; ".join(wrong))


FORGED = {
    "X-Forwarded-For": "192.0.2.66", "X-Forwarded-Proto": "https", "X-Forwarded-Host": "forged.invalid",
    "Forwarded": "for=192.0.2.66", "X-Real-IP": "192.0.2.66", "X-Client-IP": "192.0.2.66",
    "True-Client-IP": "192.0.2.66", "X-Remote-User": "forged", "X-WebAuth-Role": "Admin", "X-SSL-Cert": "forged",
    "X-ARR-SSL": "forged", "X-SSL-Request": "forged", "X-SSL-Client-Verify": "SUCCESS",
    "X-MS-Client-Principal-Name": "forged", "X-Original-URL": "/forged", "Proxy": "forged.invalid:80",
    "Connection": "close, X-Forwarded-For",
}  # fmt: skip
"""What a client sends that wants to be somebody else: one header or more of each group of claimed_headers."""
DISGUISED = {"X_Forwarded_For": "192.0.2.66"}
"""The same with other characters than `-`. A HAProxy that cannot delete headers by a pattern refuses such a request."""
REFUSED = 403
SET_BY_US = ("X-Forwarded-For", "X-Forwarded-Proto")


def client_address(lab: LabNetwork, name: str) -> Outcome:
    """X-Forwarded-For and -Proto at the server, and none of the forged headers that were sent along."""
    wrong: list[str] = []
    seen = ""
    for endpoint, port in targets(lab.profile, name):
        point = lab.client_for(endpoint, name)
        own = str(point.address(endpoint.address.version))
        answer = lab.get(point, endpoint.address, port, headers=FORGED)
        seen = answer.seen_header("x-forwarded-for") or ""
        if seen != own:
            wrong.append(f"X-Forwarded-For is '{seen}', the client is {own}")
        proto = answer.seen_header("x-forwarded-proto")
        if proto != ("http" if lab.profile.services[name].tls is None else "https"):
            wrong.append(f"X-Forwarded-Proto is '{proto}'")
        told = answer.seen_header("x-ssl-request")
        ended = lab.profile.services[name].tls
        if ended is not None and ended.ended_by.marks_requests and told != "1":
            wrong.append(f"X-SSL-Request is '{told}', and {ended.ended_by.title} adds 1")
        wrong += _arrived(answer, FORGED)
        answer = lab.get(point, endpoint.address, port, headers=DISGUISED)
        refuses = not lab.profile.release.haproxy_header_patterns
        if answer.status != (REFUSED if refuses else 200):
            wrong.append(f"a request with {', '.join(DISGUISED)} gets status {answer.status}")
        wrong += _arrived(answer, DISGUISED)
    return Outcome(not wrong, f"X-Forwarded-For: {seen}", "; ".join(wrong))


def _arrived(answer: Answer, forged: Mapping[str, str]) -> list[str]:
    """Which of a client's own headers a server saw."""
    wrong = []
    for header, value in forged.items():
        # Of Connection: what is not about our own connection to HAProxy.
        claim = value.rpartition(", ")[2].lower()
        if header not in SET_BY_US and claim in (answer.seen_header(header) or "").lower():
            wrong.append(f"the client's own {header} reached the server")
    return wrong
