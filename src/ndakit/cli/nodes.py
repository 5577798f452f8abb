"""The tasks that talk to running balancers: how they get there, and what they show."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from ndakit.cli.profiles import nodes_of, read
from ndakit.core import locks, process, terminal, workspace
from ndakit.core.errors import InputError, NdakitError
from ndakit.core.release import Release
from ndakit.core.workspace import Workspace
from ndakit.image import artifacts
from ndakit.load import secrets
from ndakit.load.load import Loaded
from ndakit.model import Profile
from ndakit.node import control, keys, ssh, status
from ndakit.node.control import ServerLine
from ndakit.node.errors import HostKeyUnknown
from ndakit.node.host_keys import Pins
from ndakit.node.keys import Keys
from ndakit.node.shell import Shell
from ndakit.node.ssh import Ssh
from ndakit.node.ssh_options import Target
from ndakit.node.status import NodeStatus, Pair

NOT_WELL = 5
_PROBE_S = 3.0

_Answer = TypeVar("_Answer")


class ServerNotNamed(InputError):
    """It was not said which server is meant."""


class NodeNeeded(InputError):
    """An option that belongs to one node was given for all."""

    def __init__(self, option: str, nodes: tuple[str, ...]) -> None:
        super().__init__(
            f"{option} belongs to one node, and this profile has {len(nodes)}",
            where=option,
            fix=f"say which: --node {nodes[0]} (or {', '.join(nodes[1:])})",
        )


@dataclass(frozen=True)
class SshOptions:
    """How the user wants to get to the nodes."""

    identity: Path | None = None
    address: str | None = None
    jump: str | None = None
    accept_host_key: str | None = None

    @property
    def words(self) -> tuple[str, ...]:
        """The same options again, for what an error tells to type."""
        given = (("--identity", self.identity), ("--address", self.address), ("--jump", self.jump))
        return tuple(word for option, value in given if value is not None for word in (option, str(value)))


class Connections:
    """Opens shells on the nodes of one profile. A context manager: it owns a private folder for public keys."""

    def __init__(self, place: Workspace, loaded: Loaded, way: SshOptions, nodes: tuple[str, ...]) -> None:
        self.profile = loaded.profile
        self._workspace = place
        self._way = way
        self._stack = contextlib.ExitStack()
        for option, given in (("--address", way.address), ("--accept-host-key", way.accept_host_key)):
            if given is not None and len(nodes) > 1:
                raise NodeNeeded(option, nodes)

    def __enter__(self) -> Connections:
        allowed = self.profile.access.ssh_keys
        folder = self._stack.enter_context(locks.scratch_folder(workspace.runtime(), "keys"))
        try:
            if self._way.identity is not None:
                self.keys: Keys = keys.given(self._way.identity, allowed)
            else:
                self.keys = keys.usual(self.profile.name, allowed, folder)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *details: object) -> None:
        self._stack.close()

    def pins(self, node: str) -> Pins:
        """The pinned host keys of a node."""
        return Pins(self._workspace.known_hosts / self.profile.name / node, f"{self.profile.name}.{node}")

    def target(self, node: str) -> Target:
        """Where a node is, as far as this machine can find out."""
        profile, jump = self.profile, self._way.jump or ""
        own = [str(a) for addresses in profile.nodes[node].addresses.values() for a in addresses]
        address = self._way.address or (own[0] if jump else answering(own, profile.ssh_port))
        return Target(
            profile.name, node, address, port=profile.ssh_port, jump=jump, sha1=profile.release.ssh_sha1_only,
            release=str(profile.release), given=self._way.words,
        )  # fmt: skip

    def open(self, node: str) -> Ssh:
        """A shell on a node, whose host key is pinned first if the user names it. Raises what Ssh.open raises."""
        target, pins = self.target(node), self.pins(node)
        if self._way.accept_host_key is not None:
            key = ssh.accept(target, pins, self._way.accept_host_key)
            terminal.note(f"pinned {key.kind} {key.fingerprint} for {target.name} in {pins.path}")
        return Ssh(target, pins, self.keys).open()

    def open_asking(self, node: str) -> Ssh:
        """The same; a person at a terminal is asked about a host key that is not known yet."""
        try:
            return self.open(node)
        except HostKeyUnknown as unknown:
            if not (sys.stdin is not None and sys.stdin.isatty()):
                raise
            terminal.note(f"{unknown.what}\n  where: {unknown.where}\n  {unknown.fix.partition('; if it is')[0]}")
            if terminal.ask("Is it the same? yes or no: ").strip().lower() != "yes":
                raise
            ssh.accept(self.target(node), self.pins(node), unknown.fingerprint)
            return self.open(node)


@contextlib.contextmanager
def stranger(
    place: Workspace,
    host: str,
    name: str,
    node: str,
    way: SshOptions,
    port: int,
    release: str | None,
    task: tuple[str, ...],
) -> Iterator[Ssh]:
    """A shell on a box without a profile; its host key is pinned as that of a node of `name`. `task`: what the user
    typed, for errors. Raises ValueError for a release that is none, and what Ssh.open raises."""
    old = Release.parse(release).ssh_sha1_only if release else False
    given = [*way.words, *(("--port", str(port)) if port != 22 else ()), *(("--release", release) if release else ())]
    target = Target(
        name, node, host, port=port, jump=way.jump or "", sha1=old, release=release or "", given=tuple(given), task=task
    )
    pins = Pins(place.known_hosts / name / node, target.alias)
    with locks.scratch_folder(workspace.runtime(), "keys") as folder:
        mine = keys.given(way.identity, {}) if way.identity is not None else keys.anybodys(folder)
        if way.accept_host_key is not None:
            key = ssh.accept(target, pins, way.accept_host_key)
            terminal.note(f"pinned {key.kind} {key.fingerprint} for {target.name} in {pins.path}")
        with Ssh(target, pins, mine) as shell:
            yield shell


def answering(addresses: list[str], port: int) -> str:
    """The first of a node's addresses where something listens; the first at all if there is none, for the errors."""
    for address in addresses:
        with contextlib.suppress(OSError), socket.create_connection((address, port), timeout=_PROBE_S):
            return address
    return addresses[0]


