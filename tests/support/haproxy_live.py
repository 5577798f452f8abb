"""A real HAProxy with a rendered configuration, in a network namespace: seconds instead of a lab's minutes.

HAProxy and `ip` are the lab's (Debian's packages, unpacked); `haproxy_driver` runs inside the namespace.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import goldens
from ndakit.core import process
from ndakit.core.workspace import cache
from ndakit.lint import real_daemons
from ndakit.lint.config_text import POUND, STUNNEL
from ndakit.load.secrets import Secret, Secrets
from ndakit.model import Profile
from ndakit.render.render import Tree, render

DRIVER = Path(__file__).with_name("haproxy_driver.py")


@functools.cache
def daemons() -> Path:
    """The lab's root of daemons, made on first use."""
    argv: list[str | Path] = [
        "python3",
        goldens.ROOT / "lab/debian.py",
        "root",
        "--cache",
        cache() / "lab",
        "--name",
        "daemons",
    ]
    done = process.run([*argv, *real_daemons.PACKAGES], timeout_s=600)
    return Path(done.stdout.strip().splitlines()[-1])


def program(name: str) -> list[str]:
    """A program of the lab's root with that root's own libraries."""
    root = daemons()
    loader = next(root.glob("usr/lib64/ld-linux-*.so.*"))
    libraries = next(root.glob("usr/lib/*-linux-gnu"))
    # A library that is older than Debian's folders per architecture (adns, which Pound needs) lies in /usr/lib itself.
    return [str(loader), "--library-path", f"{libraries}:{root / 'usr/lib'}", str(next(root.glob(f"usr/*bin/{name}")))]


def configuration(tree: Tree, folder: Path) -> str:
    """haproxy.cfg as rendered, but for what needs root or the node's own folders."""
    text = tree["/etc/haproxy.cfg"].text
    text = text.replace("\tuser nobody\n\tgroup nogroup\n", "")
    text = text.replace("/var/run/haproxy.sock", str(folder / "haproxy.sock")).replace("/dev/log", str(folder / "log"))
    for path, file in tree.items():
        if path.startswith("/etc/ndakit/"):
            target = folder / path.removeprefix("/etc/ndakit/")
            target.parent.mkdir(parents=True, exist_ok=True)
            listed = path.startswith("/etc/ndakit/private/_")  # a list of certificates: paths as well
            target.write_bytes(file.content.replace(b"/etc/ndakit/", f"{folder}/".encode()) if listed else file.content)
    return text.replace("/etc/ndakit/", f"{folder}/")


def pound_configuration(tree: Tree, folder: Path) -> str:
    """pound.cfg as rendered, but for its account and folders; `configuration` writes its certificates."""
    text = tree[POUND].text.replace('User "pound"\nGroup "pound"\n', "").replace("/var/run/", f"{folder}/")
    return text.replace("/etc/ndakit/", f"{folder}/")


def stunnel_configuration(tree: Tree, folder: Path) -> str:
    """stunnel.conf as rendered, but for its account and folders; `configuration` writes its certificates."""
    text = tree[STUNNEL].text.replace("setuid = nobody\nsetgid = nogroup\n", "")
    return text.replace("foreground = quiet", "foreground = yes").replace("/etc/ndakit/", f"{folder}/")


def _changed(text: str, changes: Sequence[tuple[str, str]]) -> str:
    for old, new in changes:
        assert old in text, f"the configuration does not hold {old!r}"
        text = text.replace(old, new)
    return text


def _second(profile: Profile, folder: Path, addresses: Mapping[str, str]) -> dict[str, Any]:
    """What the driver needs for the next node's HAProxy: its own socket, and addresses instead of the VIPs."""
    node = list(profile.nodes)[1]
    text = configuration(render(profile, node, goldens.TEMPLATES), folder)
    for vip, address in addresses.items():
        text = text.replace(f"bind {vip}:", f"bind {address}:")
    config = folder / "haproxy2.cfg"
    config.write_text(text.replace("/haproxy.sock", "/haproxy2.sock").replace("bind 127.0.0.1:", "bind 127.0.0.2:"))
    own = next(a for a in next(iter(profile.nodes[node].addresses.values())) if a.version == 4)
    ready = [str(own), profile.monitoring.statistics.port]
    cli = str(folder / "haproxy2.sock")
    return {"other_config": str(config), "other_name": profile.hostname(node), "other_ready": ready, "other_cli": cli}


