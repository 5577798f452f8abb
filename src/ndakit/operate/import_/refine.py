"""The draft, tried: what ndakit renders from it tells which lines it writes by itself, and what has to be stated beside
that (router ids, kernel values, limits, firewall rules, the way of the servers' answers)."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice

import yaml
from pydantic import ValidationError

from ndakit.core.errors import NdakitError
from ndakit.core.locks import scratch_folder
from ndakit.core.release import Release
from ndakit.core.uci import Section, read_leniently
from ndakit.core.workspace import Workspace, runtime
from ndakit.load import certificates, load, secrets
from ndakit.model import Profile, package_plan
from ndakit.model.profile import DEVICES, FLASH_TARGETS
from ndakit.operate.import_ import (
    firewall,
    haproxy_text,
    lost_access,
    network,
    same,
    sysctls,
    system,
    uci_keepalived,
    vrrp,
    yaml_text,
)
from ndakit.operate.import_.draft import Draft, VipDraft, slug
from ndakit.operate.import_.ledger import Ledger, SourceFile, Unsaid
from ndakit.operate.import_.sources import BOARD, IPVS_RULES, PACKAGES, RELEASE_FILES, NodeFiles
from ndakit.operate.import_.uci_files import UciFile
from ndakit.render.render import Tree, render

_SYSCTL = "/etc/sysctl.conf"
_OURS = re.compile(
    r"/etc/ndakit/.*|/usr/libexec/ndakit/.*|/etc/init\.d/.*|/etc/(banner|sysupgrade\.conf|firewall\.user)|"
    r"/etc/(conntrackd|pound|stunnel|modules\.d|nftables\.d)/.*"
)


_SYSCTLS = re.compile(r"/etc/sysctl\.d/[^/]*\.conf")
_OPENWRTS = re.compile(r"/etc/sysctl\.d/1[0-2]-(default|nf-conntrack|br-netfilter|tcp-bbr)\.conf")
_READ = (*RELEASE_FILES, BOARD, vrrp.PATH, haproxy_text.PATH, system.KEYS, _SYSCTL, IPVS_RULES)


@dataclass
class Imported:
    """The result: the profile's text with the files beside it, and the account."""

    draft: Draft
    text: str
    ledger: Ledger
    sources: tuple[str, ...]
    unsaid: list[Unsaid] = field(default_factory=list)
    refused: str = ""
    """Why the profile cannot be loaded as it is; empty if it can."""


def refine(workspace: Workspace, result: Imported, nodes: Sequence[NodeFiles]) -> None:
    """Load and render the draft, take out what it would have by itself, put in what it would not."""
    draft, ledger = result.draft, result.ledger
    pins = {name: net.vrid for name, net in draft.networks.items()}
    for net in draft.networks.values():
        net.vrid = None
    _names_of_hosts(draft)
    _secure_cookies(draft)
    on_flash = DEVICES.get(draft.device or "x86-64", ("", ""))[0].partition("/")[0] in FLASH_TARGETS
    if draft.release and not Release.parse(draft.release).efi_images and not on_flash:
        draft.firmware = "bios"
    if on_flash:  # it has one card of its own: the others are on USB, and need their drivers
        draft.packages = {name: "add" for name in sorted(_listed(nodes[0])) if name.startswith("kmod-usb-net-")}
    profile = _settled(workspace, result)
    if profile is not None:
        computed = {i.network: i.vrid for i in profile.instances if i.group == "main"}
        pins = {name: None if computed.get(name) == vrid else vrid for name, vrid in pins.items()}
    for name, net in draft.networks.items():
        net.vrid = pins[name]
    trees = _trees(workspace, profile, draft)
    if trees and profile is not None:
        _limits(draft, ledger, trees)
        _further_rules(draft, ledger, trees)
        _answers(draft, ledger, trees)
        _image(draft, profile, nodes)
        for node in draft.node_names:
            for file in ledger.files:
                wanted = file.path == _SYSCTL or (_SYSCTLS.fullmatch(file.path) and not _OPENWRTS.fullmatch(file.path))
                if wanted and file.node == node:
                    sysctls.read(draft, file, _content(trees[node], _SYSCTL))
        trees = _trees(workspace, _settled(workspace, result), draft) or trees
    for file in ledger.files:
        tree = trees.get(file.node)
        if tree is not None and file.path in tree:
            same.forgive(file, _content(tree, file.path), draft.aliases, draft.renamed)
        elif file.path == PACKAGES:
            _packages(file)
        elif file.path.startswith("/etc/config/"):
            _not_ours(file)
        elif _OPENWRTS.fullmatch(file.path) or _stock_rc_local(file):
            _own_of_openwrt(file)
        elif file.secret:
            _hint_all(file, "a password or a key of the old box, which no profile takes over")
        elif file.path in ("/etc/firewall.user", "/etc/rc.local"):
            _hint_all(file, "scripts of one's own are not a profile's: what they are for may have a key")
        elif not _OURS.fullmatch(file.path) and file.path not in _READ:
            _hint_all(file, "nothing in a profile is about this file; what has to be kept goes to templates/rootfs/")
    first = draft.node_names[0]
    for file in ledger.files:
        if file.node != first and (of_first := ledger.file(first, file.path)) is not None:
            same.follow_reasons(file, of_first)
    lost_access.tell(draft, ledger)


