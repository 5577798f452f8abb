"""What a claim and its outcome are, and the small questions that several claims ask of the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ndakit.lab.clients import ServicePort
from ndakit.lab.network import LabNetwork
from ndakit.lab.plan import VantagePoint
from ndakit.model import Address, Endpoint, Profile, Service

LAB_PER_S, LAB_BURST = 20.0, 20
LAB_CONNECTIONS_PER_S, LAB_AT_ONCE = 200, 64
"""What the lab asks of a service in a second, in a row, and at once: its pollers connect every 10 ms, and ask for a
page every 100 ms; requests one after the other keep to half of what a service takes (`LabPeople.load`)."""
SLACK_S = 2.0
"""Beyond the time that checks take to see a server die or return: emulation, and asking the nodes."""


@dataclass(frozen=True)
class Outcome:
    """What came of a claim: does it hold, its figure for people, more words if not, and values for scripts."""

    ok: bool
    figure: str
    detail: str = ""
    values: dict[str, float | int | str] = field(default_factory=dict)


@dataclass(frozen=True)
class Claim:
    """One statement about the pair. `name` is group/subject; `text` a sentence; `run` finds out."""

    name: str
    text: str
    run: Callable[[LabNetwork], Outcome]
    needs: tuple[str, ...] = ()
    """Claims that have to be tried, and hold, before this one."""
    thorough: bool = False
    """Left out where one only wants to be shown the whole (demo)."""
    beside: bool = False
    """It only looks, so that the claims next to it that only look too may be tried at the same time."""
    timeless: bool = False
    """It compares names, addresses or settings with the profile. A value that differs does so on a quick machine too,
    so that no busy machine excuses it; only an error of the lab, which kept it from being looked at, may be one's."""
    again: Callable[[LabNetwork], None] = LabNetwork.put_back
    """Brings the lab, after a try that failed, back into the state in which the claim can be tried once more."""


@dataclass(frozen=True)
class LeftOut:
    """Something that a profile says and that is not tried, and why."""

    name: str
    reason: str


def unasked(profile: Profile, service: str) -> str:
    """Why nobody in the lab can ask a service and be answered by its servers; empty if somebody can."""
    settings = profile.services[service]
    clients = settings.tls.client_certificates if settings.tls is not None else None
    if clients is not None and clients.mode == "required":
        return "clients need a certificate of their own, and only its owner has the key"
    if settings.unknown_hosts != "pool" and settings.own_name is None:
        return "no name that the profile states leads to its own pool"
    if settings.maintenance:
        return "it is in maintenance, so that strangers do not reach its servers"
    if why := _too_slow(settings):
        return why
    return next((why for pool in settings.pools if (why := unanswered(profile, pool))), "")


def _too_slow(service: Service) -> str:
    """Why one client may not ask a service as often as the lab does; empty if it may."""
    requests = service.limits.requests if service.limits is not None else None
    connections = service.limits.connections if service.limits is not None else None
    if requests is not None and (requests.count / requests.per_s < LAB_PER_S or requests.count < LAB_BURST):
        return f"one client may ask {requests.count} times in {requests.per_s} s, and the lab asks more often"
    if connections is not None and connections.per_s is not None and connections.per_s < LAB_CONNECTIONS_PER_S:
        return f"it takes {connections.per_s} connections a second, and the lab makes more"
    if connections is not None and connections.per_client is not None and connections.per_client < LAB_AT_ONCE:
        return f"one client may have {connections.per_client} connections, and the lab has more"
    return ""


def unanswered(profile: Profile, pool: str) -> str:
    """Why a pool's servers in the lab are not taken for its own; empty if they are."""
    towards = profile.pools[pool].to_servers
    if towards is not None and towards.tls and towards.verify != "none":
        return f"the lab's servers of {pool} have no certificate that its `verify` believes"
    return ""


def asked_services(profile: Profile) -> tuple[str, ...]:
    """The services whose servers somebody in the lab can reach through them."""
    return tuple(name for name in profile.served if not unasked(profile, name))


def targets(profile: Profile, service: str) -> list[tuple[Endpoint, int]]:
    """A service's endpoints with the ports that are tried: both ends of every range."""
    return [(e, p) for e in profile.endpoints(service) for low, high in e.ports for p in dict.fromkeys((low, high))]


def first_service_port(profile: Profile, service: str) -> ServicePort:
    """A service's first address and port."""
    return ServicePort(service, *targets(profile, service)[0])


def service_port(profile: Profile, pool: str) -> ServicePort | None:
    """A service in front of a pool, with an address and port to try."""
    named = (name for name in asked_services(profile) if profile.services[name].pool == pool)
    return next((first_service_port(profile, name) for name in named), None)


def reachable_addresses(lab: LabNetwork, node: str, point: VantagePoint) -> list[Address]:
    """The node's own addresses in the network in which a host of the lab sits."""
    own = lab.profile.nodes[node].addresses.get(lab.plan.hosts[point.host].network, ())
    return [a for a in own if point.address(a.version) is not None]


def share_text(shares: dict[str, int]) -> str:
    """`web1 67 %, web2 33 %`."""
    total = sum(shares.values()) or 1
    return ", ".join(f"{n} {100 * c / total:.0f} %" for n, c in sorted(shares.items())) or "no answer"
