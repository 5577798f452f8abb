"""Lint of what makes two nodes a pair: what they tell each other, which pools decide, and what is shut by name.

Reads conntrackd.conf, keepalived.conf, haproxy.cfg and the firewall; what VRRP itself needs is in `keepalived` and
`firewall`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import ip_address, ip_network

from ndakit.core.uci import Section
from ndakit.lint.config_text import HAPROXY, KEEPALIVED, Block, TextError, haproxy, keepalived
from ndakit.lint.firewall import FIREWALL
from ndakit.lint.subject import LintFinding, Subject
from ndakit.model.links import watched

CONNTRACKD, INIT = "/etc/conntrackd/conntrackd.conf", "/etc/init.d/conntrackd"
HANDOVER, ALIVE = "/usr/libexec/ndakit/connections", "/usr/libexec/ndakit/pool-alive"
PRIORITY_LEAST = 1


def rules(subject: Subject) -> Iterator[LintFinding]:
    """All rules about the pair."""
    yield from drops(subject)
    vrrp = _vrrp(subject)
    yield from tracked(subject, vrrp)
    yield from balanced(subject, vrrp)
    yield from tables(subject)
    yield from pools(subject, vrrp)
    yield from heartbeats(subject, vrrp)
    yield from links(subject, vrrp)


def drops(subject: Subject) -> Iterator[LintFinding]:
    """Rules that drop: early enough to count, never before SSH, never about the nodes' adverts."""
    sections = subject.sections("firewall", "rule")
    devices = {i.device: i.network for i in subject.view.interfaces}
    port = str(subject.profile.ssh_port)
    ssh = max((n for n, s in enumerate(sections) if s.get("target") == "ACCEPT" and s.get("dest_port") == port),
              default=-1)  # fmt: skip
    for number, section in enumerate(sections):
        if section.get("target") not in ("DROP", "REJECT") or section.get("dest") is not None:
            continue
        device = section.get("device")
        if section.get("src") != "*" or device is None:
            what = "a dropping rule for one zone counts after all rules for any zone, and drops nothing they let in"
            yield subject.finding("fw-deny", FIREWALL, section.line, what)
        elif device not in devices or section.get("direction") != "in":
            what = f"nothing comes in on device '{device}': the rule would drop nothing"
            yield subject.finding("fw-deny", FIREWALL, section.line_of("device"), what)
        if number < ssh:
            what = "the rule drops before SSH from access.sources is accepted: it may lock everybody out"
            yield subject.finding("fw-deny", FIREWALL, section.line, what)
        if section.get("proto") in ("all", "112") and device in devices:
            peers = [p for i in subject.view.instances if i.network == devices[device] for p in i.peers]
            about = [ip_network(v, strict=False) for v in section.list("src_ip")]
            hit = [p for p in peers if not about or any(p in a for a in about)]
            if hit:
                what = f"the rule drops the VRRP adverts of {hit[0]}: both nodes would become master"
                yield subject.finding("fw-deny", FIREWALL, section.line, what)


def tracked(subject: Subject, vrrp: Block) -> Iterator[LintFinding]:
    """conntrackd: its addresses, the way between the nodes, and keepalived's calls at a change of state."""
    if not subject.profile.tracks_connections:
        if CONNTRACKD in subject.tree:
            yield subject.finding("sync", CONNTRACKD, 0, "this node has nobody to tell of its connections")
        return
    file = subject.tree.get(CONNTRACKD)
    if file is None or INIT not in subject.tree:
        missing = CONNTRACKD if file is None else INIT
        yield subject.finding("sync", missing, 0, "missing: connections would die with a failover")
        return
    try:
        root = keepalived(file.text)
    except TextError as cause:
        yield subject.finding("sync", CONNTRACKD, cause.line, cause.message)
        return
    links = [b for s in root.inner("Sync") for kind in ("UDP", "Multicast") for b in s.inner(kind)]
    if len(links) != 1:
        yield subject.finding("sync", CONNTRACKD, 0, f"{len(links)} links between the nodes instead of one")
    for link in links:
        yield from _link(subject, link)
    script = f"{HANDOVER} master"
    blocks = [*vrrp.inner("vrrp_sync_group"), *vrrp.inner("vrrp_instance")]
    if not any(b.value("notify_master") == script for b in blocks):
        what = f"no notify_master calls '{script}': what the other node told would stay out of the kernel"
        yield subject.finding("sync", KEEPALIVED, 0, what)


