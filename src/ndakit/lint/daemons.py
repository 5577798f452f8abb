"""Lint of haproxy.cfg, keepalived.conf, sysctl.conf, sysupgrade.conf: what the daemons accept and do not do.

Source: verified-fragments 5 of the project's reference; what the daemons refuse themselves is left to validators.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import ip_address, ip_interface

from ndakit.lint.config_text import Block, Line, Proxy, TextError, haproxy, keepalived
from ndakit.lint.subject import LintFinding, Subject
from ndakit.render.render import BROUGHT, KEPT_ANYWAY, SYSUPGRADE, within

HAPROXY, KEEPALIVED = "/etc/haproxy.cfg", "/etc/keepalived/keepalived.conf"
SYSTEM, HAPROXY_INIT = "/etc/config/system", "/etc/init.d/haproxy"
VIPS_INIT, VIPS_WATCH = "/etc/init.d/ndakit-vips", "/usr/libexec/ndakit/vips-watch"
SYSCTL = "/etc/sysctl.conf"
KEEP_LISTS = "/lib/upgrade/keep.d/"
"""Every file in it is a list like sysupgrade.conf."""
_FILE_KEYWORDS = {"errorfile": 2, "crt": 1, "ca-file": 1, "lua-load": 1}
_SYSCTL_KEYS = re.compile(
    r"net\.ipv[46]\.conf\.[a-z0-9/-]+\.(accept_ra|accept_redirects|hop_limit|send_redirects|promote_secondaries|forwarding|arp_ignore|arp_announce|rp_filter)"
    r"|net\.ipv[46]\.ip_nonlocal_bind|net\.ipv4\.(ip_forward|ip_local_port_range|ip_local_reserved_ports)"
    r"|net\.ipv4\.(tcp_max_syn_backlog|tcp_fin_timeout|tcp_syncookies|tcp_tw_reuse|tcp_max_tw_buckets)"
    r"|net\.core\.(somaxconn|netdev_max_backlog)"
    r"|fs\.nr_open|net\.netfilter\.nf_conntrack_(max|buckets)|net\.ipv4\.vs\.[a-z_]+|vm\.[a-z_]+"
)
"""Keys that every kernel of the supported releases has; an unknown one is ignored without a word (sysctl -e)."""


def rules(subject: Subject) -> Iterator[LintFinding]:
    """All rules about the daemons' own files."""
    yield from balancer(subject)
    yield from failover(subject)
    yield from supervision(subject)
    yield from kernel(subject)
    yield from kept(subject)


def balancer(subject: Subject) -> Iterator[LintFinding]:
    """haproxy.cfg."""
    file = subject.tree.get(HAPROXY)
    if not subject.profile.runs_haproxy:
        if file is not None:
            yield subject.finding("haproxy", HAPROXY, 0, "this node has nothing for HAProxy to do")
        return
    if file is None:
        yield subject.finding("haproxy", HAPROXY, 0, "missing: HAProxy would start with the package's example")
        return
    try:
        proxies = haproxy(file.text)
    except TextError as cause:
        yield subject.finding("haproxy", HAPROXY, cause.line, cause.message)
        return
    yield from _names(subject, proxies)
    yield from _reserve(subject, proxies)
    yield from _privileges(subject, proxies)
    backends = {p.name for p in proxies if p.kind in ("backend", "listen")}
    servers = {f"{p.name}/{line.words[1]}" for p in proxies for line in p.all("server") if len(line.words) > 1}
    bound: dict[str, int] = {}
    for proxy in proxies:
        yield from _peers(subject, proxies, proxy)
        for line in proxy.lines:
            yield from _files(subject, line)
            yield from _references(subject, line, backends, servers)
        if proxy.kind in ("frontend", "backend", "listen"):
            yield from _proxy(subject, proxy)
            yield from _binds(subject, proxy, bound)


