"""TLS in HAProxy's words: what a frontend's binds and a backend's servers get, and which files they read.

Keywords by release: docs/facts.md, TLS. Policies are the model's; whatever differs from the policy that `global` states
is on the line of the bind or server.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ndakit.core.release import Release
from ndakit.model import Profile, Service
from ndakit.model.base import Attachment
from ndakit.model.tls import POLICIES, TlsPolicy, TlsVersion

PRIVATE_FOLDER = "/etc/ndakit/private"
PUBLIC_FOLDER = "/etc/ndakit"
SYSTEM_CAS = "/etc/ssl/certs/ca-certificates.crt"
"""The bundle of OpenWrt's package ca-bundle: HAProxy reads one certificate of each file of a folder, and all of a file
(docs/facts.md, TLS)."""
CERTIFICATES_ON_LINE_MAX = 8
"""More of them are in a file of their own (`crt-list`): HAProxy takes no line of more than 64 words, and nobody reads
one."""
DEFAULT_POLICY = POLICIES["intermediate"]


@dataclass(frozen=True)
class TlsDefaults:
    """What `global` says of TLS; empty texts are left out."""

    min_version: str
    ciphers: str
    suites: str
    curves: str
    no_extra_files: bool
    """HAProxy looks for no files beside a certificate's (2.2; before it always does)."""


@dataclass(frozen=True)
class FrontendTls:
    """TLS of one frontend."""

    words: tuple[str, ...]
    """What follows the address on its `bind` lines."""
    certificates: tuple[str, ...]
    """The names of the secrets that it shows, for people."""
    listed: str
    """The file that lists them, where there are too many for a line; else empty."""
    strict: bool
    """Names that no certificate has get no connection."""
    client_headers: bool
    """Servers are told who the client is by its certificate."""
    hsts: str
    """The value of Strict-Transport-Security; empty without."""


@dataclass(frozen=True)
class CertificateList:
    """A file that lists a service's certificates: where it lies on the node, its text, and for people whose it is."""

    path: str
    content: bytes
    service: str


@dataclass(frozen=True)
class TrustFile:
    """A file of CA certificates or revocation lists: where it lies on the node, and the profile's own file."""

    path: str
    file: Attachment


def defaults(release: Release) -> TlsDefaults:
    """The words of `global`."""
    return TlsDefaults(
        min_version=_version(DEFAULT_POLICY.min_version),
        ciphers=ciphers(DEFAULT_POLICY, DEFAULT_POLICY.min_version, release),
        suites=":".join(DEFAULT_POLICY.suites) if release.tls13 else "",
        curves=":".join(DEFAULT_POLICY.curves) if release.haproxy_curves else "",
        no_extra_files=release.haproxy_curves,
    )


def certificate_path(secret: str) -> str:
    """Where a certificate with its key lies on the node. Its name ends with `.pem`, so that HAProxy never takes one
    secret for what belongs to another one (`shop.pem.ocsp`; configuration manual, ssl-load-extra-files)."""
    return f"{PRIVATE_FOLDER}/{secret}" if secret.endswith(".pem") else f"{PRIVATE_FOLDER}/{secret}/certificate.pem"


def certificate_files(profile: Profile) -> dict[str, str]:
    """Path on the node → the secret that becomes it, for every certificate."""
    names = [
        reference.secret
        for name in profile.haproxy_services
        if (tls := profile.services[name].tls) is not None
        for reference in tls.certificates
    ]
    return {certificate_path(name): name for name in dict.fromkeys(names)}


def certificate_lists(profile: Profile, node: str) -> Iterator[CertificateList]:
    """The lists of the services with many certificates, in the order of the profile: the first line is the default one
    (configuration manual, 5.1, "crt-list")."""
    for name in profile.haproxy_services:
        service = profile.services[name]
        path = _listed(name, service)
        if not path or service.tls is None:
            continue
        head = f"# made by ndakit for {profile.name}, node {node}: change the profile, not this file"
        about = f"# The certificates of service {name}. The first one is for names that none has."
        paths = (certificate_path(reference.secret) for reference in service.tls.certificates)
        yield CertificateList(path, "".join(f"{line}\n" for line in (head, about, *paths)).encode(), name)


def _listed(name: str, service: Service) -> str:
    """The file with the list of a service's certificates; empty where they are on the `bind` lines. No secret's file is
    there: the name of a secret begins with a letter or digit."""
    tls = service.tls
    if tls is None or tls.ended_by.in_front or len(tls.certificates) <= CERTIFICATES_ON_LINE_MAX:
        return ""
    return f"{PRIVATE_FOLDER}/_certificates-of-{name}"


