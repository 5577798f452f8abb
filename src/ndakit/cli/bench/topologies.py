"""How much each topology carries: one large file to one, two, three and four clients at once, against a plain router.

The experiment of the lab's oldest source (one file by HTTP through the balancer, through a router, through LVS), in one
run on one machine: clients outside, a server inside, one balancer between them. `plain` routes packets through that
same balancer; `nat` has the same way; with `dr` and `tun` only requests pass it. Processors are emulated, so that only
the figures' proportions mean anything.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ndakit.build import pipeline
from ndakit.core import terminal
from ndakit.core.addresses import authority
from ndakit.core.files import write_atomic
from ndakit.core.locks import scratch_folder
from ndakit.core.workspace import Workspace, cache
from ndakit.image.artifacts import images_of
from ndakit.imagebuilder import sources
from ndakit.lab import host as lab_host
from ndakit.lab.host import Host
from ndakit.lab.network import LabNetwork
from ndakit.load import load
from ndakit.machine.boot_image import boot_images
from ndakit.render.servers import linux_script
from ndakit.verify.report import write_json

CLIENTS = (1, 2, 3, 4)
FILE_MIB = 16
ROUNDS = 3
GOALS = {"nat": 0.85, "dr": 0.95, "tun": 0.85}
"""At least so much of what the plain router carries (the best round of each, four clients)."""
PORT = {"plain": 8090, "nat": 8091, "dr": 8092, "tun": 8093}
_DOWNLOAD_TIMEOUT_S = 240.0

_PROFILE = """\
# Written by ./inv bench: one balancer with one server for each topology.
name: bench-topologies
release: 24.10.8
access:
  ssh_keys: {me: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f me}
  sources: {office: 192.168.0.0/24}
networks:
  wan: {nics: [eth0], subnet: 203.0.113.0/24, gateway: 203.0.113.1, dns: [203.0.113.53]}
  lan: {nics: [eth1], subnet: 192.168.0.0/24, routes: [{to: 10.20.0.0/24, via: 192.168.0.254}]}
nodes: {lb: {addresses: {wan: 203.0.113.11, lan: 192.168.0.11}}}
vips:
  www: {network: wan, address: 203.0.113.10}
  lan-gw: {network: lan, address: 192.168.0.1, role: gateway}
  intern: {network: lan, address: 192.168.0.10}
pools:
  nat: {servers: {nat1: 192.168.0.21}}
  dr: {servers: {dr1: 192.168.0.22}}
  tun: {servers: {tun1: 10.20.0.23}}
services:
  nat: {vip: www, port: 8091, topology: nat, protocol: tcp, pool: nat}
  dr: {vip: intern, port: 8092, topology: dr, protocol: tcp, pool: dr}
  tun: {vip: intern, port: 8093, topology: tun, protocol: tcp, pool: tun}