def _link(subject: Subject, link: Block) -> Iterator[LintFinding]:
    own = {str(a) for a in subject.view.addresses}
    others = {str(a) for n, facts in subject.profile.nodes.items() if n != subject.node
              for addresses in facts.addresses.values() for a in addresses}  # fmt: skip
    facts = {line.words[0]: line for line in link.lines}
    multicast = link.words[0] == "Multicast"
    here = facts.get("IPv4_interface") if multicast else facts.get("IPv4_address") or facts.get("IPv6_address")
    if here is None or here.words[1] not in own:
        what = f"conntrackd would speak from {here.words[1] if here else 'nowhere'}, which is not this node"
        yield subject.finding("sync", CONNTRACKD, here.number if here else link.number, what)
    there = facts.get("IPv4_Destination_Address") or facts.get("IPv6_Destination_Address")
    if not multicast and (there is None or there.words[1] not in others):
        what = f"conntrackd would speak to {there.words[1] if there else 'nobody'}, which is no other node"
        yield subject.finding("sync", CONNTRACKD, there.number if there else link.number, what)
    device = facts.get("Interface")
    network = {i.device: i.section for i in subject.view.interfaces}.get(device.words[1] if device else "")
    if device is None or network is None:
        what = f"interface '{device.words[1] if device else ''}' carries no network of this node"
        yield subject.finding("sync", CONNTRACKD, device.number if device else link.number, what)
        return
    port = facts.get("Group" if multicast else "Port")
    yield from _open(subject, "sync", CONNTRACKD, network, port.words[1] if port else "")


def _open(
    subject: Subject, rule: str, path: str, interface: str, port: str, protocol: str = "udp"
) -> Iterator[LintFinding]:
    """What the other nodes send to a port is let in from each of them."""
    zones = {s.get("name") for s in subject.sections("firewall", "zone") if interface in s.list("network")}
    accepts = [
        s for s in subject.sections("firewall", "rule")
        if s.get("target") == "ACCEPT" and s.get("src") in zones and s.get("proto") == protocol
        and port in (s.get("dest_port") or "").split()
    ]  # fmt: skip
    network = next(i.network for i in subject.view.interfaces if i.section == interface)
    for peer in subject.profile.peers(subject.node):
        addresses = subject.profile.nodes[peer].addresses.get(network, ())
        if not any(_from(section, str(a)) for section in accepts for a in addresses):
            what = f"no rule lets in what node {peer} sends to {protocol} port {port}"
            yield subject.finding(rule, path, 0, what)


def _from(section: Section, address: str) -> bool:
    return any(ip_address(address) in ip_network(v, strict=False) for v in section.list("src_ip"))


def balanced(subject: Subject, vrrp: Block) -> Iterator[LintFinding]:
    """IPVS's sync daemon."""
    lines = [line for b in vrrp.inner("global_defs") for line in b.lines if line.words[0] == "lvs_sync_daemon"]
    if bool(lines) != subject.profile.syncs_ipvs:
        what = "lvs_sync_daemon is stated and of no use" if lines else "lvs_sync_daemon is missing"
        yield subject.finding("sync-ipvs", KEEPALIVED, lines[0].number if lines else 0, what)
        return
    for line in lines:
        device, instance = line.words[1], line.words[2]
        section = {i.device: i.section for i in subject.view.interfaces}.get(device)
        if section is None or instance not in {b.name for b in vrrp.inner("vrrp_instance")}:
            what = f"there is no network on '{device}', or no instance '{instance}': nothing would be told"
            yield subject.finding("sync-ipvs", KEEPALIVED, line.number, what)
        else:
            port = line.words[line.words.index("port") + 1] if "port" in line.words else "8848"
            yield from _open(subject, "sync-ipvs", KEEPALIVED, section, port)


