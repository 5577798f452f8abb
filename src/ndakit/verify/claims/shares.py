"""Which server gets how much, by the pool's way of choosing: what a client must see, and how to ask so that it shows.

HAProxy's ways are held against a real HAProxy (tests/render/test_haproxy_live.py), IPVS's against the kernel
(tests/vm/test_schedulers_vm.py).
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping

from ndakit.lab.clients import LoadResult, ServicePort
from ndakit.lab.network import LabNetwork
from ndakit.model import Pool, Profile, Service

# Ways to choose are named here by the engines' own words (model/engines.py).
TOLERANCE = 0.05
"""Round robin is exact but for the checks' and retries' requests: five points."""
STICKY = frozenset({"source", "first", "uri", "sh", "dh", "lblc", "fo", "ovf", "mh"})
"""Ways to choose that send one client, asking one address for one path, to one server. Not lblcr: an address that was
once too much for one server has several."""
HEAVIEST = frozenset({"fo", "ovf"})
"""Those of them that send whoever comes first to the server with the most weight."""
IN_TURN = frozenset({"roundrobin", "rr", "wrr"})
EVENLY = frozenset({"rr", "leastconn"})
"""Those that look at no weight. While all servers are idle HAProxy's leastconn takes them in turn (lb_fwlc.c)."""
BY_LOAD = frozenset({"leastconn", "random", "wlc"})
"""Ways to choose that come near the weights when requests come one after the other. Others (sed, nq, lc) need not."""
RING_POINTS = 16
"""So many points has a server of weight 1 on the ring of HAProxy's `random`; how much of the ring belongs to them is
chance itself, once for all (lb_chash.c, BE_WEIGHT_SCALE)."""
CERTAINTY = 4.0
"""Standard deviations within which chance stays."""
AT_ONCE = 24
"""Connections that are held at once, or a few more, so that every weight gets its whole share."""
AT_ONCE_TOLERANCE = 2.0
"""Connections beside the exact share: one for rounding, one for a request of somebody else."""
AT_ONCE_TIMEOUT_S = 10.0
_BUSY = {"http": b"GET /lab-stream?5000 HTTP/1.1\r\nHost: lab\r\n\r\n", "tcp": b"hello\n"}
"""What the lab's servers are told, so that a connection counts as busy: an answer over HTTP that never ends; a
connection of tcp does so by being there."""


def keeps_one(profile: Profile, service: str) -> bool:
    """True if one client's requests for one path at one address all go to one server."""
    settings = profile.services[service]
    word = settings.carried_by.balance[profile.pools[settings.main_pool].balance]
    return known_by_address(profile, service) or word in STICKY


def known_by_address(profile: Profile, service: str) -> bool:
    """True if a service keeps clients by their address, so that all requests from one go to one server."""
    kept = profile.persistence(service)
    return kept is not None and kept.by_address


def share_errors(profile: Profile, service: str, result: LoadResult) -> list[str]:
    """What is wrong with the shares of one client's requests that came one after the other."""
    name = profile.services[service].main_pool
    pool, engine = profile.pools[name], profile.services[service].carried_by
    word = engine.balance[pool.balance]
    answered = sum(result.shares.values())
    weights = {n: s.share for n, s in pool.servers.items()}
    strangers = set(result.shares) - set(weights)
    if not answered or strangers:
        return [f"answered by {', '.join(sorted(strangers))}, which is not in pool {name}"] if strangers else []
    if early := sorted(n for n in result.shares if n in pool.backups):
        return [f"{', '.join(early)} answered, and is there for the time without the others"]
    if drained := sorted(n for n in result.shares if not weights[n]):
        return [f"{', '.join(drained)} answered, and has weight 0"]
    if word in HEAVIEST and (heaviest := max(weights.values())) > max(weights[n] for n in result.shares):
        return [f"{', '.join(sorted(result.shares))} answered, and not a server of weight {heaviest}"]
    if keeps_one(profile, service):
        if len(result.shares) > 1:
            why = "persistence" if known_by_address(profile, service) else f"balance {pool.balance}"
            return [f"{why} spread one client over {len(result.shares)} servers"]
        first = next(n for n, w in weights.items() if w)
        if word == "first" and first not in result.shares:
            return [f"{', '.join(result.shares)} answered, and {first} comes first"]
        return []
    if engine.counts_ended and any(s.max_connections for s in pool.servers.values()):
        return []  # finished connections count as well, so that a server may be full by now
    if word in EVENLY:
        weights = {n: int(w > 0) for n, w in weights.items()}
    wrong = []
    for server, weight in weights.items() if word in IN_TURN | BY_LOAD else ():
        share, wanted = result.shares.get(server, 0) / answered, weight / sum(weights.values())
        if abs(share - wanted) > _tolerance(pool, word, wanted, answered):
            wrong.append(f"{server} got {share:.0%} instead of {wanted:.0%}")
        elif wanted and not share:
            wrong.append(f"{server} got nothing instead of {wanted:.0%}")
    return wrong