def _stock_rc_local(file: SourceFile) -> bool:
    return file.path == "/etc/rc.local" and [t for t in file.lines if t.strip() and t[0] != "#"] == ["exit 0"]


def _own_of_openwrt(file: SourceFile) -> None:
    for line in range(1, len(file.lines) + 1):
        if not file.is_comment(line):
            file.same(line, "OpenWrt's own file, which every image has")


def _hint_all(file: SourceFile, why: str) -> None:
    for line in range(1, len(file.lines) + 1):
        if not file.is_comment(line):
            file.hint(line, why)


def _settled(workspace: Workspace, result: Imported) -> Profile | None:
    """The draft as a profile, after what it refuses was taken out and what it asks for was stated, where files tell."""
    profile, result.refused = _try(workspace, result)
    while result.refused and _drop_refused(result.draft, result.ledger, result.refused):
        profile, result.refused = _try(workspace, result)
    return profile


def _not_ours(file: SourceFile) -> None:
    known = {network.PATH, firewall.PATH, system.PATH, "/etc/config/dropbear", uci_keepalived.PATH}
    if file.path not in known:
        _hint_all(file, "nothing in a profile is about this file; what has to be kept goes to templates/rootfs/")


def _listed(node: NodeFiles) -> set[str]:
    """The names of the packages of a node, as `opkg list-installed`, apk's manifest or sysupgrade -k list them."""
    return {line.split()[0] for line in (node.text(PACKAGES) or "").split("\n") if line.strip()}


def _image(draft: Draft, profile: Profile, nodes: Sequence[NodeFiles]) -> None:
    """Packages against what ndakit would do, on a box that ndakit made: there although it takes them out, or not there
    although it wants them. On others they say nothing: OpenWrt comes with them."""
    there = _listed(nodes[0])
    if not there or not any(system.MADE_BY.search((nodes[0].text(p) or "")[:400]) for p in nodes[0].files):
        return
    plan = package_plan.plan(profile, draft.node_names[0])
    draft.packages |= dict.fromkeys((n for n in plan.remove if n in there), "add")
    if "base-files" in there:  # the whole list, and not only what somebody installed
        draft.packages |= dict.fromkeys((n for n in plan.add if n not in there), "remove")


def _packages(file: SourceFile) -> None:
    for line in range(1, len(file.lines) + 1):
        if file.lines[line - 1].split()[1:2] == ["overlay"]:
            file.hint(
                line,
                "it was installed by hand: write image.packages if it is needed (./inv packages NAME tells what is in)",
            )
        else:
            file.same(line, "the image has the packages that the profile needs (./inv packages tells them)")


def _secure_cookies(draft: Draft) -> None:
    """`secure` of a cookie is stated only where no service has the TLS that makes it so."""
    for name, pool in draft.pools.items():
        users = [s for s in draft.services.values() if s.get("pool") == name]
        for owner in (pool, *users):
            persistence = owner.get("persistence") or {}
            if persistence.pop("_secure", False) and not any(s.get("tls") for s in users):
                persistence["secure"] = True


def _names_of_hosts(draft: Draft) -> None:
    """The Host of an http check is the name of the first service with that pool, unless it is what clients would type
    anyway, an address."""
    hosts = {name: host for name, pool in draft.pools.items() if (host := pool.pop("_host", None)) is not None}
    hosts = {name: host for name, host in hosts.items() if not re.fullmatch(r"[0-9.]+|\[?[0-9a-f:]+\]?", host)}
    for name, host in hosts.items():
        users = [s for s in draft.services.values() if s.get("pool") == name and s.get("protocol") == "http"]
        first = users[0] if users else {}
        if not users or first.get("routes") or first.get("unknown_hosts") or first.get("hostnames"):
            if host not in first.get("hostnames", [])[:1]:
                draft.pools[name]["check"]["host"] = host
        else:
            first["hostnames"] = [host]