def tables(subject: Subject) -> Iterator[LintFinding]:
    """HAProxy's peers: every node under its host name and address, every table told, and the way between them open."""
    try:
        proxies = haproxy(subject.tree[HAPROXY].text) if HAPROXY in subject.tree else []
    except TextError:
        return
    sections = [p for p in proxies if p.kind == "peers"]
    if bool(sections) != subject.profile.shares_tables:
        what = (
            "a section of peers and nothing to tell" if sections else "no section of peers: clients lose their server"
        )
        yield subject.finding("peers", HAPROXY, sections[0].number if sections else 0, what)
        return
    for section in sections:
        stated = {line.words[1]: line for line in section.all("peer") if len(line.words) > 2}
        for node, facts in subject.profile.nodes.items():
            line = stated.pop(subject.profile.hostname(node), None)
            address, _, port = line.words[2].rpartition(":") if line is not None else ("", "", "")
            networks = [n for n, own in facts.addresses.items() if address.strip("[]") in map(str, own)]
            if line is None or not networks:
                what = f"node {node} is not among the peers with its host name and one of its addresses"
                yield subject.finding("peers", HAPROXY, line.number if line is not None else section.number, what)
            elif node == subject.node:
                interface = next(i.section for i in subject.view.interfaces if i.network == networks[0])
                yield from _open(subject, "peers", HAPROXY, interface, port, "tcp")
        for name, line in stated.items():
            yield subject.finding("peers", HAPROXY, line.number, f"'{name}' is the host name of no node")
        for proxy in proxies:
            for line in proxy.all("stick-table"):
                # One that only counts connections (no "stick on") is about this node alone.
                if proxy.first("stick") is not None and line.words[-2:] != ("peers", section.name):
                    what = f"the table of {proxy.name} is not told to the peers"
                    yield subject.finding("peers", HAPROXY, line.number, what)


def pools(subject: Subject, vrrp: Block) -> Iterator[LintFinding]:
    """Each pool of demote_on is asked about, answered for, and weighs more than the nodes differ."""
    wanted = subject.profile.vrrp.demote_on if subject.view.vrrp else ()
    if not wanted:
        return
    spread = max(map(subject.profile.priority, subject.profile.nodes)) - min(
        map(subject.profile.priority, subject.profile.nodes)
    )
    scripts = {b.name: b for b in vrrp.inner("vrrp_script")}
    answers = subject.tree[ALIVE].text if ALIVE in subject.tree else ""
    for name in wanted:
        script = scripts.get(f"pool-{name}")
        if script is None:
            yield subject.finding("demote", KEEPALIVED, 0, f"no vrrp_script asks about pool {name}")
            continue
        weight = script.value("weight") or "0"
        if not re.fullmatch(r"-\d+", weight) or -int(weight) <= spread:
            what = f"weight {weight} does not make this node worse than every other: they differ by {spread}"
            yield subject.finding("demote", KEEPALIVED, script.number, what)
        elif min(map(subject.profile.priority, subject.profile.nodes)) + int(weight) * len(wanted) < PRIORITY_LEAST:
            what = f"weight {weight} for each of {len(wanted)} pools leaves less than priority {PRIORITY_LEAST}"
            yield subject.finding("demote", KEEPALIVED, script.number, what)
        if not re.search(rf"^{re.escape(name)}\)$", answers, re.MULTILINE):
            yield subject.finding("demote", ALIVE, 0, f"nobody answers for pool {name}")
        yield from _everywhere(subject, vrrp, name)
    yield from _answered(subject, answers)


def heartbeats(subject: Subject, vrrp: Block) -> Iterator[LintFinding]:
    """The link of a heartbeat is not watched, that of every other instance is; each group listens on each heartbeat."""
    quiet = {i.device: i.network for i in subject.view.interfaces if i.network in subject.profile.heartbeats}
    groups = [{line.words[0] for b in g.inner("group") for line in b.lines} for g in vrrp.inner("vrrp_sync_group")]
    for instance in vrrp.inner("vrrp_instance"):
        device, blind = instance.value("interface") or "", instance.first("dont_track_primary")
        if (device in quiet) != (blind is not None):
            what = (
                f"{instance.name} watches the link of a heartbeat: when the other node loses its power, this one gives "
                "its VIPs away"
                if blind is None
                else f"{instance.name} would keep its VIPs when its own cable is out"
            )
            number = instance.number if blind is None else blind.number
            yield subject.finding("heartbeat", KEEPALIVED, number, what)
        if not subject.profile.heartbeats or device in quiet:
            continue
        group = next((g for g in groups if instance.name in g), set())
        for network in subject.profile.heartbeats:
            there = {i.name for i in vrrp.inner("vrrp_instance") if quiet.get(i.value("interface") or "") == network}
            if not group & there:
                what = f"{instance.name} is in no group with one on {network}: what is heard there holds nobody back"
                yield subject.finding("heartbeat", KEEPALIVED, instance.number, what)