def _privileges(subject: Subject, proxies: list[Proxy]) -> Iterator[LintFinding]:
    """What needs root's rights in an HAProxy that gives them up: it refuses to start, and `haproxy -c` does not see it
    (HAProxy 1.8 to 2.8; from 2.9 on `setcap` keeps the rights)."""
    settings = [line.words for p in proxies if p.kind == "global" for line in p.lines]
    user = next((w[1] for w in settings if w[0] in ("user", "uid") and len(w) > 1), "0")
    kept = subject.profile.release.haproxy >= (2, 9) and any(w[0] == "setcap" for w in settings)
    if user in ("root", "0") or kept:
        return
    for line in (line for p in proxies if p.kind != "global" for line in p.lines):
        asked = {"usesrc", "set-mark"} & set(line.words)
        if "source" in line.words and "interface" in line.words:
            asked.add("source … interface")
        if asked:
            what = f"{min(asked)} needs root's rights, and HAProxy gives them up (user {user}): it does not start"
            yield subject.finding("haproxy-privileges", HAPROXY, line.number, what)


def _names(subject: Subject, proxies: list[Proxy]) -> Iterator[LintFinding]:
    seen: dict[str, Proxy] = {}
    for proxy in proxies:
        if proxy.kind in ("frontend", "backend", "listen") and proxy.name in seen:
            what = (
                f"{proxy.kind} {proxy.name} has the name of the {seen[proxy.name].kind} in line "
                f"{seen[proxy.name].number}: HAProxy 3.2 warns, 3.3 does not start"
            )
            yield subject.finding("haproxy-name", HAPROXY, proxy.number, what)
        seen.setdefault(proxy.name, proxy)


def _reserve(subject: Subject, proxies: list[Proxy]) -> Iterator[LintFinding]:
    """HAProxy's own pages answer only while its own limit is not reached: it is above what the services may take."""
    limits = {p.name: _number(p.first("maxconn")) for p in proxies}
    own = next((_number(p.first("maxconn")) for p in proxies if p.kind == "global"), None)
    taken, places = 0, 0
    for proxy in proxies:
        if proxy.kind not in ("frontend", "listen"):
            continue
        limit = limits[proxy.name]
        if limit is None:
            what = f"{proxy.kind} {proxy.name} has no maxconn: HAProxy gives it all there are"
            yield subject.finding("haproxy-reserve", HAPROXY, proxy.number, what)
            return
        places += limit if proxy.name.startswith("_") else 0
        taken += 0 if proxy.name.startswith("_") else limit
    text = subject.tree[HAPROXY].text
    if together := re.search(r"^\ttcp-request connection reject if \{ sc2_conn_cur\(\S+\) gt (\d+) \}$", text, re.M):
        taken = min(taken, int(together[1]))
    if own is None or own < taken + places:
        what = (
            f"the global maxconn ({own}) is below {taken + places}, what services and HAProxy's own pages take "
            "together: a flood would silence the statistics and keepalived's question about pools"
        )
        yield subject.finding("haproxy-reserve", HAPROXY, 0, what)


def _number(line: Line | None) -> int | None:
    return int(line.words[1]) if line is not None and len(line.words) > 1 and line.words[1].isdigit() else None


def _peers(subject: Subject, proxies: list[Proxy], proxy: Proxy) -> Iterator[LintFinding]:
    if proxy.kind != "peers":
        return
    stated = (line.words[1] for p in proxies if p.kind == "global" for line in p.all("localpeer"))
    own = next(stated, subject.view.hostname)
    if own not in {line.words[1] for line in proxy.all("peer")}:
        what = f"this node, {own}, is not among the peers: HAProxy drops the whole section and only warns"
        yield subject.finding("haproxy-peers", HAPROXY, proxy.number, what)


def _files(subject: Subject, line: Line) -> Iterator[LintFinding]:
    for keyword, offset in _FILE_KEYWORDS.items():
        if keyword in line.words:
            at = line.words.index(keyword) + offset
            path = line.words[at] if at < len(line.words) else ""
            if path not in subject.tree and not any(p.startswith(f"{path.rstrip('/')}/") for p in subject.tree):
                what = f"{path or keyword} is not in the tree: HAProxy would not start"
                yield subject.finding("haproxy-file", HAPROXY, line.number, what)


