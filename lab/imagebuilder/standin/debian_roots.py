"""The Debian root that nearly every image of a target is made of, and its kernel."""

from __future__ import annotations

from collections.abc import Iterable
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


def debs(cache: Path, target: Target, others: Iterable[str]) -> list[Path]:
    """The package files that the guest root, the kernel and the roots of `others` were unpacked from."""
    sets = [(_guest_set(target), target.debian), *(((name,), target.debian) for name in sorted(others))]
    if target.kernel_debian != target.debian:
        sets.append(((target.kernel,), target.kernel_debian))
    return [deb for names, arch in sets for deb in debian.closure(cache, names, arch=arch)]


def _guest_set(target: Target) -> tuple[str, ...]:
    return (*GUEST_SET, target.kernel) if target.kernel_debian == target.debian else GUEST_SET


def guest(cache: Path, target: Target) -> Path:
    """The root with busybox and the usual daemons, and the kernel if it is of the same kind. Raises debian.LabError."""
    return debian.root(cache, _guest_set(target), arch=target.debian, name="guest")


def kernel(cache: Path, target: Target, tools: Tools) -> Kernel:
    """The kernel of a target's images. Raises debian.LabError."""
    if target.kernel_debian == target.debian:
        return Kernel(guest(cache, target), tools)
    return Kernel(debian.root(cache, [target.kernel], arch=target.kernel_debian, name="kernel"), tools)
