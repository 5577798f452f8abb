"""Pound in front of HAProxy: which services it ends TLS for, where it hands them on, and how much it can hold.

Pound has a thread for each client's connection, so that its limit is one of memory. Measured with Pound 4.19 and 500
idle TLS connections (docs/pound.md); the ports are facts of ours, like those of the peers.
"""

from __future__ import annotations

from ndakit.model.capacity import RESERVE, capacity_of, service_limits
from ndakit.model.profile import Profile

CONNECTION_BYTES = 96 * 1024
"""What a connection costs Pound: its thread's stack, as far as it is used, and OpenSSL's buffers."""
WORKERS_LEAST, WORKERS_MAX = 64, 4000
"""Pound's connections: a number that every device carries, and one that the kernel's limits on threads still take."""
SINCE = (19, 7)
"""The first release with an OpenSSL that Pound takes (1.1)."""
LISTENERS_MAX = 64
"""Addresses and ports of one service: each is a listener of its own in pound.cfg."""
REPLY_SLACK_S = 5.0
"""Pound waits this much longer than HAProxy, so that HAProxy's own answer (503, 504) reaches the client."""


def workers(profile: Profile) -> int:
    """The clients' connections that Pound takes at once; further ones wait. What HAProxy, the kernel and OpenWrt leave
    of the memory, and not more than its services take."""
    size = capacity_of(profile)
    wanted = sum(limit for name, limit in service_limits(profile, size.usual_max) if name in profile.pound_services)
    room = max(0, size.memory_mib - size.memory_needed_mib) * 2**20 // CONNECTION_BYTES
    return max(WORKERS_LEAST, min(wanted + RESERVE, room, WORKERS_MAX))