def _references(subject: Subject, line: Line, backends: set[str], servers: set[str]) -> Iterator[LintFinding]:
    if line.words[0] in ("use_backend", "default_backend") and line.words[1] not in backends:
        yield subject.finding("haproxy-backend", HAPROXY, line.number, f"no backend '{line.words[1]}'")
    if line.words[0] == "server" and "track" in line.words:
        tracked = line.words[line.words.index("track") + 1]
        if tracked not in servers:
            yield subject.finding("haproxy-track", HAPROXY, line.number, f"no server '{tracked}' to follow")
    for word in line.words:
        if (found := re.match(r"nbsrv\((.*)\)$", word)) and found[1] not in backends:
            yield subject.finding("haproxy-backend", HAPROXY, line.number, f"no backend '{found[1]}'")


def _proxy(subject: Subject, proxy: Proxy) -> Iterator[LintFinding]:
    if proxy.mode not in ("http", "tcp"):
        what = f"{proxy.kind} {proxy.name} does not state its mode"
        yield subject.finding("haproxy-mode", HAPROXY, proxy.number, what)
    if proxy.mode == "tcp":
        for line in proxy.lines:
            if line.words[0] == "cookie" or line.words[:2] in (("option", "httplog"), ("balance", "uri")):
                what = f"'{' '.join(line.words[:2])}' does nothing in mode tcp, and HAProxy only warns"
                yield subject.finding("haproxy-mode", HAPROXY, line.number, what)
    for line in proxy.all("server"):
        if "check" not in line.words and "track" not in line.words:
            what = (
                f"server {line.words[1]} is neither checked nor follows one that is: it would stay in when it is dead"
            )
            yield subject.finding("haproxy-check", HAPROXY, line.number, what)


def _binds(subject: Subject, proxy: Proxy, bound: dict[str, int]) -> Iterator[LintFinding]:
    own = set(subject.view.addresses)
    vips = {a for v in subject.profile.vips.values() for a in v.address}
    for line in proxy.all("bind"):
        socket = line.words[1]
        try:
            address = ip_address(socket.rpartition(":")[0].strip("[]"))
        except ValueError:
            what = f"'{socket}' names no address: it would listen on all of them"
            yield subject.finding("haproxy-bind", HAPROXY, line.number, what)
            continue
        if proxy.name.startswith("_") and address.is_loopback:  # ours, for programs of the node
            continue
        if address not in own | vips:
            what = f"{address} is neither a VIP nor an address of this node"
            yield subject.finding("haproxy-bind", HAPROXY, line.number, what)
        if socket in bound:
            what = f"{socket} is bound in line {bound[socket]} as well: HAProxy takes both and shares at random"
            yield subject.finding("haproxy-bind", HAPROXY, line.number, what)
        bound.setdefault(socket, line.number)
        if proxy.first("stats", "enable") is not None and address not in own:
            what = f"the statistics page on {address}, which is not the node's own"
            yield subject.finding("haproxy-statistics", HAPROXY, line.number, what)


def failover(subject: Subject) -> Iterator[LintFinding]:
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


