"""Cross-checks: TLS towards clients and towards servers.

What is in certificates is secret, so that the loader looks at it (`certificate_checks`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ndakit.core.mistakes import KeyPath
from ndakit.core.release import since
from ndakit.model.profile import Profile
from ndakit.model.rules.findings import Finding, error, warning
from ndakit.model.tls import VERSIONS

OLD_VERSIONS = ("1.0", "1.1")
"""Deprecated by RFC 8996."""


def engines(profile: Profile) -> Iterator[Finding]:
    """TLS where HAProxy does not carry the service."""
    for name in profile.ipvs_services:
        service = profile.services[name]
        topology: KeyPath = ("services", name, "topology")
        if service.tls is not None:
            yield error(
                "tls-needs-proxy",
                f"service {name} is {service.topology}, and IPVS hands packets on as they are: it cannot end TLS",
                ("services", name, "tls"),
                ("write topology: proxy, or " if service.proxiable else "") + "delete tls, and let the servers end TLS",
                other=topology,
            )  # fmt: skip
        pool = profile.pools.get(service.main_pool)
        if pool is not None and pool.speaks_tls:
            yield error(
                "tls-needs-proxy",
                f"pool {service.pool} says TLS to the servers, and behind service {name} ({service.topology}) clients "
                "speak with them themselves",
                ("pools", service.main_pool, "to_servers"), "delete it, or write a pool of its own for the service",
                other=topology,
            )  # fmt: skip


def protocols(profile: Profile) -> Iterator[Finding]:
    """Keys of `tls` that need http."""
    for name in profile.haproxy_services:
        service = profile.services[name]
        if service.tls is None or service.protocol == "http":
            continue
        for key in ("hsts_s", "alpn"):
            if key in service.tls.model_fields_set:
                yield error(
                    "tls-needs-http", f"service {name} is {service.protocol}, and {key} is about http",
                    ("services", name, "tls", key), "delete it, or write protocol: http",
                    other=("services", name, "protocol"),
                )  # fmt: skip


def versions(profile: Profile) -> Iterator[Finding]:
    """TLS versions that the policy has no ciphers for, that the release does not know, or that are too old."""
    for name in profile.haproxy_services:
        tls = profile.services[name].tls
        if tls is None:
            continue
        key = "min_version" if tls.min_version is not None else "policy"
        at: KeyPath = ("services", name, "tls", key)
        empty = next((v for v in tls.versions if not tls.rules.carries(v)), None)
        if empty is not None:
            first = next(v for v in VERSIONS if tls.rules.carries(v))
            better = "old" if empty in OLD_VERSIONS else "intermediate"
            yield error(
                "tls-without-cipher",
                f"service {name} takes clients of TLS {empty}, and policy {tls.policy} has no ciphers for them",
                at, f'write policy: {better}, or min_version: "{first}"', other=("services", name, "tls", "policy"),
            )  # fmt: skip
        elif tls.lowest in OLD_VERSIONS:
            yield warning(
                "tls-old",
                f"service {name} takes clients of TLS {tls.lowest}, which browsers gave up and RFC 8996 forbids",
                at, 'write min_version: "1.2"' + (" and policy: intermediate" if tls.policy == "old" else ""),
            )  # fmt: skip
        if tls.lowest == "1.3" and not profile.release.tls13:
            yield error(
                "tls-of-release",
                f"service {name} takes clients of TLS 1.3 only, and the OpenSSL of OpenWrt {profile.release} (1.0.2) "
                "does not know it",
                at, f"write policy: intermediate, or use release {since(19, 7)}", other=("release",),
            )  # fmt: skip


def servers(profile: Profile) -> Iterator[Finding]:
    """TLS towards servers: whom they are taken for, and how they are asked."""
    for name, pool in profile.pools.items():
        users = profile.haproxy_services_of(name)
        if pool.to_servers is None or not pool.to_servers.tls or not users:
            continue
        at: KeyPath = ("pools", name, "to_servers")
        if pool.to_servers.verify == "none":
            yield warning(
                "servers-not-verified",
                f"the servers of pool {name} are asked over TLS, and nobody looks at their certificates: who sits in "
                "between can read and change everything",
                (*at, "verify"), "write verify: system, or verify: FILE with the CA that signed their certificates",
            )  # fmt: skip
        elif pool.to_servers.name is None and not any(profile.services[s].names_for(name) for s in users):
            yield error(
                "server-name-missing",
                f"the certificates of pool {name}'s servers are looked at, and no name says whose they have to be",
                at, "add name: to it, the name in those certificates; or hostnames: to the service",
                also=(("services", users[0]),),
            )  # fmt: skip
        if pool.check.type == "http" and pool.check.port is None:
            yield error(
                "check-without-tls",
                f"the servers of pool {name} speak TLS, and the check asks them without",
                ("pools", name, "check"), "write check: https, or name the check's own port", other=(*at, "tls"),
            )  # fmt: skip


RULES: tuple[Callable[[Profile], Iterator[Finding]], ...] = (engines, protocols, versions, servers)
