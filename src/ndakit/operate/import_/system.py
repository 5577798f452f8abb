"""What a node is besides its traffic: name, clock, SSH server and keys, banner, release and device, packages."""

from __future__ import annotations

import contextlib
import re

from pydantic import TypeAdapter, ValidationError

from ndakit.core import json_text
from ndakit.core.release import Release
from ndakit.model.base import SshKey
from ndakit.model.profile import DEVICES
from ndakit.operate.import_.draft import Draft, number, slug
from ndakit.operate.import_.ledger import Ledger, SourceFile
from ndakit.operate.import_.sources import BOARD, NodeFiles
from ndakit.operate.import_.uci_files import UciFile

PATH = "/etc/config/system"
KEYS = "/etc/dropbear/authorized_keys"
MADE_BY = re.compile(r"^# made by ndakit for ([a-z0-9-]+), node ([a-z0-9-]+)[,:]", re.M)
_KEY: TypeAdapter[str] = TypeAdapter(SshKey)
_BOARDS = {"seagate,dockstar": "dockstar"}


def node_name(profile: str, node: NodeFiles, position: int, taken: list[str]) -> str:
    """What a node is called: what ndakit called it, else its host name without the profile's name."""
    for text in map(node.text, node.files):
        made = MADE_BY.search((text or "")[:400])
        if made is not None:
            return slug(made[2], f"lb{position}", taken)
    name = re.search(r"^\s*option hostname ['\"]?([^'\"\n]*)", node.text("/etc/config/system") or "", re.M)
    given = node.record.get("node") or (name[1] if name is not None else "")
    given = given.split(".")[0].lower()
    short = given.removeprefix(f"{profile}-") if given not in ("", "openwrt", "lede", profile) else ""
    return slug(short, f"lb{position}", taken)


def system(draft: Draft, node: str, uci: UciFile) -> None:
    """/etc/config/system."""
    first = node == draft.node_names[0]
    for section in uci.of("system"):
        for option in section.options:
            if option.name == "hostname":
                wanted = f"{draft.name}-{node}"
                uci.file.key(option.line, f"nodes.{node}")
                draft.renamed[option.value] = wanted[:63].rstrip("-")
                if option.value != wanted[:63].rstrip("-"):
                    uci.file.same(option.line, f"its host name becomes {wanted}, of profile and node")
                uci.head(section, f"nodes.{node}")
        zone = section.get("zonename")
        if zone is None and section.get("timezone") in ("UTC", "UTC0", "GMT0"):
            uci.used(section, "timezone", "system.timezone")
        elif zone is not None and re.fullmatch(r"[A-Za-z0-9_+/ -]{1,64}", zone):
            zone = zone.replace(" ", "_")
            if first or draft.timezone == zone:
                draft.timezone = zone
                for name in ("zonename", "timezone"):
                    uci.take(section, name, key="system.timezone")
            else:
                uci.hint(section, "zonename", "the nodes of a profile have one time zone")
        uci.hint(section, "timezone", "a time zone is named by its zonename, such as Europe/Berlin: system.timezone")
        for name in ("log_ip", "log_port", "log_proto", "log_remote"):
            uci.hint(section, name, "remote logs are not carried yet (monitoring.syslog)")
    for section in uci.of("timeserver"):
        servers = list(section.list("server"))
        off = section.get("enabled") == "0"
        if first:
            draft.ntp = [] if off else servers
        if draft.ntp == ([] if off else servers):
            for name in ("server", "enabled"):
                uci.take(section, name, key="system.ntp")
        else:
            uci.hint(section, "server", "the nodes of a profile have the same time servers")


def dropbear(draft: Draft, node: str, uci: UciFile) -> None:
    """/etc/config/dropbear."""
    for section in uci.of("dropbear"):
        port = number(section.get("Port"), 1, 65535)
        if port is not None and (node == draft.node_names[0] or port == draft.ssh_port):
            draft.ssh_port = port
            uci.take(section, "Port", key="access.ssh.port")
        for name, words in (
            ("PasswordAuth", "no password opens anything: root logs in with the keys of access.ssh_keys"),
            ("RootPasswordAuth", "no password opens anything: root logs in with the keys of access.ssh_keys"),
            ("Interface", "SSH listens on every address, and access.sources says who may come"),
            ("GatewayPorts", "there is no key for forwarded ports"),
        ):
            uci.hint(section, name, words)


