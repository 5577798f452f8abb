"""Taking servers out of service on a running balancer, and bringing them back: by HAProxy's command line and by IPVS.

What is done lasts until the daemons are started anew. HAProxy forgets it with a reload. In the kernel it lasts until
keepalived takes the server out and in again, with the profile's weight then: when the server fails its checks and is
well again, as at its reboot. The configuration of the node stays what its image says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ndakit.core.addresses import authority, literal
from ndakit.core.errors import InputError
from ndakit.core.names import pool_of_backend
from ndakit.model import Endpoint, Profile
from ndakit.node import haproxy_cli
from ndakit.node.errors import NodeError
from ndakit.node.facts import NodeFacts, ServerState, VirtualServer, facts_of, parse_statistics
from ndakit.node.shell import Shell

METHODS: Mapping[str, str] = {"nat": "-m", "dr": "-g", "tun": "-i"}
"""How ipvsadm calls the topologies; without any of them it takes -g."""


class PoolServerUnknown(InputError):
    """A server that the profile does not have."""

    def __init__(self, profile: Profile, given: str) -> None:
        every = [f"{pool}/{server}" for pool, facts in profile.pools.items() for server in facts.servers]
        near = [one for one in every if one.endswith(f"/{given}")] or every
        super().__init__(
            f"profile {profile.name} has no server '{given[:80]}'",
            where="--server",
            fix=f"write POOL/SERVER, one of: {', '.join(near[:12])}",
        )


class ControlFailed(NodeError):
    """A balancer did not do what it was told."""

    def __init__(self, name: str, wanted: str, told: str) -> None:
        super().__init__(
            f"{name} did not {wanted}: {told}",
            where=name,
            fix="look at the box what HAProxy and keepalived said: logread | tail -n 50",
        )


@dataclass(frozen=True)
class ServerLine:
    """A server as one of a node's programs has it. `state`: up, down, drained, maintenance."""

    pool: str
    server: str
    by: str
    """Which one: `haproxy apache`, `ipvs 192.0.2.10:80 tcp`."""
    state: str
    weight: int
    sessions: int
    """Connections that go on."""


def named(profile: Profile, given: str) -> tuple[str, str]:
    """Pool and server of `POOL/SERVER`. Raises PoolServerUnknown."""
    pool, _, server = given.partition("/")
    if pool not in profile.pools or server not in profile.pools[pool].servers:
        raise PoolServerUnknown(profile, given)
    return pool, server


# -- HAProxy -----------------------------------------------------------------------------------------------------------


def haproxy_servers(shell: Shell) -> list[ServerLine]:
    """HAProxy's servers. Raises HaproxySilent, OutputNotUnderstood."""
    return [_haproxy_line(state) for state in parse_statistics(haproxy_cli.ask(shell, ["show stat"]))]


def _haproxy_line(state: ServerState) -> ServerLine:
    words = {"DRAIN": "drained", "MAINT": "maintenance", "NOLB": "drained"}
    word = words.get(state.status.split()[0] if state.status else "", "up" if state.up else "down")
    return ServerLine(
        pool_of_backend(state.proxy), state.server, f"haproxy {state.proxy}", word, state.weight, state.sessions
    )


def _tell_haproxy(shell: Shell, profile: Profile, pool: str, server: str, weight: int | None) -> None:
    """Drain a server in every backend of its pool (weight None), or bring it back with a weight."""
    backends = [
        line.by.removeprefix("haproxy ")
        for line in haproxy_servers(shell)
        if (line.pool, line.server) == (pool, server)
    ]
    commands = []
    for backend in backends:
        if weight is None:
            commands.append(f"set server {backend}/{server} state drain")
        else:
            commands += [f"set server {backend}/{server} state ready", f"set weight {backend}/{server} {weight}"]
    if not commands:
        raise ControlFailed(shell.name, f"find {pool}/{server}", "HAProxy there has no such server: another profile?")
    answer = haproxy_cli.ask(shell, commands).strip()
    if answer:
        raise ControlFailed(shell.name, f"change {pool}/{server}", f"HAProxy says: {answer[:300]}")


# -- IPVS --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Virtual:
    """A virtual server that the profile wants."""

    service: str
    endpoint: Endpoint
    port: int
    mark: int | None

    @property
    def by(self) -> str:
        version = self.endpoint.address.version
        what = (
            f"mark {self.mark} IPv{version}" if self.mark is not None else authority(self.endpoint.address, self.port)
        )
        return f"ipvs {self.service} {what}"


def _virtuals(profile: Profile, pool: str) -> list[_Virtual]:
    """The virtual servers of the services that use a pool: one per address, or per IP version of marked services."""
    by_place: dict[tuple[object, ...], _Virtual] = {}
    for name in profile.ipvs_services_of(pool):
        service, mark = profile.services[name], profile.marks.get(name)
        for endpoint in profile.endpoints(name) if service.pool == pool else ():
            place = (name, endpoint.address.version) if mark is not None else (name, endpoint.address)
            by_place.setdefault(place, _Virtual(name, endpoint, service.first_port, mark))
    return list(by_place.values())


def ipvs_servers(facts: NodeFacts, profile: Profile) -> list[ServerLine]:
    """The servers of the pools that the kernel balances; one that is not in the kernel is down."""
    pools = list(dict.fromkeys(profile.services[name].main_pool for name in profile.ipvs_services))
    there = facts.virtual_servers() if pools else []
    return [
        line
        for pool in pools
        for virtual in _virtuals(profile, pool)
        for server in profile.pools[pool].servers
        if (line := _ipvs_line(profile, there, pool, virtual, server)) is not None
    ]