def links(subject: Subject, vrrp: Block) -> Iterator[LintFinding]:
    """Every link by which servers are reached, or by which their traffic leaves, is watched; no heartbeat's is."""
    devices = {i.network: i.device for i in subject.view.interfaces}
    heard = {devices.get(name) for name in subject.profile.heartbeats}
    instances = {i.name: i for i in subject.view.instances if not i.heartbeat}
    for block in vrrp.inner("vrrp_instance"):
        lines = [line for b in block.inner("track_interface") for line in b.lines]
        for line in (line for line in lines if line.words[0] in heard):
            what = f"{block.name} watches {line.words[0]}, the link of a heartbeat"
            yield subject.finding("heartbeat", KEEPALIVED, line.number, what)
        group = instances[block.name].group if block.name in instances else ""
        tracked = {line.words[0] for line in lines} | {i.device for i in instances.values() if i.group == group}
        for network, why in watched(subject.profile, group).items() if group else ():
            if devices[network] not in tracked:
                what = f"{block.name} does not watch {devices[network]} ({network}: {why}): the VIPs stay without it"
                yield subject.finding("link", KEEPALIVED, block.number, what)


def _everywhere(subject: Subject, vrrp: Block, name: str) -> Iterator[LintFinding]:
    """Every instance follows, by itself or by its group; keepalived ignores weights of a group's instance."""
    grouped: set[str] = set()
    for group in vrrp.inner("vrrp_sync_group"):
        members = {line.words[0] for b in group.inner("group") for line in b.lines}
        grouped |= members
        if not _tracks(group, name):
            what = f"group {group.name} does not follow pool {name}"
            yield subject.finding("demote", KEEPALIVED, group.number, what)
    for instance in vrrp.inner("vrrp_instance"):
        if _tracks(instance, name) == (instance.name in grouped):
            what = (
                f"instance {instance.name} is in a group: keepalived ignores what lowers the priority of it alone"
                if instance.name in grouped
                else f"instance {instance.name} does not follow pool {name}"
            )
            yield subject.finding("demote", KEEPALIVED, instance.number, what)


def _tracks(block: Block, pool: str) -> bool:
    return any(line.words[0] == f"pool-{pool}" for b in block.inner("track_script") for line in b.lines)


def _answered(subject: Subject, answers: str) -> Iterator[LintFinding]:
    """What the script asks HAProxy for, HAProxy answers."""
    try:
        proxies = haproxy(subject.tree[HAPROXY].text) if HAPROXY in subject.tree else []
    except TextError:
        return
    known = {
        (line.words[1].rpartition(":")[2], other.words[other.words.index("path") + 1])
        for proxy in proxies if proxy.kind == "frontend" for line in proxy.all("bind")
        if line.words[1].startswith("127.0.0.1:")
        for other in proxy.all("http-request", "deny") if "path" in other.words
    }  # fmt: skip
    for port, path in re.findall(r'"http://127\.0\.0\.1:(\d+)(/[^"]*)"', answers):
        if (port, path) not in known:
            what = f"HAProxy does not answer on 127.0.0.1:{port} for {path}: the pool would always seem empty"
            yield subject.finding("demote", ALIVE, 0, what)


def _vrrp(subject: Subject) -> Block:
    """keepalived.conf; empty if it is not there or cannot be read (`keepalived` says so)."""
    try:
        return keepalived(subject.tree[KEEPALIVED].text) if KEEPALIVED in subject.tree else Block((), 0)
    except TextError:
        return Block((), 0)
