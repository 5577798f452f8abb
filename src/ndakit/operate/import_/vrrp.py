"""The VRRP part of keepalived.conf: who is master, how it is agreed, and the VIPs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import ip_network

from ndakit.lint.config_text import Block, Line
from ndakit.load import foreign_words
from ndakit.model import Address
from ndakit.operate.import_.draft import (
    Draft,
    NetworkDraft,
    VipDraft,
    address,
    interface,
    is_card,
    is_private,
    number,
    slug,
)
from ndakit.operate.import_.ledger import SourceFile

PATH = "/etc/keepalived/keepalived.conf"
_NOTIFIES = (
    "notify",
    "notify_master",
    "notify_backup",
    "notify_fault",
    "notify_stop",
    "notify_master_rx_lower_pri",
    "smtp_alert",
)
_GLOBAL = {
    **dict.fromkeys(
        ("notification_email", "notification_email_from", "smtp_server", "smtp_connect_timeout", "smtp_alert"),
        foreign_words.NOTIFY,
    ),
    "router_id": "it is the node's host name",
    "vrrp_strict": "leave it out: it sets the VIPs' firewall rules itself, and unicast would not work with it",
    "vrrp_garp_interval": "leave it out: after a takeover the VIPs are announced several times anyway",
}


@dataclass
class InstanceDraft:
    """One vrrp_instance of one node."""

    name: str
    node: str
    device: str
    file: SourceFile
    block: Block
    network: NetworkDraft | None = None
    own: Address | None = None
    peers: list[Address] = field(default_factory=list)
    priority: int = 100
    vrid: int | None = None
    heartbeat: bool = False
    vips: list[tuple[Address, int, str]] = field(default_factory=list)
    """Address, line, device."""


def read(draft: Draft, node: str, file: SourceFile, root: Block) -> list[InstanceDraft]:
    """The instances of a node, with what they say of networks and node addresses put into the draft."""
    for kind, why in (
        ("global_defs", "settings of keepalived itself are ndakit's"),
        ("vrrp_script", foreign_words.KEYS["track_script"]),
    ):
        for block in root.inner(kind):
            file.hint(block.number, why)
    for line in root.lines:
        file.hint(line.number, "what it includes is not read: put its text in the place of this line, and import again")
    for block in root.inner("global_defs"):
        for line in block.lines:
            word = line.words[0]
            if word == "lvs_sync_daemon":
                draft.vrrp["connection_sync"] = True
                _both(file, block, line, "vrrp.connection_sync")
            else:
                file.hint(
                    line.number,
                    _GLOBAL.get(word) or foreign_words.key(word) or "settings of keepalived itself are ndakit's",
                )
        for inner in block.blocks:
            for number_ in _numbers(inner):
                file.hint(
                    number_,
                    _GLOBAL.get(inner.words[0])
                    or foreign_words.key(inner.words[0])
                    or "settings of keepalived itself are ndakit's",
                )
    instances = [_instance(draft, node, file, block) for block in root.inner("vrrp_instance")]
    for block in root.inner("vrrp_script"):
        _script(draft, file, block)
    for kind in ("vrrp_track_process", "vrrp_track_file", "static_ipaddress", "static_routes", "static_rules"):
        for block in root.inner(kind):
            for line_number in _numbers(block):
                file.hint(line_number, foreign_words.key(kind) or foreign_words.key("track_file") or "")
    return instances


def _numbers(block: Block) -> Iterator[int]:
    yield block.number
    for line in block.lines:
        yield line.number
    for inner in block.blocks:
        yield from _numbers(inner)


def _both(file: SourceFile, block: Block, line: Line, key: str) -> None:
    """A line was used, and with it the head of its block."""
    file.key(line.number, key)
    if block.number not in file.fates:
        file.key(block.number, key)


def _script(draft: Draft, file: SourceFile, block: Block) -> None:
    """What gives the VIPs away: HAProxy is watched anyway, pools by `vrrp.demote_on`."""
    words = block.first("script")
    script = " ".join(words.words[1:]) if words is not None else ""
    pool = re.fullmatch(r"/usr/libexec/ndakit/pool-alive ([a-z][a-z0-9-]*)", script)
    if pool is not None:
        watched = draft.vrrp.setdefault("demote_on", [])
        if pool[1] not in watched:
            watched.append(pool[1])
        for line_number in _numbers(block):
            file.key(line_number, "vrrp.demote_on")
        return
    for line_number in _numbers(block):
        if re.search(r"haproxy|pound|stunnel", script):
            file.same(line_number, "a node without HAProxy (or Pound) gives its VIPs away without being told")
        else:
            file.hint(line_number, foreign_words.KEYS["track_script"])


def _instance(draft: Draft, node: str, file: SourceFile, block: Block) -> InstanceDraft:
    one = InstanceDraft(block.name, node, block.value("interface") or "", file, block)
    one.priority = number(block.value("priority"), 1, 255) or 100
    one.vrid = number(block.value("virtual_router_id"), 1, 255)
    for line in block.lines:
        word, rest = line.words[0], line.words[1:]
        if word in ("unicast_src_ip", "mcast_src_ip") and rest:
            one.own = address(rest[0])
        elif word in _NOTIFIES:
            file.hint(line.number, foreign_words.NOTIFY)
        else:
            file.hint(line.number, foreign_words.key(word) or "there is no such key")
    for inner in block.blocks:
        kind = inner.words[0]
        if kind == "unicast_peer":
            one.peers = [a for a in (address(line.words[0]) for line in inner.lines) if a is not None]
        elif kind in ("virtual_ipaddress", "virtual_ipaddress_excluded"):
            for line in inner.lines:
                _vip(one, file, line)
        for line_number in _numbers(inner):
            file.hint(line_number, foreign_words.key(kind) or "there is no such key")
    one.heartbeat = bool(one.vips) and all(ip.is_loopback or device == "lo" for ip, _, device in one.vips)
    return one


def _vip(one: InstanceDraft, file: SourceFile, line: Line) -> None:
    written = interface(line.words[0])
    if written is None:
        file.unsaid(line.number, f"'{line.words[0][:60]}' is no address")
        return
    rest, device = list(line.words[1:]), one.device
    if "dev" in rest and rest.index("dev") + 1 < len(rest):
        at = rest.index("dev")
        device = rest[at + 1]
        del rest[at : at + 2]
    if rest[:1] in (["label"], ["scope"], ["brd"]) or rest:
        file.unsaid(line.number, f"VIPs have no {' '.join(rest)[:60]}: an address and its network are all there is")
    one.vips.append((written.ip, line.number, device))


def join(draft: Draft, of_all_nodes: list[InstanceDraft], roots: dict[str, tuple[SourceFile, Block]]) -> None:
    """VIPs, groups and settings of all nodes' instances together."""
    groups = _groups(draft, of_all_nodes, roots)
    first = draft.node_names[0]
    for one in of_all_nodes:
        one.network = _network(draft, one)
    for one in of_all_nodes:
        if one.network is None:
            for line_number in _numbers(one.block):
                one.file.hint(line_number, f"no network is known that its interface '{one.device[:20]}' has")
            continue
        _own_addresses(draft, one)
        key = f"networks.{one.network.name}"
        one.file.key(one.block.number, key if one.heartbeat else "vips")
        _told(one, "interface", key)
        _told(one, "state", "vrrp.prefer")
        _told(one, "priority", "vrrp.prefer")
        if one.heartbeat:
            one.network.heartbeat = True
            for line_number in _numbers(one.block):
                one.file.key(line_number, f"{key}.role")
        else:
            _vips(draft, one, groups.get(one.name, "main"), first)
        if groups.get(one.name, "main") == "main" and one.vrid is not None:
            if one.network.vrid in (None, one.vrid):
                one.network.vrid = one.vrid
                _told(one, "virtual_router_id", f"{key}.vrid")
            else:
                _hint(one, "virtual_router_id", f"{key}.vrid pins one router id, and it is {one.network.vrid}")
    _settings(draft, of_all_nodes)
    _preference(draft, of_all_nodes)