def _ipvs_line(
    profile: Profile, there: Sequence[VirtualServer], pool: str, virtual: _Virtual, server: str
) -> ServerLine | None:
    """One server in one virtual server; None if none of its addresses belongs there."""
    service, version = profile.services[virtual.service], virtual.endpoint.address.version
    facts = profile.pools[pool].servers[server]
    address = facts.address_of(version) or (facts.address[0] if service.topology == "tun" else None)
    if address is None:
        return None
    for one in there:
        if virtual.mark is not None:
            same = one.mark == virtual.mark
        else:
            place = (virtual.endpoint.address, virtual.port, service.transport)
            same = (one.address, one.port, one.protocol) == place
        for at, weight in one.weights.items() if same else ():
            if at[0] == address:
                state = "up" if weight else "drained"
                return ServerLine(pool, server, virtual.by, state, weight, one.connections.get(at, 0))
    return ServerLine(pool, server, virtual.by, "down", 0, 0)


def weight_command(profile: Profile, service: str, endpoint: Endpoint, port: int, server: str, weight: int) -> str:
    """The command that gives a server another weight until keepalived adds it anew (ipvsadm(8)).

    It sets all that there is of a server: what is not said again (the way there, the limits) would be lost.
    """
    settings = profile.services[service]
    pool, mark, version = profile.pools[settings.main_pool], profile.marks.get(service), endpoint.address.version
    facts = pool.servers[server]
    address = facts.address_of(version) or facts.address[0]
    virtual, real = f"-{settings.transport[0]} {authority(endpoint.address, port)}", literal(address)
    if mark is not None:
        virtual = f"-f {mark}{' -6' if version == 6 else ''}"
        # ipvsadm takes an address in brackets with a port only; 0 is the port of servers behind a mark.
        real += ":0" if address.version == 6 else ""
    else:
        real += f":{facts.port or pool.port or port}"
    limits = f" -x {facts.max_connections} -y {facts.resume_below or 0}" if facts.max_connections else ""
    return f"ipvsadm -e {virtual} -r {real} {METHODS[settings.topology]} -w {weight}{limits}"


def _tell_ipvs(shell: Shell, profile: Profile, pool: str, server: str, weight: int) -> None:
    """Give a server another weight in every virtual server of its pool where the kernel has it."""
    there = {
        line.by for line in ipvs_servers(facts_of(shell), profile) if _is(line, pool, server) and line.state != "down"
    }
    for virtual in _virtuals(profile, pool):
        if virtual.by in there:
            command = weight_command(profile, virtual.service, virtual.endpoint, virtual.port, server, weight)
            ran = shell.run(command)
            if ran.rc != 0:
                raise ControlFailed(
                    shell.name, f"change {pool}/{server}", f"'{command}' says: {ran.stderr.strip()[:300]}"
                )


def _is(line: ServerLine, pool: str, server: str) -> bool:
    return (line.pool, line.server) == (pool, server)


# -- both --------------------------------------------------------------------------------------------------------------


def drain(shell: Shell, profile: Profile, pool: str, server: str) -> tuple[ServerLine, ...]:
    """Give a server no new connections on this node; those that it has go on, and clients that HAProxy's persistence
    keeps on it come back to it. What the node tells of it afterwards.

    A server that is down is left as it is. Raises ControlFailed if the node tells of it as up afterwards.
    """
    if profile.haproxy_services_of(pool):
        _tell_haproxy(shell, profile, pool, server, None)
    _tell_ipvs(shell, profile, pool, server, 0)
    return _told(shell, profile, pool, server, "drain", refused="up")


def set_weight(shell: Shell, profile: Profile, pool: str, server: str, weight: int) -> tuple[ServerLine, ...]:
    """Give a server this share of new connections on this node; with a weight it is in service again after a drain.
    What the node tells of it afterwards. Raises ControlFailed if it tells of another weight, or of a drain."""
    if profile.haproxy_services_of(pool):
        _tell_haproxy(shell, profile, pool, server, weight)
    _tell_ipvs(shell, profile, pool, server, weight)
    lines = _told(shell, profile, pool, server, f"give weight {weight} to", refused="drained" if weight else "up")
    wrong = [line for line in lines if line.state == "up" and line.weight != weight]
    if wrong:
        raise ControlFailed(shell.name, f"give weight {weight} to {pool}/{server}", f"it has {wrong[0].weight}")
    return lines


def bring_back(shell: Shell, profile: Profile, pool: str, server: str) -> tuple[ServerLine, ...]:
    """Put a server into service again with the profile's weight. See `set_weight`."""
    return set_weight(shell, profile, pool, server, profile.pools[pool].servers[server].weight)


def _told(
    shell: Shell, profile: Profile, pool: str, server: str, doing: str, *, refused: str
) -> tuple[ServerLine, ...]:
    told = haproxy_servers(shell) if profile.haproxy_services_of(pool) else []
    if profile.ipvs_services_of(pool):
        told += ipvs_servers(facts_of(shell), profile)
    lines = tuple(line for line in told if _is(line, pool, server))
    if not lines:
        raise ControlFailed(shell.name, f"{doing} {pool}/{server}", "no service there sends anything to it by itself")
    wrong = [line for line in lines if line.state == refused]
    if wrong:
        raise ControlFailed(shell.name, f"{doing} {pool}/{server}", f"{wrong[0].by} tells that it is {wrong[0].state}")
    return lines
