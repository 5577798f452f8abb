"""Lint of UCI files: grammar, the closed tables of option names, and what netifd and dropbear swallow silently.

The tables hold what our templates may use, not all that OpenWrt knows: an option that is not here is a typo until
somebody looked it up and added it. Sources: docs/facts.md (UCI, Network).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network

from ndakit.core.names import INTERFACE_NAME_MAX
from ndakit.core.uci import UciError, read
from ndakit.lint.subject import LintFinding, Subject

_ROUTE = frozenset({"interface", "target", "netmask", "gateway", "metric", "mtu", "table", "type", "onlink", "source"})
_RULE = frozenset(
    {"in", "out", "src", "dest", "mark", "priority", "lookup", "invert", "action", "ipproto", "sport", "dport"}
)
OPTIONS: Mapping[str, Mapping[str, frozenset[str]]] = {
    "system": {
        "system": frozenset(
            {"hostname", "timezone", "zonename", "log_size", "log_ip", "log_port", "log_proto", "ttylogin"}
        ),
        "timeserver": frozenset({"enabled", "enable_server", "server"}),
        "service": frozenset({"respawn_threshold", "respawn_timeout", "respawn_retry"}),
    },
    "network": {
        "globals": frozenset({"ula_prefix", "packet_steering"}),
        "device": frozenset(
            {"name", "type", "ports", "ifname", "vid", "stp", "policy", "xmit_hash_policy", "lacp_rate", "min_links"}
            | {"monitor_mode", "monitor_interval", "primary", "mtu", "macaddr"}
        ),
        "interface": frozenset(
            {"device", "ifname", "type", "stp", "proto", "ipaddr", "netmask", "gateway", "ip6addr", "ip6gw", "dns"}
            | {"metric", "delegate"}
        ),
        "route": _ROUTE,
        "route6": _ROUTE,
        "rule": _RULE,
        "rule6": _RULE,
    },
    "firewall": {
        "defaults": frozenset(
            {"input", "output", "forward", "drop_invalid", "synflood_protect", "syn_flood", "flow_offloading"}
            | {"flow_offloading_hw", "auto_helper"}
        ),
        "zone": frozenset({"name", "network", "device", "input", "output", "forward", "masq"}),
        "forwarding": frozenset({"src", "dest", "family"}),
        "rule": frozenset(
            {"name", "src", "dest", "family", "proto", "src_ip", "src_port", "dest_ip", "dest_port", "icmp_type"}
            | {"limit", "limit_burst", "mark", "set_mark", "set_xmark", "target", "device", "direction"}
        ),
        "nat": frozenset(
            {"name", "family", "src", "proto", "src_ip", "src_port", "dest_ip", "dest_port", "target", "snat_ip"},
        ),
        "include": frozenset({"type", "path", "position", "chain", "fw4_compatible", "reload"}),
    },
    "dropbear": {
        "dropbear": frozenset(
            {"enable", "PasswordAuth", "RootPasswordAuth", "RootLogin", "Port", "Interface", "DirectInterface"}
            | {"GatewayPorts", "BannerFile", "IdleTimeout"}
        )
    },
    "keepalived": dict.fromkeys(("globals", "global_defs"), frozenset({"enabled", "alt_config_file"})),
    "dhcp": {
        "dnsmasq": frozenset({"port", "localservice"}),
        "dhcp": frozenset({"interface", "ignore", "dhcpv4", "dhcpv6", "ra", "ndp"}),
        "odhcpd": frozenset({"maindhcp"}),
    },
}
NETWORK, DROPBEAR, SYSTEM = "/etc/config/network", "/etc/config/dropbear", "/etc/config/system"


def rules(subject: Subject) -> Iterator[LintFinding]:
    """All rules about UCI files except the firewall's."""
    yield from grammar(subject)
    yield from names(subject)
    yield from interfaces(subject)
    yield from addresses(subject)
    yield from devices(subject)
    yield from routes(subject)
    yield from login(subject)


def grammar(subject: Subject) -> Iterator[LintFinding]:
    """uci refuses a whole file for one bad name; an empty value is no value."""
    for path, file in subject.tree.items():
        if path.startswith("/etc/config/"):
            try:
                read(file.text)
            except UciError as cause:
                yield subject.finding("uci", path, cause.line, cause.message)
    for needed in ("system", "network", "firewall", "dropbear"):
        if f"/etc/config/{needed}" not in subject.tree:
            what = "missing: OpenWrt would come up with its own, as a home router"
            yield subject.finding("uci-missing", f"/etc/config/{needed}", 0, what, "render it")


