"""The firewall rules that OpenWrt comes with, and why a profile needs none of them."""

from __future__ import annotations

from ndakit.core.uci import Section

_ICMPV6_PASSED = "echo-request echo-reply destination-unreachable packet-too-big time-exceeded bad-header"
_ICMPV6_PASSED += " unknown-header-type"
_ICMPV6_TAKEN = f"{_ICMPV6_PASSED} router-solicitation neighbour-solicitation router-advertisement"
_ICMPV6_TAKEN += " neighbour-advertisement"
_DHCPV6 = {"src": "wan", "proto": "udp", "dest_port": "546", "family": "ipv6", "target": "ACCEPT"}
_DHCPV6_BEFORE = _DHCPV6 | {"src_ip": "fc00::/6", "dest_ip": "fc00::/6"}
_DEFAULT_RULES: dict[str, tuple[str, tuple[dict[str, str], ...]]] = {
    "Allow-DHCP-Renew": (
        "a balancer's addresses are fixed",
        ({"src": "wan", "proto": "udp", "dest_port": "68", "target": "ACCEPT", "family": "ipv4"},),
    ),
    "Allow-Ping": (
        "pings are let in from everywhere anyway, up to 1000 a second",
        ({"src": "wan", "proto": "icmp", "icmp_type": "echo-request", "family": "ipv4", "target": "ACCEPT"},),
    ),
    "Allow-IGMP": (
        "what switches ask is let in where it is needed",
        ({"src": "wan", "proto": "igmp", "family": "ipv4", "target": "ACCEPT"},),
    ),
    "Allow-DHCPv6": (
        "a balancer's addresses are fixed",
        (_DHCPV6, _DHCPV6_BEFORE, _DHCPV6_BEFORE | {"src_port": "547"}),
    ),
    "Allow-MLD": (
        "what switches ask is let in where it is needed",
        (
            {
                "src": "wan",
                "proto": "icmp",
                "src_ip": "fe80::/10",
                "icmp_type": "130/0 131/0 132/0 143/0",
                "family": "ipv6",
                "target": "ACCEPT",
            },
        ),
    ),
    "Allow-ICMPv6-Input": (
        "IPv6's neighbour discovery, pings and errors are let in anyway",
        (
            {
                "src": "wan",
                "proto": "icmp",
                "icmp_type": _ICMPV6_TAKEN,
                "limit": "1000/sec",
                "family": "ipv6",
                "target": "ACCEPT",
            },
        ),
    ),
    "Allow-ICMPv6-Forward": (
        "errors about connections that are known pass anyway",
        (
            {
                "src": "wan",
                "dest": "*",
                "proto": "icmp",
                "icmp_type": _ICMPV6_PASSED,
                "limit": "1000/sec",
                "family": "ipv6",
                "target": "ACCEPT",
            },
        ),
    ),
    "Support-UDP-Traceroute": (
        "it is for the way out of servers, which egress opens",
        tuple(
            {
                "src": "wan",
                "dest_port": "33434:33689",
                "proto": "udp",
                "family": "ipv4",
                "target": "REJECT",
                "enabled": value,
            }
            for value in ("false", "0")
        ),
    ),
}
"""The rules that OpenWrt comes with → why a profile needs none of them, and their options, in the forms that its
releases have (/etc/config/firewall of firewall and firewall4)."""


def of_openwrt(section: Section) -> str | None:
    """Why a profile needs not a rule that OpenWrt comes with; None if it is none, or was changed."""
    why, forms = _DEFAULT_RULES.get(section.get("name") or "", ("", ()))
    own: dict[str, list[str]] = {}
    for option in section.options:
        if option.name != "name":
            own.setdefault(option.name, []).extend(option.value.split())
    wanted = [{name: sorted(value.split()) for name, value in form.items()} for form in forms]
    return why if {name: sorted(values) for name, values in own.items()} in wanted else None