def trust_files(profile: Profile) -> Iterator[TrustFile]:
    """The files of CAs and revocation lists that HAProxy reads."""
    for name in profile.haproxy_services:
        tls = profile.services[name].tls
        clients = tls.client_certificates if tls is not None else None
        if clients is not None:
            yield TrustFile(_client_ca_path(name), clients.ca)
            if clients.revoked is not None:
                yield TrustFile(_revoked_path(name), clients.revoked)
    for name, pool in profile.pools.items():
        if pool.to_servers is not None and pool.to_servers.ca is not None and profile.haproxy_services_of(name):
            yield TrustFile(_server_ca_path(name), pool.to_servers.ca)


def _client_ca_path(service: str) -> str:
    return f"{PUBLIC_FOLDER}/ca-of-clients-{service}.pem"


def _revoked_path(service: str) -> str:
    return f"{PUBLIC_FOLDER}/revoked-clients-{service}.pem"


def _server_ca_path(pool: str) -> str:
    return f"{PUBLIC_FOLDER}/ca-of-servers-{pool}.pem"


def frontend_tls(name: str, service: Service, release: Release) -> FrontendTls | None:
    """TLS of a service's frontend; None if it has none."""
    tls = service.tls
    if tls is None:
        return None
    shown = tuple(reference.secret for reference in tls.certificates)
    hsts = "" if tls.hsts_s is None else f"max-age={tls.hsts_s}"
    if tls.ended_by.in_front:  # clients' TLS has ended before
        return FrontendTls((), shown, "", strict=False, client_headers=False, hsts=hsts)
    policy = tls.rules
    words = ["ssl"]
    listed = _listed(name, service)
    if listed:
        words += ["crt-list", listed]
    else:
        words += [word for secret in shown for word in ("crt", certificate_path(secret))]
    if service.protocol == "http":
        words += ["alpn", ",".join(tls.protocols)]
    if tls.lowest != DEFAULT_POLICY.min_version:
        words += ["ssl-min-ver", _version(tls.lowest)]
    own = ciphers(policy, tls.lowest, release)
    if policy.ciphers and own != ciphers(DEFAULT_POLICY, DEFAULT_POLICY.min_version, release):
        words += ["ciphers", own]
    if tls.policy != "old":
        words.append("prefer-client-ciphers")
    if tls.unknown_name == "refuse":
        words.append("strict-sni")
    clients = tls.client_certificates
    if clients is not None:
        words += ["ca-file", _client_ca_path(name), "verify", clients.mode]
        if clients.revoked is not None:
            words += ["crl-file", _revoked_path(name)]
    return FrontendTls(
        words=tuple(words),
        certificates=shown,
        listed=listed,
        strict=tls.unknown_name == "refuse",
        client_headers=clients is not None and service.protocol == "http",
        hsts=hsts,
    )


def server_words(profile: Profile, pool: str) -> tuple[str, ...]:
    """What TLS adds to the server lines of a pool; empty without TLS to the servers."""
    to_servers = profile.pools[pool].to_servers
    if to_servers is None or not to_servers.tls:
        return ()
    name = server_name(profile, pool)
    words = ["ssl"]
    if to_servers.verify == "none":
        words += ["verify", "none"]
    else:
        words += ["ca-file", SYSTEM_CAS if to_servers.ca is None else _server_ca_path(pool), "verify", "required"]
        words += ["verifyhost", name or ""]
    if name is not None:
        words += ["sni", f"str({name})", "check-sni", name]
    return tuple(words)


def server_name(profile: Profile, pool: str) -> str | None:
    """The name that a pool's servers are asked for over TLS."""
    to_servers = profile.pools[pool].to_servers
    stated = to_servers.name if to_servers is not None else None
    names = (n for s in profile.haproxy_services_of(pool) for n in profile.services[s].names_for(pool))
    return stated or next(names, None)


def _version(version: TlsVersion) -> str:
    return f"TLSv{version}"


def ciphers(policy: TlsPolicy, lowest: TlsVersion, release: Release) -> str:
    """The list for versions before 1.3. OpenSSL 3 does not speak 1.0 and 1.1 above security level 0 (openssl(7),
    SSL_CTX_set_security_level(3))."""
    level = "@SECLEVEL=0:" if lowest in ("1.0", "1.1") and release.openssl3 else ""
    return level + ":".join(policy.ciphers)
