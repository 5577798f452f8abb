"""How a pair is: what its nodes tell of themselves, side by side, and what of it is not well.

`ask` asks one node over any shell; `Pair` compares the nodes with each other and with the model. What is well: every
node answers; its daemons run; each VRRP instance is master on exactly one node, and each VIP is where its master is;
every server is up (or was taken out by somebody); the clocks are right.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ndakit.core.errors import NdakitError
from ndakit.core.names import instance_name
from ndakit.model import Profile
from ndakit.node.control import ServerLine, haproxy_servers, ipvs_servers
from ndakit.node.facts import facts_of
from ndakit.node.haproxy_cli import HaproxySilent
from ndakit.node.shell import Shell

CLOCK_OFF_S = 5.0
"""A clock that is further off than that is wrong; BusyBox tells whole seconds."""
LOG_LINES = 5
_SECRET = re.compile(
    r"(?i)\b((?:auth_)?pass(?:word|wd|phrase)?|secret|token|api[_-]?key|private[_-]?key|authorization)"
    r"(\s*[=:]\s*|(?<=auth_pass)\s+)(?:(?:basic|bearer)\s+)?(\"[^\"]*\"|'[^']*'|\S+)"
)


@dataclass(frozen=True)
class NodeStatus:
    """One node, as it tells of itself."""

    node: str
    address: str
    hostname: str
    release: str
    image: str
    """The id of its image; empty if the image does not say."""
    image_of: str
    """Profile and node that the image was made for, `shop/lb1`; empty if it does not say."""
    uptime_s: float
    load: tuple[float, ...]
    memory_available_kib: int
    memory_kib: int
    clock_offset_s: float | None
    vrrp: Mapping[str, str]
    """VRRP instance → MASTER, BACKUP, FAULT, …"""
    vips: tuple[str, ...]
    """The VIPs of which it holds an address."""
    daemons: Mapping[str, bool]
    """Daemon that the profile needs → it runs."""
    servers: tuple[ServerLine, ...]
    errors: tuple[str, ...]
    """The last errors in its log."""
    trouble: tuple[str, ...] = ()
    """What could not be asked, in words."""


@dataclass(frozen=True)
class Pair:
    """All nodes of a profile that were asked: what they told, or why they did not."""

    profile: Profile
    nodes: Mapping[str, NodeStatus]
    lost: Mapping[str, NdakitError]

    @property
    def trouble(self) -> tuple[str, ...]:
        """What is not well, in words; empty if all is."""
        lines = [f"{node}: {error.what.splitlines()[0]}" for node, error in self.lost.items()]
        for node, told in self.nodes.items():
            lines += [f"{node}: {line}" for line in (*told.trouble, *_alone(self.profile, told))]
        if not self.lost:
            lines += _together(self.profile, self.nodes)
        return tuple(lines)

    def masters(self) -> dict[str, tuple[str, ...]]:
        """VRRP instance → the nodes that are its master."""
        return {
            name: tuple(node for node, told in self.nodes.items() if told.vrrp.get(name) == "MASTER")
            for name in _instances(self.profile)
        }

    def holders(self) -> dict[str, tuple[str, ...]]:
        """VIP → the nodes that hold it."""
        return {vip: tuple(n for n, told in self.nodes.items() if vip in told.vips) for vip in self.profile.vips}


def _instances(profile: Profile) -> list[str]:
    """The names of the VRRP instances."""
    return [instance_name(one.network, one.group) for one in profile.instances]


def daemons_of(profile: Profile) -> tuple[str, ...]:
    """The daemons that must run on every node."""
    engines = [engine.service for engine in profile.running_engines]
    engines += [terminator.service for terminator in profile.terminators]
    failover = ["keepalived"] if profile.instances else []
    told = ["conntrackd"] if profile.tracks_connections else []
    return tuple(dict.fromkeys(["dropbear", *engines, *failover, *told]))


def ask(
    shell: Shell, profile: Profile, node: str, address: str, mask: Callable[[str], str] = lambda text: text
) -> NodeStatus:
    """What a node tells. `mask` takes the profile's secrets out of a text. Raises what Shell.run raises, and
    OutputNotUnderstood."""
    facts = facts_of(shell)
    trouble = []
    release, image, memory = facts.release(), facts.image(), facts.memory_kib()
    servers: list[ServerLine] = []
    daemons = {name: facts.service_running(name) for name in daemons_of(profile)}
    if profile.haproxy_services and daemons.get("haproxy"):
        try:
            servers += haproxy_servers(shell)
        except HaproxySilent as error:
            trouble.append(error.what)
    servers += ipvs_servers(facts, profile)
    held = {interface.ip for there in facts.addresses().values() for interface in there}
    count = len(profile.instances)
    return NodeStatus(
        node=node,
        address=address,
        hostname=facts.hostname(),
        release=release.get("DISTRIB_RELEASE", ""),
        image=image.get("id", ""),
        image_of=f"{image['profile']}/{image['node']}" if {"profile", "node"} <= set(image) else "",
        uptime_s=facts.uptime_s(),
        load=facts.load(),
        memory_available_kib=memory[0],
        memory_kib=memory[1],
        clock_offset_s=facts.clock_offset_s(),
        vrrp=facts.vrrp_states(count) if count and daemons.get("keepalived") else {},
        vips=tuple(name for name, vip in profile.vips.items() if held & set(vip.address)),
        daemons=daemons,
        servers=tuple(servers),
        errors=tuple(masked(mask(line)) for line in facts.log_errors(LOG_LINES)),
        trouble=tuple(trouble),
    )


def masked(text: str) -> str:
    """A line of a log without what stands behind a word for a secret."""
    return _SECRET.sub(lambda match: f"{match[1]}{match[2]}***", text)


def _alone(profile: Profile, told: NodeStatus) -> list[str]:
    """What is not well with one node by itself."""
    lines = []
    if told.hostname != profile.hostname(told.node):
        lines.append(f"it calls itself {told.hostname}, not {profile.hostname(told.node)}: is it the right box?")
    if told.release != str(profile.release):
        lines.append(f"it runs OpenWrt {told.release or '(unknown)'}, the profile says {profile.release}")
    if missing := [name for name, runs in told.daemons.items() if not runs]:
        lines.append(f"{', '.join(missing)} does not run")
    if told.clock_offset_s is not None and abs(told.clock_offset_s) > CLOCK_OFF_S:
        lines.append(f"its clock is off by {told.clock_offset_s:+.0f} s")
    if told.daemons.get("keepalived"):
        states = {name: told.vrrp.get(name, "not there") for name in _instances(profile)}
        lines += [f"VRRP instance {n} is {state}" for n, state in states.items() if state not in ("MASTER", "BACKUP")]
    down = dict.fromkeys(f"{line.pool}/{line.server}" for line in told.servers if line.state == "down")
    if down:
        lines.append(f"sees {', '.join(down)} down")
    for pool in dict.fromkeys(line.pool for line in told.servers):
        if not any(line.state == "up" for line in told.servers if line.pool == pool):
            lines.append(f"no server of pool {pool} takes new connections")
    return lines


def _together(profile: Profile, nodes: Mapping[str, NodeStatus]) -> list[str]:
    """What is not well between the nodes; only where all of them (or the one that there is) told."""
    pair = Pair(profile, nodes, {})
    everybody = set(nodes) == set(profile.nodes)
    lines = []
    for name, masters in pair.masters().items():
        if len(masters) > 1:
            lines.append(f"VRRP instance {name} has {len(masters)} masters: {', '.join(masters)}")
        elif not masters and everybody:
            lines.append(f"VRRP instance {name} has no master")
    for vip, holders in pair.holders().items():
        if len(holders) > 1:
            lines.append(f"VIP {vip} is on {', '.join(holders)}: both answer for it")
        elif not holders and everybody:
            lines.append(f"VIP {vip} is on no node")
    for key in _places(nodes):
        states = {node: _state(told, key) for node, told in nodes.items()}
        if "drained" in states.values() and "up" in states.values():
            where = [node for node, state in states.items() if state == "up"]
            lines.append(
                f"{key[0]}/{key[1]} is drained, but not on {', '.join(where)}: after a failover it gets traffic"
            )
    return lines


def _places(nodes: Mapping[str, NodeStatus]) -> list[tuple[str, str, str]]:
    return list(dict.fromkeys((line.pool, line.server, line.by) for told in nodes.values() for line in told.servers))


def _state(told: NodeStatus, key: tuple[str, str, str]) -> str:
    return next((line.state for line in told.servers if (line.pool, line.server, line.by) == key), "")
