"""What a lab host is, and how its web servers behave: values that are sent to the machine as they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypedDict


@dataclass(frozen=True)
class HostInterface:
    """A card of a host: its segment, its MAC address, its addresses with prefix lengths, its VLAN if tagged."""

    segment: str
    mac: str
    addresses: tuple[str, ...]
    vlan: int | None = None


@dataclass(frozen=True)
class HostSpec:
    """A host: cards eth0, eth1, … in this order; `gateways` are default routes, `routes` others as (network, gateway).

    An empty gateway stands for the network of the only card; with one card, a gateway may lie outside of its addresses'
    networks.

    `loopback` are addresses on lo (what lies behind a router; a virtual address of direct routing), `sysctls` are set
    before any address. Addresses are usable at once (no duplicate detection), and neighbours are asked for every 20 ms.
    """

    name: str
    interfaces: tuple[HostInterface, ...]
    gateways: tuple[str, ...] = ()
    routes: tuple[tuple[str, str], ...] = ()
    loopback: tuple[str, ...] = ()
    forwarding: bool = False
    sysctls: Mapping[str, str] = field(default_factory=dict)


class Behaviour(TypedDict, total=False):
    """How a web server behaves; see Web.set."""

    mode: Literal["answer", "hang", "refuse", "reset"]
    status: int
    delay_ms: float
    body_size: int
    keep_alive: bool
    pages: Mapping[str, tuple[int, str | None]]
