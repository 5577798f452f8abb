"""Claims about TLS: which certificate, versions and protocols clients get, who is refused, and where redirects lead."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from ndakit.core.addresses import authority, literal
from ndakit.lab.host import Answer, TlsWanted
from ndakit.lab.network import LabNetwork
from ndakit.lab.plan import VantagePoint
from ndakit.load.certificates import covers
from ndakit.model import Address, Profile
from ndakit.model.tls import VERSIONS, Tls, TlsVersion
from ndakit.verify.claims.base import Claim, LeftOut, Outcome, targets

UNKNOWN_NAME = "unknown.invalid"
"""A name of nobody's (RFC 2606, 2)."""


def about_service(profile: Profile, name: str) -> Iterator[Claim | LeftOut]:
    """What is claimed of a service with TLS, and of one that redirects."""
    service = profile.services[name]
    if service.passes_tls:
        text = f"the name in the TLS hello of {name}'s clients chooses the server, and they get its own certificate"
        yield Claim(f"names/{name}", text, partial(passed, name=name))
    if service.tls is not None:
        clients = service.tls.client_certificates
        if clients is not None and clients.mode == "required":
            text = f"clients of {name} without a certificate get no answer"
            yield Claim(f"tls/{name}", text, partial(refused, name=name))
            return
        text = (
            f"clients of {name} get the certificate of the name that they ask for, by TLS from {service.tls.lowest} on"
        )
        yield Claim(f"tls/{name}", text, partial(tls, name=name))
    if service.redirect is not None:
        yield Claim(
            f"redirect/{name}", f"clients of {name} are sent to {service.redirect.to}", partial(redirect, name=name)
        )


@dataclass(frozen=True)
class _Place:
    """Where somebody shakes hands: who, at which address and port of a service."""

    lab: LabNetwork
    service: str
    wanted: Tls
    point: VantagePoint
    address: Address
    port: int

    def handshake(self, wish: TlsWanted) -> Answer:
        return self.lab.handshake(self.point, self.address, self.port, wish)


def _places(lab: LabNetwork, name: str) -> Iterator[_Place]:
    wanted = lab.profile.services[name].tls
    assert wanted is not None, "claimed of services with TLS only"
    for endpoint, port in targets(lab.profile, name):
        yield _Place(lab, name, wanted, lab.client_for(endpoint, name), endpoint.address, port)


def tls(lab: LabNetwork, name: str) -> Outcome:
    """Handshakes at every address: with each name, with a name of nobody's, with each version by itself, with the
    protocols in the wrong order."""
    service = lab.profile.services[name]
    wrong: list[str] = []
    handshakes = 0
    spoken: tuple[TlsVersion, ...] = ()
    for place in _places(lab, name):
        told = [*_names(place, service.client_names), *_versions(place)]
        told += _protocols(place) if service.protocol == "http" and place.wanted.ended_by.carries("h2") else ()
        handshakes += len(told)
        spoken = _spoken(place)
        wrong += [f"{authority(place.address, place.port)}: {one}" for one in told if one]
    figure = f"TLS {', '.join(spoken)}; {len(service.client_names)} name(s), {handshakes} handshakes"
    return Outcome(not wrong and handshakes > 0, figure, "; ".join(wrong), {"handshakes": handshakes})


def _names(place: _Place, hostnames: tuple[str, ...]) -> Iterator[str]:
    """What is wrong with the certificate of each name; an empty text for each that is right."""
    ours = [place.lab.certificates[reference.secret] for reference in place.wanted.certificates]
    for host in hostnames:
        asked = host.replace("*", "any", 1)
        right = {bundle.fingerprint for bundle in ours if covers(bundle, host)}
        handshake = place.handshake(TlsWanted(asked))
        if not handshake.tls:
            yield f"{asked} gets no connection ({handshake.error})"
        else:
            sha256 = handshake.tls["sha256"]
            yield "" if sha256 in right else f"{asked} gets another certificate ({sha256[:16]}…)"
    handshake = place.handshake(TlsWanted(UNKNOWN_NAME))
    if place.wanted.unknown_name == "refuse":
        yield f"{UNKNOWN_NAME} gets a connection" if handshake.tls else ""
    else:
        right_one = handshake.tls.get("sha256") == ours[0].fingerprint
        yield "" if right_one else f"{UNKNOWN_NAME} does not get the first certificate ({handshake.error})"


def _spoken(place: _Place) -> tuple[TlsVersion, ...]:
    """The versions that a service speaks on its release."""
    return tuple(v for v in place.wanted.versions if v != "1.3" or place.lab.profile.release.tls13)


