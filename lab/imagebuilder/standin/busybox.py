"""Make Debian's busybox offer OpenWrt's applets, and no others.

Its shell prefers built-in applets to programs of the same name (so its own, small `ip` would hide the real one), and it
has applets that OpenWrt's default BusyBox lacks, which an overlay could come to rely on. The names of those applets are
made unusable in the table of names of a copy of the program; the table keeps its order and length.
"""

from __future__ import annotations

# OpenWrt: package/utils/busybox/Config-defaults.in, as far as Debian's build has the applet. `ip` is left out because
# the lab always has iproute2's.
_OPENWRT = """
    [ [[ ash awk basename brctl busybox cat chgrp chmod chown chroot clear cmp cp crond crontab cut
    date dd df dirname dmesg du echo egrep env expr false fgrep find free grep gunzip gzip halt head hexdump
    hwclock id ifconfig init kill killall less ln logger login losetup ls lsmod md5sum mkdir mkfifo mknod mkswap
    mktemp mount mv nc netstat nice nslookup ntpd passwd pgrep pidof ping ping6 pivot_root poweroff printf ps pwd
    readlink reboot reset rm rmdir rmmod route sed seq sh sha256sum sleep sort start-stop-daemon strings
    swapoff swapon switch_root sync sysctl tail tar tee test time top touch tr traceroute traceroute6 true
    udhcpc umount uname uniq uptime vi wc wget which xargs yes zcat
"""
APPLETS = frozenset(_OPENWRT.split())
# Wanted by the stand-in itself, under names that an overlay does not use; and `w`, whose place nothing else fits.
_OWN = frozenset({"modprobe", "insmod", "unlink", "setsid", "w"})
_FIRST = b"[\0[[\0"  # the table is sorted, and the shell's bracket comes first


def applets(program: bytes) -> list[str]:
    """The names in the program's table of applets, in order."""
    start = program.index(_FIRST)
    return program[start : program.index(b"\0\0", start)].decode("ascii").split("\0")


def restricted(program: bytes) -> tuple[bytes, list[str]]:
    """A copy of the program with OpenWrt's applets only, and their names."""
    names = applets(program)
    kept = [n for n in names if n in APPLETS or n in _OWN]
    table: list[bytes] = []
    for index, name in enumerate(names):
        if name in APPLETS or name in _OWN:
            table.append(name.encode())
        else:
            following = next((n.encode() for n in names[index + 1 :] if n in APPLETS or n in _OWN), b"\x7f")
            table.append(_unusable(name.encode(), table[-1] if table else b"", following))
    start = program.index(_FIRST)
    patched = b"\0".join(table)
    return program[:start] + patched + program[start + len(patched) :], kept


def _unusable(name: bytes, before: bytes, after: bytes) -> bytes:
    """Another name of the same length, the smallest after its neighbour (busybox searches in order)."""
    size = len(name)
    candidates = [before[:size].ljust(size, b"\x01")]
    if len(before) >= size:  # the next one of this length
        candidates.append(before[: size - 1] + bytes([before[size - 1] + 1]))
    candidates.append(name[:-1] + bytes([name[-1] + 1]))
    for candidate in candidates:
        if before < candidate < after and candidate != name:
            return candidate
    raise ValueError(f"no place for {name!r} between {before!r} and {after!r}")
