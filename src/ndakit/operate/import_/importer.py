"""A profile out of the files of one node or of a pair: read, put together, compared with what ndakit makes of it.

The order matters: networks first, then VRRP with the VIPs, then what listens on them, then who may come. The result is
tried: what ndakit renders from it tells which lines it writes by itself, and what has to be stated beside that (router
ids, kernel values, limits, firewall rules).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ndakit.core.errors import InputError
from ndakit.core.workspace import Workspace
from ndakit.lint.config_text import Block
from ndakit.model.profile import NODES_MAX
from ndakit.operate.import_ import (
    firewall,
    haproxy_pools,
    haproxy_services,
    haproxy_text,
    haproxy_tls,
    ipvsadm,
    keepalived_text,
    network,
    pound,
    refine,
    same,
    stunnel,
    system,
    uci_files,
    uci_keepalived,
    vips,
    virtual_servers,
    vrrp,
    watched,
    yaml_text,
)
from ndakit.operate.import_.draft import Draft, VipDraft, slug
from ndakit.operate.import_.ledger import Ledger, SourceFile
from ndakit.operate.import_.refine import Imported
from ndakit.operate.import_.sources import IPVS_RULES, NodeFiles
from ndakit.operate.import_.uci_files import UciFile

_SECRET_FILES = re.compile(r"/etc/(shadow-?|uhttpd\.key|ndakit/private/.*|.*_host_key.*|.*\.(pem|key|p12|pfx))")


class TooManySources(InputError):
    """More nodes than a pair has, or none."""


class SameSourceTwice(InputError):
    """Two sources are one box."""


def convert(
    workspace: Workspace, name: str, nodes: Sequence[NodeFiles], names: Sequence[str] = (), release: str = ""
) -> Imported:
    """A profile of the files of one node, or of both nodes of a pair. `names` are the nodes', if the user gives them.

    Raises TooManySources, and SameSourceTwice if two sources are the same files.
    Whatever else is in the files is accounted for, and raises nothing.
    """
    if not 1 <= len(nodes) <= NODES_MAX:
        raise TooManySources(
            f"{len(nodes)} sources are given",
            where="SOURCE",
            fix="name one node, or all nodes of a pair, with a comma between them",
        )
    for position, node in enumerate(nodes):
        twin = next((other for other in nodes[:position] if other.files and other.files == node.files), None)
        if twin is not None:
            raise SameSourceTwice(
                f"{twin.source} and {node.source} are the same files: both would be one node with the same addresses",
                where="SOURCE",
                fix="name each node's own backup; if only one node can be read, name that one alone",
            )
    draft = Draft(name, release=release)
    for position, node in enumerate(nodes, 1):
        given = names[position - 1] if position <= len(names) else ""
        draft.node_names.append(given or system.node_name(name, node, position, draft.node_names))
    ledger = _Reader(draft, nodes).read()
    own = [{a for net in draft.networks.values() for a in net.addresses.get(node, [])} for node in draft.node_names]
    if any(one and one in own[:position] for position, one in enumerate(own[: len(nodes)])):
        draft.decide(
            "nodes: two sources have the same own addresses: are they of one box? Then import each node's own backup"
        )
    result = Imported(draft, "", ledger, tuple(n.source for n in nodes))
    refine.refine(workspace, result, nodes)
    _finish(result)
    return result


class _Reader:
    """Reads the files of all nodes into one draft."""

    def __init__(self, draft: Draft, nodes: Sequence[NodeFiles]) -> None:
        self.draft = draft
        self.nodes = dict(zip(draft.node_names, nodes, strict=True))
        self.ledger = Ledger()
        self.uci: dict[tuple[str, str], UciFile] = {}

    def read(self) -> Ledger:
        """Everything, in the order in which it depends on each other."""
        draft, first = self.draft, self.draft.node_names[0]
        for node, files in self.nodes.items():
            self._open(node, files)
            system.release_and_device(draft, files)
            system.platform(draft, files)
            for path, reader in (
                (network.PATH, network.read),
                (system.PATH, system.system),
                ("/etc/config/dropbear", system.dropbear),
            ):
                if (uci := self.uci.get((node, path))) is not None:
                    reader(draft, node, uci)
            if (file := self.ledger.file(node, system.KEYS)) is not None:
                system.keys(draft, file)
            if (file := self.ledger.file(node, "/etc/banner")) is not None:
                system.banner(draft, file)
            system.facts_files(self.ledger, draft, node)
        roots = self._vrrp()
        self._haproxy(first)
        self._ipvs(first, roots)
        self._watched(first, roots)
        vips.pair(draft)
        for node in draft.node_names:
            if (uci := self.uci.get((node, firewall.PATH))) is not None:
                firewall.access(draft, uci)
                firewall.egress(draft, uci)
        firewall.gateways(draft)
        vips.name(draft)
        for node in draft.node_names:
            if (uci := self.uci.get((node, firewall.PATH))) is not None:
                firewall.implied(draft, uci)
        self._attach()
        for file in self.ledger.files:
            if file.node != first and (of_first := self.ledger.file(first, file.path)) is not None:
                same.follow(file, of_first)
        return self.ledger

    def _open(self, node: str, files: NodeFiles) -> None:
        for path in sorted(files.files):
            secret = _SECRET_FILES.fullmatch(path) is not None
            text = files.text(path) or ""
            comments = "#!" if path == vrrp.PATH else "#"
            if b"\0" in files.files[path]:
                text = "(not text)"
                secret = False
            file = self.ledger.open(node, path, text, comments=comments, secret=secret)
            if path.startswith("/etc/config/"):
                self.uci[node, path] = uci_files.opened(file)
        for path, why in files.left_out:
            file = self.ledger.open(node, path, f"({why})")
            file.unsaid(1, f"it was not read: {why}")

    def _vrrp(self) -> dict[str, tuple[SourceFile, Block]]:
        """keepalived.conf of all nodes, or what UCI says instead."""
        roots: dict[str, tuple[SourceFile, Block]] = {}
        instances: list[vrrp.InstanceDraft] = []
        for node in self.draft.node_names:
            file = self.ledger.file(node, vrrp.PATH)
            uci = self.uci.get((node, uci_keepalived.PATH))
            if file is not None:
                root = keepalived_text.read(file)
            elif uci is not None:
                file, root = uci.file, uci_keepalived.blocks(uci)
            else:
                continue
            roots[node] = (file, root)
            instances += vrrp.read(self.draft, node, file, root)
        if len(self.draft.node_names) == 1 and instances:
            self._other_node(instances)
        vrrp.join(self.draft, instances, roots)
        return roots

    def _other_node(self, instances: list[vrrp.InstanceDraft]) -> None:
        """VRRP is there, and one node was read: the other one is known by its addresses at best."""
        first = self.draft.node_names[0]
        other = slug(re.sub(r"1$", "2", first) if first.endswith("1") else f"{first}-peer", "lb2", [first])
        self.draft.node_names.append(other)
        for one in instances:
            if one.peers and (net := self.draft.network_of(one.peers[0])) is not None:
                own = net.addresses.setdefault(other, [])
                if not any(a.version == one.peers[0].version for a in own):
                    own.append(one.peers[0])
        self.draft.missing(
            f"nodes.{other}: one node of a pair was read. Import both at once, or write the other one's addresses, and "
            "say in vrrp.prefer which one is master"
        )

    def _haproxy(self, first: str) -> None:
        source = next((n for n in self.nodes if self.ledger.file(n, haproxy_text.PATH) is not None), first)
        file = self.ledger.file(source, haproxy_text.PATH)
        if file is None:
            return
        sections, parts = haproxy_text.read(file)
        node = self.nodes[source]
        pools = haproxy_pools.pools(self.draft, node, parts)
        listeners: dict[int, pound.PoundListener] = {}
        for name in self.nodes:
            for program in (pound, stunnel):
                if (config := self.ledger.file(name, program.PATH)) is not None:
                    theirs = program.read(config)
                    listeners |= theirs if name == source else {}

        def tls_of(bind: haproxy_tls.BindTls, service: str) -> dict[str, Any] | None:
            return haproxy_tls.keys(self.draft, node, bind, service)

        haproxy_services.services(self.draft, node, sections, parts, pools, tls_of, listeners)
        self.draft.pools = {n: p for n, p in self.draft.pools.items() if p.get("servers")}
        for line in (
            ln for p in parts for ln in p.own("http-after-response", "set-header", "Strict-Transport-Security")
        ):
            _hsts(self.draft, file, line.number, line.words)
        for line in (ln for p in parts for ln in p.own("http-response", "set-header", "Strict-Transport-Security")):
            _hsts(self.draft, file, line.number, line.words)

    def _ipvs(self, first: str, roots: dict[str, tuple[SourceFile, Block]]) -> None:
        source = next((n for n, (_, root) in roots.items() if root.inner("virtual_server")), first)
        virtuals: list[virtual_servers.VirtualDraft] = []
        for node, (file, root) in roots.items():
            theirs = virtual_servers.read(node, file, root)
            if node == source:
                virtuals = theirs
        rules = self.uci.get((source, firewall.PATH))
        extra: list[virtual_servers.VirtualDraft] = []
        for node in self.nodes:
            if (file_ := self.ledger.file(node, IPVS_RULES)) is not None:
                extra += ipvsadm.read(file_, [*virtuals, *extra])
        marks = firewall.marks(rules)
        wanted = [v.address for v in (*virtuals, *extra) if v.address is not None]
        for ip in (*wanted, *(ip for v in virtuals if v.mark in marks for ip in marks[v.mark][1])):
            home = self.draft.network_of(ip)
            if home is not None and self.draft.vip_with(ip) is None:
                self.draft.vips.append(VipDraft(home.name, [ip]))
        names = firewall.service_names(rules)
        virtual_servers.join(self.draft, [*virtuals, *extra], marks, names)
        order = list(dict.fromkeys(names.values()))
        place = {name: order.index(name) if name in order else len(order) for name in self.draft.services}
        self.draft.services = dict(sorted(self.draft.services.items(), key=lambda item: place[item[0]]))
        for node in self.nodes:
            if node != source and (other := self.uci.get((node, firewall.PATH))) is not None:
                firewall.marks(other)

    def _watched(self, first: str, roots: dict[str, tuple[SourceFile, Block]]) -> None:
        """Pools that decide who is master, and the arguments of check scripts: ndakit's own scripts tell them."""
        text = self.nodes[first].text(watched.PATH)
        if text is not None and first in roots:
            watched.read(self.draft, text, roots[first][1])
        given = watched.arguments(self.nodes[first].text(watched.SCRIPTS) or "")
        for pool in self.draft.pools.values():
            script = str(pool.get("check", {}).get("script", "")).removeprefix("/usr/libexec/ndakit/script-")
            if given.get(script):
                pool["check"]["arguments"] = given[script]

    def _host_names(self) -> list[str]:
        """What the nodes call themselves."""
        sections = [s for (_, path), uci in self.uci.items() if path == system.PATH for s in uci.of("system")]
        return [s.get("hostname") or "" for s in sections]

    def _attach(self) -> None:
        """Files that keys name: check scripts, CAs; and the secrets."""
        draft, node = self.draft, next(iter(self.nodes.values()))
        for name, pool in draft.pools.items():
            check, tls = pool.get("check", {}), pool.get("to_servers", {})
            if check.get("helo") in self._host_names():
                del check["helo"]  # the default
            if str(check.get("script", "")).startswith("/"):
                content = node.files.get(check["script"])
                beside = f"{draft.name}-check-{name}.sh"
                if content is None:
                    draft.missing(
                        f"pools.{name}.check.script: {check['script']} is not in what was read; put it beside "
                        f"the profile as {beside}"
                    )
                else:
                    draft.attachments[beside] = content
                check["script"] = beside
            if str(tls.get("verify", "")).startswith("/"):
                tls["verify"] = haproxy_tls.attach(draft, node, tls["verify"], f"pools.{name}.to_servers.verify")
        for name, service in draft.services.items():
            clients = service.get("tls", {}).get("client_certificates", {})
            for key in ("ca", "revoked"):
                if str(clients.get(key, "")).startswith("/"):
                    clients[key] = haproxy_tls.attach(
                        draft, node, clients[key], f"services.{name}.tls.client_certificates.{key}"
                    )
        for name, known in draft.secrets.items():
            for file in self.ledger.files:
                if haproxy_tls.is_secret(draft, file.path, name) and known is not None and file.secret:
                    for line in range(1, len(file.lines) + 1):
                        file.key(line, f"secrets/{draft.name}/{name}")
            if known is None:
                draft.missing(
                    f"the secret {name}: put certificate, chain and private key into secrets/{draft.name}/{name} "
                    "(mode 0600), one PEM text"
                )


