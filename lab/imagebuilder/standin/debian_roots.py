"""The Debian root that nearly every image of a target is made of, and its kernel."""

from __future__ import annotations

from pathlib import Path

import debian

from .modules import Kernel
from .targets import Target
from .tools import Tools

# Unpacked once, together. Anything else that a package needs gets a root of its own.
GUEST_SET = (
    "busybox-static", "lua5.4", "lua-posix", "iproute2", "nftables", "iptables",
    "dropbear-bin", "haproxy", "keepalived", "ipvsadm", "conntrack", "conntrackd", "curl", "ethtool",
)  # fmt: skip


def guest(cache: Path, target: Target) -> Path:
    """The root with busybox and the usual daemons, and the kernel if it is of the same kind. Raises debian.LabError."""
    packages = (*GUEST_SET, target.kernel) if target.kernel_debian == target.debian else GUEST_SET
    return debian.root(cache, packages, arch=target.debian, name="guest")


def kernel(cache: Path, target: Target, tools: Tools) -> Kernel:
    """The kernel of a target's images. Raises debian.LabError."""
    if target.kernel_debian == target.debian:
        return Kernel(guest(cache, target), tools)
    return Kernel(debian.root(cache, [target.kernel], arch=target.kernel_debian, name="kernel"), tools)
