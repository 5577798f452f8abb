"""Rules over several objects of a profile, as findings; no I/O, nothing is raised.

Each finding names the two places that disagree. The rules live in `check_addresses` (who has which address where),
`check_routes` (routes that hide others), `check_host` (cards, VRRP, time), `check_access` (who gets in), `check_device`
(what the device lacks), `check_traffic` (pools and services), `check_release` (what the release cannot do),
`check_packages` (what is to be left out although it is needed), `check_image` (files that platform or device cannot
use), `check_capacity` (does the expected load fit), `check_guard` (the profile's own firewall rules) and `check_pair`
(what the nodes tell each other), `check_ipvs` (what only one of HAProxy and IPVS can do), `check_replies` (the way of
answers), `check_listeners` (who else has a port) and `check_proxy` (what HAProxy's keys mean). Rules within one object
are validators of its class; rules across profiles are in `neighbours`.
"""

from __future__ import annotations

from collections.abc import Iterator

from ndakit.model.profile import Profile
from ndakit.model.rules import (
    access,
    addresses,
    capacity,
    device,
    firewall,
    host,
    image,
    ipvs,
    listeners,
    packages,
    pair,
    proxy,
    release,
    reply_paths,
    routes,
    traffic,
)
from ndakit.model.rules.findings import Finding

__all__ = ["Finding", "findings"]

RULES = (
    *addresses.RULES, *routes.RULES, *host.RULES, *access.RULES, *device.RULES,
    *traffic.RULES, *release.RULES, *packages.RULES, *image.RULES, *capacity.RULES,
    *firewall.RULES, *pair.RULES, *ipvs.RULES, *reply_paths.RULES,
    *listeners.RULES, *proxy.RULES,
)  # fmt: skip


def findings(profile: Profile) -> Iterator[Finding]:
    """Everything the cross-checks find, errors and warnings."""
    for rule in RULES:
        yield from rule(profile)