def _try(workspace: Workspace, result: Imported) -> tuple[Profile | None, str]:
    """The draft as a profile, and why it cannot be loaded as it is (empty if it can). What nobody but a person knows is
    stood in for. A profile that breaks a rule between its parts is given as well, if each part is right by itself."""
    draft = result.draft
    with _stood_in(draft):
        text = yaml_text.write(draft, result.sources, ())
    with scratch_folder(runtime(), "import") as folder:
        path = folder / f"{draft.name}.yaml"
        path.write_text(text)
        for name, content in draft.attachments.items():
            (folder / name).write_bytes(content)
        try:
            return load.load(workspace, str(path)).profile, ""
        except NdakitError as error:
            why = error.text().replace(f"{folder}/", "")
    try:
        data = yaml.load(text, yaml.BaseLoader)
        return Profile.model_validate(data, context={"attach": lambda name: draft.attachments[name]}), why
    except (yaml.YAMLError, ValidationError, LookupError):
        return None, why


@contextlib.contextmanager
def _stood_in(draft: Draft) -> Iterator[None]:
    """Addresses for nodes of which none is known, somebody who administers, and a key, while the draft is tried."""
    kept = {name: dict(net.addresses) for name, net in draft.networks.items()}
    sources, ssh_keys, fill_in = draft.sources, draft.ssh_keys, draft.fill_in
    draft.fill_in = []  # what nobody has decided yet does not hinder the trial
    inside = [str(s) for n in draft.networks.values() for s in n.subnets if not n.heartbeat]
    draft.sources = sources or {"somebody": inside[:1] or ["192.0.2.0/24"]}
    draft.ssh_keys = ssh_keys or {"nobody": _NOBODY}
    served = {a for v in draft.vips for a in v.addresses}
    for net in draft.networks.values():
        for node in draft.node_names:
            if not net.addresses.get(node):
                taken = {a for own in net.addresses.values() for a in own} | served | set(net.gateways)
                free = (next((h for h in islice(s.hosts(), 100) if h not in taken), None) for s in net.subnets)
                net.addresses[node] = [address for address in free if address is not None]  # type: ignore[misc]  # hosts() is untyped
    try:
        yield
    finally:
        draft.sources, draft.ssh_keys, draft.fill_in = sources, ssh_keys, fill_in
        for name, addresses in kept.items():
            draft.networks[name].addresses = addresses


_NOBODY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f nobody"


def _trees(workspace: Workspace, profile: Profile | None, draft: Draft) -> dict[str, Tree]:
    """What is rendered for each node; nothing if a profile that breaks some rule cannot be rendered."""
    if profile is None:
        return {}
    result: dict[str, Tree] = {}
    stand_ins = secrets.NONE
    try:
        if secrets.references(profile):
            stand_ins = secrets.placeholders(
                profile, functools.partial(certificates.placeholder, profile, datetime.now(UTC))
            )
        for node in draft.node_names:
            result[node] = render(profile, node, workspace.templates, secrets=stand_ins)
    except (
        NdakitError,
        LookupError,
        ValueError,
        ArithmeticError,
        AssertionError,
        AttributeError,
        TypeError,
        StopIteration,
    ):
        # Rendering relies on the rules, and this profile may break one: then its files are told without the comparison.
        return {}
    return result


def _content(tree: Tree, path: str) -> str:
    return tree[path].content.decode(errors="replace") if path in tree else ""


def _limits(draft: Draft, ledger: Ledger, trees: dict[str, Tree]) -> None:
    """A frontend's own `maxconn`, where ndakit would write another one."""
    node = draft.node_names[0]
    file = ledger.file(node, haproxy_text.PATH)
    if file is None:
        return
    rendered = set(
        same.placed(SourceFile(node, haproxy_text.PATH, _content(trees[node], haproxy_text.PATH).split("\n"))).values()
    )
    for line, (place, words) in same.placed(file).items():
        alias = draft.aliases.get(place, place)
        count = re.fullmatch(r"maxconn ([0-9]{1,7})", words)
        if count is None or place[0] not in ("frontend", "listen") or (alias, words) in rendered:
            continue
        service = draft.services.get(alias[1].removeprefix("service:"))
        if service is not None and 1 <= int(count[1]) <= 1_000_000:
            connections = service.setdefault("limits", {}).setdefault("connections", {})
            connections["count"] = int(count[1])
            file.key(line, f"services.{alias[1].removeprefix('service:')}.limits.connections")


