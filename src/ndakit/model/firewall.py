"""The profile's own firewall rules: what is open, or shut, beyond what the rest of the profile says.

They are about packets to the balancer itself (its own addresses and its VIPs); what passes through is the business of
`egress`.
"""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, PlainSerializer, WithJsonSchema, model_validator

from ndakit.core.names import Name, is_name
from ndakit.model.base import Model, as_list, mistake
from ndakit.model.traffic import Ports

Protocol = Literal["tcp", "udp", "icmp", "gre", "esp", "ah", "ospf", "all"]


def _source(value: Any) -> Any:
    if not isinstance(value, str) or is_name(value):
        return value
    try:
        return ip_network(ip_address(value))
    except ValueError:
        pass
    try:
        return ip_network(value)
    except ValueError:
        raise mistake(
            "source", "'{got}' is neither a name of access.sources nor an address or subnet", got=value[:60],
            fix="write one of those names, or 192.0.2.7, or 192.0.2.0/24",
        ) from None  # fmt: skip


Source = Annotated[
    IPv4Network | IPv6Network | str,
    BeforeValidator(_source),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string"}),
]


class Opening(Model):
    """Some packets to the balancer: where they come in, their protocol, and who sends them."""

    network: Name
    """The network on which they come in."""
    protocol: Protocol
    """`tcp`, `udp`, `gre`, `esp`, `ah`, `ospf`; `icmp`: pings (without a rule they are accepted from everywhere, up to
    1000 a second); `all`: every protocol (deny only)."""
    port: Ports | None = None
    """tcp, udp: the ports there: one, a range such as 10000-10100, or a list."""
    sources: Annotated[tuple[Source, ...], BeforeValidator(as_list)] = ()
    """The senders: names of `access.sources`, addresses or subnets; without it everybody. The rule counts for their IP
    families."""

    @model_validator(mode="after")
    def _port_of_protocol(self) -> Self:
        if self.port is not None and self.protocol not in ("tcp", "udp"):
            raise mistake(
                "port-of-protocol", "{protocol} has no ports", protocol=self.protocol,
                fix="leave port out, or write protocol: tcp",
            )  # fmt: skip
        return self

    def covers(self, protocol: str, port: int | None) -> bool:
        """True if it is about a protocol and port."""
        if self.protocol not in ("all", protocol):
            return False
        return self.port is None or (port is not None and any(low <= port <= high for low, high in self.port))


class Firewall(Model):
    """Firewall rules beside those that follow from the other keys. Everything that no rule opens is closed."""

    allow: dict[Name, Opening] = Field(default={})
    """Packets to accept besides, by name of the rule."""
    deny: dict[Name, Opening] = Field(default={})
    """Packets to drop although a service or an allow rule would accept them, by name of the rule. SSH from
    access.sources, IPv6's neighbour discovery and the traffic between the nodes cannot be closed."""
