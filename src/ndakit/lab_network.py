"""A lab that runs: the balancers' built images, and the servers, clients, admins and routers around them.

Owns booting and ending all machines, their faults, and what the nodes tell of themselves. A balancer is booted from its
disk image unchanged, with the network cards its profile names and nothing else, and is reached as an admin reaches it:
serial console, SSH, the statistics page. Who asks, and how, is the business of `lab_people`, which hosts there are that
of `lab_plan`, what is claimed that of `claims`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from testinfra.host import Host as TestinfraHost

from ndakit import vm
from ndakit.accelerator import Accelerator, probe
from ndakit.console import ConsoleBackend
from ndakit.deadline import Deadline, DeadlineExceeded
from ndakit.lab_host import Host, HostSpec, Interface, LabHosts, Watch, certificate
from ndakit.lab_host.image import LabImage
from ndakit.lab_people import LabNotReady, LabPeople, RunningServer
from ndakit.lab_plan import BootImage, PlannedHost, Seat, mac_of, plan
from ndakit.lab_ports import need_pages
from ndakit.model import Address, Profile
from ndakit.probe import NodeFacts, ServerState, VirtualServer
from ndakit.servers import ServerSide, script
from ndakit.servers import servers as server_sides
from ndakit.switch import Switch
from ndakit.vmspec import Nic, VmSpec

LAB_MEMORY_MIB = 128
HOST_MEMORY_MIB = 6
BOOT_TIMEOUT_S = 240.0
SETTLE_TIMEOUT_S = 120.0
SET_UP_TIMEOUT_S = 60.0
ANSWERS_AFTER_A_GAP = 10
MASTER_POLL_S = 0.5
LEFT_ALONE_S = 20.0
"""How long a booting node is asked for nothing but its statistics. It boots in half that time, alone."""

_Answer = TypeVar("_Answer")

MACHINES: Mapping[str, frozenset[str]] = {
    "lab-servers": frozenset({"server"}),
    "lab-people": frozenset({"client", "admin", "stranger", "router"}),
}
"""The lab's own machines and the roles of the hosts that live in each: who asks and who answers do not share a CPU."""