def _told(one: InstanceDraft, word: str, key: str) -> None:
    line = one.block.first(word)
    if line is not None:
        one.file.key(line.number, key)


def _hint(one: InstanceDraft, word: str, why: str) -> None:
    line = one.block.first(word)
    if line is not None:
        one.file.unsaid(line.number, why)


def _groups(
    draft: Draft, of_all_nodes: list[InstanceDraft], roots: dict[str, tuple[SourceFile, Block]]
) -> dict[str, str]:
    """Instance → VIP group: those of one vrrp_sync_group move together, the first group being `main`."""
    members: dict[str, list[str]] = {}
    for node, (file, root) in roots.items():
        for block in root.inner("vrrp_sync_group"):
            names: list[str] = []
            for inner in block.inner("group"):
                names += [word for line in inner.lines for word in line.words]
                for line_number in _numbers(inner):
                    file.key(line_number, "vips")
            file.key(block.number, "vips")
            for line in block.lines:
                if line.words[0].startswith("notify") and "/usr/libexec/ndakit/" in " ".join(line.words):
                    draft.vrrp["connection_sync"] = True
                    file.key(line.number, "vrrp.connection_sync")
                else:
                    file.hint(line.number, foreign_words.key(line.words[0]) or "there is no such key")
            for inner in block.blocks:
                if inner.words[0] != "group":
                    for line_number in _numbers(inner):
                        file.hint(line_number, foreign_words.key(inner.words[0]) or "there is no such key")
            if node == draft.node_names[0] or block.name not in members:
                members[block.name] = names
    alone = [one.name for one in of_all_nodes if not any(one.name in names for names in members.values())]
    sets = [*members.items(), *((name, [name]) for name in dict.fromkeys(alone))]
    result: dict[str, str] = {}
    there = {one.name for one in of_all_nodes}
    sets = [(label, [n for n in names if n in there]) for label, names in sets]
    sets = sorted((s for s in sets if s[1]), key=lambda s: -len(s[1]))  # the largest one is `main`
    ours = all("-" in n for _, names in sets for n in names)
    taken: list[str] = []
    for label, names in sets:
        written = {n.rpartition("-")[2] for n in names}
        if ours and len(written) == 1 and (label in written or label in names):
            group = slug(written.pop(), "main")  # as ndakit names its instances: NETWORK-GROUP
        else:
            group = "main" if "main" not in taken else slug(label, "group", taken)
        taken.append(group)
        result.update(dict.fromkeys(names, group))
    if taken and "main" not in taken:
        first = taken[0]
        result = {name: "main" if group == first else group for name, group in result.items()}
    return result


