"""Profiles as a balancer would have them, for the tests of `./inv import`: files of nodes, and profiles compared by
what they mean."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ndakit.core.workspace import Workspace
from ndakit.load import certificates, load, secrets
from ndakit.model import Profile, package_plan
from ndakit.model.traffic import Server
from ndakit.operate.import_.refine import Imported
from ndakit.operate.import_.sources import BOARD, PACKAGES, NodeFiles
from ndakit.render.render import Tree, render
from places import ROOT

TEMPLATES = (ROOT / "templates",)
MOMENT = datetime(2026, 1, 1, tzinfo=UTC)


def trees(profile: Profile) -> dict[str, Tree]:
    """What is rendered for every node; placeholders stand for secrets."""
    stand_ins = secrets.NONE
    if secrets.references(profile):
        stand_ins = secrets.placeholders(profile, functools.partial(certificates.placeholder, profile, MOMENT))
    return {node: render(profile, node, TEMPLATES, secrets=stand_ins) for node in profile.nodes}


def boxes(profile: Profile, rendered: Mapping[str, Tree]) -> list[NodeFiles]:
    """The nodes as their files: what was rendered, the release, and the list of packages."""
    result = []
    for node, tree in rendered.items():
        files = {path: file.content for path, file in tree.items()}
        release = f"DISTRIB_RELEASE='{profile.release}'\nDISTRIB_TARGET='{profile.target}'\n"
        files["/etc/openwrt_release"] = release.encode()
        if profile.device == "dockstar":
            files[BOARD] = b'{"model": {"id": "seagate,dockstar"}}'
        files[PACKAGES] = "\n".join(["base-files", *package_plan.plan(profile, node).add, ""]).encode()
        result.append(NodeFiles(node, files))
    return result


def load_again(result: Imported, folder: Path) -> Profile:
    """The imported profile, written and loaded."""
    path = folder / f"{result.draft.name}.yaml"
    path.write_text(result.text)
    for name, content in result.draft.attachments.items():
        (folder / name).write_bytes(content)
    return load.load(Workspace(folder), str(path)).profile


def settings(tree: Tree) -> dict[str, list[str]]:
    """The lines of every rendered file that do something. Secrets are stand-ins, and differ each time."""
    return {
        path: [line for line in file.content.decode(errors="replace").split("\n")
               if line.strip() and not line.lstrip().startswith("#")]
        for path, file in tree.items()
        if "/private/" not in path and path != "/etc/banner"
    }  # fmt: skip


def meaning(profile: Profile) -> dict[str, Any]:
    """A profile by what it means, without what no file of a balancer holds: names of VIPs, keys, sources and of pools
    and servers of IPVS; labels; the kind of image and packages beyond need; which of customer and description a lone
    line of the banner is; the role of VIPs; names of clients that nothing asks for; sizing, and what is computed."""
    return {
        "texts": {profile.customer, profile.description} - {None},
        "release": str(profile.release),
        "target": profile.target,
        "keys": {key.split()[1] for key in profile.access.ssh_keys.values()},
        "sources": {str(s) for group in profile.access.sources.values() for s in group},
        "ssh_port": profile.ssh_port,
        "system": profile.system.model_dump(mode="json"),
        "networks": {name: _network(profile, name) for name in profile.networks},
        "nodes": {name: node.model_dump(mode="json") for name, node in profile.nodes.items()},
        "vips": _vips(profile),
        "vrrp": _vrrp(profile),
        "services": {name: _service(profile, name) for name in profile.services},
        "firewall": {kind: {name: _opening(profile, opening) for name, opening in rules.items()}
                     for kind, rules in (("allow", profile.firewall.allow), ("deny", profile.firewall.deny))},
        "statistics": profile.monitoring.statistics.port,
    }  # fmt: skip


def _network(profile: Profile, name: str) -> dict[str, Any]:
    network = profile.networks[name]
    facts = network.model_dump(mode="json", exclude={"egress", "vrid", "subnet", "gateway", "nics"})
    facts["nics"] = set(network.nics)
    vip = profile.vips.get(network.egress)
    facts["egress"] = network.egress if vip is None else {str(a) for a in vip.address}
    facts["subnet"] = {str(s) for s in network.subnet}
    facts["gateway"] = {str(a) for a in network.gateway or ()}
    facts["vrid"] = {i.group: i.vrid for i in profile.instances if i.network == name}
    return facts


def _vips(profile: Profile) -> set[tuple[object, ...]]:
    return {
        (vip.network, str(address), vip.group, vip.routed) for vip in profile.vips.values() for address in vip.address
    }


def _vrrp(profile: Profile) -> dict[str, Any]:
    if profile.standalone:
        return {}
    facts = profile.vrrp.model_dump(mode="json")
    facts["prefer"] = profile.preferred()
    if not profile.vrrp.preempt:
        del facts["preempt_delay_s"]  # without preemption there is nothing to wait for
    if not (profile.tracks_connections or profile.shares_tables or profile.syncs_ipvs):
        del facts["connection_sync"]  # nothing is told
    facts["demote_on"] = [_pool(profile, name) for name in profile.vrrp.demote_on]
    return facts


def _service(profile: Profile, name: str) -> dict[str, Any]:
    service = profile.services[name]
    facts: dict[str, Any] = {
        "endpoints": {(str(e.address), e.ports) for e in profile.endpoints(name)},
        **service.model_dump(
            mode="json",
            include={"topology", "protocol", "redirect", "unknown_hosts", "limits", "maintenance"},
            exclude_none=True,
        ),
        "tls": None
        if service.tls is None
        else service.tls.model_dump(mode="json", exclude_defaults=True, exclude={"client_certificates"}),
    }
    if service.redirect is not None and service.redirect.keep_path:
        facts["redirect"]["to"] = service.redirect.to.rstrip("/")
    if service.tls is not None and service.tls.client_certificates is not None:
        clients = service.tls.client_certificates
        facts["clients"] = (clients.ca.content, clients.mode, clients.revoked and clients.revoked.content)
    if service.unknown_hosts != "pool":
        facts["hostnames"] = list(service.hostnames)
    if service.pool is not None:
        facts["pool"] = _pool(profile, service.pool, name)
        facts["routes"] = [
            (route.host, route.host_regex, route.sni, _pool(profile, route.pool, name)) for route in service.routes
        ]
    if service.carried_by.name == "haproxy":
        facts["timeouts"] = service.timeouts.model_dump(mode="json")
        if service.pool is None:
            facts["timeouts"] = {"client_s": service.timeouts.client_s}
    return facts


def _pool(profile: Profile, name: str, service: str = "", depth: int = 0) -> dict[str, Any]:
    pool = profile.pools[name]
    kernel = bool(service) and profile.services[service].carried_by.name == "ipvs"
    check = pool.check.model_dump(mode="json", exclude={"host", "rise", "retry_delay_s", "script"})
    if "path" in check:
        check["path"] = check["path"] or "/"
    if not service and not profile.services_of(name):  # keepalived asks a script of its own, in whole seconds
        check |= {key: math.ceil(check[key]) for key in ("interval_s", "timeout_s")}
    if pool.check.type == "script":
        check["timeout_s"] = math.ceil(pool.check.timeout_s)  # keepalived takes whole seconds
    facts: dict[str, Any] = {
        "balance": profile.services[service].carried_by.balance.get(pool.balance) if service else None,
        "reply_route": pool.reply_route,
        "check": check,
        "paces": (pool.check.retry_s if profile.services_of(name) else 0, 1 if kernel else pool.check.good_in_a_row),
        "to_servers": pool.to_servers.tls if pool.to_servers is not None else None,
        "servers": [
            (sorted(map(str, s.address)), _port(profile, name, service, s), s.model_dump(exclude={"address", "port"}))
            for s in pool.servers.values()
        ],
    }  # fmt: skip
    if profile.haproxy_services_of(name) and not kernel:
        facts |= {"name": name, "names": list(pool.servers), "retries": pool.retries, "slow_start_s": pool.slow_start_s}
    if service:
        persistence = profile.persistence(service, name if name in profile.services[service].pools else None)
        facts["persistence"] = None if persistence is None else persistence.model_dump(mode="json", exclude_none=True)
    if pool.sorry is not None and depth < 3:
        page = pool.sorry.page
        http = not service or profile.services[service].protocol == "http"
        facts["sorry"] = page.content if page is not None and http and not kernel else None
        if pool.sorry.pool is not None:
            other = profile.pools[pool.sorry.pool]
            if kernel:  # IPVS has room for one sorry server, which nobody checks
                first = next(iter(other.servers.values()))
                facts["sorry"] = sorted(map(str, first.address))
            else:
                facts["sorry"] = _pool(profile, pool.sorry.pool, service, depth + 1)
    if kernel:
        facts["quorum"] = pool.quorum or 1
    return facts


def _port(profile: Profile, pool: str, service: str, server: Server) -> int | None:
    """Where a server is asked; None where it is asked at the port that the client chose."""
    if not service:
        return profile.server_port(pool, server)
    balanced = profile.services[service]
    if balanced.carried_by.name == "ipvs" and balanced.several:
        return None
    return server.port or profile.pools[pool].port or balanced.single_port


def _opening(profile: Profile, opening: Any) -> tuple[object, ...]:
    return opening.network, opening.protocol, opening.port, {str(s) for s in profile.opening_sources(opening)}
