"""Rules over several objects of a profile, as findings; no I/O, nothing is raised.

Each finding names the two places that disagree. A module's name says what its rules are about; `engines` holds what the
engine of a service does not carry, `ipvs` and `proxy` what follows where IPVS or HAProxy carries it, `request_paths`
the way of requests to servers that see the clients, `reply_paths` the way of their answers. Rules within one object are
validators of its class; rules across profiles are in `load/workspace_checks`.
"""

from __future__ import annotations

from collections.abc import Iterator

from ndakit.model.profile import Profile
from ndakit.model.rules import (
    access,
    addresses,
    capacity,
    device,
    engines,
    firewall,
    host,
    http,
    image,
    ipvs,
    limits,
    listeners,
    packages,
    pair,
    passthrough,
    persistence,
    proxy,
    redirects,
    release,
    reply_paths,
    request_paths,
    routes,
    terminators,
    tls,
    traffic,
    transparent,
)
from ndakit.model.rules.findings import Finding

__all__ = ["Finding", "findings"]

RULES = (
    *addresses.RULES, *routes.RULES, *host.RULES, *access.RULES, *device.RULES,
    *traffic.RULES, *release.RULES, *packages.RULES, *image.RULES, *capacity.RULES,
    *firewall.RULES, *pair.RULES, *engines.RULES, *persistence.RULES, *ipvs.RULES, *request_paths.RULES,
    *reply_paths.RULES,
    *transparent.RULES, *listeners.RULES, *proxy.RULES, *limits.RULES, *http.RULES, *tls.RULES, *redirects.RULES,
    *terminators.RULES, *passthrough.RULES,
)  # fmt: skip


def findings(profile: Profile) -> Iterator[Finding]:
    """Everything the cross-checks find, errors and warnings."""
    for rule in RULES:
        yield from rule(profile)