def _tolerance(pool: Pool, word: str, wanted: float, answered: int) -> float:
    """How far a share may be from the wanted one."""
    if word in IN_TURN:
        return TOLERANCE
    if word != "random":
        return 4 * TOLERANCE
    ring, drawn = 1 / (RING_POINTS * pool.total_weight + 1), 1 / answered
    return CERTAINTY * math.sqrt(wanted * (1 - wanted) * (ring + drawn))


def shows_at_once(lab: LabNetwork, service: str, port: int) -> bool:
    """True if a service's servers are chosen by weights that only connections held at once can show: leastconn of
    HAProxy, with servers on which the lab can keep a connection busy, none of them limited."""
    settings = lab.profile.services[service]
    pool = lab.profile.pools[settings.main_pool]
    weights = {s.share for s in pool.servers.values()} - {0}
    return (
        settings.carried_by.balance[pool.balance] == "leastconn"
        and len(weights) > 1
        and not known_by_address(lab.profile, service)
        and not any(s.max_connections for s in pool.servers.values())
        and _holds(settings)
        and lab.speaks(service, port) in _BUSY
    )


def _holds(service: Service) -> bool:
    """True if a service's limits let one client hold twice as many connections as are held here."""
    stated = service.limits.connections if service.limits is not None else None
    requests = service.limits.requests if service.limits is not None else None
    limits = [] if stated is None else [stated.count, stated.per_client, stated.per_s]
    limits += [] if requests is None else [requests.count]
    return all(limit is None or limit > 2 * AT_ONCE for limit in limits)


def hold_at_once(lab: LabNetwork, ahead: ServicePort) -> dict[str, int]:
    """Open connections on which a server goes on answering, one after the other, and who has how many of them at the
    end; nobody is `nobody`."""
    name = lab.profile.services[ahead.service].main_pool
    pool = lab.profile.pools[name]
    labels = {lab.servers[name, s].label: s for s in pool.servers if (name, s) in lab.servers}
    point, address = lab.client_for(ahead.endpoint, ahead.service), ahead.endpoint.address
    host, source = lab.hosts[point.host], point.address(address.version) or ""
    payload = _BUSY[lab.speaks(ahead.service, ahead.port)]
    held, counts = [], Counter[str]()
    try:
        for _ in range(_how_many(pool)):
            call = host.call(address, ahead.port, payload=payload, source=source)
            held.append(call)
            end_s = time.monotonic() + AT_ONCE_TIMEOUT_S
            while not (heard := call.heard()).heard and not heard.error and time.monotonic() < end_s:
                time.sleep(0.02)
            words = heard.first.replace("\r", "").replace("\n", " ").split(" ")
            counts[next((labels[w] for w in words if w in labels), "nobody")] += 1
    finally:
        for call in held:
            call.close(reset=True)
    return dict(counts)


def _how_many(pool: Pool) -> int:
    """Connections to hold: about as many as `AT_ONCE`, so that every weight gets whole ones."""
    return math.ceil(AT_ONCE / pool.total_weight) * pool.total_weight if pool.total_weight <= 2 * AT_ONCE else AT_ONCE


def at_once_errors(profile: Profile, service: str, counts: Mapping[str, int]) -> list[str]:
    """What is wrong with the shares of connections that were there at once."""
    pool = profile.pools[profile.services[service].main_pool]
    total = sum(counts.values())
    wrong = []
    for server, facts in pool.servers.items():
        wanted = total * facts.share / pool.total_weight
        if abs(counts.get(server, 0) - wanted) > AT_ONCE_TOLERANCE:
            wrong.append(f"{server} has {counts.get(server, 0)} of {total} connections at once, not {wanted:.0f}")
    if counts.get("nobody"):
        wrong.append(f"{counts['nobody']} of {total} connections at once were not answered")
    return wrong