def _further_rules(draft: Draft, ledger: Ledger, trees: dict[str, Tree]) -> None:
    """Rules of the first node's firewall that ndakit would not write."""
    node = draft.node_names[0]
    file = ledger.file(node, firewall.PATH)
    if file is None:
        return
    written = {
        same.section_words(s) for s in read_leniently(_content(trees[node], firewall.PATH))[0] if s.type == "rule"
    }
    uci = UciFile(file, read_leniently("\n".join(file.lines))[0])

    def is_left(section: Section) -> bool:
        if same.section_words(section) in written:
            return False
        return not any(f.kind in ("key", "same") for f in file.fates.get(section.line, []))

    firewall.own_rules(draft, uci, [s for s in uci.of("rule") if is_left(s)])
    for other in draft.node_names[1:]:
        if (theirs := ledger.file(other, firewall.PATH)) is not None:
            same.follow(theirs, file)


def _drop_refused(draft: Draft, ledger: Ledger, why: str) -> bool:
    """Take one thing out that the profile language refuses, and say why, or state what files do not tell: by which way
    answers of the servers come back. False if there is nothing to do."""
    if _ways_back(draft, why):
        return True
    for pattern, rules, at in (
        (r"firewall\.allow\.([a-z0-9-]+)", draft.allow, "firewall.allow"),
        (r"firewall\.deny\.([a-z0-9-]+)", draft.deny, "firewall.deny"),
    ):
        for name in re.findall(pattern, why):
            if name in rules:
                del rules[name]
                _taken_out(ledger, f"{at}.{name}", why)
                return True
    if "tuning.sysctl" in why:
        for chosen in sorted(draft.sysctl, key=len, reverse=True):
            if chosen in why:
                del draft.sysctl[chosen]
                _taken_out(ledger, f"tuning.sysctl.{chosen}", why)
                return True
    return False


def _ways_back(draft: Draft, why: str) -> bool:
    """No file of a balancer says which way servers answer; where an error asks for it, the box worked by that way."""
    for name in re.findall(r"vips\.([a-z0-9-]+)\.role\)", why):
        for vip in draft.vips:
            if vip.name == name and vip.gateway and "drops answers" in why:
                vip.gateway = False
                return True
    for network_name in re.findall(
        r"network ([a-z0-9-]+) (?:of server \S+ )?has no IPv[46] VIP with role: gateway", why
    ):
        idle = [v for v in draft.vips if v.network == network_name and not v.gateway]
        served = {a for s in draft.services.values() for a in s.get("vip", [])}
        own = [a for addresses in draft.networks[network_name].addresses.values() for a in addresses]
        if len(draft.node_names) == 1 and not idle and not draft.networks[network_name].gateways:
            draft.vips.append(
                VipDraft(
                    network_name, own, name=slug(f"{network_name}-gw", "gw", [v.name for v in draft.vips]), gateway=True
                )
            )
            return True
        if (only := next((v for v in idle if not draft.networks[network_name].gateways), None)) is not None:
            only.gateway = True
            return not served.issubset(only.addresses) or True
    names = [
        *re.findall(r"reply_route: policy for pool ([a-z0-9-]+)", why),
        *(
            p
            for service in re.findall(r"services\.([a-z0-9-]+)\.topology", why)
            for p in [draft.services.get(service, {}).get("pool", "")]
        ),
    ]
    for name in names:
        if name in draft.pools and draft.pools[name].get("reply_route") is None:
            draft.pools[name]["reply_route"] = "policy"
            draft.missing(
                f"pools.{name}.reply_route: no file says by which way these servers answer. This profile says: by a "
                "rule of their own (./inv servers writes it)"
            )
            return True
    return False


def _taken_out(ledger: Ledger, key: str, why: str) -> None:
    about = next((part for part in why.split("\n\n") if key.rpartition(".")[2] in part or key in part), why)
    reason = about.split("\n")[0].removeprefix("error: ")
    for file in ledger.files:
        for line, fates in file.fates.items():
            if any(f.kind == "key" and f.what == key for f in fates):
                file.fates[line] = [f for f in fates if f.what != key]
                file.unsaid(line, f"a profile refuses it: {reason}")


def _answers(draft: Draft, ledger: Ledger, trees: dict[str, Tree]) -> None:
    """tproxy in the servers' own network: what keeps clients' addresses there tells that servers answer by a rule."""
    node = draft.node_names[0]
    file = ledger.file(node, firewall.PATH)
    if file is None:
        return
    written = {
        same.section_words(s) for s in read_leniently(_content(trees[node], firewall.PATH))[0] if s.type == "nat"
    }
    for section in read_leniently("\n".join(file.lines))[0]:
        if section.type != "nat" or section.get("target") != "ACCEPT" or same.section_words(section) in written:
            continue
        for pool in draft.pools.values():
            if any(str(a) == section.get("dest_ip") for s in pool["servers"].values() for a in s["address"]):
                pool["reply_route"] = "policy"