@contextlib.contextmanager
def _all(
    place: Workspace, profile: str, node: str | None, way: SshOptions
) -> Iterator[tuple[Loaded, tuple[str, ...], Connections]]:
    loaded = read(place, profile)
    nodes = nodes_of(loaded, node)
    with Connections(place, loaded, way, nodes) as connections:
        yield loaded, nodes, connections


def each(
    nodes: tuple[str, ...], connections: Connections, question: Callable[[str, Ssh], _Answer]
) -> tuple[dict[str, _Answer], dict[str, NdakitError]]:
    """Ask all nodes at once; what they answered, and why others did not. Ctrl-C ends every question."""

    def ask(node: str) -> _Answer | NdakitError:
        try:
            with connections.open(node) as shell:
                return question(node, shell)
        except NdakitError as error:
            return error

    with ThreadPoolExecutor(max_workers=len(nodes)) as pool:
        asked = {node: pool.submit(ask, node) for node in nodes}
        try:
            came = {node: one.result() for node, one in asked.items()}
        except BaseException:
            with process.halt():
                pool.shutdown(cancel_futures=True)
            raise
    errors = {node: one for node, one in came.items() if isinstance(one, NdakitError)}
    return {node: one for node, one in came.items() if not isinstance(one, NdakitError)}, errors


# -- status ------------------------------------------------------------------------------------------------------------


def show_status(place: Workspace, profile: str, node: str | None, way: SshOptions, *, as_json: bool) -> int:
    """How the nodes are; 0 if all is well, else NOT_WELL."""
    with _all(place, profile, node, way) as (loaded, nodes, connections):

        def ask(name: str, shell: Ssh) -> NodeStatus:
            return status.ask(shell, loaded.profile, name, shell.target.address, hide)

        hide = _mask(place, loaded)
        told, lost = each(nodes, connections, ask)
    pair = Pair(loaded.profile, told, lost)
    built = {name: _built(place, loaded.profile, name) for name in nodes}
    if as_json:
        terminal.show_json(_status_json(pair, built))
    else:
        terminal.say(status_text(pair, built))
        for error in lost.values():
            terminal.show_error(error)
    return NOT_WELL if pair.trouble else 0


