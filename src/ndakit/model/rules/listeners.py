"""Cross-checks: who else listens where a service, or something that the nodes need, is to listen.

Which daemons there are, and what they open, is in `listeners`. HAProxy cannot listen on a VIP's port that another
program has on every address. IPVS takes its packets before any program sees them, so that only the node's own addresses
matter there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ndakit.core.mistakes import KeyPath, dotted
from ndakit.model import listeners
from ndakit.model.base import Address
from ndakit.model.listeners import Daemon, OwnListener
from ndakit.model.profile import Profile
from ndakit.model.rules.findings import Finding, error, warning
from ndakit.model.traffic import Service

SSH: KeyPath = ("access", "ssh", "port")
FREE_PORTS = (2222, 2022, 22022, 8404, 8405, 9404, 18404)
"""What is proposed instead of a port that is taken."""


def web_interface(profile: Profile) -> Iterator[Finding]:
    """Packages of LuCI: they serve the administration of the node on every address, VIPs included."""
    for name, wish in profile.image.packages.items():
        if wish == "add" and listeners.is_web_interface(name):
            yield error(
                "web-interface",
                f"package {name} belongs to LuCI, OpenWrt's web interface: its web server would listen on ports 80 and "
                "443 of every address, VIPs included, and let root in without a password",
                ("image", "packages", name),
                f"take {name} out of image.packages, and administer the nodes by SSH; access.luci will bring LuCI on "
                "the nodes' own addresses once a version carries it",
            )  # fmt: skip


def packages(profile: Profile) -> Iterator[Finding]:
    """Daemons in the image that want a port of a service, or of what the nodes run themselves."""
    brought: dict[str, tuple[str, Daemon]] = {}
    for name, wish in profile.image.packages.items():
        for daemon in listeners.daemons(name) if wish == "add" else ():
            brought.setdefault(daemon.name, (name, daemon))
    own = list(listeners.own(profile))
    for package, daemon in brought.values():
        at: KeyPath = ("image", "packages", package)
        for transport, port in daemon.sockets:
            for mine in own:
                met = "loopback" in mine.where or "every address" in mine.where or not daemon.loopback
                if (mine.transport, mine.port) == (transport, port) and met:
                    yield error(
                        "package-port",
                        f"package {package} brings {daemon.name}, which listens on {transport} port {port} of "
                        f"{'loopback' if daemon.loopback else 'every address'}, and {mine.what} has that port",
                        at, _way_out(package, daemon, _key(mine)),
                        other=mine.at, also=_basis(mine), unless=daemon.configuration,
                    )  # fmt: skip
            if daemon.loopback:
                continue
            for service, facts in profile.services.items():
                vips = [v for v in facts.vip if v in profile.vips]
                if facts.transport != transport or not facts.has_port(port) or not vips:
                    continue
                if facts.carried_by.opens_sockets:
                    yield error(
                        "package-port",
                        f"package {package} brings {daemon.name}, which listens on {transport} port {port} of every "
                        f"address, and {facts.carried_by.title} is to listen there for service {service} (VIP "
                        f"{vips[0]})",
                        at, _way_out(package, daemon, f"services.{service}.port"),
                        other=("services", service, "port"), also=(("services", service),), unless=daemon.configuration,
                    )  # fmt: skip
                elif profile.standalone:
                    yield warning(
                        "package-port-open",
                        f"package {package} brings {daemon.name}, which listens on {transport} port {port} of every "
                        f"address: while keepalived does not run on the only node, whoever asks for service {service} "
                        "reaches it",
                        at, _way_out(package, daemon, f"services.{service}.port"),
                        other=("services", service, "port"), also=(("services", service), ("nodes",)),
                        unless=daemon.configuration,
                    )  # fmt: skip


def _key(listener: OwnListener) -> str | None:
    """The key that says its port, stated or not; None if there is none."""
    if listener.at is None and listener.where != ("every address",):
        return None
    return dotted(listener.at or SSH)


def _basis(listener: OwnListener) -> tuple[KeyPath, ...]:
    """What decides whether it is there at all."""
    chosen = listener.at is not None or listener.where == ("every address",)
    return () if chosen else (("vrrp",), ("services",), ("pools",))


def _way_out(package: str, daemon: Daemon, key: str | None) -> str:
    other = f", or change {key}" if key is not None else ""
    return (
        f"take {package} out of image.packages{other}; or let it listen elsewhere: put a {daemon.configuration} of "
        "your own under templates/rootfs/ of your workspace"
    )


def own_ports(profile: Profile) -> Iterator[Finding]:
    """Two of the things that every node runs on one port."""
    ssh, *others = listeners.own(profile)
    for other in others:
        if (other.transport, other.port) == (ssh.transport, ssh.port):
            yield error(
                "port-of-ssh", f"{other.what} {'wants' if other.at else 'has'} port {ssh.port}, where the balancer's "
                "own SSH listens",
                other.at or SSH, f"choose another port, such as {_free(profile, 8404 if other.at else 2222)}",
                other=ssh.at if other.at else None, also=_basis(other),
            )  # fmt: skip


def services(profile: Profile) -> Iterator[Finding]:
    """Services on the port of the nodes' own SSH server, which has it on every address."""
    ssh, *others = listeners.own(profile)
    nodes = {a: n for n, node in profile.nodes.items() for own in node.addresses.values() for a in own}
    for name, service in profile.services.items():
        if service.transport != "tcp":
            continue
        known = [v for v in service.vip if v in profile.vips]
        addresses = [(a, v) for v in known for a in profile.vips[v].address if _wanted(service, a)]
        mine = next(((a, v) for a, v in addresses if a in nodes), None)
        met: list[OwnListener] = [ssh, *(o for o in others if mine is not None and o.where != ("loopback",))]
        for listener in met:
            if not service.has_port(listener.port) or listener.transport != "tcp" or not addresses:
                continue
            if not service.carried_by.opens_sockets and mine is None:
                if profile.standalone:
                    yield _while_keepalived_is_away(profile, name, listener)
                continue
            address, vip = mine or addresses[0]
            move = f"move the balancer's with access: {{ssh: {{port: {_free(profile, 2222)}}}}}, or "
            yield error(
                "port-of-ssh" if listener is ssh else "port-of-node",
                f"service {name} wants port {listener.port} of {address}, where "
                + ("the balancer's own SSH listens" if listener is ssh else f"{listener.what} is"),
                ("services", name, "port"),
                (move if listener is ssh else "") + "choose another port for the service"
                + ("" if service.protocol == "http" or mine is not None else ", or topology nat, dr or tun"),
                other=listener.at, also=(("vips", vip), ("services", name), ("nodes",)),
            )  # fmt: skip


