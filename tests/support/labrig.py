"""A lab image's root without a VM: the base system runs in namespaces, with its own network, /dev and /tmp.

Owns the making of such a root and the running of shell text in it. Needs no root privileges, but unprivileged user
namespaces, as the validators do.
"""

from __future__ import annotations

import functools
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from places import DATA, LAB

OVERLAYS = DATA / "overlays"
sys.path[:0] = [str(LAB), str(LAB / "imagebuilder")]

from standin import families, resolve, tools, tree  # noqa: E402  # lies beside the project, not in a package

from ndakit.core.workspace import cache  # noqa: E402  # after the path is set

PACKAGES = (
    "haproxy keepalived ip-full kmod-bonding -dnsmasq -odhcpd-ipv6only -odhcp6c -ppp -ppp-mod-pppoe -opkg -apk-mbedtls"
)
EPOCH = 1767225600

_INSIDE = """
mount -t tmpfs tmpfs "$ROOT/dev" && mkdir "$ROOT/dev/pts" "$ROOT/dev/shm"
for one in null zero full random urandom tty; do : >"$ROOT/dev/$one"; mount --bind /dev/$one "$ROOT/dev/$one"; done
mount -t proc proc "$ROOT/proc"
mount -t sysfs sysfs "$ROOT/sys" 2>/dev/null || mount --rbind /sys "$ROOT/sys"
mount -t tmpfs tmpfs "$ROOT/tmp"
mkdir -p "$ROOT/tmp/run/ubus" "$ROOT/tmp/.uci" "$ROOT/tmp/resolv.conf.d" "$ROOT/tmp/log" "$ROOT/tmp/lock"
: >"$ROOT/tmp/lab-unsupported"
: >"$ROOT/tmp/run/procd.started"
exec chroot "$ROOT" /bin/sh
"""
# Started by scripts that need them; they end with the namespace.
PROCD = "/sbin/procd >/tmp/procd.out 2>&1 &\nubus -t 5 wait_for service || exit 99\n"
NETIFD = PROCD + "/sbin/netifd >/tmp/netifd.out 2>&1 &\nubus -t 5 wait_for network.interface || exit 98\n"


@dataclass(frozen=True)
class Said:
    """What a script in the root said, and its exit code."""

    code: int
    out: str
    err: str


@functools.cache
def _base(release: str, packages: str) -> tree.Base:
    family = families.family(release, "x86/64")
    feed = resolve.feed(LAB / "imagebuilder/packages.toml", family)
    defaults = [*family.default_packages, *family.profile_packages, "kernel"]
    defaults = [d for d in defaults if not feed[d].absent]
    wanted = " ".join(w for w in packages.split() if w.lstrip("-") in feed)
    chosen = resolve.selection(feed, defaults, wanted, family, lambda _: None)
    folder = cache() / "lab"
    return tree.base(folder, LAB, family, chosen, tools.Tools(folder), tree.sources_stamp(LAB), EPOCH)


class Root:
    """A root with some files laid over it, to be changed by what runs in it."""

    def __init__(self, folder: Path, *overlays: Path | str, release: str = "24.10.8", packages: str = PACKAGES) -> None:
        """Make it in `folder`. An overlay given by name is one of tests/data/overlays."""
        self.path = folder / "root"
        self.path.mkdir(parents=True)
        base = _base(release, packages).root
        tree.link_tree(base, self.path)
        for overlay in overlays:
            tree.lay_over(OVERLAYS / overlay if isinstance(overlay, str) else overlay, self.path)
        # What scripts may write to must not be a hard link into the cache.
        for path in [*(self.path / "etc/config").iterdir(), *(self.path / "etc").iterdir()]:
            if path.is_file() and not path.is_symlink():
                data, mode = path.read_bytes(), path.stat().st_mode
                path.unlink()
                path.write_bytes(data)
                path.chmod(mode & 0o7777)

    def put(self, name: str, text: str, mode: int = 0o644) -> None:
        """Write a file."""
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        target.write_text(text)
        target.chmod(mode)

    def run(self, script: str, timeout_s: float = 60.0) -> Said:
        """Run shell text in the root, in namespaces of its own."""
        words = ["unshare", "-Urnmpf", "--kill-child", "sh", "-c", _INSIDE]
        env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "ROOT": str(self.path), "HOME": "/root", "LC_ALL": "C"}
        text = script.encode()
        done = subprocess.run(words, input=text, env=env, capture_output=True, timeout=timeout_s, check=False)
        return Said(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))


class MakeRoot(Protocol):
    """The fixture `make_root`."""

    def __call__(self, *overlays: Path | str, release: str = ..., packages: str = ...) -> Root:
        """A root with these overlays."""


# Network cards eth0 … eth5, each with its far end up.
LINKS = "".join(f"ip link add eth{n} type veth peer name far{n}; ip link set far{n} up\n" for n in range(6))
