"""Facts about a running balancer, as an admin finds them out on its console: addresses, services, identity, trouble.

testinfra carries the commands; this module knows OpenWrt (procd, ubus, BusyBox without stat). Only what an OpenWrt
image has anyway is used, so that it works for real images and for the lab's. What a fact should be is the business of
`claims`.
"""

from __future__ import annotations

import csv
import io
import json
import re
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface
from typing import Protocol

from ndakit.core import json_text
from ndakit.core.errors import VerifyError
from ndakit.model import Address
from ndakit.node.shell import Shell, host_over

KEEPALIVED_DATA = "/tmp/keepalived.data"
IMAGE = "/usr/share/ndakit/image.json"
"""What the image says of itself. Not below /etc: an upgrade that keeps the configuration must not keep it."""
RECIPE = "/usr/share/ndakit/recipe.json"
"""What the image was made of: the request to the ImageBuilder, and the files laid over the root with their hashes. For
root alone, as some of them hold secrets."""
TRACKED = "/proc/net/nf_conntrack"
_READS = 4
UNREADABLE = "cannot be read:"
ALARMS = (
    *(
        "segfault",
        "Oops",
        "(^|[^[:alpha:]])BUG:",
        "Call Trace",
        "general protection",
        "Out of memory",
        "crash loop",
        "soft lockup",
    ),
    UNREADABLE,
)
HARMLESS = ("MP-BIOS bug: 8254 timer not connected to IO-APIC",)
"""Lines that only look like alarms. The timer: a machine whose APIC is wired in another way than its BIOS says, as some
emulators are; the kernel then finds another way by itself (Linux, arch/x86/kernel/apic/io_apic.c, check_timer)."""


class OutputNotUnderstood(VerifyError):
    """A program on the node answered in a form that is not known."""

    def __init__(self, command: str, output: str) -> None:
        super().__init__(
            f"the answer of '{command}' is not understood: {output.strip()[:160]!r}",
            where="the node",
            fix="run the command there by hand; if the answer is right, this release answers in a new form: report it",
        )


class Result(Protocol):
    """What testinfra's `run` returns, as far as it is used here."""

    rc: int
    stdout: str


class CommandHost(Protocol):
    """testinfra's host, as far as it is used here."""

    def run(self, command: str, *args: str) -> Result:
        """Run a command; `%s` in it are replaced by the quoted arguments."""
        ...


@dataclass(frozen=True)
class ServerState:
    """One line of HAProxy's statistics about a server."""

    proxy: str
    server: str
    up: bool
    status: str
    weight: int = 0
    sessions: int = 0


@dataclass(frozen=True)
class VirtualServer:
    """One virtual server in the kernel (IPVS) with its servers' weights and active connections; `mark` if it takes
    marked packets."""

    protocol: str
    address: Address | None
    port: int
    mark: int | None
    weights: Mapping[tuple[Address, int], int]
    connections: Mapping[tuple[Address, int], int] = field(default_factory=dict)


@dataclass(frozen=True)
class BondCard:
    """A card of a bond, as the kernel tells of it: is its link up, how fast is it, does it carry (802.3ad: is it in the
    aggregator that is in use), and by which MAC its partner calls itself (zeros: nobody speaks LACP there)."""

    name: str
    up: bool
    speed: str
    carries: bool
    partner: str


