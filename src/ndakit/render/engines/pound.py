"""Pound's side of a profile: a listener for each address and port of the services for which it ends TLS.

Pound hands every request on to HAProxy on a port of the loopback; which pool gets it is HAProxy's business. Syntax and
defaults: pound(8) of 4.19, all of which 4.16 has as well. Text is the template's business.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ndakit.model import Address, Profile, Service
from ndakit.model.terminator_load import REPLY_SLACK_S, connections_max, patience_s
from ndakit.model.terminators import POUND
from ndakit.model.tls import Tls, TlsVersion
from ndakit.render.engines.haproxy_tls import certificate_path, ciphers
from ndakit.render.node import NodeView

_LOWER: dict[TlsVersion, str] = {"1.0": "SSLv3", "1.1": "TLSv1", "1.2": "TLSv1_1", "1.3": "TLSv1_2"}
"""The lowest version that clients may use → the one below it, which Pound's `Disable` names."""


@dataclass(frozen=True)
class Listener:
    """A ListenHTTPS section."""

    service: str
    name: str
    address: Address
    port: int
    certificates: tuple[str, ...]
    """Files, the first for names that none has."""
    disabled: str
    """The highest TLS version that is not spoken."""
    ciphers: str
    """Of the versions before 1.3, in OpenSSL's words; empty where there are none."""
    client_s: int
    inner_port: int
    """Where HAProxy takes the requests."""
    connect_s: int
    server_s: int
    tunnel_s: int


@dataclass(frozen=True)
class PoundView:
    """Everything pound.cfg needs."""

    listeners: tuple[Listener, ...]
    workers_max: int

    @property
    def services(self) -> tuple[str, ...]:
        """The services, each once."""
        return tuple(dict.fromkeys(listener.service for listener in self.listeners))


def pound(node: NodeView) -> PoundView:
    """Pound's view of a node."""
    profile = node.profile
    listeners: list[Listener] = []
    if not profile.pound_services:
        return PoundView((), 0)
    for name in profile.pound_services:
        inner_port = profile.inner_ports[name]
        service = profile.services[name]
        assert service.tls is not None, "it is one of Pound's services"
        number = 0
        for endpoint in profile.endpoints(name):
            for low, high in endpoint.ports:
                for port in range(low, high + 1):
                    number += 1
                    own = f"{name}-{number}"
                    listeners.append(
                        _listener(profile, service, service.tls, own, name, endpoint.address, port, inner_port)
                    )
    return PoundView(tuple(listeners), connections_max(profile, POUND))


def _listener(
    profile: Profile, service: Service, tls: Tls, label: str, name: str, address: Address, port: int, inner_port: int
) -> Listener:
    return Listener(
        service=name,
        name=label,
        address=address,
        port=port,
        certificates=tuple(certificate_path(reference.secret) for reference in tls.certificates),
        disabled=_LOWER[tls.lowest],
        ciphers=ciphers(tls.rules, tls.lowest, profile.release) if tls.rules.ciphers else "",
        client_s=math.ceil(service.timeouts.client_s),
        inner_port=inner_port,
        connect_s=math.ceil(service.timeouts.connect_s),
        server_s=math.ceil(patience_s(profile, name) + REPLY_SLACK_S),
        tunnel_s=math.ceil(service.timeouts.tunnel_s or service.timeouts.server_s),
    )
