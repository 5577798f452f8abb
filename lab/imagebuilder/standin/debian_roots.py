"""The Debian root that nearly every image is made of, and its kernel."""

from __future__ import annotations

from pathlib import Path

import debian

from .modules import Kernel
from .tools import Tools

# Unpacked once, together. Anything else that a package needs gets a root of its own.
GUEST_SET = (
    "linux-image-cloud-amd64", "busybox-static", "lua5.4", "lua-posix", "iproute2", "nftables", "iptables",
    "dropbear-bin", "haproxy", "keepalived", "ipvsadm", "conntrack", "conntrackd", "curl", "ethtool",
)  # fmt: skip


def guest(cache: Path) -> Path:
    """The root with kernel, busybox and the usual daemons. Raises debian.LabError."""
    return debian.root(cache, GUEST_SET, name="guest")


def kernel(cache: Path) -> Kernel:
    """The kernel in it."""
    return Kernel(guest(cache), Tools(cache))