class NodeFacts:
    """Asks one node."""

    def __init__(self, host: CommandHost) -> None:
        self._host = host

    def text(self, command: str, *args: str) -> str:
        """What a command prints; empty if it fails."""
        result = self._host.run(command, *args)
        return result.stdout if result.rc == 0 else ""

    def hostname(self) -> str:
        """The kernel's host name."""
        return self.text("cat /proc/sys/kernel/hostname").strip()

    def release(self) -> Mapping[str, str]:
        """/etc/openwrt_release as a mapping."""
        pairs = re.findall(r"^(DISTRIB_[A-Z]+)='?([^'\n]*)'?$", self.text("cat /etc/openwrt_release"), re.M)
        return dict(pairs)

    def addresses(self) -> dict[str, set[IPv4Interface | IPv6Interface]]:
        """Device → its addresses with prefix lengths, without those that every card gives itself (link-local ones)."""
        return parse_addresses(self.text("ip -o addr show"))

    def holds(self, address: Address) -> bool:
        """True if the address is on one of the node's devices."""
        return any(i.ip == address for on_device in self.addresses().values() for i in on_device)

    def service_running(self, name: str) -> bool:
        """True if procd runs an instance of the service (ubus, not ps: procd knows what it supervises)."""
        return any(i.get("running") for i in self._instances(name))

    def _instances(self, name: str) -> list[dict[str, object]]:
        answer = self.text("ubus call service list %s", json.dumps({"name": name}))
        if not answer.strip():
            return []
        try:
            return list(json_text.mapping(answer).get(name, {}).get("instances", {}).values())
        except (ValueError, AttributeError) as cause:
            raise OutputNotUnderstood("ubus call service list", answer) from cause

    def vrrp_states(self, count: int, timeout_s: float = 3.0) -> dict[str, str]:
        """keepalived's instances and their states (MASTER, BACKUP, FAULT, INIT); empty if it does not answer.

        `count` is how many there should be: SIGUSR1 makes keepalived write /tmp/keepalived.data (keepalived(8)), and
        only with all of them in it the file is complete.
        """
        pids = [str(i["pid"]) for i in self._instances("keepalived") if i.get("running") and i.get("pid")]
        if not pids:
            return {}
        self._host.run(f"rm -f {KEEPALIVED_DATA}; kill -USR1 %s", pids[0])
        end_s = time.monotonic() + timeout_s
        while True:
            # The whole file is 20 KiB, which take a serial console seconds.
            lines = self.text(f"sed -n -e '/^ VRRP Instance = /p' -e '/^   State = /p' {KEEPALIVED_DATA}")
            states = parse_vrrp_states(lines)
            if len(states) >= count or time.monotonic() >= end_s:
                self._host.run(f"rm -f {KEEPALIVED_DATA}")
                return states
            time.sleep(0.1)

    def virtual_servers(self) -> list[VirtualServer]:
        """What the kernel balances by itself; empty without IPVS. ipvsadm is not needed for that."""
        return parse_virtual_servers(self.text("cat /proc/net/ip_vs"))

    def taken_in(self, version: int) -> str:
        """What of the three things that take in packets for a socket of the node's own, though they are addressed to
        somebody else, is missing in an IP version (topology tproxy); empty if all are there."""
        program = "iptables" if version == 4 else "ip6tables"
        nft = self.text("nft list ruleset | grep -F -e %s", "socket transparent 1")
        mark = parse_transparent_mark(nft, self.text(f"{program} -w -t mangle -S"))
        if mark is None:
            return "has no DIVERT rule, which marks packets for which one of its sockets waits,"
        tables = re.findall(rf"fwmark 0x{mark:x}(?:/0x{mark:x})? lookup (\S+)", self.text(f"ip -{version} rule show"))
        if not tables:
            return f"has no policy rule for packets with the mark {mark:#x}"
        if not re.search(
            r"^local (?:default|0\.0\.0\.0/0|::/0) ", self.text(f"ip -{version} route show table {tables[0]}"), re.M
        ):
            return f"has no local route for everything in table {tables[0]}"
        return ""

    def bond(self, device: str) -> list[BondCard]:
        """The cards of a bond (802.3ad); empty if there is no such bond."""
        return parse_bond(self.text("cat %s", f"/proc/net/bonding/{device}"))

    def log(self, words: str) -> list[str]:
        """The lines of the system's log that hold these words."""
        return self.text("logread | grep -F -e %s", words).splitlines()

    def trouble(self) -> list[str]:
        """Lines of the kernel's and the system's log that nobody wants to see, and logs that cannot be read."""
        # Chosen on the node: whole logs take a serial console seconds.
        logs = "; ".join(f"{log} || echo '{UNREADABLE} {log}'" for log in ("dmesg", "logread"))
        result = self._host.run(f"{{ {logs}; }} | grep -iE %s", "|".join(ALARMS))
        lines = result.stdout.splitlines()
        if result.rc not in (0, 1):  # 1: nothing was found
            lines.append(f"{UNREADABLE} the logs, grep ended with exit code {result.rc}")
        return [line.strip() for line in lines if not any(h in line for h in HARMLESS)]

    def let_in(self, sources: Collection[Address]) -> set[tuple[str, Address, Address, int]]:
        """What the firewall has let in (or through) from somebody of late: protocol, source, destination, port (0 where
        there are none). Raises OutputNotUnderstood.

        The kernel notes a packet only after the firewall has accepted it (nf_conntrack_confirm is the last hook), for
        30 s at least, and whether or not anybody listens. What IPVS balances is not noted where vs.conntrack is 0.
        """
        wanted = "|".join(re.escape(a.exploded) for a in sources)
        # The kernel hands out some 4 KiB at a time and goes on by number: when connections end meanwhile, others are
        # left out. So it is read more than once. Who was asked much has thousands of entries that differ in the
        # client's port alone, and a serial console takes minutes for them: on the node each is told once.
        entry = r"^(ipv[46] +[0-9]+ [^ ]+ +[0-9]+ )[^=]*(src=[^ ]+ dst=[^ ]+ )(sport=[0-9]+ (dport=[0-9]+))?.*"
        script = f"/ src=({wanted}) /s/{entry}/\\1\\2sport=0 \\4/p"
        command = "{ sed -nE %s " + " ".join([TRACKED] * _READS) + f" || echo {UNREADABLE}; }} | sort -u"
        result = self._host.run(command, script)
        if result.rc != 0 or UNREADABLE in result.stdout:
            raise OutputNotUnderstood(command, result.stdout or "an error")
        return parse_tracked(result.stdout)

    def uptime_s(self) -> float:
        """Seconds since the boot; 0 if they cannot be read."""
        return float((self.text("cat /proc/uptime").split() or ["0"])[0])

    def load(self) -> tuple[float, ...]:
        """The load averages of 1, 5 and 15 minutes; none if they cannot be read."""
        return tuple(float(word) for word in self.text("cat /proc/loadavg").split()[:3])

    def memory_kib(self) -> tuple[int, int]:
        """Memory that is available, and all of it, in KiB (proc(5), meminfo)."""
        told = dict(re.findall(r"^(\w+): +(\d+) kB$", self.text("cat /proc/meminfo"), re.M))
        return int(told.get("MemAvailable", 0)), int(told.get("MemTotal", 0))

    def clock_offset_s(self) -> float | None:
        """How much the node's clock is ahead of ours, to a second; None if it does not tell. BusyBox's date has no
        fractions: half a second is added to what it says, and half of the question's time taken off ours."""
        asked_s = time.time()
        told = self.text("date +%s").strip()
        ours_s = (asked_s + time.time()) / 2
        return int(told) + 0.5 - ours_s if told.isdigit() else None

    def image(self) -> Mapping[str, str]:
        """What the image says of itself: id, profile and node; empty for one of an older ndakit, or a foreign one."""
        text = self.text(f"cat {IMAGE}")
        try:
            return {key: str(value) for key, value in json_text.mapping(text).items()} if text.strip() else {}
        except ValueError as cause:
            raise OutputNotUnderstood(f"cat {IMAGE}", text) from cause

    def log_errors(self, lines: int) -> list[str]:
        """The last lines of the system's log from `err` upwards (logread writes `facility.level`)."""
        return self.text(f"logread | grep -E ' [a-z0-9]+[.](err|crit|alert|emerg) ' | tail -n {lines}").splitlines()

    def unsupported(self) -> list[str]:
        """What the lab's stand-in base system was asked for and does not have (a lab image only)."""
        return [line for line in self.text("cat /tmp/lab-unsupported").splitlines() if line.strip()]


