"""Values of `tuning.sysctl` that the kernel takes and that shut an admin out, or cost more than they look.

Facts from the kernel's documentation (ip-sysctl, vm, fs, kernel, nf_conntrack-sysctl), as in `sysctls`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from ndakit.model.sysctls import general

PAGE_KIB = 4
HUGE_PAGE_MIB = 2
"""Page sizes of x86 and of ARM as OpenWrt builds it."""


@dataclass(frozen=True)
class MachineSize:
    """What a value has to fit: the memory, the files that HAProxy has open at its limit (0 without it), packages."""

    memory_mib: int
    files: int
    packages: frozenset[str] = frozenset()
    """Packages that the profile adds to the image."""


@dataclass(frozen=True)
class Harm:
    """What a value does, and which one would not."""

    severity: Literal["error", "warning"]
    why: str
    fix: str


@dataclass(frozen=True)
class _Range:
    """Whole numbers that do no harm; `also` are single ones outside that have a meaning of their own."""

    pattern: str
    low: int
    high: int | None
    why: str
    severity: Literal["error", "warning"] = "error"
    also: tuple[int, ...] = ()


_TTL = "every router on the way takes one off, so that answers never arrive at an admin further away"
_FULL = "when the table is full, new connections are dropped, SSH's too"
_FORGOTTEN = "the firewall forgets who asked before the answer comes, and drops it: from servers, name and time servers"
_NEIGHBOURS = "when the table of neighbours is full, nobody else on the link is reached"
_FORK = "no further program can be started, not even an SSH login"
_PINGS = "nobody can ping the node: whoever watches it that way takes it for dead"
_ASTRAY = "any host on the link could send the node's answers elsewhere: the ways are the profile's"

_RANGES: tuple[_Range, ...] = (
    _Range(r"net\.ipv4\.ip_default_ttl", 32, 255, _TTL),
    _Range(r"net\.ipv6\.conf\.\*\.hop_limit", 32, 255, _TTL, also=(-1,)),
    _Range(r"net\.ipv4\.conf\.\*\.arp_ignore", 0, 1, "2 answers no ARP for the VIPs (their prefix is /32), and 8 none "
           "at all: nobody on the link finds the node", also=(3, 4, 5, 6, 7)),
    _Range(r"net\.ipv6\.conf\.\*\.addr_gen_mode", 0, 0, "1 makes no link-local address, and without one neither an "
           "IPv6 router nor VRRP speaks to the node", also=(2, 3)),
    _Range(r"net\.ipv6\.conf\.\*\.accept_ra", 0, 0, "any host on the link could give this node addresses and a way out "
           "(2 takes router advertisements even from where the node forwards): both are the profile's"),
    _Range(r"net\.ipv[46]\.conf\.\*\.accept_redirects", 0, 0, _ASTRAY),
    _Range(r"net\.ipv4\.conf\.\*\.accept_source_route", 0, 0, "whoever sends a packet says which way it and its answer "
           "take, past routers and firewalls", "warning"),
    _Range(r"net\.ipv6\.conf\.\*\.accept_source_route", -1, 0, "whoever sends a packet says which way it takes "
           "(RFC 5095 took that away)", "warning"),
    _Range(r"net\.ipv4\.conf\.\*\.route_localnet", 0, 0, "the kernel no longer drops packets from the link to "
           "127.0.0.0/8: what listens on loopback alone can be reached from there", "warning"),
    _Range(r"net\.ipv4\.igmp_max_memberships", 1, None, "no program can join a multicast group: with vrrp.unicast "
           "false no node becomes master, and the sync of connections stops"),
    _Range(r"net\.ipv6\.conf\.\*\.mtu", 1280, 65535, "IPv6 needs 1280 bytes (RFC 8200, 5), and is switched off below"),
    _Range(r"net\.ipv[46]\.neigh\.\*\.gc_thresh3", 128, None, _NEIGHBOURS),
    _Range(r"net\.ipv[46]\.neigh\.\*\.mcast_solicit", 1, None, "the node would ask for nobody's address on the link"),
    _Range(r"net\.ipv6\.route\.max_size", 1024, None, "when the table of routes is full, nobody else is answered"),
    _Range(r"net\.core\.somaxconn", 16, None, "new connections are turned away, SSH's too"),
    _Range(r"net\.ipv4\.tcp_max_syn_backlog", 16, None, "new connections are turned away, SSH's too"),
    _Range(r"net\.core\.netdev_max_backlog", 64, None, "packets are dropped as they come in"),
    _Range(r"net\.core\.(netdev_budget|dev_weight)", 8, None, "packets are taken in one by one, and dropped"),
    _Range(r"net\.netfilter\.nf_conntrack_max", 1024, None, _FULL),
    _Range(r"net\.netfilter\.nf_conntrack_tcp_timeout_established", 120, None, _FORGOTTEN),
    _Range(r"net\.netfilter\.nf_conntrack_(tcp_timeout_syn_sent|tcp_timeout_syn_recv|udp_timeout|udp_timeout_stream"
           r"|icmp_timeout|icmpv6_timeout|generic_timeout)", 3, None, _FORGOTTEN),
    _Range(r"net\.ipv4\.tcp_max_orphans", 256, None, "connections that close are cut off before their end is sent",
           "warning"),
    _Range(r"net\.ipv[46]\.ip6?frag_high_thresh", 262144, None, "packets in fragments are dropped, such as long "
           "answers of name servers", "warning"),
    _Range(r"net\.ipv4\.tcp_min_snd_mss", 48, 536, "packets that are too large for the way to a client never arrive"),
    _Range(r"net\.ipv4\.tcp_retries2", 3, None, "connections end with the first packets that are lost", "warning"),
    _Range(r"net\.ipv4\.tcp_sack", 1, 1, "each packet lost in a long transfer costs a round trip", "warning"),
    _Range(r"net\.ipv4\.tcp_window_scaling", 1, 1, "a connection carries at most 64 KiB per round trip", "warning"),
    _Range(r"net\.ipv4\.tcp_timestamps", 1, 2, "tcp_tw_reuse has no effect without them: source ports towards the "
           "servers run out sooner", "warning"),
    _Range(r"net\.ipv4\.tcp_syncookies", 1, 2, "a flood of half-open connections shuts everybody out", "warning"),
    _Range(r"net\.ipv4\.tcp_moderate_rcvbuf", 1, 1, "long ways stay slow: windows do not grow", "warning"),
    _Range(r"net\.ipv4\.icmp_echo_ignore_all", 0, 0, _PINGS, "warning"),
    _Range(r"net\.ipv6\.icmp\.echo_ignore_all", 0, 0, _PINGS, "warning"),
    _Range(r"kernel\.pid_max", 4096, None, _FORK),
    _Range(r"kernel\.threads-max", 1024, None, _FORK),
    _Range(r"kernel\.panic", 1, None, "a node whose kernel panics hangs until somebody comes: it does not start again",
           "warning", also=(-1,)),
    _Range(r"kernel\.panic_on_warn", 0, 0, "every warning of the kernel starts the node anew", "warning"),
    _Range(r"vm\.max_map_count", 4096, None, "programs cannot map their memory, and do not start"),
    _Range(r"vm\.mmap_min_addr", 0, 65536, "programs cannot be loaded"),
    _Range(r"vm\.overcommit_memory", 0, 1, "2 gives programs only a share of the memory (vm.overcommit_ratio), for "
           "there is no swap: logins and daemons fail while memory is free", "warning"),
)  # fmt: skip

_REFUSED: tuple[tuple[str, str], ...] = (
    (r"kernel\.(modprobe|modules_disabled|hotplug|usermodehelper\..*)",
     "the kernel loads its modules by it; without them there is no firewall and no card"),
)  # fmt: skip
"""Keys that no value makes better, and why."""

_DEAD_QUEUES = ("blackhole", "plug", "ingress", "clsact")


def harm(key: str, value: str, machine: MachineSize) -> Harm | None:
    """What a value does to the way in, or to everybody; None if it is harmless, or not known to do harm."""
    plain = general(key)
    for pattern, why in _REFUSED:
        if re.fullmatch(pattern, plain):
            return Harm("error", why, "delete it")
    if plain == "net.core.default_qdisc" and value in _DEAD_QUEUES:
        return Harm("error", f"{value} sends nothing", "delete it, or write fq_codel")
    for at in _RANGES:
        if re.fullmatch(at.pattern, plain):
            return _outside(at, value)
    check = _COMPUTED.get(plain)
    return check(value, machine) if check is not None else None


def _number(text: str) -> int | None:
    return int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else None


def _outside(at: _Range, value: str) -> Harm | None:
    number = _number(value)
    if number is not None and (number in at.also or (at.low <= number and (at.high is None or number <= at.high))):
        return None
    fix = _fix(at)
    if number is None:
        return Harm("error", "the kernel takes a whole number here, and leaves the old value without a word", fix)
    return Harm(at.severity, at.why, fix)


def _fix(at: _Range) -> str:
    most = f"{at.low} or more" if at.high is None else str(at.low) if at.low == at.high else f"{at.low} to {at.high}"
    return f"delete it, or write {most}"


def _three(least: int, what: str, unit: str) -> Callable[[str, MachineSize], Harm | None]:
    """Three numbers, each not smaller than the one before, and the last one at least so large."""

    def check(value: str, machine: MachineSize) -> Harm | None:
        numbers = [_number(word) for word in value.split()]
        known = [n for n in numbers if n is not None]
        if len(numbers) == 3 and len(known) == 3 and known == sorted(known) and known[0] > 0 and known[2] >= least:
            return None
        return Harm("error", what, f"delete it, or write three rising numbers, the last one {least} {unit} or more")

    return check


def _free(value: str, machine: MachineSize) -> Harm | None:
    number, most = _number(value), machine.memory_mib * 1024 // 8
    if number is not None and 256 <= number <= most:
        return None
    why = (
        "what has to stay free is not there for programs: with too much of it SSH logins are killed for want of "
        "memory, with too little packets are dropped"
    )
    return Harm("error", why, f"delete it, or write 256 to {most} (an eighth of {machine.memory_mib} MiB)")


def _huge(value: str, machine: MachineSize) -> Harm | None:
    number, most = _number(value), machine.memory_mib // 4 // HUGE_PAGE_MIB
    if number is not None and 0 <= number <= most:
        return None
    why = f"huge pages of {HUGE_PAGE_MIB} MiB are taken from the memory for good, and no program here uses them"
    return Harm("error", why, "delete it")


FILES_OF_OPENWRT = 4096
"""Files that a node without HAProxy is left: more than its daemons together ever open."""


def _files(value: str, machine: MachineSize) -> Harm | None:
    number = _number(value)
    needed = max(machine.files, FILES_OF_OPENWRT)
    if number is not None and number >= needed:
        return None
    why = f"HAProxy has up to {machine.files} files open (two for each connection), and could not start or accept"
    if not machine.files:
        why = "OpenWrt's own daemons could not start or accept"
    return Harm("error", why, f"delete it, or write {needed} or more")


_CONGESTION = ("cubic", "reno")
"""What the kernels of OpenWrt's releases have built in; the others are packages, kmod-tcp-NAME."""


