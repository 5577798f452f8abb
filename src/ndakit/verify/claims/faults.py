"""Claims about what else can happen to a master than losing its power: cables, a hanging machine, a killed keepalived,
networks that are cut. Each one is made, clients are asked all the time, it is mended, and the pair has to agree again.
Each cable is pulled; what has to come of it (another master, or nothing at all) follows from the profile.

How long both nodes say that they are master after a cut is mended is counted on the wire.
"""

from __future__ import annotations

import contextlib
import math
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ndakit.core.deadline import Deadline
from ndakit.lab.frames import announced, decode_vrrp
from ndakit.lab.network import LabNetwork
from ndakit.lab.switch import Frame, SwitchPort
from ndakit.model import Profile
from ndakit.model.links import deciding, watched_alone
from ndakit.verify.claims import bonding
from ndakit.verify.claims.base import Outcome
from ndakit.verify.claims.failover import GAP_SLACK_S, asked, gap_bound_s, gap_errors, measured, precision, unserved
from ndakit.verify.claims.holders import Holders

RESPAWN_S = 4.0
"""procd starts a daemon that died again after a second; then it has to start."""
DOUBLE_S = 0.6
"""Two nodes may answer for one address that long: an answer that is under way while the VIPs move, in two rounds of
questions. Nothing waits for anything in that time, so that a longer one is not emulation."""
KILLS = 7
"""One more than procd would put up with in an hour."""
LOOKS = 100
BOTH_SLACK_S = 0.5
"""Beyond one advert, for two masters to become one: emulation, and the advert that is on its way."""
WATCH_ADVERTS = 4
BOND_S = 1.0
"""A bond looks at its cards' links every 100 ms, and takes a card back as soon as it sees one."""
LOOKS_S = 3.0
LASTS_S = 1.0
"""How long a fault goes on after another node has become master."""


@dataclass(frozen=True)
class Fault:
    """Something that happens to the master. `parts` if both nodes may be master until it is mended."""

    name: str
    text: str
    make: Callable[[LabNetwork, str], None]
    mend: Callable[[LabNetwork, str], None]
    parts: bool = False
    moves: bool = True
    """Whether another node has to take over; if not, none may, and clients notice nothing."""
    mended_s: float = 0.0
    """How long mending by itself may take."""
    notice_s: float = 0.0
    """How long the master may take to see that it is worse than another node."""
    unnoticed_s: float = GAP_SLACK_S
    """Where nothing moves: what clients may take for a lost packet."""
    alone: bool = False
    """Whether the VIPs must have left the master before another node takes them: nobody may find two holders."""
    contested: bool = False
    """Whether two nodes claim the VIPs on one wire: until the better one announces itself again, clients and servers
    may take different ones for the master."""


def fault(lab: LabNetwork, kind: Fault) -> Outcome:
    """Make it, see the gap that clients get, and that the new master has every service; mend it, and see one master
    again."""
    master = lab.one_master()
    takeover_s = bound_s = gap_bound_s(lab.profile, lab.survivor(master)) + kind.notice_s
    if not kind.moves:
        bound_s = kind.unnoticed_s
    if kind.contested:
        bound_s += LASTS_S + lab.profile.vrrp.advert_interval_s
    wrong: list[str] = []
    with contextlib.ExitStack() as opened:
        adverts = opened.enter_context(_Adverts(lab))
        holders = opened.enter_context(Holders(lab)) if kind.alone else None
        watch = opened.enter_context(lab.watch(asked(lab)))
        time.sleep(0.5)
        lab.tell(f"{kind.text}: {master}")
        try:
            kind.make(lab, master)
            moved = _wait_other(lab, adverts, master, takeover_s + (3 if kind.moves else 0))
            time.sleep(LASTS_S)
            if not kind.contested:
                watch.stop()
                wrong += unserved(lab) if moved or not kind.moves else []
        finally:
            kind.mend(lab, master)
        mended_s = time.monotonic()
        time.sleep(kind.mended_s + WATCH_ADVERTS * lab.profile.vrrp.advert_interval_s + BOTH_SLACK_S)
        both_s = together_s(adverts.said_after(mended_s), since_s=mended_s if kind.parts else None)
        polled = watch.stop()
    if moved:
        lab.settle()
    if kind.moves and not moved:
        wrong.append("no other node became master")
    if moved and not kind.moves:
        wrong.append(f"{moved} became master, and nothing should have moved")
    wrong += gap_errors(polled, bound_s)
    if both_s > lab.profile.vrrp.advert_interval_s + BOTH_SLACK_S + kind.mended_s:
        wrong.append(f"for {both_s:.1f} s after it was mended, two nodes said that they are master")
    figure = f"gap {polled.gap_ms:.0f} ms (limit {bound_s * 1000:.0f} ms){precision(polled)}, "
    figure += f"then {moved or 'nobody'}" if kind.moves or moved else f"stays on {master}"
    if kind.parts:
        figure += f"; mended, two masters for {both_s * 1000:.0f} ms"
    values: dict[str, float | int | str] = {**measured(polled), "both_ms": round(both_s * 1000)}
    if holders is not None:
        twice_held, double_s = twice(holders.doubled_s())
        wrong += twice_held
        figure += f"; two nodes answered for {double_s * 1000:.0f} ms"
        values["double_ms"] = round(double_s * 1000)
    return Outcome(not wrong, figure, "; ".join(wrong), values)


