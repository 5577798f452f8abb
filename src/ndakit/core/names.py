"""Constrained names and what they become in UCI, Linux interfaces, firewall zones, HAProxy and keepalived.

Owns the alphabets and the one function per target language. Profile names are lower-case letters, digits and `-`,
so the mappings below are injective as long as nothing is shortened; shortened names carry a digest, and the model's
cross-checks look for collisions.
"""

from __future__ import annotations

import hashlib
import re
from typing import Annotated

from pydantic import StringConstraints

Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]*$", max_length=32)]
"""A name in a profile: lower-case letters, digits and `-`, starting with a letter, at most 32 characters."""

NicName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9]{1,14}$")]
"""A Linux network interface as the kernel names it: eth0, enp1s0, lan1."""

PackageName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9+._-]*$", max_length=64)]
"""An OpenWrt package name."""

HostName = Annotated[
    str,
    StringConstraints(
        pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*$", max_length=253
    ),
]
"""A DNS host name in lower case (RFC 1123)."""

ServiceName = Annotated[
    str,
    StringConstraints(
        pattern=r"^(\*\.)?[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*$", max_length=253
    ),
]
"""A name that clients use: a host name, or `*.` and one, which stands for every name with one label more (RFC 6125,
6.4.3)."""

UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff\ud800-\udfff"  # controls, line ends, halves of characters
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # marks that turn the direction of reading (UAX #9)
    "\ufdd0-\ufdef"
    + "".join(f"{chr(plane + 0xFFFE)}{chr(plane + 0xFFFF)}" for plane in range(0, 0x110000, 0x10000))
    + "]"
)
"""What no text of a person holds, and what XML, terminals and readers take for something else. The last line has the
code points that are no characters (Unicode, 23.7); XML 1.0 has none of U+FFFE and U+FFFF."""

INTERFACE_NAME_MAX = 15
"""Linux: IFNAMSIZ is 16 with the closing NUL; netifd says NO_DEVICE to longer ones."""

ZONE_NAME_MAX = 11
"""fw3 builds iptables chain names (28 characters) from zone names."""


def shorten(name: str, limit: int) -> str:
    """`name` if it fits, else its beginning and four hex digits of its SHA-256."""
    if len(name) <= limit:
        return name
    return name[: limit - 4] + hashlib.sha256(name.encode()).hexdigest()[:4]


def uci_name(name: str) -> str:
    """The UCI section name: UCI takes `[A-Za-z0-9_]` only; one `-` would make the whole file unreadable."""
    return name.replace("-", "_")


def zone_name(network: str) -> str:
    """The firewall zone of a network, at most 11 characters."""
    return shorten(uci_name(network), ZONE_NAME_MAX)


def device_name(prefix: str, network: str) -> str:
    """The Linux interface made for a network (`br-lan`, `bond-wan`), at most 15 characters."""
    return shorten(f"{prefix}-{network}", INTERFACE_NAME_MAX)


def instance_name(network: str, group: str) -> str:
    """The VRRP instance of a group on a network."""
    return f"{network}-{group}"


def frontend_name(service: str) -> str:
    """HAProxy's frontend of a service. A name of the profile has no `:`, so it meets no backend, which HAProxy 3.3
    refuses (3.2 warns)."""
    return f"service:{service}"


def backend_name(pool: str, service: str | None, family: str = "") -> str:
    """HAProxy's backend of a pool: its first one (`service` None), else the one that a service uses it by; `family`: a
    second one of that service, for clients of this family."""
    if service is None:
        return pool
    return f"{pool}.{service}.{family}" if family else f"{pool}.{service}"


def stand_in_name(pool: str, protocol: str) -> str:
    """HAProxy's backend that says what a pool's `sorry` says, while its servers are well."""
    return f"_sorry:{pool}" if protocol == "http" else f"_sorry:{pool}.{protocol}"


def pool_of_backend(name: str) -> str:
    """The pool that a backend stands for."""
    return name.partition(".")[0]


def is_name(text: str) -> bool:
    """True for what can be a profile's, network's, node's … name."""
    return len(text) <= 32 and re.fullmatch(r"[a-z][a-z0-9-]*", text) is not None


def is_nic_name(text: str) -> bool:
    """True for what the kernel can call a network card."""
    return re.fullmatch(r"[a-z][a-z0-9]{1,14}", text) is not None


def is_uci_name(text: str) -> bool:
    """True for what UCI takes as a section or option name."""
    return re.fullmatch(r"[A-Za-z0-9_]+", text) is not None