def _hsts(draft: Draft, file: SourceFile, number: int, words: tuple[str, ...]) -> None:
    age = re.fullmatch(r"\"?max-age=([0-9]{1,9})\"?", words[-1]) if len(words) == 4 else None
    if age is None:
        return
    section = next(
        (s for s in reversed(haproxy_text.read(SourceFile("", file.path, file.lines))[0]) if s.number < number), None
    )
    if section is None:
        return
    wanted = draft.aliases.get((section.kind, section.name), ("", section.name))[1].removeprefix("service:")
    service = draft.services.get(wanted, {})
    if "tls" in service and int(age[1]) <= 126230400:
        service["tls"]["hsts_s"] = int(age[1])
        file.key(number, f"services.{wanted}.tls.hsts_s")


def _finish(result: Imported) -> None:
    draft = result.draft
    if not draft.release:
        draft.missing(
            "release: it is not in what was read (a backup of sysupgrade has no release file): see "
            "/etc/openwrt_release on the balancer, or import it with --release"
        )
    if not draft.device:
        draft.missing("device: it is not in what was read; x86-64 is the default")
    if not draft.sources:
        draft.missing("access.sources: the subnets from which SSH may be used; no rule of the firewall tells them")
    if not draft.ssh_keys:
        draft.missing("access.ssh_keys: at least one SSH public key; there is none in what was read")
    if not draft.networks:
        draft.missing("networks: there is no network with a fixed address in what was read")
    for node in draft.node_names:
        for net in draft.networks.values():
            if net.heartbeat and len(draft.node_names) < 2:
                continue
            if not net.addresses.get(node):
                draft.missing(f"nodes.{node}.addresses.{net.name}: this node's own address there")
    result.unsaid = result.ledger.unsaid()
    result.text = yaml_text.write(draft, result.sources, result.unsaid)