"""


def bench(workspace: Workspace, *, json: Path | None, plot: Path | None) -> int:
    """Measure, show, write JSON and a plot; 0 if every goal is reached, else 5."""
    with scratch_folder(workspace.state / "scratch", "bench") as folder:
        (folder / "profiles").mkdir()
        (folder / "profiles" / "bench-topologies.yaml").write_text(_PROFILE)
        private = Workspace(folder, workspace.shipped)
        loaded = load.load(private, "bench-topologies")
        pipeline.build(private, loaded, (), sources.choose("lab", None, private, loaded.profile))
        built = images_of(private, loaded, tuple(loaded.profile.nodes))
        image = lab_host.image.build(private.lab, cache() / "lab", tell=terminal.note)
        lab = LabNetwork(
            loaded.profile, boot_images(loaded.profile, built), private.logs("bench"), image,
            script_of=partial(linux_script, loaded.profile, private.templates), tell=terminal.note,
        )  # fmt: skip
        with lab:
            rates = measure(lab)
    missed = 0
    for kind, goal in GOALS.items():
        share = rates[kind][-1] / rates["plain"][-1]
        missed += share < goal
        word = terminal.paint("ok  ", "green") if share >= goal else terminal.paint("MISS", "red")
        terminal.say(f"{word} {kind} carries {share:.2f} of plain routing with {CLIENTS[-1]} clients (goal {goal:g})")
    path = json or workspace.images / "bench-topologies.json"
    facts: dict[str, Any] = {"clients": CLIENTS, "file_mib": FILE_MIB, "mib_per_second": rates, "goals": GOALS}
    write_json(path, facts)
    if plot is not None:
        write_atomic(plot, chart(rates).encode())
    terminal.say(f"figures: {path}" + (f", plot: {plot}" if plot else ""))
    return 5 if missed else 0


def measure(lab: LabNetwork) -> dict[str, list[float]]:
    """MiB per second in all, for each way and each number of clients: the best of some rounds, taken in turns."""
    ways = _prepare(lab)
    rates: dict[str, list[float]] = {kind: [] for kind in ways}
    for count in CLIENTS:
        best = dict.fromkeys(ways, 0.0)
        for _ in range(ROUNDS):
            for kind, (client, url) in ways.items():
                best[kind] = max(best[kind], _download(client, url, count))
        for kind, rate in best.items():
            rates[kind].append(round(rate, 2))
        terminal.say(f"     {count} client(s): " + ", ".join(f"{k} {r:.1f} MiB/s" for k, r in best.items()))
    return rates


def _prepare(lab: LabNetwork) -> dict[str, tuple[Host, str]]:
    """Put the file on the servers, open the plain way; who asks for what in each way."""
    for (pool, server), running in lab.servers.items():
        for service in running.services.values():
            service.stop()
        running.services.clear()
        host = lab.server_host(pool, server)
        # A sparse file: nothing is read from anywhere, and the server hands it out with sendfile(2).
        host.run(["sh", "-c", f"mkdir -p /tmp/www && busybox truncate -s {FILE_MIB}M /tmp/www/file"])
        for port in {PORT[pool], PORT["plain"]} if pool == "nat" else {PORT[pool]}:
            host.run(["busybox", "httpd", "-p", str(port), "-h", "/tmp/www"])
    profile = lab.profile
    outside = lab.hosts[lab.client_for(profile.endpoints("nat")[0]).host]
    inside = lab.hosts[lab.client_for(profile.endpoints("dr")[0]).host]
    target = profile.pools["nat"].servers["nat1"].address[0]
    router = profile.node_address("lb", "wan", 4)
    lab.run("lb", "nft insert rule inet fw4 forward accept")
    outside.run(["ip", "route", "replace", f"{target}/32", "via", str(router)])
    ways = {"plain": (outside, f"http://{target}:{PORT['plain']}/file")}
    for kind, client in (("nat", outside), ("dr", inside), ("tun", inside)):
        ways[kind] = (client, f"http://{authority(profile.endpoints(kind)[0].address, PORT[kind])}/file")
    lab.settle()
    return ways


def _download(client: Host, url: str, count: int) -> float:
    """MiB per second of `count` downloads at once."""
    one = f"wget -q -O /dev/null {url} &"
    started_s = time.monotonic()
    client.run(["sh", "-c", f"{one * count} wait"], timeout_s=_DOWNLOAD_TIMEOUT_S)
    return count * FILE_MIB / (time.monotonic() - started_s)


_COLOURS = {"plain": "#8a8a8a", "nat": "#1f6f8b", "dr": "#d1495b", "tun": "#edae49"}


def chart(rates: Mapping[str, Sequence[float]]) -> str:
    """The figures as bars, SVG."""
    width, height, left, base, bar_width = 620, 300, 60, 250, 26
    top = max(max(values) for values in rates.values()) or 1.0
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif"',
        'font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{left}" y="20">MiB/s in all, one file of {FILE_MIB} MiB to each client (emulated processors)</text>',
        f'<line x1="{left}" y1="{base}" x2="{width - 10}" y2="{base}" stroke="black"/>',
    ]
    for number, count in enumerate(CLIENTS):
        at = left + 14 + number * (len(rates) * bar_width + 30)
        for place, (kind, values) in enumerate(rates.items()):
            tall, x = 190 * values[number] / top, at + place * bar_width
            parts.append(
                f'<rect x="{x}" y="{base - tall:.1f}" width="{bar_width - 4}" height="{tall:.1f}" '
                f'fill="{_COLOURS[kind]}"/>'
            )
            parts.append(f'<text x="{x}" y="{base - tall - 4:.1f}" font-size="10">{values[number]:.0f}</text>')
        parts.append(f'<text x="{at}" y="{base + 16}">{count} client{"s" if count > 1 else ""}</text>')
    for place, kind in enumerate(rates):
        x = left + place * 90
        parts.append(f'<rect x="{x}" y="{base + 28}" width="12" height="12" fill="{_COLOURS[kind]}"/>')
        parts.append(f'<text x="{x + 17}" y="{base + 38}">{kind}</text>')
    return "\n".join([*parts, "</svg>", ""])