class LabNetwork(LabPeople):
    """One profile's lab. A context manager: everything it started ends with it."""

    def __init__(
        self,
        profile: Profile,
        images: Mapping[str, BootImage],
        run_dir: Path,
        lab_image: LabImage,
        *,
        templates: Sequence[Path],
        identity: str | None = None,
        pages: Mapping[str, bytes] | None = None,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        """`pages`: MD5 digest → the page that a check knows by it. Raises PageMissing if one is not there."""
        super().__init__(profile, plan(profile), identity, tell)
        self._pages = pages or {}
        need_pages(profile, self._pages)
        self._certificate = certificate() if any(p.check.type == "https" for p in profile.pools.values()) else ""
        self.boot_s: dict[str, float] = {}
        self.accelerator: Accelerator = probe()
        self._images = images
        self._run_dir = run_dir
        self._lab_image = lab_image
        self._templates = templates
        self._stack = contextlib.ExitStack()
        self._nodes: dict[str, vm.Vm] = {}

    # -- life ----------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _start(self) -> None:
        """Switch, then all machines at once, then wait for each."""
        started_s = time.monotonic()
        self._run_dir.mkdir(parents=True, exist_ok=True)
        switch = self._stack.enter_context(Switch())
        self.switch = switch
        machines = {name: self._stack.enter_context(self._launch(self._lab_machine(name, switch))) for name in MACHINES}
        for node in self.profile.nodes:
            self._nodes[node] = self._stack.enter_context(self._launch(self._balancer(node, switch)))
            self._unplug(node)
        count = len(self._nodes)
        self.tell(f"{count} balancer(s) and {len(machines)} machines of the lab boot ({self.accelerator.name})")
        for name, machine in machines.items():
            self._populate(name, machine)
        quiet = Deadline(LEFT_ALONE_S, "the statistics")
        for node in self._nodes:
            self._enter(node, quiet)
        self.settle()
        for node in self._nodes:
            self.boot_s[node] = time.monotonic() - started_s
        self.tell(f"the lab is ready after {time.monotonic() - started_s:.1f} s")

    def _launch(self, spec: VmSpec) -> vm.Vm:
        return vm.launch(spec, self._run_dir, self.accelerator)

    def _balancer(self, node: str, switch: Switch) -> VmSpec:
        image = self._images[node]
        nics = tuple(
            Nic(nic.name, nic.mac, switch.port(nic.segment, f"{node}-{nic.name}") if nic.segment else None)
            for nic in self.plan.balancers[node]
        )
        return image.machine(node, nics)

    def _unplug(self, node: str) -> None:
        """A card without cable has no carrier: else a bridge would stay up by a port that leads nowhere."""
        for nic in self.plan.balancers[node]:
            if nic.segment is None:
                self._nodes[node].set_link(nic.name, up=False)

    def _lab_machine(self, name: str, switch: Switch) -> VmSpec:
        nics = tuple(
            Nic(f"seg{i}", mac_of(self.profile.name, name, segment), switch.port(segment, f"{name}-{segment}"))
            for i, segment in enumerate(self.plan.segments)
        )
        hosts = sum(h.role in MACHINES[name] for h in self.plan.hosts.values())
        return self._lab_image.machine(name, nics, memory_mib=LAB_MEMORY_MIB + HOST_MEMORY_MIB * hosts)

    def _populate(self, name: str, machine: vm.Vm) -> None:
        """Make the hosts of one lab machine, and start what they offer."""
        segments = {s: mac_of(self.profile.name, name, s) for s in self.plan.segments}
        hosts = self._stack.enter_context(
            LabHosts.connect(machine.agent_path, segments=segments, timeout_s=BOOT_TIMEOUT_S)
        )
        for planned in self.plan.hosts.values():
            if planned.role in MACHINES[name]:
                self.hosts[planned.name] = hosts.add(_spec(planned))
        for (pool, server), seat in self.plan.servers.items():
            if self.plan.hosts[seat.host].role in MACHINES[name]:
                self._start_server(pool, server, seat)
        for side in server_sides(self.profile):
            self._set_up(side, name)
        for seat in self.plan.outside.values():
            if self.plan.hosts[seat.host].role in MACHINES[name]:
                for address in seat.addresses:
                    self.hosts[seat.host].web(80, address=address, name="outside")

    def _set_up(self, side: ServerSide, machine: str) -> None:
        """Run a server's own script in it, as its admin would: that is what `./inv servers` writes."""
        seats = (self.plan.servers.get((pool, server)) for pool, _, server in (n.partition("/") for n in side.names))
        host = next((self.plan.hosts[seat.host] for seat in seats if seat is not None), None)
        if side.nothing or host is None or host.role != "server" or host.role not in MACHINES[machine]:
            return
        self.hosts[host.name].run(["dash", "-s", "up"], stdin=self._script(side), timeout_s=SET_UP_TIMEOUT_S)

    def _script(self, side: ServerSide) -> bytes:
        text = script(side, "linux", self.profile, self._templates)
        assert text is not None, "there is one for Linux always"
        return text.content

    def _enter(self, node: str, quiet: Deadline) -> None:
        """Open a shell on a booting node's console: once its HAProxy answers, for both need its one processor; or at
        the end of `quiet`, for then the console knows what is wrong."""
        machine = self._nodes[node]
        deadline = Deadline(BOOT_TIMEOUT_S, f"{node}'s console", where=str(machine.console_log))
        while self._proxies and machine.alive and not quiet.expired and not self.states(node):
            time.sleep(0.2)
        machine.console.activate(deadline)

    def server_script(self, pool: str, server: str, action: str) -> str:
        """Run a server's script again: `up`, `down`, `status`; what it says."""
        side = next(s for s in server_sides(self.profile) if f"{pool}/{server}" in s.names)
        ran = self.server_host(pool, server).run(["dash", "-s", action], stdin=self._script(side), check=False)
        return ran.stdout + ran.stderr

    def _start_server(self, pool: str, server: str, seat: Seat) -> None:
        host = self.plan.hosts[seat.host]
        twin = next((r for (p, s), r in self.servers.items() if self.plan.servers[p, s] == seat), None)
        if twin is None:
            address = "" if host.role == "server" else str(seat.addresses[0])
            label = str(seat.addresses[0])
            twin = RunningServer(
                self.hosts[seat.host], label, seat.addresses, address, host.ports, self._pages, self._certificate
            )
            twin.start()
        self.servers[pool, server] = twin

    # -- the nodes -----------------------------------------------------------------------------------------------------

    def facts(self, node: str) -> NodeFacts:
        """What can be asked of a node on its console."""
        return NodeFacts(TestinfraHost(ConsoleBackend(self._nodes[node].console)))

    def run(self, node: str, command: str, timeout_s: float = 30.0) -> str:
        """Type a command on a node's console; what it printed."""
        return self._nodes[node].console.run(command, timeout_s).stdout

    def order(self, node: str, command: str) -> None:
        """Type a command that has to succeed. Raises LabNotReady if it does not."""
        console = self._nodes[node].console
        ran = console.run(command)
        if ran.rc != 0:
            raise LabNotReady(f"{node} refused '{command}': {ran.stderr.strip()[:200]}", str(console.log))

    def machine(self, node: str) -> vm.Vm:
        """A node's virtual machine, for faults."""
        return self._nodes[node]

    def is_up(self, node: str) -> bool:
        """True if the node's machine runs."""
        return self._nodes[node].alive

    def power_off(self, node: str) -> None:
        """Cut a node's power."""
        self.tell(f"{node} loses its power")
        self._nodes[node].power_off()

    def power_on(self, node: str) -> float:
        """Boot a node again; the seconds until its HAProxy answers (or, without services, its console)."""
        started_s = time.monotonic()
        machine = self._nodes[node]
        machine.power_on()
        self._unplug(node)
        self._enter(node, Deadline(LEFT_ALONE_S, "the statistics"))
        if self.profile.services:
            what = f"the statistics of {node}" if self._proxies else f"the virtual servers of {node}"
            Deadline(BOOT_TIMEOUT_S, what, where=str(machine.console_log)).wait_until(
                lambda: bool(self.states(node) if self._proxies else self.facts(node).virtual_servers()),
                every_s=0.3,
            )
        took_s = time.monotonic() - started_s
        self.tell(f"{node} is up again after {took_s:.1f} s")
        return took_s

    def _ask_each(self, question: Callable[[str], _Answer]) -> dict[str, _Answer]:
        """Ask every node that has power, all at once: each has a console and a processor of its own."""
        nodes = [node for node in self._nodes if self.is_up(node)]
        with ThreadPoolExecutor(max_workers=max(1, len(nodes))) as pool:
            return dict(zip(nodes, pool.map(question, nodes), strict=True))

    def vip_holders(self) -> dict[str, tuple[str, ...]]:
        """VIP → the nodes that hold any address of it; nodes without power hold nothing."""
        held = self._ask_each(lambda node: {i.ip for found in self.facts(node).addresses().values() for i in found})
        return {
            name: tuple(node for node, there in held.items() if set(vip.address) & there)
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
        if not (found := self.master()):
            raise LabNotReady("no node is the only one to hold the VIPs, and a master is needed for this", self._logs)
        return found

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
            found = self.master()
            if wanted(found):
                self.tell(f"{found} holds the VIPs")
                return found
            if time.monotonic() >= end_s:
                return ""
            time.sleep(MASTER_POLL_S)

    def wait_other_master(self, old: str, timeout_s: float) -> str:
        """Wait until another node than `old` holds the VIPs; its name, "" if that does not come about in time."""
        return self.wait_master(lambda found: found not in ("", old), timeout_s)

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
        return bool(self.profile.proxy_services)

    def _unsettled(self) -> str:
        for node in self._nodes:
            if self._proxies and self.is_up(node):
                states = self.states(node)
                if not states:
                    return f"the statistics of {node} do not answer"
                down = [f"{s.proxy}/{s.server} {s.status}" for s in states if not s.up]
                if down:
                    return f"{node} sees {', '.join(down)}"
            if self.is_up(node) and (trouble := self.kernel_trouble(node)):
                return trouble
        # keepalived's account comes last: it costs a node that is still booting the most.
        return self._vips_trouble() or next(filter(None, self._ask_each(self.vrrp_trouble).values()), "")

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

    def kernel_trouble(self, node: str) -> str:
        """Which servers IPVS leaves out on a node; empty if none."""
        kernel = {self.profile.services[s].pool for s in self.profile.kernel_services}
        if not kernel:
            return ""
        there = self.facts(node).virtual_servers()
        out = [
            f"{pool}/{name}"
            for pool in kernel
            for name, server in self.profile.pools[pool].servers.items()
            if server.weight and not self._in_kernel(there, pool, name)
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

    # -- statistics ----------------------------------------------------------------------------------------------------

    def states(self, node: str) -> list[ServerState]:
        """What a node's statistics say about the servers, asked by some admin; empty if it does not answer."""
        for seat in self.plan.admins.values():
            network = self.plan.hosts[seat.host].network
            for address in self.profile.nodes[node].addresses.get(network, ()):
                if seat.address(address.version) is not None:
                    return self.statistics(seat, address)
        return []

    def wait_server(self, pool: str, server: str, *, up: bool, timeout_s: float) -> float | None:
        """Wait until every running node sees a server up (or down); the seconds, None if it does not happen in time."""
        started_s = time.monotonic()
        while True:
            seen = [self._sees(node, pool, server) for node in self._nodes if self.is_up(node)]
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
        found: list[bool | None] = []
        if self.profile.proxied(pool):
            found = [s.up for s in self.states(node) if s.server == server and s.proxy.partition(".")[0] == pool]
        if any(self.profile.services[s].pool == pool for s in self.profile.balanced(pool)):
            found.append(self._in_kernel(self.facts(node).virtual_servers(), pool, server))
        return found[0] if len(set(found)) == 1 else None

    def _in_kernel(self, there: Sequence[VirtualServer], pool: str, server: str) -> bool | None:
        """True if a server has a weight in every virtual server of the services that use the pool, False if in none;
        None while they differ, for each has checks of its own."""
        addresses = set(self.profile.pools[pool].servers[server].address)
        versions = {a.version for a in addresses}
        found: set[bool] = set()
        for name in self.profile.balanced(pool):
            service, mark = self.profile.services[name], self.profile.marks.get(name)
            for endpoint in self.profile.endpoints(name) if service.pool == pool else ():
                if endpoint.address.version not in versions:
                    continue
                socket = (endpoint.address, service.ports[0], service.transport)
                ours = [v for v in there if (v.mark == mark if mark is not None else _socket(v) == socket)]
                for virtual in ours:
                    if not virtual.weights or versions & {a.version for a, _ in virtual.weights}:
                        found.add(any(w for (a, _), w in virtual.weights.items() if a in addresses))
                if not ours:
                    found.add(False)
        return found.pop() if len(found) == 1 else None

    # -- servers -------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def server_down(self, pool: str, server: str) -> Iterator[None]:
        """A server is dead for a while: its programs are stopped (its ports refuse connections), and where the check
        may ask for more than ports it does not answer pings either."""
        running = self.servers[pool, server]
        deaf = self.profile.pools[pool].check.type in ("ping", "script")
        self.tell(f"{server} stops serving")
        running.stop()
        if deaf:
            running.hear_pings(heard=False)
        try:
            yield
        finally:
            running.start()
            if deaf:
                running.hear_pings(heard=True)
            self.tell(f"{server} serves again")

    @contextlib.contextmanager
    def pool_down(self, pool: str) -> Iterator[None]:
        """All servers of a pool are stopped for a while."""
        with contextlib.ExitStack() as stack:
            for server in self.profile.pools[pool].servers:
                stack.enter_context(self.server_down(pool, server))
            yield

    def server_host(self, pool: str, server: str) -> Host:
        """The lab host on which a server runs, for faults."""
        return self.servers[pool, server].host


def _socket(virtual: VirtualServer) -> tuple[Address | None, int, str]:
    return virtual.address, virtual.port, virtual.protocol


def _spec(planned: PlannedHost) -> HostSpec:
    card = Interface(planned.segment, planned.mac, tuple(map(str, planned.addresses)), planned.vlan)
    return HostSpec(
        name=planned.name,
        interfaces=(card,),
        gateways=tuple(map(str, planned.gateways)),
        routes=(
            *((str(to), str(via)) for to, via in planned.routes),
            *((f"{a}/{a.max_prefixlen}", "") for a in planned.beyond),
        ),
        loopback=tuple(f"{a}/{a.max_prefixlen}" for a in planned.behind),
        forwarding=planned.role == "router",
        # A router that sends packets back into the segment they came from does not tell anybody to go past it.
        sysctls={"net.ipv4.conf.all.send_redirects": "0", "net.ipv4.conf.default.send_redirects": "0"}
        if planned.beyond
        else {},
    )