def _wanted(service: Service, address: Address) -> bool:
    families = service.families
    return families is None or f"ipv{address.version}" in families


def _while_keepalived_is_away(profile: Profile, name: str, ssh: OwnListener) -> Finding:
    return warning(
        "port-of-ssh-open",
        f"service {name} has port {ssh.port}, and so has the only node's own SSH: while keepalived does not run there, "
        "whoever asks for the service reaches the node's SSH (which lets in keys only)",
        ("services", name, "port"), f"write access: {{ssh: {{port: {_free(profile, 2222)}}}}}",
        other=ssh.at, also=(("nodes",), ("services", name)),
    )  # fmt: skip


def _free(profile: Profile, wish: int) -> int:
    """A port that nothing here has, the wish if it is free."""
    taken = {one.port for one in listeners.own(profile)}
    taken |= {p for d in listeners.DAEMONS for t, p in d.sockets if t == "tcp"}
    usual = (wish, *FREE_PORTS, *range(20000, 65536))
    ranges = [s for s in profile.services.values() if s.transport == "tcp"]
    return next((p for p in usual if p not in taken and not any(s.has_port(p) for s in ranges)), wish)


RULES: tuple[Callable[[Profile], Iterator[Finding]], ...] = (web_interface, packages, own_ports, services)