def names(subject: Subject) -> Iterator[LintFinding]:
    """fw4 drops an option that it does not know and keeps the rule without it, which opens more than it says."""
    for config, sections in subject.configs.items():
        table = OPTIONS.get(config)
        if table is None:
            continue
        path = f"/etc/config/{config}"
        for section in sections:
            if section.type not in table:
                yield subject.finding("unknown-section", path, section.line, f"unknown section type '{section.type}'")
                continue
            known = table[section.type]
            if config == "firewall" and section.type == "rule" and not subject.profile.release.fw4:
                known |= {"extra"}  # more words for iptables; fw4 drops it and keeps the rule
            for option in section.options:
                if option.name not in known:
                    what = f"unknown option '{option.name}' in a section of type '{section.type}'"
                    yield subject.finding("unknown-option", path, option.line, what)


def interfaces(subject: Subject) -> Iterator[LintFinding]:
    """Every network of the profile is an interface, in the form that the release reads."""
    by_name = {s.name: s for s in subject.sections("network", "interface") if s.name}
    if "loopback" not in by_name:
        yield subject.finding("loopback", NETWORK, 0, "no interface 'loopback': local routes and services need it")
    for interface in subject.view.interfaces:
        if interface.section not in by_name:
            what = f"network '{interface.network}' has no interface section '{interface.section}'"
            yield subject.finding("interface-missing", NETWORK, 0, what)
    modern = subject.profile.release.device_sections
    for section in by_name.values():
        wrong = (
            [o for o in ("ifname", "type") if section.get(o)] if modern else [o for o in ("device",) if section.get(o)]
        )
        for name in wrong:
            what = (
                f"netifd of OpenWrt {subject.profile.release} ignores '{name}' in an interface: it would have no device"
            )
            yield subject.finding("network-form", NETWORK, section.line_of(name), what)
    if not modern:
        for section in subject.sections("network", "device"):
            what = f"netifd of OpenWrt {subject.profile.release} does not read device sections"
            yield subject.finding("network-form", NETWORK, section.line, what)


def addresses(subject: Subject) -> Iterator[LintFinding]:
    """One bad address takes all of its interface's; a VIP with a subnet's prefix goes with the node's own address."""
    vips, own = {a for v in subject.profile.vips.values() for a in v.address}, {*subject.view.addresses}
    for section in subject.sections("network", "interface"):
        onlink: list[IPv4Network | IPv6Network] = []
        for option in section.options:
            if option.name in ("ipaddr", "ip6addr"):
                read_as = _interface(option.value, section.get("netmask"), 4 if option.name == "ipaddr" else 6)
                if read_as is None:
                    what = f"'{option.value}' is no address with a prefix: netifd would give the interface none at all"
                    yield subject.finding("address", NETWORK, option.line, what)
                    continue
                onlink.append(read_as.network)
                if read_as.ip in vips and subject.view.vrrp:
                    what = f"{read_as.ip} is a VIP: on every node at once, it would not move"
                    yield subject.finding("vip-static", NETWORK, option.line, what)
                elif read_as.ip in vips - own and read_as.network.prefixlen != read_as.max_prefixlen:
                    what = f"VIP {read_as} has a subnet's prefix: it is lost when the node's own address is set again"
                    yield subject.finding("vip-prefix", NETWORK, option.line, what)
            elif option.name in ("gateway", "ip6gw", "dns"):
                for word in option.value.split():
                    if _address(word) is None:
                        what = f"'{word}' is no address, and {option.name} would be ignored"
                        yield subject.finding("address", NETWORK, option.line, what)
        for name in ("gateway", "ip6gw"):
            gateway = _address(section.get(name) or "")
            linklocal = isinstance(gateway, IPv6Address) and gateway.is_link_local
            if gateway is not None and not linklocal and not any(gateway in net for net in onlink):
                what = f"{name} {gateway} is in no subnet of its interface: there would be no default route"
                yield subject.finding("gateway", NETWORK, section.line_of(name), what)


def devices(subject: Subject) -> Iterator[LintFinding]:
    """netifd says NO_DEVICE to long names; two bonds or bridges cannot share a card."""
    made = {d for s in subject.sections("network", "device") if (d := s.get("name"))}
    known = made | set(subject.profile.nics) | {"lo"}
    users: dict[str, int] = {}
    for section in subject.sections("network", "device"):
        name = section.get("name")
        if name is None or section.get("type") is None:
            yield subject.finding("device", NETWORK, section.line, "a device without name or type is none")
        for option in section.options:
            if option.name == "name" and len(option.value) > INTERFACE_NAME_MAX:
                what = f"device name '{option.value}' has more than {INTERFACE_NAME_MAX} characters: NO_DEVICE"
                yield subject.finding("device-name", NETWORK, option.line, what)
            if option.name in ("ports", "ifname") and option.value not in known:
                what = f"'{option.value}' is neither a card of the profile nor a device made here"
                yield subject.finding("device-unknown", NETWORK, option.line, what)
            if option.name == "ports":
                if option.value in users:
                    what = f"'{option.value}' is a port of another device as well (line {users[option.value]})"
                    yield subject.finding("port-twice", NETWORK, option.line, what)
                users.setdefault(option.value, option.line)
    for section in subject.sections("network", "interface"):
        name, option_name = section.get("device"), "device"
        if name is None:
            name, option_name = section.get("ifname"), "ifname"
        line = section.line_of(option_name)
        if name is None:
            yield subject.finding("device-unknown", NETWORK, line, "an interface without a device")
            continue
        for word in name.split():
            base = word.partition(".")[0] if option_name == "ifname" else word
            if base not in known and word not in known:
                what = f"'{word}' is neither a card of the profile nor a device made here"
                yield subject.finding("device-unknown", NETWORK, line, what)
            if len(word) > INTERFACE_NAME_MAX:
                what = f"device name '{word}' has more than {INTERFACE_NAME_MAX} characters: NO_DEVICE"
                yield subject.finding("device-name", NETWORK, line, what)