def _network(draft: Draft, one: InstanceDraft) -> NetworkDraft | None:
    """The network of an instance; without /etc/config/network it is made of the instance."""
    known = draft.network_on(one.device)
    for ip in (one.own, *(ip for ip, _, _ in one.vips)):
        known = known or (draft.network_of(ip) if ip is not None else None)
    if known is not None or (draft.networks and not all(n.guessed for n in draft.networks.values())):
        return known
    base, dot, tag = one.device.rpartition(".")
    nic = base if dot and number(tag, 1, 4094) is not None else one.device
    if not is_card(nic):
        nic = "eth0" if not draft.networks else f"eth{len(draft.networks)}"
        draft.missing(f"networks: the cards below {one.device[:20]} are not in what was read; {nic} stands for them")
    written = [b for b in one.block.blocks if b.words[0].startswith("virtual_ipaddress")]
    lengths = [interface(line.words[0]) for b in written for line in b.lines]
    subnets = [i.network for i in lengths if i is not None and i.network.prefixlen < i.network.max_prefixlen]
    inside = is_private(subnets) if subnets else is_private([ip_network(ip) for ip, _, _ in one.vips])
    name = slug("lan" if inside else "wan", "net", draft.networks)
    made = NetworkDraft(name, one.device, [nic], vlan=int(tag) if dot and nic == base else None, guessed=True)
    for of_vip in subnets:
        if not any(s.version == of_vip.version for s in made.subnets):
            made.subnets.append(of_vip)
    draft.networks[name] = made
    draft.missing(
        f"networks.{name}: /etc/config/network was not there, so that this is made of keepalived.conf: check nics and "
        "subnet, and add the gateway"
    )
    return made


def _own_addresses(draft: Draft, one: InstanceDraft) -> None:
    """Where UCI did not say them: this node's own address, and the other's."""
    net = one.network
    if net is None or not net.guessed:
        peers_known = net is None or one.own is None or all(n in net.addresses for n in draft.node_names)
        if peers_known:
            return
    assert net is not None
    own = net.addresses.setdefault(one.node, [])
    if one.own is not None and not any(a.version == one.own.version for a in own):
        own.append(one.own)
    others = [n for n in draft.node_names if n != one.node]
    for other, peer in zip(others, one.peers, strict=False):
        theirs = net.addresses.setdefault(other, [])
        if not any(a.version == peer.version for a in theirs):
            theirs.append(peer)