def _versions(place: _Place) -> Iterator[str]:
    spoken = _spoken(place)
    for version in VERSIONS:
        if version in place.wanted.versions and version not in spoken:
            continue  # the lab's OpenSSL is newer than the release's, and may speak it
        handshake = place.handshake(TlsWanted(place.lab.name_asked(place.service), lowest=version, highest=version))
        if version in spoken:
            yield "" if handshake.tls.get("version") == version else f"TLS {version} is refused ({handshake.error})"
        else:
            yield f"TLS {version} is spoken" if handshake.tls else ""


def _protocols(place: _Place) -> Iterator[str]:
    """The server's order counts, not the client's."""
    offered = place.wanted.protocols
    wish = TlsWanted(place.lab.name_asked(place.service), alpn=tuple(reversed(offered)))
    chosen, first = place.handshake(wish).tls.get("alpn", ""), offered[0]
    yield "" if chosen == first else f"the protocol is '{chosen}' and not {first}"


def passed(lab: LabNetwork, name: str) -> Outcome:
    """Requests inside of TLS that passes through: for each name of a route and of the service's own pool, for a name of
    nobody's and for none. Whose servers answer, and whether their own certificate came; or that nothing does."""
    service = lab.profile.services[name]
    asked = [route.example for route in service.routes if route.example is not None]
    asked += [service.own_name] if service.own_name is not None else []
    wrong: list[str] = []
    figures: list[str] = []
    for endpoint, port in targets(lab.profile, name):
        point = lab.client_for(endpoint, name)
        for host in (*dict.fromkeys(asked), UNKNOWN_NAME, ""):
            pool = service.pool_for(host)
            answer = lab.get(point, endpoint.address, port, name=host)
            who = lab.pools_of(answer.server) if answer.status == 200 else ()
            seen = "/".join(who) or f"nothing ({answer.error or answer.status})"
            shown = host or "no name"
            figures.append(f"{shown}: {'/'.join(who) or 'nothing'}")
            at = authority(endpoint.address, port)
            if pool is None and answer.tls:
                wrong.append(f"{shown} at {at} gets a connection, and should get none")
            elif pool is not None and pool not in who:
                wrong.append(f"{shown} at {at}: {seen}, expected {pool}")
            elif pool is not None and answer.tls.get("sha256") != lab.certificate_of(answer.server):
                wrong.append(f"{shown} at {at} gets a certificate that is not that of {answer.server}")
    return Outcome(not wrong and bool(figures), ", ".join(dict.fromkeys(figures)), "; ".join(wrong))


def refused(lab: LabNetwork, name: str) -> Outcome:
    """A request by a client that shows no certificate, where one is required."""
    wrong: list[str] = []
    said = ""
    for place in _places(lab, name):
        answer = lab.get(place.point, place.address, place.port)
        said = answer.error
        if answer.status or not said.startswith(("tls: ", "reset", "ended")):
            at = authority(place.address, place.port)
            wrong.append(f"{at}: status {answer.status} {answer.error}".rstrip())
    return Outcome(not wrong and bool(said), f"refused ({said})", "; ".join(wrong))


def redirect(lab: LabNetwork, name: str) -> Outcome:
    """What a request is answered: the status, and the place in its Location."""
    service = lab.profile.services[name]
    assert service.redirect is not None, "claimed of services that redirect only"
    wrong: list[str] = []
    location = ""
    for endpoint, port in targets(lab.profile, name):
        at, point = authority(endpoint.address, port), lab.client_for(endpoint, name)
        host = next((h.replace("*", "any", 1) for h in service.hostnames), literal(endpoint.address))
        answer = lab.get(point, endpoint.address, port, path="/lab?a=b", headers={"Host": host})
        location = answer.header("location") or ""
        expected = location_of(lab.profile, name, endpoint.address, host, "/lab?a=b")
        if (answer.status, location) != (service.redirect.status, expected):
            wrong.append(
                f"{at}: status {answer.status} to '{location}' and not to '{expected}' {answer.error}".rstrip()
            )
    return Outcome(not wrong and bool(location), f"{service.redirect.status} to {location}", "; ".join(wrong))


def location_of(profile: Profile, name: str, address: Address, host: str, path: str) -> str:
    """Where a service that redirects sends a request for a host and path that came to one of its addresses."""
    wanted = profile.services[name].redirect
    assert wanted is not None, "asked of services that redirect only"
    if wanted.to_https:
        port = profile.https_port(address)
        base = f"https://{host}" + ("" if port == 443 else f":{port}")
        return base + (path if wanted.keep_path else "/")
    return wanted.to.rstrip("/") + path if wanted.keep_path else wanted.to
