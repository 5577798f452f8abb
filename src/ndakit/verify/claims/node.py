"""Claims about one node by itself: who it is, its addresses and daemons, its ways in, its logs."""

from __future__ import annotations

from ndakit.lab.network import LabNetwork
from ndakit.node.status import daemons_of
from ndakit.verify.claims.base import Outcome, reachable_addresses

NOBODY_INSIDE = "nobody in the lab is inside access.sources"


def identity(lab: LabNetwork, node: str) -> Outcome:
    """Host name and release."""
    facts = lab.facts(node)
    hostname, release = facts.hostname(), facts.release()
    wanted = lab.profile.hostname(node)
    version = release.get("DISTRIB_RELEASE", "?")
    ok = hostname == wanted and version == str(lab.profile.release)
    return Outcome(
        ok, f"{hostname}, {release.get('DISTRIB_DESCRIPTION', version)}", f"expected {wanted} and {lab.profile.release}"
    )


def addresses(lab: LabNetwork, node: str) -> Outcome:
    """The node's own addresses on the right devices, and nothing that is neither its own nor a VIP."""
    held = lab.facts(node).addresses()
    vips = {a for v in lab.profile.vips.values() for a in v.address}
    wrong: list[str] = []
    count = 0
    for network, own in lab.profile.nodes[node].addresses.items():
        device = lab.profile.l2_device(network)
        there = held.get(device, set())
        for address in own:
            subnet = lab.profile.networks[network].subnet_of(address.version)
            if subnet is None or not any(i.ip == address and i.network == subnet for i in there):
                wrong.append(f"{address} is not on {device}")
            count += 1
        wrong += [f"{i} on {device} is not in the profile" for i in there if i.ip not in {*own, *vips}]
        wrong += [
            f"VIP {i} has a prefix: it would die with another address"
            for i in there
            if i.ip in vips and i.network.num_addresses != 1 and not lab.profile.standalone
        ]
    return Outcome(
        not wrong, f"{count} of {count}" if not wrong else f"{len(wrong)} wrong", "; ".join(wrong), {"addresses": count}
    )


def daemons(lab: LabNetwork, node: str) -> Outcome:
    """The services that must run."""
    needed = daemons_of(lab.profile)
    missing = [n for n in needed if not lab.facts(node).service_running(n)]
    return Outcome(
        not missing,
        ", ".join(n for n in needed if n not in missing) or "none",
        f"not running: {', '.join(missing)}" if missing else "",
    )


def vrrp(lab: LabNetwork, node: str) -> Outcome:
    """keepalived's own view: master or backup everywhere, so that it holds the VIPs or can take them over."""
    wrong = lab.vrrp_trouble(node)
    count = len(lab.profile.instances)
    return Outcome(
        not wrong, f"{count} of {count} instances" if not wrong else "not ready", wrong, {"instances": count}
    )


def ssh(lab: LabNetwork, node: str) -> Outcome:
    """Reachable from inside, not from outside, without passwords; with the user's key if there is one."""
    inside, wrong = 0, []
    login = ""
    for source, point in lab.plan.admins.items():
        for target in reachable_addresses(lab, node, point):
            probe = lab.ssh_probe(point, target)
            inside += 1
            if not probe.banner:
                wrong.append(f"{source} ({point.addresses[0]}) gets no SSH answer from {target}")
            elif probe.open_door:
                wrong.append(f"{target} lets anybody in, without a key or a password")
            elif set(probe.methods) != {"publickey"}:
                wrong.append(f"{target} offers {', '.join(probe.methods) or 'nothing'}, not just publickey")
            elif lab.identity is not None and not login:
                login = lab.ssh_run(point, target, ["cat", "/proc/sys/kernel/hostname"]).strip()
                if login != lab.profile.hostname(node):
                    wrong.append(f"the key given by --identity does not log in to {target}")
    if not inside:
        wrong.append(NOBODY_INSIDE)
    wrong += intruders(lab, node, lab.profile.ssh_port)
    outside = sum(len(reachable_addresses(lab, node, point)) for point in lab.plan.strangers.values())
    figure = f"{inside} way(s) in, {outside} shut" + (", login by key works" if login else "")
    return Outcome(not wrong, figure, "; ".join(wrong), {"inside": inside, "outside": outside})


def statistics(lab: LabNetwork, node: str) -> Outcome:
    """The statistics page from inside and from outside."""
    port = lab.profile.monitoring.statistics.port
    proxies = bool(lab.profile.haproxy_services)
    wrong = []
    inside = servers = 0
    for source, point in lab.plan.admins.items():
        for target in reachable_addresses(lab, node, point):
            inside += 1
            states = lab.statistics(point, target)
            servers = max(servers, len(states))
            # Without proxied services it lists no server, as if it were not there.
            if not states and (proxies or lab.get(point, target, port, path="/;csv").status != 200):
                wrong.append(f"{source} does not get it from {target}")
    if not inside:
        wrong.append(NOBODY_INSIDE)
    wrong += intruders(lab, node, port)
    return Outcome(not wrong, f"{servers} servers listed", "; ".join(wrong))


def intruders(lab: LabNetwork, node: str, port: int) -> list[str]:
    """Which strangers find a port of the node open."""
    wanted = [
        (network, point, target)
        for network, point in lab.plan.strangers.items()
        for target in reachable_addresses(lab, node, point)
    ]
    scans = lab.scan_all([(point, target, [port], "tcp") for _, point, target in wanted])
    return [
        f"a stranger on {network} ({point.address(target.version)}) reaches port {port} of {target}"
        for (network, point, target), states in zip(wanted, scans, strict=True)
        if states[port] == "open"
    ]


def quiet(lab: LabNetwork, node: str) -> Outcome:
    """The logs."""
    if not lab.is_up(node):
        return Outcome(False, "down", f"{node} does not run any more")
    facts = lab.facts(node)
    lines = facts.trouble() + facts.unsupported()
    return Outcome(
        not lines, f"{len(lines)} alarms" if lines else "no alarm", "; ".join(lines[:3]), {"lines": len(lines)}
    )
