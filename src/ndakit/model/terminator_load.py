"""How much the programs that end TLS in front of HAProxy can hold, and how long they wait for it.

Pound and stunnel have a thread for each client's connection, so that their limit is one of memory (measured:
docs/pound.md, docs/stunnel.md).
"""

from __future__ import annotations

from ndakit.model.capacity import RESERVE, capacity_of, service_limits
from ndakit.model.http import TARPIT_S
from ndakit.model.profile import Profile
from ndakit.model.terminators import Terminator

CONNECTIONS_LEAST, CONNECTIONS_MAX = 64, 4000
"""Their connections: a number that every device carries, and one that the kernel's limits on threads still take."""
REPLY_SLACK_S = 5.0
"""They wait this much longer than HAProxy, so that HAProxy's own answer (503, 504) reaches the client."""


def connections_max(profile: Profile, terminator: Terminator) -> int:
    """The clients' connections that a terminator takes at once; further ones wait. What HAProxy, the kernel and OpenWrt
    leave of the memory, by halves where two of them run, and not more than its services take."""
    size = capacity_of(profile)
    services = profile.terminated_services(terminator)
    wanted = sum(limit for name, limit in service_limits(profile, size.usual_max) if name in services)
    left_bytes = max(0, size.memory_mib - size.memory_needed_mib) * 2**20 // max(1, len(profile.terminators))
    return max(CONNECTIONS_LEAST, min(wanted + RESERVE, left_bytes // terminator.connection_bytes, CONNECTIONS_MAX))


def patience_s(profile: Profile, name: str) -> float:
    """The longest time after which HAProxy has answered a request of a service by itself: a tarpit, or the queue, every
    attempt to connect, and the server's answer."""
    service = profile.services[name]
    waits = service.timeouts
    retries = max((profile.pools[pool].retries for pool in service.pools), default=0)
    answered_s = waits.queue_s + (retries + 1) * waits.connect_s + waits.server_s
    return max(answered_s, TARPIT_S if service.unknown_hosts == "tarpit" else 0)
