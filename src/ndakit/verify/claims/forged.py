"""A claim about who is believed: a VRRP advert that came through a router moves no VIP.

VRRP has no passwords any more (RFC 5798, section 9). What is left is that the nodes are neighbours: a router takes one
from every packet's TTL (IPv6: hop limit), so that one with 255 was sent on the link itself (RFC 5082). A host of the
lab sends better adverts in the name of each other node, with a TTL as if they had come from far away.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from ipaddress import ip_address

from ndakit.lab.clients import LabLacks
from ndakit.lab.frames import VrrpAdvert, decode_vrrp, encode_vrrp
from ndakit.lab.network import LabNetwork
from ndakit.lab.plan import VantagePoint
from ndakit.lab.switch import Frame
from ndakit.model import Profile
from ndakit.model.vrrp import VrrpInstance, instances_of
from ndakit.verify.claims.base import Outcome

FAR_TTL = 10
BEST = 254
"""A priority above that of every node; 255 is for who owns the address (RFC 5798, 5.2.4)."""
EVERY_S = 0.1
LASTS_S = 2.0
"""A master gives its VIPs up at the first advert that it believes."""

TOLD = "Keepalived_vrrp"
"""In every line that keepalived's VRRP process writes into the log."""

SEND = """\
import socket, sys, time
packets = []
for line in sys.stdin.read().split("\\n"):
    if line:
        family, destination, data = line.split(" ")
        s = socket.socket(int(family), socket.SOCK_RAW, socket.IPPROTO_RAW)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
        packets.append((s, (destination, 0), bytes.fromhex(data)))
end = time.monotonic() + float(sys.argv[1])
while time.monotonic() < end:
    for s, destination, data in packets:
        s.sendto(data, destination)
    time.sleep(float(sys.argv[2]))
"""
"""Sends IP packets as they are, in rounds: seconds, seconds between two rounds; on each line of its input the address
family's number, the destination, the packet in hexadecimal."""


@dataclass(frozen=True)
class Forgery:
    """Adverts that a host of the lab sends to the holder of an instance's VIPs in another node's name."""

    host: str
    holder: str
    instance: VrrpInstance
    advert: VrrpAdvert


def name_of(profile: Profile) -> str:
    """The claim's name; that of a node comes first."""
    return "vrrp/forged" if "forged" not in profile.nodes else "vrrp/forged-adverts"


def forged(lab: LabNetwork) -> Outcome:
    """Send them for a while. Whoever believes one gives its VIPs up, and says so in its log; nodes that
    are too busy to say anything may lose their VIPs as well, but to another node's real priority."""
    holders = lab.vip_holders()
    forgeries = forgeries_of(lab, holders)
    before = {node: _yielded(lab, node) for node in {f.holder for f in forgeries}}
    lab.tell(f"for {LASTS_S:.0f} s adverts come in other nodes' names, with a TTL of {FAR_TTL}")
    with _Heard(lab) as heard:

        def send(host: str) -> None:
            lines = "".join(_line(f) for f in forgeries if f.host == host)
            argv = ["python3", "-I", "-S", "-c", SEND, str(LASTS_S), str(EVERY_S)]
            lab.hosts[host].run(argv, stdin=lines.encode(), timeout_s=LASTS_S + 20)

        hosts = sorted({f.host for f in forgeries})
        with ThreadPoolExecutor(max_workers=max(1, len(hosts))) as pool:
            list(pool.map(send, hosts))
    wrong: list[str] = []
    for node, said in before.items():
        lines = _yielded(lab, node)
        new = lines[lines.index(said[-1]) + 1 :] if said and said[-1] in lines else lines
        names = {f.instance.name for f in forgeries if f.holder == node}
        wrong += [f"{node} gave the VIPs of {name} up" for name in sorted(names) if any(f"({name})" in n for n in new)]
    moved = {vip: nodes for vip, nodes in lab.vip_holders().items() if nodes != holders[vip]}
    if moved and not wrong and not all(lab.facts(node).log(TOLD) for node in before):
        wrong += [f"VIP {v} went from {' '.join(holders[v])} to {' '.join(n) or 'nobody'}" for v, n in moved.items()]
    if not heard.forged:
        wrong.append("no forged advert was seen on the wire, so that nothing is proved")
    if moved or wrong:
        lab.settle()
    figure = f"{heard.forged} adverts, TTL {FAR_TTL}, priority {BEST}, in {len(forgeries)} names"
    if moved and not wrong:
        figure += "; VIPs moved, to a real priority"
    values: dict[str, float | int | str] = {"forged": heard.forged, "kinds": len(forgeries)}
    return Outcome(not wrong, figure, "; ".join(wrong), values)


def _yielded(lab: LabNetwork, node: str) -> list[str]:
    """The lines of a node's log in which keepalived gives way to a forged priority; the words are those of 1.4 to
    2.3 (vrrp.c, vrrp_state_master_rx)."""
    return lab.facts(node).log(f"higher priority {BEST}")


def forgeries_of(lab: LabNetwork, holders: dict[str, tuple[str, ...]]) -> list[Forgery]:
    """One for each instance and other node: to the address of who holds its VIPs. Raises LabLacks."""
    forgeries: list[Forgery] = []
    for number, instance in enumerate(lab.profile.instances):
        vip = next(v for v, facts in lab.profile.vips.items() if facts.group == instance.group)
        for holder in holders[vip]:
            view = instances_of(lab.profile, holder)[number]
            point = _sender(lab, view)
            if point is None:
                continue
            forgeries += [Forgery(point.host, holder, view, advert) for advert in _adverts(lab.profile, view)]
    return forgeries


def _adverts(profile: Profile, instance: VrrpInstance) -> Iterator[VrrpAdvert]:
    """In each peer's name; where the nodes speak to VRRP's group, to that as well."""
    for peer in instance.peers:
        advert = VrrpAdvert(
            source_mac="",
            source=peer,
            destination=instance.own,
            vlan=0,
            ttl=FAR_TTL,
            version=3,
            vrid=instance.vrid,
            priority=BEST,
            interval_s=profile.vrrp.advert_interval_s,
            addresses=(instance.advertised.address,),
        )
        yield advert
        if not profile.vrrp.unicast and instance.version == 4:
            yield replace(advert, destination=ip_address("224.0.0.18"))
        elif not profile.vrrp.unicast:
            yield replace(advert, source=ip_address("fe80::1"), destination=ip_address("ff02::12"))


def _sender(lab: LabNetwork, instance: VrrpInstance) -> VantagePoint | None:
    """Somebody on the instance's network who has its IP version; None on a heartbeat that has room for nobody else.
    Raises LabLacks."""
    for points in (lab.plan.strangers, lab.plan.clients):
        point = points.get(instance.network)
        if point is not None and point.address(instance.version) is not None:
            return point
    if instance.heartbeat:
        return None
    raise LabLacks("host that could forge adverts", instance.network)


def _line(forgery: Forgery) -> str:
    family = 2 if forgery.instance.version == 4 else 10  # AF_INET and AF_INET6 of Linux
    return f"{family} {forgery.advert.destination} {encode_vrrp(forgery.advert).hex()}\n"


class _Heard:
    """How many forged adverts are on the wire."""

    def __init__(self, lab: LabNetwork) -> None:
        self.forged = 0
        self._observation = lab.switch.on_frame(self._see)

    def __enter__(self) -> _Heard:
        return self

    def __exit__(self, *_: object) -> None:
        self._observation.end()

    def _see(self, frame: Frame) -> None:
        advert = decode_vrrp(frame.data)
        if advert is not None and advert.ttl == FAR_TTL:
            self.forged += 1