def twice(doubled_s: dict[str, float]) -> tuple[list[str], float]:
    """Which VIPs two nodes answered for, beyond a handover's moment; and the longest time, in seconds."""
    wrong = [f"two nodes answered for {vip} for {s:.1f} s" for vip, s in doubled_s.items() if s > DOUBLE_S]
    return wrong, max(doubled_s.values(), default=0.0)


def killed(lab: LabNetwork, looks: int = LOOKS) -> Outcome:
    """Every daemon of the master is killed seven times in a row, with SIGKILL: procd must start each of them again, and
    nobody may find two nodes with the same VIP meanwhile. `looks`: how often, every 0.1 s, each is looked for."""
    master = lab.one_master()
    lab.survivor(master)
    names = _daemons(lab.profile)
    with Holders(lab) as holders:
        lab.tell(f"{' and '.join(names)} on {master}: killed {KILLS} times")
        loops = " ".join(f"killing {name} {looks} &" for name in names)
        said = lab.run(master, f"{KILLING}; {loops} wait", timeout_s=KILLS_TIMEOUT_S)
        counted = {name: int(n) for name, n in re.findall(r"^(\S+): (\d+)$", said, re.M)}
        if all(counted.get(name, 0) == KILLS for name in names):
            lab.settle()
    wrong = [
        f"{name} was not started again after its end number {counted.get(name, 0) + 1}"
        for name in names
        if counted.get(name, 0) != KILLS or not lab.facts(master).service_running(name)
    ]
    twice_held, double_s = twice(holders.doubled_s())
    wrong += twice_held
    wrong += [f"{v} is on {', '.join(n) or 'no node'}" for v, n in lab.vip_holders().items() if len(n) != 1]
    figure = ", ".join(f"{name} {counted.get(name, 0)} of {KILLS}" for name in names)
    return Outcome(
        not wrong, f"{figure}; two nodes answered for {double_s * 1000:.0f} ms", "; ".join(wrong),
        {"double_ms": round(double_s * 1000)},
    )  # fmt: skip


def _daemons(profile: Profile) -> list[str]:
    """The daemons that carry services, move the VIPs, and tell the other nodes of connections."""
    carrying = [engine.service for engine in profile.engines]
    carrying += [terminator.service for terminator in profile.terminators]
    moving = ["keepalived"] if profile.instances else []
    telling = ["conntrackd"] if profile.tracks_connections else []
    return list(dict.fromkeys([*carrying, *moving, *telling]))


KILLING = (
    f"killing() {{ n=0; while [ $n -lt {KILLS} ] && old=$(pidof $1); do kill -9 $old; i=0; "
    "for one in $old; do while [ -d /proc/$one ] && [ $i -lt $2 ]; do i=$((i+1)); sleep 0.1; done; done; "
    "until pidof $1 >/dev/null || [ $i -ge $2 ]; do i=$((i+1)); sleep 0.1; done; "
    '[ $i -lt $2 ] || break; n=$((n+1)); done; echo "$1: $n"; }'
)
"""Shell function `killing NAME LOOKS`: kill a daemon, wait until it runs again, and so on; how often it came back."""
KILLS_TIMEOUT_S = 120.0


class _Adverts:
    """When which node said on the wire that it is master: by adverts, and, for an advert to a node that is gone may
    not even find that node's card, by announcing the VIPs."""

    def __init__(self, lab: LabNetwork) -> None:
        self._lab = lab
        self._lock = threading.Lock()
        self._seen: list[tuple[float, str]] = []
        self._announced: list[str] = []
        self._vips = {address for vip in lab.profile.vips.values() for address in vip.address}
        self._stack = contextlib.ExitStack()
        self._nodes = {nic.mac: node for node, nics in lab.plan.balancers.items() for nic in nics}

    def __enter__(self) -> _Adverts:
        self._stack.enter_context(self._lab.switch.on_frame(self._see))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _see(self, frame: Frame) -> None:
        node = self._nodes.get(frame.data[6:12].hex(":"))
        if node is None:
            return
        advert = decode_vrrp(frame.data)
        with self._lock:
            if advert is not None and advert.priority:
                self._seen.append((frame.time_s, node))
            elif announced(frame.data) in self._vips:
                self._announced.append(node)

    def other_than(self, node: str) -> str:
        """A node other than this one that has said so, the last one; empty if none has."""
        with self._lock:
            said = [*self._announced, *(n for _, n in self._seen)]
            return next((n for n in reversed(said) if n != node), "")

    def said_after(self, moment_s: float) -> list[tuple[float, str]]:
        """Every advert after a moment: when, and whose."""
        with self._lock:
            return [(when_s, node) for when_s, node in self._seen if when_s > moment_s]