def supervision(subject: Subject) -> Iterator[LintFinding]:
    """Whatever ends is started again, for ever; and a node whose keepalived cannot start gives its VIPs up."""
    section = next(iter(subject.sections("system", "service")), None)
    if section is None or section.get("respawn_retry") != "0":
        what = "procd gives up on a daemon at its sixth end within an hour, unless respawn_retry is 0"
        yield subject.finding("respawn", SYSTEM, section.line if section is not None else 0, what)
    init = subject.tree.get(HAPROXY_INIT)
    if init is None and subject.profile.runs_haproxy and not subject.profile.release.haproxy_under_procd:
        what = "missing: the package's own starts HAProxy behind procd's back, and nobody starts it again"
        yield subject.finding("respawn", HAPROXY_INIT, 0, what)
    if not subject.view.vrrp:
        return
    watch = subject.tree.get(VIPS_WATCH)
    if watch is None or VIPS_INIT not in subject.tree:
        what = "missing: a node whose keepalived cannot start would keep its VIPs"
        yield subject.finding("vips-watch", VIPS_INIT if watch is not None else VIPS_WATCH, 0, what)
        return
    wanted = {f"{v.prefixed} dev {v.device}" for i in subject.view.instances for v in (i.advertised, *i.others)}
    lines = [line.strip() for line in watch.text.splitlines()]
    named = {line.removeprefix("address del ") for line in lines if line.startswith("address del ")}
    for address in sorted(named ^ wanted):
        what = "is not given up" if address in wanted else "is given up and is no VIP"
        yield subject.finding("vips-watch", VIPS_WATCH, 0, f"{address} {what} when keepalived does not run")


def _scripts(subject: Subject, root: Block) -> Iterator[LintFinding]:
    nopreempt = any(b.first("nopreempt") for b in root.inner("vrrp_instance"))
    for block in (*root.blocks, *(b for i in root.blocks for b in i.blocks)):
        for line in block.lines:
            if line.words[0] in ("script", "misc_path") or line.words[0].startswith("notify"):
                path = line.words[1].split()[0] if len(line.words) > 1 and line.words[1] else ""
                found = subject.tree.get(path)
                if found is None or not found.mode & 0o100:
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
    """The scripts that every instance must track: one that asks whether HAProxy runs, where it carries something."""
    return {"haproxy"} if subject.profile.haproxy_services else set()


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


def kernel(subject: Subject) -> Iterator[LintFinding]:
    """sysctl.conf: a key that the kernel does not know is ignored without a word."""
    file = subject.tree.get(SYSCTL)
    values: dict[str, str] = {}
    for number, line in enumerate(file.text.splitlines() if file is not None else [], 1):
        if not line or line.startswith("#"):
            continue
        key, equals, value = line.partition("=")
        if not equals or not value or key != key.strip() or value != value.strip():
            yield subject.finding("sysctl", SYSCTL, number, f"'{line[:60]}' is not written as key=value")
        elif key not in subject.profile.tuning.sysctl and not _SYSCTL_KEYS.fullmatch(key):
            what = f"'{key}' is not known to exist in every kernel: it would be ignored without a word"
            yield subject.finding("sysctl", SYSCTL, number, what)
        elif key in values:
            yield subject.finding("sysctl", SYSCTL, number, f"'{key}' is stated twice")
        values.setdefault(key, value)
    for place in ("default", *subject.profile.nics):
        key = f"net.ipv6.conf.{place}.accept_ra"
        if values.get(key) != subject.profile.tuning.sysctl.get(key, "0"):
            what = f"{key}=0 is missing: any host could give this node a way out of its own"
            yield subject.finding("sysctl", SYSCTL, 0, what)
    for version in ("4", "6"):
        key = f"net.ipv{version}.ip_nonlocal_bind"
        if subject.view.vrrp and subject.profile.runs_haproxy and values.get(key) != "1":
            what = f"{key}=1 is missing: HAProxy does not start on a node that does not hold the VIPs"
            yield subject.finding("sysctl", SYSCTL, 0, what)


def kept(subject: Subject) -> Iterator[LintFinding]:
    """What an upgrade that keeps the configuration must keep beyond what it keeps anyway."""
    lists = [f.text for p, f in subject.tree.items() if p == SYSUPGRADE or p.startswith(KEEP_LISTS)]
    listed = [line for text in lists for line in text.splitlines() if line and not line.startswith("#")]
    for path in subject.tree:
        if within(path, KEPT_ANYWAY + BROUGHT):
            continue
        if not any(path == k or path.startswith(f"{k.rstrip('/')}/") for k in listed):
            what = f"{path} is not listed: an upgrade that keeps the configuration would lose it"
            yield subject.finding("not-kept", SYSUPGRADE, 0, what)