def keys(draft: Draft, file: SourceFile) -> None:
    """authorized_keys: who may log in."""
    for line, text in enumerate(file.lines, 1):
        if file.is_comment(line):
            continue
        try:
            key = _KEY.validate_python(" ".join(text.split()))
        except ValidationError:
            file.unsaid(
                line,
                "an SSH key that a profile does not take (options before it, an RSA key below 2048 bits, "
                "or a damaged one)",
            )
            continue
        data = key.split()[1]
        known = next((name for name, other in draft.ssh_keys.items() if other.split()[1] == data), None)
        if known is None:
            comment = key.split(" ", 2)[2] if key.count(" ") > 1 else ""
            known = slug(re.split(r"[@ ]", comment)[0], "admin", draft.ssh_keys)
            draft.ssh_keys[known] = key
        file.key(line, f"access.ssh_keys.{known}")


def banner(draft: Draft, file: SourceFile) -> None:
    """The banner as ndakit writes it: host name, customer, description."""
    texts = [(n, t.strip()) for n, t in enumerate(file.lines, 1) if t.strip()]
    if not texts or not texts[-1][1].startswith("made by ndakit for "):
        for n, _ in texts:
            file.hint(n, "the banner is written anew: customer and description of the profile stand in it")
        return
    end = next((i for i, (_, t) in enumerate(texts) if t.startswith("Load balancer on OpenWrt ")), 1)
    own = texts[1:end]
    for line, _ in (*texts[:1], *texts[end:]):
        file.same(line, "ndakit writes this banner itself")
    for (line, text), key in zip(own, ("customer", "description") if len(own) == 2 else ("description",), strict=False):
        if not getattr(draft, key):
            setattr(draft, key, text)
        file.key(line, key)


def release_and_device(draft: Draft, node: NodeFiles) -> None:
    """The release and the hardware, from the release file, the board, or a backup's record."""
    words = node.release_words
    release = words.get("DISTRIB_RELEASE") or words.get("VERSION") or node.record.get("release", "")
    if not draft.release:
        with contextlib.suppress(ValueError):
            draft.release = str(Release.parse(release.strip()))
    target = words.get("DISTRIB_TARGET") or words.get("OPENWRT_BOARD") or node.record.get("target", "")
    if draft.device:
        return
    stated = node.record.get("device", "")
    board = _board(node)
    if board in _BOARDS:
        draft.device = _BOARDS[board]
    elif stated in DEVICES:
        draft.device = stated
    elif re.fullmatch(r"[a-z0-9]+/[a-z0-9_-]+", target):
        usual = next((d for d, (t, _) in DEVICES.items() if t == target), "")
        if usual and usual != "dockstar":
            draft.device = usual
        elif re.fullmatch(r"[A-Za-z0-9]+,[A-Za-z0-9_.-]+", board):
            draft.device = f"{target}:{re.sub(r'[^A-Za-z0-9_-]', '_', board)}"


def _board(node: NodeFiles) -> str:
    try:
        return str(json_text.mapping(node.text(BOARD) or "{}").get("model", {}).get("id", ""))
    except (ValueError, AttributeError):
        return ""


def platform(draft: Draft, node: NodeFiles) -> None:
    """Where it runs, from the guest agent."""
    for path, word in (("/etc/init.d/qemu-ga", "kvm"), ("/etc/init.d/vmtoolsd", "vmware")):
        if path in node.files:
            draft.platform = word


def facts_files(ledger: Ledger, draft: Draft, node: str) -> None:
    """Account for the files that say what the box is."""
    for path in ("/etc/openwrt_release", "/etc/os-release", "/usr/lib/os-release", BOARD):
        file = ledger.file(node, path)
        if file is None:
            continue
        for line, text in enumerate(file.lines, 1):
            if re.match(r"(DISTRIB_RELEASE|VERSION)=", text) and draft.release and draft.release in text:
                file.key(line, "release")
            elif re.match(r"(DISTRIB_TARGET|OPENWRT_BOARD)=", text) and draft.device:
                file.key(line, "device")
            else:
                file.same(line, "the release's own file, which every image has")
