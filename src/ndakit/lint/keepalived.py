"""Lint of keepalived.conf as far as VRRP goes: what keepalived accepts and does not do.

Source: docs/facts.md, HAProxy and keepalived; what keepalived refuses itself is left to `real_daemons`, its
virtual servers to `ipvs`.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_interface

from ndakit.lint.config_text import KEEPALIVED, Block, TextError, keepalived
from ndakit.lint.subject import LintFinding, Subject


def rules(subject: Subject) -> Iterator[LintFinding]:
    """keepalived.conf and the UCI section that makes the init script take it."""
    uci = "/etc/config/keepalived"
    if not subject.view.vrrp and not subject.profile.ipvs_services:
        for path in (KEEPALIVED, uci):
            if path in subject.tree:
                yield subject.finding("keepalived", path, 0, "this node has no VIPs to share")
        return
    file = subject.tree.get(KEEPALIVED)
    if file is None:
        yield subject.finding("keepalived", KEEPALIVED, 0, "missing: there would be no VRRP")
        return
    kind = subject.profile.release.keepalived_section
    section = next((s for s in subject.sections("keepalived", kind) if s.name == "globals"), None)
    if section is None or section.get("alt_config_file") != KEEPALIVED or section.get("enabled") != "1":
        what = f"section {kind} 'globals' does not say enabled '1', alt_config_file '{KEEPALIVED}': it would be ignored"
        yield subject.finding("keepalived", uci, 0, what)
    try:
        root = keepalived(file.text)
    except TextError as cause:
        yield subject.finding("keepalived", KEEPALIVED, cause.line, cause.message)
        return
    for block in root.inner("global_defs"):
        if strict := block.first("vrrp_strict"):
            what = "vrrp_strict refuses unicast and blocks the VIPs"
            yield subject.finding("keepalived", KEEPALIVED, strict.number, what)
        if skipping := block.first("vrrp_skip_check_adv_addr"):
            what = "with vrrp_skip_check_adv_addr only a master's first advert is looked at: later ones may be forged"
            yield subject.finding("keepalived-ttl", KEEPALIVED, skipping.number, what)
    yield from _scripts(subject, root)
    yield from _instances(subject, root)


def _scripts(subject: Subject, root: Block) -> Iterator[LintFinding]:
    nopreempt = any(b.first("nopreempt") for b in root.inner("vrrp_instance"))
    for block in (*root.blocks, *(b for i in root.blocks for b in i.blocks)):
        for line in block.lines:
            if line.words[0] in ("script", "misc_path") or line.words[0].startswith("notify"):
                path = line.words[1].split()[0] if len(line.words) > 1 and line.words[1] else ""
                script = subject.tree.get(path)
                if script is None or not script.mode & 0o100:
                    what = f"{path or 'the script'} is not an executable file of the tree: it fails for ever"
                    yield subject.finding("keepalived-script", KEEPALIVED, line.number, what)
        if block.words[0] in ("vrrp_track_process", "track_process"):
            what = "OpenWrt's keepalived is built without track_process"
            yield subject.finding("keepalived-script", KEEPALIVED, block.number, what)
        weight = block.value("weight")
        if block.words[0] == "vrrp_script" and nopreempt and weight not in (None, "0"):
            what = "with nopreempt a lowered priority gives nothing away: the script must have no weight"
            yield subject.finding("keepalived-script", KEEPALIVED, block.number, what)
    scripts = {b.name for b in root.inner("vrrp_script")}
    for instance in root.inner("vrrp_instance"):
        tracked = {line.words[0] for b in instance.inner("track_script") for line in b.lines}
        if not tracked.issuperset(_watching(subject)):
            what = f"instance {instance.name} keeps its VIPs when HAProxy is gone"
            yield subject.finding("keepalived-script", KEEPALIVED, instance.number, what)
        for name in sorted(tracked - scripts):
            yield subject.finding("keepalived-script", KEEPALIVED, instance.number, f"no vrrp_script '{name}'")


def _watching(subject: Subject) -> set[str]:
    """The scripts that every instance must track: whether HAProxy runs, where it carries something, and who
    ends TLS in front of it."""
    programs = {"haproxy"} if subject.profile.haproxy_services else set()
    return programs | {terminator.service for terminator in subject.profile.terminators}


def _instances(subject: Subject, root: Block) -> Iterator[LintFinding]:
    instances = root.inner("vrrp_instance")
    known = {i.device for i in subject.view.interfaces}
    quiet = {i.device for i in subject.view.interfaces if i.network in subject.profile.heartbeats}
    seen: dict[tuple[str, str], int] = {}
    devices = {i.network: i.device for i in subject.view.interfaces}
    vips = subject.profile.vips.values() if subject.view.vrrp else ()
    wanted = {(a, devices[v.network]) for v in vips for a in v.address}
    for block in instances:
        interface, vrid = block.value("interface") or "", block.value("virtual_router_id") or ""
        if interface not in known:
            what = f"interface '{interface}' carries no network of this node"
            yield subject.finding("keepalived-device", KEEPALIVED, block.number, what)
        if (interface, vrid) in seen:
            what = f"virtual_router_id {vrid} is used twice on {interface} (line {seen[interface, vrid]})"
            yield subject.finding("keepalived-vrid", KEEPALIVED, block.number, what)
        seen.setdefault((interface, vrid), block.number)
        if block.inner("authentication"):
            yield subject.finding("keepalived", KEEPALIVED, block.number, "VRRP version 3 has no authentication")
        source = block.value("unicast_src_ip")
        if source is not None and source not in {str(a) for a in subject.view.addresses}:
            what = f"unicast_src_ip {source} is not an address of this node"
            yield subject.finding("keepalived-source", KEEPALIVED, block.number, what)
        if (
            block.inner("unicast_peer")
            and subject.profile.release.keepalived_ttl
            and block.value("unicast_ttl") != "255"
        ):
            what = "without unicast_ttl 255 IPv6 adverts leave with a hop limit of 64, and the other nodes refuse them"
            yield subject.finding("keepalived-ttl", KEEPALIVED, block.number, what)
        for line in (line for b in block.inner("unicast_peer") for line in b.lines):
            if subject.profile.release.keepalived_ttl and " ".join(line.words[1:]) != "min_ttl 255 max_ttl 255":
                what = f"adverts with {line.words[0]} as their source are believed although they come through a router"
                fix = "write 'min_ttl 255 max_ttl 255' behind the address"
                yield subject.finding("keepalived-ttl", KEEPALIVED, line.number, what, fix)
        families: set[int] = set()
        for kind in ("virtual_ipaddress", "virtual_ipaddress_excluded"):
            for line in (line for b in block.inner(kind) for line in b.lines):
                try:
                    vip = ip_interface(line.words[0])
                except ValueError:
                    yield subject.finding("keepalived-vip", KEEPALIVED, line.number, f"'{line.words[0]}' is no address")
                    continue
                if "/" not in line.words[0] or vip.network.prefixlen != vip.max_prefixlen:
                    what = f"VIP {vip} is not a /{vip.max_prefixlen}: it would be lost with the node's own address"
                    yield subject.finding("vip-prefix", KEEPALIVED, line.number, what)
                device = line.words[line.words.index("dev") + 1] if "dev" in line.words else ""
                if device not in known and not (device == "lo" and interface in quiet):
                    yield subject.finding(
                        "keepalived-device", KEEPALIVED, line.number, f"VIP {vip} has no known device"
                    )
                wanted.discard((vip.ip, device))
                if kind == "virtual_ipaddress":
                    families.add(vip.version)
        if len(families) != 1:
            what = f"instance {block.name} must advertise VIPs of exactly one family"
            yield subject.finding("keepalived-vip", KEEPALIVED, block.number, what)
    for group in root.inner("vrrp_sync_group"):
        for line in (line for b in group.inner("group") for line in b.lines):
            if line.words[0] not in {b.name for b in instances}:
                yield subject.finding("keepalived", KEEPALIVED, line.number, f"no instance '{line.words[0]}'")
    for address, device in sorted((str(address), device) for address, device in wanted):
        what = f"VIP {address} is in no instance on {device}: nobody would hold it"
        yield subject.finding("keepalived-vip", KEEPALIVED, 0, what)