def facts_of(shell: Shell) -> NodeFacts:
    """What can be asked of a balancer over a shell on it."""
    return NodeFacts(host_over(shell))


def parse_addresses(text: str) -> dict[str, set[IPv4Interface | IPv6Interface]]:
    """Read `ip -o addr show` of iproute2 or BusyBox."""
    addresses_of: dict[str, set[IPv4Interface | IPv6Interface]] = {}
    for device, address in re.findall(r"^\d+:\s+(\S+?)(?:@\S+)?\s+inet6?\s+(\S+)", text, re.M):
        interface = ip_interface(address)
        # A link-local VIP is a /128; what a card gives itself is not.
        if not interface.is_link_local or interface.network.num_addresses == 1:
            addresses_of.setdefault(device, set()).add(interface)
    return addresses_of


def parse_transparent_mark(nft: str, mangle: str) -> int | None:
    """The mark that packets get for which a transparent socket waits: from the rules of nft, or from those of iptables'
    table mangle (`iptables -S`); None if none do."""
    if rule := re.search(r"socket transparent 1 .*?mark set (?:meta )?mark (?:\||or) (0x[0-9a-f]+)", nft):
        return int(rule[1], 16)
    jump = re.search(r"^-A PREROUTING -p tcp -m socket --transparent -j (\S+)", mangle, re.M)
    mark = re.search(rf"^-A {re.escape(jump[1])} -j MARK --set-xmark (0x[0-9a-f]+)/", mangle, re.M) if jump else None
    return int(mark[1], 16) if mark else None