def routes(subject: Subject) -> Iterator[LintFinding]:
    """A route without interface or target, a rule without priority or with a named table: ignored without a word."""
    known = {s.name for s in subject.sections("network", "interface")}
    for kind, version in (("route", 4), ("route6", 6)):
        for section in subject.sections("network", kind):
            target, interface = section.get("target"), section.get("interface")
            if target is None or interface is None:
                what = "a route without interface or target is not installed"
                yield subject.finding("route", NETWORK, section.line, what)
                continue
            if interface not in known:
                what = f"unknown interface '{interface}': the route is not installed"
                yield subject.finding("route", NETWORK, section.line_of("interface"), what)
            if section.get("type") == "local" and interface != "loopback":
                what = "a local route needs interface 'loopback'"
                yield subject.finding("route", NETWORK, section.line_of("interface"), what)
            if _interface(target, section.get("netmask"), version) is None:
                what = f"'{target}' is no target: the route is not installed"
                yield subject.finding("route", NETWORK, section.line_of("target"), what)
            gateway = section.get("gateway")
            if gateway is not None and _address(gateway) is None:
                yield subject.finding("address", NETWORK, section.line_of("gateway"), f"'{gateway}' is no address")
    for kind in ("rule", "rule6"):
        for section in subject.sections("network", kind):
            lookup = section.get("lookup")
            if section.get("priority") is None:
                what = "a rule without priority gets one by its place in the file"
                yield subject.finding("rule", NETWORK, section.line, what)
            if lookup is not None and not lookup.isdigit():
                what = f"table '{lookup}' is a name: the rule is not installed unless rt_tables has it"
                yield subject.finding("rule", NETWORK, section.line_of("lookup"), what)


def login(subject: Subject) -> Iterator[LintFinding]:
    """root has no password: no password may open anything, and a listener must not depend on an interface's name."""
    servers = subject.sections("dropbear", "dropbear")
    if DROPBEAR in subject.tree and not servers:
        yield subject.finding("ssh", DROPBEAR, 0, "no section of type dropbear: nobody could log in")
    for section in servers:
        for name in ("PasswordAuth", "RootPasswordAuth"):
            if section.get(name) not in ("off", "0"):
                what = f"{name} is not 'off', and root has no password"
                yield subject.finding("ssh-password", DROPBEAR, section.line_of(name), what)
        for name in ("Interface", "DirectInterface"):
            if section.get(name) is not None:
                what = f"with {name}, dropbear listens nowhere while that interface is not there: a lock-out"
                yield subject.finding("ssh-interface", DROPBEAR, section.line_of(name), what)
        if section.get("enable") in ("0", "off") or section.get("RootLogin") in ("0", "off"):
            yield subject.finding("ssh", DROPBEAR, section.line, "root could not log in")
        if section.get("Port") != (port := str(subject.profile.ssh_port)):
            what = f"Port is not {port}, which the firewall opens for SSH (access.ssh.port)"
            yield subject.finding("ssh", DROPBEAR, section.line_of("Port"), what)
    keys = subject.tree.get("/etc/dropbear/authorized_keys")
    lines = [] if keys is None else [k for k in keys.text.splitlines() if k and not k.startswith("#")]
    if not lines:
        yield subject.finding("ssh-key", "/etc/dropbear/authorized_keys", 0, "no key: nobody could log in", "add one")


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        return IPv6Address(text) if ":" in text else IPv4Address(text)
    except ValueError:
        return None


def _interface(text: str, netmask: str | None, version: int) -> IPv4Interface | IPv6Interface | None:
    """`a.b.c.d/len`, or `a.b.c.d` with a netmask; None if netifd would not take it, or take it as /32."""
    whole = text if "/" in text else (f"{text}/{netmask}" if netmask else "")
    try:
        return IPv4Interface(whole) if version == 4 else IPv6Interface(whole)
    except ValueError:
        return None
