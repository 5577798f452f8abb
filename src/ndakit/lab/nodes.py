"""The balancers of a running lab, and what they tell of themselves: on their consoles and on their statistics pages.

Who holds the VIPs, which servers a node sees, whether a pair has settled, and waiting for any of it. Booting and ending
the machines is the business of `network`, asking the services from outside that of `clients`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from ndakit.core.deadline import Deadline, DeadlineExceeded
from ndakit.core.names import pool_of_backend
from ndakit.lab.clients import REQUEST_TIMEOUT_S, LabNotReady, LabPeople
from ndakit.lab.host import Watch
from ndakit.lab.plan import LabPlan
from ndakit.load.certificates import CertificateBundle
from ndakit.machine import vm
from ndakit.machine.console import Console
from ndakit.model import Address, Profile
from ndakit.node.facts import NodeFacts, ServerState, VirtualServer, facts_of

SETTLE_TIMEOUT_S = 120.0
CONSOLE_TIMEOUT_S = 60.0
ANSWERS_AFTER_A_GAP = 10
MASTER_POLL_S = 0.5

_Answer = TypeVar("_Answer")


class LabNodes(LabPeople):
    """The people of a lab, and the nodes that they use: one virtual machine each."""

    def __init__(
        self,
        profile: Profile,
        plan: LabPlan,
        identity: str | None,
        tell: Callable[[str], None],
        certificates: Mapping[str, CertificateBundle] | None = None,
    ) -> None:
        super().__init__(profile, plan, identity, tell, certificates)
        self._nodes: dict[str, vm.Vm] = {}

    # -- one node ------------------------------------------------------------------------------------------------------

    def facts(self, node: str) -> NodeFacts:
        """What can be asked of a node on its console."""
        return facts_of(self.shell(node))

    def run(self, node: str, command: str, timeout_s: float = 30.0) -> str:
        """Type a command on a node's console; what it printed."""
        return self.shell(node).run(command, timeout_s).stdout

    def shell(self, node: str) -> Console:
        """A node's console with a shell (node/shell.Shell). One that was given up, because no answer came in time, is
        opened again: what one claim lost is not the next one's fault."""
        console = self._nodes[node].console
        if not console.active:
            console.activate(Deadline(CONSOLE_TIMEOUT_S, f"the shell of {node}", where=str(console.log)))
        return console

    def order(self, node: str, command: str) -> None:
        """Type a command that has to succeed. Raises LabNotReady if it does not."""
        console = self.shell(node)
        ran = console.run(command)
        if ran.rc != 0:
            raise LabNotReady(f"{node} refused '{command}': {ran.stderr.strip()[:200]}", str(console.log))

    def machine(self, node: str) -> vm.Vm:
        """A node's virtual machine, for faults."""
        return self._nodes[node]

    def is_up(self, node: str) -> bool:
        """True if the node's machine runs."""
        return self._nodes[node].alive

    def states(self, node: str, timeout_s: float = REQUEST_TIMEOUT_S) -> list[ServerState]:
        """What a node's statistics say about the servers, asked by some admin; empty if it does not answer in time."""
        for point in self.plan.admins.values():
            network = self.plan.hosts[point.host].network
            for address in self.profile.nodes[node].addresses.get(network, ()):
                if point.address(address.version) is not None:
                    return self.statistics(point, address, timeout_s)
        return []

    def ipvs_trouble(self, node: str) -> str:
        """Which servers IPVS leaves out on a node; empty if none."""
        pools = {self.profile.services[s].main_pool for s in self.profile.ipvs_services}
        if not pools:
            return ""
        there = self.facts(node).virtual_servers()
        out = [
            f"{pool}/{name}"
            for pool in pools
            for name, server in self.profile.pools[pool].servers.items()
            if server.weight and not self._in_ipvs(there, pool, name)
        ]
        return f"IPVS on {node} leaves out {', '.join(out)}" if out else ""

    def vrrp_trouble(self, node: str) -> str:
        """Why a node is neither master nor ready to become it; empty if it is one of them in all its VRRP instances.

        A node that has just booted holds back (FAULT) until HAProxy has been seen running twice.
        """
        count = len(self.profile.instances)
        if not count:
            return ""
        states = self.facts(node).vrrp_states(count)
        if len(states) < count:
            return f"keepalived on {node} tells of {len(states)} of its {count} VRRP instances"
        wrong = [f"{name} is in {state}" for name, state in states.items() if state not in ("MASTER", "BACKUP")]
        return f"VRRP on {node}: {', '.join(wrong)}" if wrong else ""

    # -- the VIPs ------------------------------------------------------------------------------------------------------

    def _ask_each(self, question: Callable[[str], _Answer]) -> dict[str, _Answer]:
        """Ask every node that has power, all at once: each has a console and a processor of its own."""
        nodes = [node for node in self._nodes if self.is_up(node)]
        with ThreadPoolExecutor(max_workers=max(1, len(nodes))) as pool:
            return dict(zip(nodes, pool.map(question, nodes), strict=True))

    def vip_holders(self) -> dict[str, tuple[str, ...]]:
        """VIP → the nodes that hold any address of it; nodes without power hold nothing."""
        held = self._ask_each(lambda node: self.facts(node).addresses())
        devices = {name: self.profile.l2_device(vip.network) for name, vip in self.profile.vips.items()}
        return {
            name: tuple(n for n, there in held.items() if {i.ip for i in there.get(devices[name], ())} & {*vip.address})
            for name, vip in self.profile.vips.items()
        }

    def master(self) -> str:
        """The one node that holds the first service's VIP (without services: the first VIP); "" if it is not one."""
        service = next(iter(self.profile.services.values()), None)
        vip = service.vip[0] if service else next(iter(self.profile.vips))
        holders = self.vip_holders()[vip]
        return holders[0] if len(holders) == 1 else ""

    def one_master(self) -> str:
        """The master. Raises LabNotReady unless one node, and no other, holds the VIPs."""
        if not (master := self.master()):
            raise LabNotReady("no node is the only one to hold the VIPs, and a master is needed for this", self._logs)
        return master

    def survivor(self, master: str) -> str:
        """The node that takes over from a master: of the others that run, the one with the highest priority.

        Raises LabNotReady if there is none.
        """
        others = [node for node in self.profile.nodes if node != master and self.is_up(node)]
        if not others:
            raise LabNotReady(f"no node but {master} runs, so that none can take over", self._logs)
        return max(others, key=self.profile.priority)

    def wait_master(self, wanted: Callable[[str], bool], timeout_s: float) -> str:
        """Wait until the master is one that is wanted; its name, "" if that does not come about in time."""
        end_s = time.monotonic() + timeout_s
        while True:
            master = self.master()
            if wanted(master):
                self.tell(f"{master} holds the VIPs")
                return master
            if time.monotonic() >= end_s:
                return ""
            time.sleep(MASTER_POLL_S)

    def wait_other_master(self, old: str, timeout_s: float) -> str:
        """Wait until another node than `old` holds the VIPs; its name, "" if that does not come about in time."""
        return self.wait_master(lambda other: other not in ("", old), timeout_s)

    def taken_over(self, watch: Watch, old: str, timeout_s: float) -> str:
        """Wait until a client is answered again after a gap, and only then ask who holds the VIPs; "" if nobody does.

        Asking consoles meanwhile would keep the new master's one processor busy, and lengthen what is measured.
        """
        with contextlib.suppress(DeadlineExceeded):
            watch.wait_until(
                lambda watched: watched.answered_again(ANSWERS_AFTER_A_GAP),
                Deadline(timeout_s, "answers after the master's end"),
                every_s=0.2,
            )
        return self.wait_other_master(old, timeout_s=2.0)

    # -- all together --------------------------------------------------------------------------------------------------

    def settle(self, timeout_s: float = SETTLE_TIMEOUT_S) -> None:
        """Wait until every running node sees every server up, can be master, and every VIP is where it belongs.

        Raises LabNotReady.

        It belongs on one node; with preemption on the preferred one, if that runs.
        """
        end_s = time.monotonic() + timeout_s
        while trouble := self._unsettled():
            if time.monotonic() >= end_s:
                raise LabNotReady(f"the lab is not ready after {timeout_s:.0f} s: {trouble}", self._logs)
            time.sleep(0.5)

    @property
    def _logs(self) -> str:
        """Where the nodes' consoles are logged."""
        return ", ".join(str(m.console_log) for m in self._nodes.values())

    @property
    def _proxies(self) -> bool:
        """True if HAProxy carries services, so that its statistics tell of servers."""
        return bool(self.profile.haproxy_services)

    def _unsettled(self) -> str:
        # keepalived's account comes last: it costs a node that is still booting the most.
        return (
            next(filter(None, self._ask_each(self._servers_trouble).values()), "")
            or self._vips_trouble()
            or next(filter(None, self._ask_each(self.vrrp_trouble).values()), "")
        )

    def _servers_trouble(self, node: str) -> str:
        """Which servers a node does not see, by HAProxy and in the kernel; empty if it sees all."""
        if self._proxies:
            states = self.states(node)
            if not states:
                return f"the statistics of {node} do not answer"
            down = [f"{s.proxy}/{s.server} {s.status}" for s in states if not s.up]
            if down:
                return f"{node} sees {', '.join(down)}"
        return self.ipvs_trouble(node)

    def _vips_trouble(self) -> str:
        """Which VIPs are not where they belong; empty if all are."""
        holders = self.vip_holders()
        wrong = [f"VIP {v} is on {', '.join(n) or 'no node'}" for v, n in holders.items() if len(n) != 1]
        preferred = self.profile.preferred()
        if not wrong and self.profile.vrrp.preempt and not self.profile.standalone and self.is_up(preferred):
            wrong = [
                f"VIP {v} is not on {preferred}, the preferred node" for v, n in holders.items() if n != (preferred,)
            ]
        return "; ".join(wrong)

    # -- servers as the nodes see them ---------------------------------------------------------------------------------

    def wait_server(self, pool: str, server: str, *, up: bool, timeout_s: float) -> float | None:
        """Wait until every running node sees a server up (or down); the seconds, None if it does not happen in time."""
        started_s = time.monotonic()
        while True:
            seen = self._ask_each(lambda node: self._sees(node, pool, server)).values()
            took_s = time.monotonic() - started_s
            if seen and all(s is up for s in seen):
                self.tell(f"{server} is {'in' if up else 'out of'} pool {pool} after {took_s:.1f} s")
                return took_s
            if took_s >= timeout_s:
                return None
            time.sleep(0.1)

    def _sees(self, node: str, pool: str, server: str) -> bool | None:
        """True if the server is in use wherever the pool is used on a node, by HAProxy and in the kernel; False if
        nowhere; None while they differ."""
        views: list[bool | None] = []
        if self.profile.haproxy_services_of(pool):
            views = [s.up for s in self.states(node) if s.server == server and pool_of_backend(s.proxy) == pool]
        if any(self.profile.services[s].pool == pool for s in self.profile.ipvs_services_of(pool)):
            views.append(self._in_ipvs(self.facts(node).virtual_servers(), pool, server))
        return views[0] if len(set(views)) == 1 else None

    def _in_ipvs(self, there: Sequence[VirtualServer], pool: str, server: str) -> bool | None:
        """True if a server has a weight in every virtual server of the services that use the pool, False if in none;
        None while they differ, for each has checks of its own."""
        addresses = set(self.profile.pools[pool].servers[server].address)
        versions = {a.version for a in addresses}
        weighted: set[bool] = set()
        for name in self.profile.ipvs_services_of(pool):
            service, mark = self.profile.services[name], self.profile.marks.get(name)
            for endpoint in self.profile.endpoints(name) if service.pool == pool else ():
                if endpoint.address.version not in versions:
                    continue
                socket = (endpoint.address, service.first_port, service.transport)
                ours = [v for v in there if (v.mark == mark if mark is not None else _socket(v) == socket)]
                for virtual in ours:
                    if not virtual.weights or versions & {a.version for a, _ in virtual.weights}:
                        weighted.add(any(w for (a, _), w in virtual.weights.items() if a in addresses))
                if not ours:
                    weighted.add(False)
        return weighted.pop() if len(weighted) == 1 else None


def _socket(virtual: VirtualServer) -> tuple[Address | None, int, str]:
    return virtual.address, virtual.port, virtual.protocol