def parse_bond(text: str) -> list[BondCard]:
    """Read /proc/net/bonding/… of a bond that speaks LACP (Linux, bond_info_show_slave)."""
    head, *parts = re.split(r"^Slave Interface: ", text, flags=re.M)
    active = re.search(r"^\s*Aggregator ID: (\d+)", head, re.M)
    cards = []
    for part in parts:
        facts = dict(re.findall(r"^([A-Z][^:\n]*): (.*)$", part, re.M))
        partner = re.search(r"details partner lacp pdu:.*?system mac address: (\S+)", part, re.S)
        cards.append(
            BondCard(
                name=part.split("\n", 1)[0].strip(),
                up=facts.get("MII Status") == "up",
                speed=facts.get("Speed", "Unknown"),
                carries=active is not None and facts.get("Aggregator ID") == active[1],
                partner=partner[1] if partner else "",
            )
        )
    return cards


def parse_virtual_servers(text: str) -> list[VirtualServer]:
    """Read /proc/net/ip_vs (Linux, ip_vs_info_seq_show): addresses and ports are hexadecimal."""
    virtuals: list[VirtualServer] = []
    weights: dict[tuple[Address, int], int] = {}
    connections: dict[tuple[Address, int], int] = {}
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["FWM"]:
            weights, connections = {}, {}
            virtuals.append(VirtualServer("", None, 0, int(words[1], 16), weights, connections))
        elif words[:1] in (["TCP"], ["UDP"], ["SCTP"]):
            weights, connections = {}, {}
            address, port = _hexadecimal(words[1])
            virtuals.append(VirtualServer(words[0].lower(), address, port, None, weights, connections))
        elif words[:1] == ["->"] and virtuals and len(words) > 4 and words[3].isdigit() and words[4].isdigit():
            weights[_hexadecimal(words[1])] = int(words[3])
            connections[_hexadecimal(words[1])] = int(words[4])
    return virtuals


def _hexadecimal(text: str) -> tuple[Address, int]:
    """`CB00710A:1F92` or `[2001:0db8:…:0010]:1F92`."""
    address, _, port = text.rpartition(":")
    if address.startswith("["):
        return ip_address(address.strip("[]")), int(port, 16)
    return ip_address(int(address, 16)), int(port, 16)


def _number(text: str | None) -> int:
    """A figure of a table in which a field may be empty."""
    return int(text) if text and text.isdigit() else 0


def parse_tracked(text: str) -> set[tuple[str, Address, Address, int]]:
    """Read /proc/net/nf_conntrack (Linux, ct_seq_show): the direction of the first packet comes first in a line."""
    entries = re.findall(
        r"^ipv[46] +\d+ (\S+) +\d+ (?:.*? )??src=(\S+) dst=(\S+) (?:sport=\d+ dport=(\d+))?", text, re.M
    )
    return {(protocol, ip_address(a), ip_address(b), int(port or 0)) for protocol, a, b, port in entries}


def parse_vrrp_states(text: str) -> dict[str, str]:
    """Read keepalived's dump: the instances' names and states."""
    return dict(re.findall(r"^ VRRP Instance = (\S+)\n(?:(?! VRRP Instance).*\n)*?   State = ([A-Z]+)", text, re.M))


def parse_statistics(text: str) -> list[ServerState]:
    """Read HAProxy's statistics in CSV form (management guide, 9.1): the lines about servers."""
    if not text.startswith("# pxname,"):
        raise OutputNotUnderstood("the statistics page (;csv)", text)
    rows = csv.DictReader(io.StringIO(text[2:]))
    return [
        ServerState(
            r["pxname"],
            r["svname"],
            r["status"].startswith(("UP", "no check")),
            r["status"],
            _number(r.get("weight")),
            _number(r.get("scur")),
        )
        for r in rows
        if r.get("svname") not in ("FRONTEND", "BACKEND", None)
    ]
