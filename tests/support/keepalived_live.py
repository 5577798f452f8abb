"""A real keepalived with rendered configurations: two nodes as network namespaces, seconds instead of a lab's minutes.

keepalived and `ip` are the lab's (Debian's packages, unpacked); `keepalived_driver` runs inside the namespace.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import goldens
from haproxy_live import daemons, program
from ndakit.core import process
from ndakit.model import Profile
from ndakit.render.render import render

DRIVER = Path(__file__).with_name("keepalived_driver.py")


def attempt(
    profile: Profile, folder: Path, what: str, *, changes: Sequence[tuple[str, str]] = (), **order: Any
) -> dict[str, Any]:
    """Render a profile's two nodes, lb1 and lb2, run their keepaliveds, and try one of the driver's functions.

    `changes` are made to keepalived.conf first (to show what would happen without something). Whoever asks is in each
    network, with the address .102 or ::66. Returns what the driver says.
    """
    for node in profile.nodes:
        tree = render(profile, node, goldens.TEMPLATES)
        text = tree["/etc/keepalived/keepalived.conf"].text
        for old, new in changes:
            assert old in text, f"the configuration does not hold {old!r}"
            text = text.replace(old, new)
        (folder / f"{node}.conf").write_text(text)
        (folder / f"{node}.watch").write_text(tree["/usr/libexec/ndakit/vips-watch"].text)
    logger = folder / "logger"
    logger.write_text('#!/bin/sh\necho "$*" >>/mnt/said\n')
    logger.chmod(0o755)
    own = {
        node: {
            network: [f"{a}/{_length(profile, network, a.version)}" for a in addresses]
            for network, addresses in profile.nodes[node].addresses.items()
        }
        for node in profile.nodes
    }
    own["client"] = {
        name: [f"{subnet.network_address + 0x66}/{subnet.prefixlen}" for subnet in network.subnet]
        for name, network in profile.networks.items()
    }
    order |= {
        "try": what, "folder": str(folder), "root": str(daemons()), "ip": program("ip"),
        "cards": {name: profile.l2_device(name) for name in profile.networks}, "addresses": own,
        "vips": [str(a) for vip in profile.vips.values() for a in vip.address],
        "advert_s": profile.vrrp.advert_interval_s,
    }  # fmt: skip
    argv = ["unshare", "-Urnm", sys.executable, str(DRIVER)]
    done = process.run(argv, stdin=json.dumps(order).encode(), timeout_s=120, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert isinstance(result, dict)
    return result


def _length(profile: Profile, network: str, version: int) -> int:
    return next(s.prefixlen for s in profile.networks[network].subnet if s.version == version)
