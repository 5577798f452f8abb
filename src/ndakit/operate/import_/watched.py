"""Pools of `vrrp.demote_on`: what ndakit's own script on the node says of those that no service uses."""

from __future__ import annotations

import re
import shlex
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from ndakit.lint.config_text import Block
from ndakit.model import Address
from ndakit.operate.import_.draft import Draft, address

PATH = "/usr/libexec/ndakit/pool-alive"
SCRIPTS = "/usr/libexec/ndakit/check-script"
_ENTRY = re.compile(r"([0-9A-F]{8}|\\?\[[0-9a-f:]+\\?\]):[0-9A-F]{4}")


def read(draft: Draft, text: str, root: Block) -> None:
    """Add pools that nobody uses, and give those that the kernel balances their names (they have none in
    keepalived.conf)."""
    for part in re.split(r"^(?=[a-z][a-z0-9-]*\)$)", text, flags=re.M)[1:]:
        name = part.partition(")")[0]
        if name in draft.pools or name not in draft.vrrp.get("demote_on", []):
            continue
        pinged = re.findall(r"^\s*ping -c 1 -W ([0-9]+) '?([0-9a-f.:]+)'?", part, re.M)
        asked = re.findall(r"check-script \S+ '?([0-9a-f.:]+)'? ([0-9]+)", part)
        entries = [_entry(e) for e in _ENTRY.findall(part)]
        if pinged:
            check = {"type": "ping", "timeout_s": int(pinged[0][0]), **_pace(root, name)}
            _alone(draft, name, check, [(address(a), None) for _, a in pinged])
        elif asked:
            check = {"type": "script", "script": f"/usr/libexec/ndakit/script-{name}", **_pace(root, name)}
            _alone(draft, name, check, [(address(a), int(p) or None) for a, p in asked])
        else:
            _rename(draft, name, [e for e in entries if e is not None])


def arguments(text: str) -> dict[str, list[str]]:
    """Pool → the further arguments of its check script, as ndakit's own script passes them on."""
    result: dict[str, list[str]] = {}
    for line in text.split("\n"):
        if not line.strip().startswith("exec /usr/libexec/ndakit/script-"):
            continue
        try:
            words = shlex.split(line)
        except ValueError:
            continue
        if words[2:3] == ["$@"]:
            result[words[1].removeprefix("/usr/libexec/ndakit/script-")] = words[3:]
    return result


def _pace(root: Block, name: str) -> dict[str, Any]:
    block = next((b for b in root.inner("vrrp_script") if b.name == f"pool-{name}"), None)
    if block is None:
        return {}
    return {
        key: int(value)
        for key, word in (("interval_s", "interval"), ("fall", "fall"), ("rise", "rise"))
        if (value := block.value(word)) is not None and value.isdigit()
    }


def _entry(text: str) -> Address | None:
    """A server as /proc/net/ip_vs writes it."""
    host = text.replace("\\", "").strip("[]")
    if re.fullmatch(r"[0-9A-F]{8}", host):
        return IPv4Address(int(host, 16))
    try:
        return IPv6Address(host)
    except ValueError:
        return None


def _alone(draft: Draft, name: str, check: dict[str, Any], targets: list[tuple[Address | None, int | None]]) -> None:
    servers: dict[str, dict[str, Any]] = {}
    for ip, port in targets:
        if ip is None:
            continue
        last = servers.get(f"srv{len(servers)}")
        if last is not None and {a.version for a in last["address"]} == {4} and ip.version == 6:
            last["address"].append(ip)
        else:
            servers[f"srv{len(servers) + 1}"] = {"address": [ip], "port": port}
    if servers:
        draft.pools[name] = {"check": check, "servers": servers}


def _rename(draft: Draft, name: str, addresses: list[Address]) -> None:
    for old, pool in list(draft.pools.items()):
        own = [a for s in pool["servers"].values() for a in s["address"]]
        if set(own) == set(addresses) and old not in draft.vrrp.get("demote_on", []):
            draft.pools = {name if n == old else n: p for n, p in draft.pools.items()}
            for service in draft.services.values():
                if service.get("pool") == old:
                    service["pool"] = name
            for other in draft.pools.values():
                if other.get("sorry") == {"pool": old}:
                    other["sorry"] = {"pool": name}
            return