def _mask(place: Workspace, loaded: Loaded) -> Callable[[str], str]:
    """Takes the profile's secrets out of a text; those that this machine does not have cannot be looked for."""
    with contextlib.suppress(InputError):
        return secrets.resolve(place, loaded).masked
    return secrets.NONE.masked


def _built(place: Workspace, profile: Profile, node: str) -> str:
    """The id of the image in images/; empty if there is none."""
    with contextlib.suppress(NdakitError, OSError):
        return artifacts.Artifact.load(artifacts.folder_of(place, profile.name, node)).id
    return ""


def _status_json(pair: Pair, built: Mapping[str, str]) -> dict[str, object]:
    return {
        "profile": pair.profile.name,
        "well": not pair.trouble,
        "trouble": pair.trouble,
        "nodes": {
            name: {**asdict(told), "image_built": built.get(name, "")} for name, told in sorted(pair.nodes.items())
        },
        "errors": {name: error.as_json() for name, error in pair.lost.items()},
        "masters": pair.masters(),
        "vips": pair.holders(),
    }


def status_text(pair: Pair, built: Mapping[str, str]) -> str:
    """The tables: what is wrong first, then nodes, VIPs, servers, the last errors of the logs."""
    profile = pair.profile
    well = terminal.paint("well", "green") if not pair.trouble else terminal.paint("NOT WELL", "red")
    parts = ["\n".join([f"{profile.name}: {well}", *(f"  {line}" for line in pair.trouble)])]
    rows = [_node_row(profile, told, built.get(name, "")) for name, told in pair.nodes.items()]
    if rows:
        header = ("node", "address", "VRRP", "release", "image", "up for", "load", "memory free", "clock")
        parts.append(terminal.table(rows, header=header))
        vips = [
            (vip, ", ".join(str(a) for a in profile.vips[vip].address), ", ".join(holders) or "nobody")
            for vip, holders in pair.holders().items()
        ]
        parts.append(terminal.table(vips, header=("VIP", "address", "held by")))
        parts.append(_server_table(pair))
        errors = [f"{name}: {line}" for name, told in pair.nodes.items() for line in told.errors]
        parts.append("\n".join(["last errors in the logs:", *(f"  {line}" for line in errors)]) if errors else "")
    return "\n\n".join(part for part in parts if part)


def _node_row(profile: Profile, told: NodeStatus, built: str) -> tuple[str, ...]:
    states = sorted({state.lower() for state in told.vrrp.values()})
    mib = f"{told.memory_available_kib // 1024} of {told.memory_kib // 1024} MiB"
    return (
        told.node,
        told.address,
        ", ".join(states) or ("standalone" if profile.standalone else "?"),
        told.release or "?",
        _image_words(profile, told, built),
        span(told.uptime_s),
        f"{told.load[0]:.2f}" if told.load else "?",
        mib,
        "?" if told.clock_offset_s is None else f"{told.clock_offset_s:+.0f} s",
    )


def _image_words(profile: Profile, told: NodeStatus, built: str) -> str:
    if not told.image:
        return "does not say"
    words = told.image[:12]
    if told.image_of != f"{profile.name}/{told.node}":
        return f"{words}, made for {told.image_of or '?'}"
    return (
        f"{words}, {'as in images/' if told.image == built else 'another in images/' if built else 'none in images/'}"
    )


def span(seconds: float) -> str:
    minutes = int(seconds) // 60
    if minutes < 120:
        return f"{minutes} min"
    return f"{minutes // 60} h" if minutes < 48 * 60 else f"{minutes // 1440} d {minutes // 60 % 24} h"


def _server_table(pair: Pair) -> str:
    places = dict.fromkeys((s.pool, s.server, s.by) for told in pair.nodes.values() for s in told.servers)
    rows = []
    for pool, server, by in places:
        told = [_words_of(node, pool, server, by) for node in pair.nodes.values()]
        rows.append((f"{pool}/{server}", by, *told))
    return terminal.table(rows, header=("server", "by", *pair.nodes)) if rows else ""