def _vips(draft: Draft, one: InstanceDraft, group: str, first: str) -> None:
    net = one.network
    assert net is not None
    before: VipDraft | None = None
    for ip, line, device in one.vips:
        home = draft.network_of(ip) or draft.network_on(device) or net
        if ip.is_link_local:
            home = draft.network_on(device) or net
        known = next((v for v in draft.vips if ip in v.addresses and v.network == home.name), None)
        if known is None:
            pairs = (
                before is not None and before.network == home.name and versions_of(before) == {4} and ip.version == 6
            )
            if pairs and before is not None:
                before.addresses.append(ip)
                known, before = before, None
            else:
                known = VipDraft(
                    home.name, [ip], group, routed=bool(home.subnets) and not home.holds(ip) and not ip.is_link_local
                )
                draft.vips.append(known)
                before = known
        else:
            before = None
        if (
            any(ip_of.version != ip.version for ip_of in known.addresses)
            and not home.holds(ip)
            and not ip.is_link_local
        ):
            known.routed = known.routed or bool(home.subnets)
        one.file.key(line, "vips")
        for block in one.block.blocks:
            if block.words[0].startswith("virtual_ipaddress"):
                one.file.key(block.number, "vips")


def versions_of(vip: VipDraft) -> set[int]:
    """The IP versions of a VIP's addresses."""
    return {a.version for a in vip.addresses}


def _settings(draft: Draft, of_all_nodes: list[InstanceDraft]) -> None:
    for one in of_all_nodes:
        if one.network is None:
            continue
        block = one.block
        interval = block.value("advert_int")
        if interval is not None and re.fullmatch(r"[0-9]{1,2}(\.[0-9]{1,3})?", interval):
            if draft.vrrp.setdefault("advert_interval_s", interval) == interval:
                _told(one, "advert_int", "vrrp.advert_interval_s")
            else:
                _hint(one, "advert_int", f"vrrp.advert_interval_s is one for all, {draft.vrrp['advert_interval_s']}")
        delay = number(block.value("preempt_delay"), 0, 1000)
        if delay:
            draft.vrrp["preempt_delay_s"] = max(delay, draft.vrrp.get("preempt_delay_s", 0))
            _told(one, "preempt_delay", "vrrp.preempt_delay_s")
        if block.inner("unicast_peer"):
            for inner in block.inner("unicast_peer"):
                for line_number in _numbers(inner):
                    one.file.key(line_number, "vrrp.unicast")
            _told(one, "unicast_src_ip", f"nodes.{one.node}.addresses.{one.network.name}")
        else:
            draft.vrrp["unicast"] = False
            _told(one, "mcast_src_ip", f"nodes.{one.node}.addresses.{one.network.name}")
        _told(one, "nopreempt", "vrrp.preempt")
        for inner in block.inner("track_script"):
            for line in inner.lines:
                if line.words[0].startswith("pool-"):
                    one.file.key(line.number, "vrrp.demote_on")
                    one.file.key(inner.number, "vrrp.demote_on")
                elif re.search(r"haproxy|pound|stunnel", line.words[0]):
                    for told in (line.number, inner.number):
                        one.file.same(told, "a node without HAProxy gives its VIPs away without being told")
    known = [one for one in of_all_nodes if one.network is not None]
    if known:
        draft.vrrp["preempt"] = not any(one.block.first("nopreempt") is not None for one in known)


def _preference(draft: Draft, of_all_nodes: list[InstanceDraft]) -> None:
    """The node with the highest priority; instances that prefer different nodes are told."""
    best: Counter[str] = Counter()
    by_name: dict[str, list[InstanceDraft]] = {}
    for one in of_all_nodes:
        by_name.setdefault(one.network.name if one.network else one.name, []).append(one)
    for instances in by_name.values():
        if len({one.node for one in instances}) > 1:
            best[max(instances, key=lambda one: one.priority).node] += 1
    if not best:
        masters = [one.node for one in of_all_nodes if one.block.value("state") == "MASTER"]
        if masters:
            draft.vrrp["prefer"] = masters[0]
        return
    draft.vrrp["prefer"] = best.most_common(1)[0][0]
    for instances in by_name.values():
        top = max(instances, key=lambda one: one.priority)
        if len({one.node for one in instances}) > 1 and top.node != draft.vrrp["prefer"]:
            for one in instances:
                _hint(one, "priority", "a preference for each group of VIPs is not carried yet (vrrp.groups)")
