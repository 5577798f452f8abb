"""stunnel's side of a profile: a section for each address and port of the services for which it ends TLS, and one for
each name that has another certificate than the first.

stunnel takes the first section, in the order of its file, whose `sni` is the name that a client asks for. `*` stands
for dots too there, and of several `sni` in one section only the last counts (seen with 5.68): so each name has its own
section, names without `*` come first, and of wildcards the longer ones. Which names a certificate has is read from
itself: they are public. Text is the template's business.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from ndakit.core.addresses import authority
from ndakit.load.certificates import read
from ndakit.load.secrets import Secrets
from ndakit.model import Profile, Service
from ndakit.model.terminator_load import REPLY_SLACK_S, connections_max, patience_s
from ndakit.model.terminators import STUNNEL
from ndakit.model.tls import POLICIES, Tls
from ndakit.render.engines.haproxy_tls import certificate_path, ciphers
from ndakit.render.node import NodeView

HELLO_S = 10
"""How long a client has to shake hands, as for the head of a request in HAProxy."""
FILES_PER_CLIENT, FILES_BESIDE = 2, 16
"""Its files are its limit of clients: one towards each client, one towards HAProxy, and those of its own (seen with
5.68: further clients wait in the kernel)."""
_SERVER_NAME = re.compile(r"(\*\.)?[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")


@dataclass(frozen=True)
class TlsSection:
    """A section of stunnel.conf: one that listens (`accept`), or one for a name (`sni`)."""

    service: str
    name: str
    accept: str
    """Address and port as stunnel writes them, `2001:db8::10:443`; empty for a name's section."""
    sni: str
    """The section that listens and the name, `shop-1:*.example`; empty for one that listens."""
    certificate: str
    inner_port: int
    """Where HAProxy takes the connections."""
    lowest: str
    """The lowest TLS version, as stunnel writes it."""
    ciphers: str
    """Of the versions before 1.3; empty where there are none."""
    own_order: bool
    """The server's order of ciphers counts."""
    connect_s: int
    idle_s: int


@dataclass(frozen=True)
class StunnelView:
    """Everything stunnel.conf and its init script need."""

    sections: tuple[TlsSection, ...]
    certificates: tuple[str, ...]
    """Their files."""
    clients_max: int
    files_max: int
    suites: str
    curves: str
    hello_s: int = HELLO_S


def stunnel(node: NodeView, secrets: Secrets) -> StunnelView:
    """stunnel's view of a node. `secrets` holds the certificates."""
    profile = node.profile
    sections = tuple(s for name in profile.stunnel_services for s in _sections(profile, name, secrets))
    clients = connections_max(profile, STUNNEL)
    files = tuple(dict.fromkeys(section.certificate for section in sections))
    listening = sum(1 for section in sections if section.accept)
    policy = POLICIES["intermediate"]  # all have the same suites and curves
    return StunnelView(
        sections, files, clients, FILES_PER_CLIENT * clients + FILES_BESIDE + listening, ":".join(policy.suites),
        ":".join(policy.curves),
    )  # fmt: skip


def _sections(profile: Profile, name: str, secrets: Secrets) -> Iterator[TlsSection]:
    service = profile.services[name]
    tls = service.tls
    assert tls is not None, "it is one of stunnel's services"
    names = _names(tls, secrets)
    number = 0
    for endpoint in profile.endpoints(name):
        for low, high in endpoint.ports:
            for port in range(low, high + 1):
                number += 1
                listening = f"{name}-{number}"
                accept = f"{endpoint.address}:{port}" if endpoint.address.version == 6 else authority(
                    endpoint.address, port
                )  # fmt: skip
                first = tls.certificates[0].secret
                yield _section(profile, name, service, tls, listening, first, accept=accept)
                for nth, (pattern, secret) in enumerate(names, 1):
                    sni = f"{listening}:{pattern}"
                    yield _section(profile, name, service, tls, f"{listening}.{nth}", secret, sni=sni)


def _names(tls: Tls, secrets: Secrets) -> list[tuple[str, str]]:
    """Names and wildcards with the secret of their certificate, in the order in which stunnel is to compare them. With
    one certificate there are none: everybody gets it."""
    if len(tls.certificates) == 1:
        return []
    by_name: dict[str, str] = {}
    for reference in tls.certificates:
        for name in read(secrets[reference.secret].reveal()).names:
            if _SERVER_NAME.fullmatch(name) and not name.replace(".", "").isdigit():
                by_name.setdefault(name, reference.secret)
    exact = [pair for pair in by_name.items() if not pair[0].startswith("*")]
    wild = [pair for pair in by_name.items() if pair[0].startswith("*")]
    return exact + sorted(wild, key=lambda pair: -pair[0].count("."))


def _section(
    profile: Profile,
    service_name: str,
    service: Service,
    tls: Tls,
    name: str,
    secret: str,
    accept: str = "",
    sni: str = "",
) -> TlsSection:
    waits = service.timeouts
    quiet_s = max(waits.client_s, waits.tunnel_s or 0, patience_s(profile, service_name))
    return TlsSection(
        service=service_name,
        name=name,
        accept=accept,
        sni=sni,
        certificate=certificate_path(secret),
        inner_port=profile.inner_ports[service_name],
        lowest="TLSv1" if tls.lowest == "1.0" else f"TLSv{tls.lowest}",
        ciphers=ciphers(tls.rules, tls.lowest, profile.release) if tls.rules.ciphers else "",
        own_order=tls.policy == "old",
        connect_s=math.ceil(waits.connect_s),
        idle_s=math.ceil(quiet_s + REPLY_SLACK_S),
    )
