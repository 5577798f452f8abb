"""Claims about topology tproxy: servers see the clients' own addresses, their answers come back through the balancers,
and every node, also the one that is not master, has what takes those answers in."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial

from ndakit.core.addresses import authority
from ndakit.lab.frames import decode_segment, mac_text
from ndakit.lab.network import LabNetwork
from ndakit.lab.switch import Frame
from ndakit.model import Address, Profile, transparent
from ndakit.verify.claims.base import Claim, Outcome, targets
from ndakit.verify.claims.ipvs import seen_by_servers, server_trouble

REQUESTS = 8
"""Each makes some ten packets; one that fails takes seconds."""


def about_nodes(profile: Profile) -> Iterator[Claim]:
    """What is claimed of every node of a profile with such services."""
    if transparent.versions(profile):
        for node in profile.nodes:
            text = f"{node} takes in what servers answer to clients' addresses (DIVERT rule, policy rule, local route)"
            yield Claim(f"divert/{node}", text, partial(divert, node=node), beside=True, timeless=True)


def about_service(name: str) -> Iterator[Claim]:
    """What is claimed of such a service, beyond its answers, shares and headers."""
    text = f"servers of {name} see the client's own address"
    yield Claim(f"client-address/{name}", text, partial(seen_client, name=name))
    text = f"answers of the servers of {name} (tproxy) go through the balancers"
    yield Claim(f"way-back/{name}", text, partial(way_back, name=name))


def divert(lab: LabNetwork, node: str) -> Outcome:
    """The three things, in each IP version that a service has."""
    versions = transparent.versions(lab.profile)
    wrong = node_trouble(lab, node)
    return Outcome(not wrong, " and ".join(f"IPv{v}" for v in versions), "; ".join(wrong))


def node_trouble(lab: LabNetwork, node: str) -> list[str]:
    """What a node lacks, one sentence each."""
    facts = lab.facts(node)
    missing = ((version, facts.taken_in(version)) for version in transparent.versions(lab.profile))
    return [f"{node} {what} for IPv{version}" for version, what in missing if what]


def seen_client(lab: LabNetwork, name: str) -> Outcome:
    """The address in the packets that servers get."""
    seen, wrong = seen_by_servers(lab, name)
    return Outcome(not wrong, f"servers see {seen}", "; ".join([*wrong, *_blame(lab, name, wrong)]))


def way_back(lab: LabNetwork, name: str) -> Outcome:
    """Which way the servers' answers to the client take, counted on the wire."""
    service = lab.profile.services[name]
    balancers = {nic.mac for nics in lab.plan.balancers.values() for nic in nics}
    wrong: list[str] = []
    total: Counter[str] = Counter()
    for endpoint, port in targets(lab.profile, name):
        version = endpoint.address.version
        point, at = lab.client_for(endpoint, name), authority(endpoint.address, port)
        client = point.address(version)
        assert client is not None, "client_for gives only those who have one"
        servers = {address for address, _ in transparent.sockets(lab.profile, name, version)}
        watch = _Answers(servers, client, balancers)
        with lab.switch.on_frame(watch.see):
            result = lab.load(point, endpoint.address, port, service.main_pool, REQUESTS)
        total.update(watch.counts)
        if result.failures:
            wrong.append(f"{result.failures} of {result.total} requests to {at} failed")
        if watch.counts["others"]:
            wrong.append(f"{watch.counts['others']} packets of servers to the client of {at} went past the balancers")
        if not watch.counts["balancer"]:
            wrong.append(f"no packet of a server to the client of {at} came to a balancer")
    figure = f"{total['balancer']} packets through the balancers, {total['others']} past them"
    values: dict[str, float | int | str] = {"past": total["others"], "through": total["balancer"]}
    return Outcome(not wrong, figure, "; ".join([*wrong, *_blame(lab, name, wrong)]), values)


class _Answers:
    """Counts the TCP segments from servers to a client, by who is to get them on the wire."""

    def __init__(self, servers: set[Address], client: Address, balancers: set[str]) -> None:
        self._servers = servers
        self._client = client
        self._balancers = balancers
        self._lock = threading.Lock()
        self.counts: Counter[str] = Counter()

    def see(self, frame: Frame) -> None:
        """A frame on the wire, from the switch's thread."""
        segment = decode_segment(frame.data)
        if segment is None or segment.transport != "tcp" or segment.destination != self._client:
            return
        if segment.source in self._servers:
            with self._lock:
                self.counts["balancer" if mac_text(frame.data[:6]) in self._balancers else "others"] += 1


def _blame(lab: LabNetwork, name: str, wrong: list[str]) -> list[str]:
    """Why it may be so, if something is wrong: what a node lacks, then what servers lack."""
    if not wrong:
        return []
    nodes = [node for node in lab.profile.nodes if lab.is_up(node)]
    return [
        *(trouble for node in nodes for trouble in node_trouble(lab, node)),
        *[t for pool in transparent.pools(lab.profile, name) for t in server_trouble(lab, pool)][:3],
    ]