def attempt(
    profile: Profile,
    folder: Path,
    what: str,
    *,
    changes: Sequence[tuple[str, str]] = (),
    pound_changes: Sequence[tuple[str, str]] = (),
    stunnel_changes: Sequence[tuple[str, str]] = (),
    secrets: Mapping[str, bytes] = MappingProxyType({}),
    dead: bool = False,
    absent: Sequence[str] = (),
    second: Mapping[str, str] | None = None,
    certificates: Mapping[str, str] | None = None,
    inside: str = "",
    **order: Any,
) -> Any:
    """Render a profile's first node, run its HAProxy, and try one of the driver's functions.

    `changes` are made to the text of haproxy.cfg first, `pound_changes` to that of pound.cfg, `stunnel_changes` to that
    of stunnel.conf (to show what would happen without something); `inside`: what the servers speak, if not what their
    service says; `dead`: no server runs; `absent`: these do not; `second`: the next node's HAProxy can be started
    beside the first one (step `second`), with these addresses instead of the VIPs; `certificates`: file of certificate
    and key, by pool, of servers that speak TLS.
    """
    node = next(iter(profile.nodes))
    given = Secrets({name: Secret(value, "a test") for name, value in secrets.items()})
    tree = render(profile, node, goldens.TEMPLATES, secrets=given)
    config = folder / "haproxy.cfg"
    config.write_text(_changed(configuration(tree, folder), changes))
    if POUND in tree:
        pound = folder / "pound.cfg"
        pound.write_text(_changed(pound_configuration(tree, folder), pound_changes))
        order |= {"pound": program("pound"), "pound_config": str(pound)}
    if STUNNEL in tree:
        stunnel = folder / "stunnel.conf"
        stunnel.write_text(_changed(stunnel_configuration(tree, folder), stunnel_changes))
        order |= {"stunnel": program("stunnel4"), "stunnel_config": str(stunnel)}
    places = [*(a for v in profile.vips.values() for a in v.address)]
    places += [a for own in profile.nodes[node].addresses.values() for a in own]
    servers = []
    for name, pool in profile.pools.items():
        for label, server in pool.servers.items():
            places += server.address
            user = profile.services[profile.services_of(name)[0]]
            port = profile.server_port(name, server)
            tls = (certificates or {}).get(name)
            protocol = inside or ("http" if user.passes_tls else user.protocol)  # inside of their TLS
            facts = {"address": str(server.address[0]), "port": port, "protocol": protocol, "tls": tls}
            servers.append({"name": label, **facts})
    own = next(a for a in next(iter(profile.nodes[node].addresses.values())) if a.version == 4)
    order |= {"cli": str(folder / "haproxy.sock"), "haproxy_words": ["-L", profile.hostname(node)]}
    if second is not None:
        order |= _second(profile, folder, second)
        order["more"] = [*order.get("more", ()), *(f"{a}/32" for a in (*second.values(), order["other_ready"][0]))]
    order |= {
        "try": what, "haproxy": program("haproxy"), "ip": program("ip"), "config": str(config),
        "addresses": sorted({f"{a}/{a.max_prefixlen}" for a in places} | set(order.get("more", ()))),
        "servers": [s for s in servers if not dead and s["name"] not in absent],
        "ready": [str(own), profile.monitoring.statistics.port],
    }  # fmt: skip
    order.setdefault("address", str(next(a for v in profile.vips.values() for a in v.address if a.version == 4)))
    argv = ["unshare", "-Urnm", sys.executable, str(DRIVER)]
    done = process.run(argv, stdin=json.dumps(order).encode(), timeout_s=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