def together_s(said: Sequence[tuple[float, str]], since_s: float | None) -> float:
    """For how long more than one node said that it is master: (time, node) of each advert, seconds.

    From `since_s` on, if both were masters then; otherwise from the moment at which the second one began to say so, for
    one that hands over to another is not master beside it.
    """
    nodes = {node for _, node in said}
    if len(nodes) < 2:
        return 0.0
    begins = sorted(min(when_s for when_s, n in said if n == node) for node in nodes)
    ends = sorted(max(when_s for when_s, n in said if n == node) for node in nodes)
    return max(0.0, ends[-2] - (begins[1] if since_s is None else since_s))


def _wait_other(lab: LabNetwork, adverts: _Adverts, master: str, timeout_s: float) -> str:
    """Wait until another node says that it is master; its name, empty if none does."""
    end_s = time.monotonic() + timeout_s
    while not (other := adverts.other_than(master)) and time.monotonic() < end_s:
        time.sleep(0.05)
    if other:
        lab.tell(f"{other} is master")
    return other


# -- what happens ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NodeCable:
    """The cable of a network, or of several that share a card, bond or bridge: its cards on each node."""

    network: str
    cards: tuple[str, ...]
    why: str
    """Why its link decides who is master; empty if it does not."""


def cables(profile: Profile) -> tuple[NodeCable, ...]:
    """Every cable of a node, in the order of the networks. Of a bridge that is its first port: the lab plugs in no
    other one."""
    decides = deciding(profile)
    cables: list[NodeCable] = []
    for name, net in profile.networks.items():
        if profile.base_owner(name) == name:
            shared = [n for n in profile.networks if set(profile.networks[n].nics) & set(net.nics)]
            why = next((f"{n}: {decides[n]}" for n in shared if n in decides), "")
            cards = net.nics if net.bond is not None else net.nics[:1]
            if not any(set(cards) & set(cable.cards) for cable in cables):
                cables.append(NodeCable(name, cards, why))
    return tuple(cables)


def faults(profile: Profile) -> tuple[Fault, ...]:
    """What happens to the master of a profile: its cables one after the other, and the rest."""
    faults: list[Fault] = []
    for cable in cables(profile):
        if len(cable.cards) > 1:
            name = f"cable/{cable.network}/each"
            text = f"one card of {cable.network}'s bond after the other loses its cable"
            lacp = bonding.speaks_lacp(profile, cable.network)
            faults.append(Fault(
                name, text, _each(cable.cards, profile.base_device(cable.network) if lacp else ""),
                _links(True, cable.cards), moves=False, unnoticed_s=bonding.ONE_GAP_S,
            ))  # fmt: skip
        what = f"the master's cable of {cable.network} is pulled"
        if len(cable.cards) > 1:
            what = f"all cables of the master's bond of {cable.network} are pulled"
        what += f" ({cable.why})" if cable.why else " (no VIP, server or way out depends on it)"
        name = f"cable/{cable.network}"
        faults.append(Fault(name, what, _links(False, cable.cards), _links(True, cable.cards), moves=bool(cable.why)))
    for pool in watched_alone(profile):
        text = f"the master alone reaches no server of {pool}"
        cut, heal = _far(pool, cut=True), _far(pool, cut=False)
        faults.append(Fault(f"empty/{pool}", text, cut, heal, notice_s=emptied_s(profile, pool)))
    if profile.heartbeats:
        text = f"the nodes hear each other on {' and '.join(profile.heartbeats)} only"
        faults.append(Fault("heard", text, _deafen_both, _hear_both, moves=False))
    return (*faults, *FAULTS)


def _cards(lab: LabNetwork, node: str) -> list[str]:
    return [nic.name for nic in lab.plan.balancers[node] if nic.segment]


def _ports(lab: LabNetwork, node: str) -> list[SwitchPort]:
    names = {f"{node}-{card}" for card in _cards(lab, node)}
    return [port for port in lab.switch.ports() if port.name in names]


def _links(up: bool, cards: Sequence[str] | None) -> Callable[[LabNetwork, str], None]:
    def act(lab: LabNetwork, node: str) -> None:
        for card in _cards(lab, node) if cards is None else cards:
            lab.plug(node, card, up=up)

    return act


