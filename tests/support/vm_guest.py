"""A tiny guest for tests of virtual machines: Debian's kernel and BusyBox, behaving on its console as OpenWrt does.

It asks for Enter, then opens a root shell with OpenWrt's prompt. Words on its kernel command line: `guest.addr0=` an
address for eth0, `guest.disk=vda` shows the begin of a disk, `guest.chatter` makes the kernel talk all the time,
`guest.babble` a program, `guest.agent` answers lines on the agent's port, `guest.panic` makes the kernel panic,
`guest.silent` opens no shell.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from ndakit.core import locks, process, workspace
from ndakit.core.files import write_atomic
from places import ROOT

sys.path.insert(0, str(ROOT / "lab"))

import debian  # lies in the lab's folder

APPEND = "console=ttyS0,115200 clearcpuid=cx16 panic=1"
_MODULES = ("virtio_net", "virtio_blk", "button", "ata_piix", "ahci", "sd_mod", "evdev")
_INIT = r"""#!/bin/busybox sh
/bin/busybox mkdir -p /bin /sbin /usr/bin /usr/sbin /etc /proc /sys /dev /tmp /root /run
/bin/busybox --install -s
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev; mount -t tmpfs tmp /tmp
for module in $(cat /modules/order); do insmod /modules/$module 2>/dev/null; done
hostname guest
word() { tr ' ' '\n' </proc/cmdline | sed -n "s/^guest\.$1=//p"; }
has() { grep -q "guest\.$1\b" /proc/cmdline; }
has panic && echo c >/proc/sysrq-trigger
ip link set lo up
for n in 0 1 2 3; do
    address=$(word "addr$n"); [ -n "$address" ] && ip addr add "$address" dev "eth$n"
    [ -d "/sys/class/net/eth$n" ] && ip link set "eth$n" up
done
disk=$(word disk); [ -n "$disk" ] && echo "DISK $(head -c 16 "/dev/$disk")"
has babble && (while :; do echo "babble $RANDOM"; usleep 100000; done) &
has chatter && (while :; do echo "chatter $RANDOM" >/dev/kmsg; usleep 3000; done) &
agent() { while :; do while IFS= read -r line; do echo "agent: $line"; done; sleep 0.2; done; } # ends if nobody listens
has agent && agent <>"/dev/$(ls /sys/class/virtio-ports | head -n 1)" >&0 &
mkdir -p /etc/acpi/PWRF; printf '#!/bin/sh\npoweroff -f\n' >/etc/acpi/PWRF/00000080; chmod +x /etc/acpi/PWRF/*
acpid -d -c /etc/acpi >/dev/null 2>&1 &
has silent && while :; do sleep 1000; done
cat >/etc/profile <<'END'
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
PS1='root@guest:\w# '
printf ' _______\n|       |  a guest for tests\n'
END
while :; do
    printf '\n\nPlease press Enter to activate this console.\n'
    read -r _
    cd /; setsid cttyhack /bin/ash -l
done
"""


@dataclass(frozen=True)
class Guest:
    """A kernel and an initrd to boot directly."""

    kernel: Path
    initrd: Path


def guest() -> Guest:
    """The guest, made once and kept in the cache (its packages as well)."""
    debs = debian.closure(workspace.cache() / "lab", ["linux-image-cloud-amd64", "busybox-static"], say=lambda _: None)
    recipe = _INIT + repr(_MODULES) + "".join(sorted(d.name for d in debs)) + Path(__file__).read_text()
    folder = workspace.cache() / "lab" / f"test-guest-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}"
    made = Guest(folder / "vmlinuz", folder / "initrd")
    with locks.hold(folder.with_suffix(".lock")):
        if not made.initrd.is_file():
            _make(debs, made)
    return made


def _make(debs: list[Path], made: Guest) -> None:
    with locks.scratch_folder(made.kernel.parent.parent / "scratch", "guest") as scratch:
        for deb in debs:
            if re.match(r"(linux-image-\d|busybox-static)", deb.name):
                process.run(["dpkg-deb", "-x", deb, scratch], timeout_s=120)
        files = {"init": (0o100755, _INIT.encode()), "dev/console": (0o020600, b"")}
        files["bin/busybox"] = (0o100755, next(scratch.glob("**/bin/busybox")).read_bytes())
        order: list[str] = []
        known = {p.name.split(".ko")[0].replace("-", "_"): p for p in scratch.glob("**/*.ko*")}
        for name in _MODULES:
            _add_module(name, known, files, order)
        files["modules/order"] = (0o100644, "\n".join(order).encode())
        kernel = next(scratch.glob("boot/vmlinuz-*")).read_bytes()
        write_atomic(made.kernel, kernel)
        write_atomic(made.initrd, gzip.compress(cpio(files), 6, mtime=0))


def _add_module(name: str, known: dict[str, Path], files: dict[str, tuple[int, bytes]], order: list[str]) -> None:
    if f"{name}.ko" in order or name not in known:
        return  # built into the kernel
    packed = known[name].read_bytes()
    data = lzma.decompress(packed) if known[name].suffix == ".xz" else packed
    depends = re.search(rb"\0depends=([^\0]*)\0", data)
    for other in (depends[1].decode() if depends else "").split(","):
        _add_module(other.replace("-", "_"), known, files, order)
    files[f"modules/{name}.ko"] = (0o100644, data)
    order.append(f"{name}.ko")


def cpio(files: dict[str, tuple[int, bytes]]) -> bytes:
    """An archive in cpio's newc form, as the kernel unpacks it (Documentation/driver-api/early-userspace)."""
    out = io.BytesIO()
    folders = {"/".join(name.split("/")[:n]) for name in files for n in range(1, name.count("/") + 1)}
    entries = [(f, 0o040755, b"") for f in sorted(folders)] + [(n, m, d) for n, (m, d) in files.items()]
    for number, (name, mode, data) in enumerate([*entries, ("TRAILER!!!", 0, b"")], 1):
        major, minor = (5, 1) if mode & 0o020000 and not mode & 0o040000 else (0, 0)
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, major, minor, len(name) + 1, 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        out.write(head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4))
    return out.getvalue()