def _congestion(value: str, machine: MachineSize) -> Harm | None:
    packaged = sorted(p.removeprefix("kmod-tcp-") for p in machine.packages if p.startswith("kmod-tcp-"))
    if value in (*_CONGESTION, *packaged):
        return None
    why = "the kernel does not have it built in, and leaves the old value without a word"
    more = f"add the package kmod-tcp-{value} (image.packages)" if value == "bbr" else "delete it"
    return Harm("error", why, f"{more}, or write {' or '.join((*_CONGESTION, *packaged))}")


_COMPUTED: Mapping[str, Callable[[str, MachineSize], Harm | None]] = {
    "net.ipv4.tcp_mem": _three(
        1024,
        f"TCP gets no memory beyond that many pages of {PAGE_KIB} KiB: no connection works, SSH's neither",
        "pages",
    ),
    "net.ipv4.udp_mem": _three(
        1024, f"UDP gets no memory beyond that many pages of {PAGE_KIB} KiB: no names, no time, no sync", "pages"
    ),
    "net.ipv4.tcp_rmem": _three(4096, "connections take in nothing with so small a buffer, SSH's neither", "bytes"),
    "net.ipv4.tcp_wmem": _three(4096, "connections send nothing with so small a buffer, SSH's neither", "bytes"),
    "net.ipv4.tcp_congestion_control": _congestion,
    "vm.min_free_kbytes": _free,
    "vm.nr_hugepages": _huge,
    "fs.nr_open": _files,
    "fs.file-max": _files,
}


def port_range(value: str) -> tuple[int, int] | None:
    """The source ports of net.ipv4.ip_local_port_range, first and last; None if the kernel would refuse it."""
    numbers = [_number(word) for word in value.split()]
    if len(numbers) != 2 or numbers[0] is None or numbers[1] is None or not 0 < numbers[0] <= numbers[1] <= 65535:
        return None
    return numbers[0], numbers[1]


def device(key: str) -> str | None:
    """The device that a kernel value is about: `net.ipv4.conf.eth0/7.rp_filter` → `eth0.7`; None if about none."""
    named = re.match(r"net\.ipv[46]\.(?:conf|neigh)\.([^.]+)\.", key)
    return named[1].replace("/", ".") if named else None