def _each(cards: Sequence[str], bundle: str) -> Callable[[LabNetwork, str], None]:
    """One card after the other, the last one stays out: whichever of them works, it is its turn once. `bundle`: a bond
    that speaks LACP, in which a card works only when the switch agrees."""

    def act(lab: LabNetwork, node: str) -> None:
        for number, card in enumerate(cards):
            lab.plug(node, card, up=False)
            time.sleep(BOND_S)
            if number < len(cards) - 1:
                lab.plug(node, card, up=True)
                if bundle:
                    Deadline(bonding.AGREED_S, f"{bundle} of {node} and the switch to agree").wait_until(
                        lambda: len(lab.carrying(node, bundle)) == len(cards), every_s=0.2
                    )
                time.sleep(BOND_S)

    return act


MAKE_UNSTARTABLE = "mount -o bind /bin/busybox /usr/sbin/keepalived && kill -9 $(pidof keepalived)"
"""Shell text: kill keepalived, with something in its place that ends at once."""


def _kill_keepalived(lab: LabNetwork, node: str) -> None:
    lab.run(node, MAKE_UNSTARTABLE)


def _give_keepalived_back(lab: LabNetwork, node: str) -> None:
    lab.run(node, "umount /usr/sbin/keepalived")


def _cut(lab: LabNetwork, node: str) -> None:
    for port in _ports(lab, node):
        lab.switch.cut(port)


def _heal(lab: LabNetwork, node: str) -> None:
    for port in _ports(lab, node):
        lab.switch.heal(port)


def _pairs(lab: LabNetwork, node: str) -> list[tuple[SwitchPort, SwitchPort]]:
    """The master's ports, each with those of the other nodes on the same segment."""
    others = [p for n in lab.profile.nodes if n != node for p in _ports(lab, n)]
    return [(mine, other) for mine in _ports(lab, node) for other in others if mine.segment == other.segment]


def _deafen(lab: LabNetwork, node: str) -> None:
    for mine, other in _pairs(lab, node):
        lab.switch.block(mine, other)


def _hear(lab: LabNetwork, node: str) -> None:
    for mine, other in _pairs(lab, node):
        lab.switch.unblock(mine, other)


def _between(lab: LabNetwork, node: str) -> list[tuple[SwitchPort, SwitchPort]]:
    """The same without the heartbeats."""
    quiet = {f"{node}-{nic}" for name in lab.profile.heartbeats for nic in lab.profile.networks[name].nics}
    return [(mine, other) for mine, other in _pairs(lab, node) if mine.name not in quiet]


def _deafen_both(lab: LabNetwork, node: str) -> None:
    for mine, other in _between(lab, node):
        lab.switch.block(mine, other)
        lab.switch.block(other, mine)


def _hear_both(lab: LabNetwork, node: str) -> None:
    for mine, other in _between(lab, node):
        lab.switch.unblock(mine, other)
        lab.switch.unblock(other, mine)


def emptied_s(profile: Profile, pool: str) -> float:
    """The longest time, in seconds, until another node may be master because a pool seems empty to this one: the
    checks', keepalived's own looks (two, a second apart, that take a moment each), and the delay of preemption."""
    check = profile.pools[pool].check
    if pool in watched_alone(profile):
        attempt_s = math.ceil(check.timeout_s) * sum(len(s.address) for s in profile.pools[pool].servers.values())
        seen_s: float = (check.fall + 1) * max(math.ceil(check.interval_s), attempt_s + 1)
    else:
        seen_s = profile.detection_s(pool) + LOOKS_S
    return seen_s + profile.vrrp.preempt_delay_s


def _far(pool: str, *, cut: bool) -> Callable[[LabNetwork, str], None]:
    """The master's own cables are well; what it says to the pool's servers, and they to it, is lost."""

    def act(lab: LabNetwork, node: str) -> None:
        change = lab.switch.block if cut else lab.switch.unblock
        theirs = [lab.port_of(s.host) for (p, _), s in lab.plan.servers.items() if p == pool]
        for mine in _ports(lab, node):
            for other in (port for port in dict.fromkeys(theirs) if port.segment == mine.segment):
                change(mine, other)
                change(other, mine)

    return act


FAULTS = (
    Fault("cables", "all of the master's cables are pulled", _links(False, None), _links(True, None)),
    Fault(
        "frozen", "the master hangs", lambda lab, node: lab.machine(node).freeze(),
        lambda lab, node: lab.machine(node).thaw(), parts=True,
    ),
    Fault(
        "keepalived-killed", "keepalived is killed on the master, and cannot start", _kill_keepalived,
        _give_keepalived_back, mended_s=RESPAWN_S, alone=True,
    ),
    Fault("cut-off", "the master is cut off from all networks", _cut, _heal, parts=True),
    Fault("not-heard", "the other nodes do not hear the master, but it hears them", _deafen, _hear, parts=True,
        contested=True),
)  # fmt: skip