def _words_of(told: NodeStatus, pool: str, server: str, by: str) -> str:
    for line in told.servers:
        if (line.pool, line.server, line.by) == (pool, server, by):
            return server_words(line)
    return "-"


def server_words(line: ServerLine) -> str:
    """`up, 3 connections`."""
    return f"{line.state}, {line.sessions} connection{'' if line.sessions == 1 else 's'}"


# -- drain -------------------------------------------------------------------------------------------------------------


def drain_server(
    place: Workspace, profile: str, node: str | None, server: str | None, way: SshOptions, *, undo: bool, as_json: bool
) -> int:
    """Take a server out on the nodes, or bring it back; 0 if every node did it, else NOT_WELL. Raises
    ServerNotNamed."""
    if not server:
        raise ServerNotNamed(
            "it is not said which server", where="--server",
            fix=f"name one as POOL/SERVER; ./inv status {profile} lists them",
        )  # fmt: skip
    with _all(place, profile, node, way) as (loaded, nodes, connections):
        pool, name = control.named(loaded.profile, server)
        act = control.bring_back if undo else control.drain

        def tell(which: str, shell: Shell) -> tuple[ServerLine, ...]:
            return act(shell, loaded.profile, pool, name)

        told, lost = each(nodes, connections, tell)
    down = [line for lines in told.values() for line in lines if line.state == "down"]
    if as_json:
        terminal.show_json(
            {
                "server": f"{pool}/{name}",
                "nodes": {node: [asdict(line) for line in lines] for node, lines in told.items()},
                "errors": {node: error.as_json() for node, error in lost.items()},
            }
        )
    else:
        rows = [(node, line.by, server_words(line)) for node, lines in told.items() for line in lines]
        if rows:
            terminal.say(terminal.table(rows, header=("node", "by", f"{pool}/{name}")))
        for error in lost.values():
            terminal.show_error(error)
        for line in _advice(loaded.profile, f"{pool}/{name}", undo=undo, lost=tuple(lost), down=bool(down), told=told):
            terminal.say(line)
    return NOT_WELL if lost else 0


def _advice(
    profile: Profile,
    server: str,
    *,
    undo: bool,
    lost: tuple[str, ...],
    down: bool,
    told: Mapping[str, tuple[ServerLine, ...]],
) -> list[str]:
    """What the reader has to know next."""
    lines = []
    if lost:
        verb = "in service" if undo else "drained"
        lines.append(f"{', '.join(lost)} could not be told: there {server} is not {verb}. Run this again for it.")
    if down:
        lines.append("Where it is down, its checks fail: it gets nothing, and comes in by itself once they succeed.")
    pool = server.partition("/")[0]
    if not undo and any(told.values()):
        lines.append(f"Wait until it has no connections (./inv status {profile.name}), then work on it.")
        if profile.haproxy_services_of(pool):
            lines.append(
                f"HAProxy keeps it drained, through reboots of the server, until: ./inv drain {profile.name} --server "
                f"{server} --undo (or until HAProxy itself is started anew)."
            )
        if profile.ipvs_services_of(pool):
            lines.append("In the kernel it comes back by itself: when its checks have failed, and succeed again.")
    return lines


# -- ssh ---------------------------------------------------------------------------------------------------------------


def open_session(place: Workspace, profile: str, node: str | None, way: SshOptions) -> None:
    """Become an ssh to the node, after it has been asked once, so that every failure is told in our words."""
    loaded = read(place, profile)
    nodes = nodes_of(loaded, node)
    if len(nodes) > 1:
        raise NodeNeeded("a session", nodes)
    with Connections(place, loaded, way, nodes) as connections:
        with connections.open_asking(nodes[0]) as shell:
            argv = ssh.session_argv(shell.target, shell.pins, shell.keys)
        passed = {name: os.environ[name] for name in ("TERM", "SSH_AUTH_SOCK") if name in os.environ}
        # The private folder stays: ssh reads the public keys in it. The next run removes it.
        process.replace_us(argv, passed)
