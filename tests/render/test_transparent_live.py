"""Topology tproxy as it is rendered, with a real HAProxy, nft and kernel: whom do servers see, and what breaks it?"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import goldens
from haproxy_live import configuration, program
from ndakit.core import process, uci
from ndakit.render.render import render

DRIVER = goldens.ROOT / "tests/support/transparent_driver.py"
SMALL = "sizing: {sessions_per_second: 1, session_duration_s: 1}\n"
"""Few connections: as many files as those of the example need, not every user may have open."""
NETWORK, NFT = "/etc/config/network", "/etc/nftables.d/20-tproxy.nft"
CLIENTS = {4: ("198.51.100.150", "198.51.100.151"), 6: ("2001:db8:5::50", "2001:db8:5::51")}
UNUSED = "preferred_lft 0"
"""How keepalived puts IPv6 VIPs on: no connection of the node's own begins there."""
VIPS = {4: "198.51.100.138", 6: "2001:db8:5::10"}


def commands(network: str) -> Iterator[list[str]]:
    """What netifd makes of the rendered rules and local routes (docs/facts.md, Transparent proxy)."""
    for section in uci.read(network):
        family = "-6" if section.type.endswith("6") else "-4"
        if section.type.startswith("rule"):
            mark, table, place = (section.get(n) or "" for n in ("mark", "lookup", "priority"))
            yield [family, "rule", "add", "fwmark", mark, "lookup", table, "priority", place]
        elif section.get("type") == "local":
            target, table = section.get("target") or "", section.get("table") or ""
            yield [family, "route", "add", "local", target, "dev", "lo", "table", table]


def tried(folder: Path, asked: list[tuple[str, str, int]], *changes: tuple[str, str, str]) -> Any:
    """Run the example for IIS. `changes`: (file, old, new) made to the rendered files first."""
    profile = goldens.parse(goldens.PROFILES["iis-tproxy"].read_text() + SMALL)
    tree = render(profile, "lb1", goldens.TEMPLATES)
    texts = {NETWORK: tree[NETWORK].text, NFT: tree[NFT].text, "/etc/haproxy.cfg": configuration(tree, folder)}
    for path, old, new in changes:
        assert old in texts[path], f"{path} does not hold {old!r}"
        texts[path] = texts[path].replace(old, new)
    (folder / "divert.nft").write_text(texts[NFT])
    (folder / "haproxy.cfg").write_text(texts["/etc/haproxy.cfg"])
    order = {
        "programs": {name: program(name) for name in ("ip", "nft", "haproxy")},
        "client": [f"{a}/25" for a in CLIENTS[4]] + [f"{a}/64" for a in CLIENTS[6]],
        "servers": ["192.168.5.21/24", "192.168.5.22/24", "fd00:0:0:5::21/64", "fd00:0:0:5::22/64"],
        "balancer": {
            "client": ["198.51.100.139/25", f"{VIPS[4]}/32", "2001:db8:5::11/64", f"{VIPS[6]}/128 {UNUSED}"],
            "servers": ["192.168.5.11/24", "192.168.5.1/32", "fd00:0:0:5::11/64", f"fd00:0:0:5::1/128 {UNUSED}"],
        },
        "gateways": ["192.168.5.1", "fd00:0:0:5::1"],
        "commands": [*commands(texts[NETWORK])],
        "nft": str(folder / "divert.nft"),
        "config": str(folder / "haproxy.cfg"),
        "checks": 2,
        "patience_s": 1.5,
        "asked": asked,
    }
    done = process.run(
        ["unshare", "-Urnm", sys.executable, str(DRIVER)], stdin=json.dumps(order).encode(), timeout_s=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def address(seen: str) -> str:
    """The address that a server saw."""
    return seen.split()[0].removeprefix("::ffff:")


@pytest.mark.parametrize("reuse", ["", "\thttp-reuse always\n"], ids=["as-rendered", "reuse-always"])
def test_servers_see_each_client_over_both_families_and_no_connection_serves_two_of_them(
    tmp_path: Path, reuse: str
) -> None:
    asked = [(VIPS[v], client, 3) for v in (4, 6) for client in CLIENTS[v] for _ in range(2)]
    source = "\tsource 0.0.0.0 usesrc clientip\n"
    result = tried(tmp_path, asked, ("/etc/haproxy.cfg", source, source + reuse))
    for (_, client, times), seen in zip(asked, result["seen"], strict=True):
        assert [address(one) for one in seen] == [client] * times, result["said"]
    # Health checks come from the node's own addresses, never from a VIP or a client.
    assert {address(a) for a in result["checked_by"]} == {"192.168.5.11", "fd00:0:0:5::11"}


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(
    "change",
    [
        (NFT, "socket transparent 1", "socket transparent 0"),
        (NETWORK, "option lookup '100'", "option lookup '101'"),
        (NETWORK, "option mark '0x1/0x1'", "option mark '0x2/0x2'"),
    ],
    ids=["no-divert", "another-table", "another-mark"],
)
def test_without_any_of_the_three_clients_get_no_answer(
    tmp_path: Path, change: tuple[str, str, str], version: int
) -> None:
    assert tried(tmp_path, [(VIPS[version], CLIENTS[version][0], 1)], change)["seen"] == [["time-out"]]


def test_without_its_source_servers_see_the_node(tmp_path: Path) -> None:
    change = ("/etc/haproxy.cfg", "\tsource 0.0.0.0 usesrc clientip\n", "")
    (seen,) = tried(tmp_path, [(VIPS[4], CLIENTS[4][0], 1)], change)["seen"]
    assert [address(one) for one in seen] == ["192.168.5.11"]
