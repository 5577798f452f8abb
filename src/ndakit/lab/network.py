"""A lab that runs: the balancers' built images, and the servers, clients, admins and routers around them.

Owns booting and ending all machines, and their faults. A balancer is booted from its disk image unchanged, with the
network cards its profile names and nothing else, and is reached as an admin reaches it: serial console, SSH, the
statistics page. What the nodes tell is the business of `nodes`, who asks their services, and how, that of
`clients`, which hosts there are that of `plan`, what is claimed that of `claims`.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypeVar

from ndakit.core.deadline import Deadline
from ndakit.core.errors import VerifyError
from ndakit.lab.boot import IDLE_S, LOOK_TIMEOUT_S, enter
from ndakit.lab.clients import OUTSIDE_PORT
from ndakit.lab.host import Host, HostInterface, HostSpec, LabHosts, certificate
from ndakit.lab.host.image import LabImage
from ndakit.lab.nodes import LabNodes
from ndakit.lab.pace import Meter
from ndakit.lab.plan import PlannedHost, VantagePoint, plan
from ndakit.lab.running_server import RunningServer
from ndakit.lab.server_ports import asked_ports, need_pages
from ndakit.lab.switch import Switch, SwitchPort
from ndakit.load.certificates import CertificateBundle
from ndakit.machine import saved, vm
from ndakit.machine.accelerator import Accelerator, probe
from ndakit.machine.boot_image import BootImage, mac_of
from ndakit.machine.spec import Nic, VmSpec
from ndakit.model import Profile
from ndakit.model.server_side import ServerSide
from ndakit.model.server_side import servers as server_sides

LAB_MEMORY_MIB = 128
HOST_MEMORY_MIB = 6
MEMORY_STEP_MIB = 128
LAB_CARDS = 6
"""The lab's own machines are alike, whatever the profile, so that one state serves them all: with so many cards and so
much memory; a profile with more segments or many hosts makes others. Cards without a segment stay unused."""
RESUME_TIMEOUT_S = 30.0
BOOT_TIMEOUT_S = 240.0
SET_UP_TIMEOUT_S = 60.0

_Card = TypeVar("_Card")
Switches = Literal["one", "two", "none"]
SWITCHES = ("02:00:00:00:ad:01", "02:00:00:00:ad:02")
"""The addresses by which the lab's switches call themselves (locally administered)."""

MACHINES: Mapping[str, frozenset[str]] = {
    "lab-servers": frozenset({"server"}),
    "lab-people": frozenset({"client", "admin", "stranger", "router"}),
}
"""The lab's own machines and the roles of the hosts that live in each: who asks and who answers do not share a CPU."""


class LabNetwork(LabNodes):
    """One profile's lab. A context manager: everything it started ends with it."""

    def __init__(
        self,
        profile: Profile,
        images: Mapping[str, BootImage],
        run_dir: Path,
        lab_image: LabImage,
        *,
        script_of: Callable[[ServerSide], bytes],
        identity: str | None = None,
        pages: Mapping[str, bytes] | None = None,
        certificates: Mapping[str, CertificateBundle] | None = None,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        """`script_of`: what an admin runs on a Linux server; `pages`: MD5 digest → the page that a check knows by
        it; `certificates`: those that services with TLS are to show, by the names of their secrets. Raises PageMissing
        if a page is not there."""
        super().__init__(profile, plan(profile), identity, tell, certificates)
        self._pages = pages or {}
        need_pages(profile, self._pages)
        by_tls = any(p.check.encrypted or p.speaks_tls for p in profile.pools.values())
        by_tls = by_tls or any(service.passes_tls for service in profile.services.values())
        self._by_tls = by_tls
        self.boot_s: dict[str, float] = {}
        self.accelerator: Accelerator = probe()
        self._images = images
        self._run_dir = run_dir
        self._lab_image = lab_image
        self._script_of = script_of
        self._stack = contextlib.ExitStack()
        self._machines: dict[str, vm.Vm] = {}
        self.pace = Meter(self._processes)

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
        self._stack.enter_context(self.pace)
        machines = self._machines
        for name in MACHINES:
            spec = self._lab_machine(name, switch)
            state = saved.place(spec, self.accelerator)
            machines[name] = self._stack.enter_context(vm.launch(spec, self._run_dir, self.accelerator, state=state))
        for node in self.profile.nodes:
            self._nodes[node] = self._stack.enter_context(self._launch(self._balancer(node, switch)))
            self._unplug(node)
        count = len(self._nodes)
        self.tell(f"{count} balancer(s) and {len(machines)} machines of the lab boot ({self.accelerator.name})")
        for name, machine in machines.items():
            self._populate(name, machine)
        with ThreadPoolExecutor(max_workers=max(1, count)) as pool:
            list(pool.map(self._enter, self._nodes))
        self.settle()
        for node in self._nodes:
            self.boot_s[node] = time.monotonic() - started_s
        self.tell(f"the lab is ready after {time.monotonic() - started_s:.1f} s")

    def _processes(self) -> dict[str, int]:
        """Every machine that runs, and its process id."""
        running: dict[str, int] = {}
        for name, machine in {**self._machines, **self._nodes}.items():
            with contextlib.suppress(vm.VmNotRunning):  # it has just lost its power
                if machine.alive:
                    running[name] = machine.pid
        return running

    def _launch(self, spec: VmSpec) -> vm.Vm:
        return vm.launch(spec, self._run_dir, self.accelerator)

    def _balancer(self, node: str, switch: Switch) -> VmSpec:
        image = self._images[node]
        nics = tuple(
            Nic(nic.name, nic.mac, switch.port(nic.segment, f"{node}-{nic.name}") if nic.segment else None)
            for nic in self.plan.balancers[node]
        )
        for bond in dict.fromkeys(nic.bundle for nic in self.plan.balancers[node] if nic.bundle):
            self.cable_up(node, bond, "one")
        return image.machine(node, nics)

    def cable_up(self, node: str, bond: str, switches: Switches) -> None:
        """Plug a node's bond (802.3ad) into one switch or MLAG pair, into two switches that know nothing of each other
        (the first half of the cards into the first one), or into one that was not told to speak LACP."""
        ports = self.bond_ports(node, bond)
        if switches == "two":
            for half, system in zip(halves(ports), SWITCHES, strict=True):
                self.switch.bundle(half, system)
        else:
            self.switch.bundle(ports, SWITCHES[0], speaks=switches == "one")

    def bond_ports(self, node: str, bond: str) -> list[SwitchPort]:
        """The switch's ports for the cards of a node's bond, in the profile's order."""
        by_name = {port.name: port for port in self.switch.ports()}
        return [by_name[f"{node}-{card}"] for card in self.bond_cards(node, bond)]

    def carrying(self, node: str, bond: str) -> list[SwitchPort]:
        """Those of them over which the switch lets frames pass now."""
        return [port for port in self.bond_ports(node, bond) if self.switch.carries(port)]

    def bond_cards(self, node: str, bond: str) -> list[str]:
        """The cards of a node's bond, in the profile's order."""
        return [nic.name for nic in self.plan.balancers[node] if nic.bundle == bond]

    def _unplug(self, node: str) -> None:
        """A card without cable has no carrier: else a bridge would stay up by a port that leads nowhere."""
        for nic in self.plan.balancers[node]:
            if nic.segment is None:
                self._nodes[node].set_link(nic.name, up=False)

    def _lab_machine(self, name: str, switch: Switch) -> VmSpec:
        ports = [switch.port(segment, f"{name}-{segment}") for segment in self.plan.segments]
        spare = [None] * (LAB_CARDS - len(ports))
        nics = tuple(Nic(f"seg{i}", _lab_mac(name, i), port) for i, port in enumerate([*ports, *spare]))
        hosts = sum(h.role in MACHINES[name] for h in self.plan.hosts.values())
        steps = math.ceil((LAB_MEMORY_MIB + HOST_MEMORY_MIB * hosts) / MEMORY_STEP_MIB)
        return self._lab_image.machine(name, nics, memory_mib=steps * MEMORY_STEP_MIB)

    def _connect(self, name: str, machine: vm.Vm) -> LabHosts:
        """A connection to a lab machine that is up: from a state that was kept, or booted, and then its state is."""
        segments = {segment: _lab_mac(name, i) for i, segment in enumerate(self.plan.segments)}
        if machine.resumed:
            with contextlib.suppress(VerifyError), contextlib.ExitStack() as stack:
                hosts = stack.enter_context(
                    LabHosts.connect(machine.agent_path, segments=segments, timeout_s=RESUME_TIMEOUT_S)
                )
                hosts.resumed()
                stack.pop_all()
                return hosts
            # Whatever is wrong with that state: the machine boots, and leaves another one.
            machine.power_off()
            machine.power_on()
        hosts = LabHosts.connect(machine.agent_path, segments=segments, timeout_s=BOOT_TIMEOUT_S)
        if (place := saved.place(machine.spec, self.accelerator)) is not None:
            hosts.close()  # nobody talks to those that go on from the state
            saved.keep(machine, place)
            hosts = LabHosts.connect(machine.agent_path, segments=segments, timeout_s=BOOT_TIMEOUT_S)
        return hosts

    def _populate(self, name: str, machine: vm.Vm) -> None:
        """Make the hosts of one lab machine, and start what they offer."""
        hosts = self._stack.enter_context(self._connect(name, machine))
        for planned in self.plan.hosts.values():
            if planned.role in MACHINES[name]:
                self.hosts[planned.name] = hosts.add(_spec(planned))
        for (pool, server), point in self.plan.servers.items():
            if self.plan.hosts[point.host].role in MACHINES[name]:
                self._start_server(pool, server, point)
        for side in server_sides(self.profile):
            self._set_up(side, name)
        for point in self.plan.outside.values():
            if self.plan.hosts[point.host].role in MACHINES[name]:
                for address in point.addresses:
                    self.hosts[point.host].web(OUTSIDE_PORT, address=address, name="outside")

    def _set_up(self, side: ServerSide, machine: str) -> None:
        """Run a server's own script in it, as its admin would: that is what `./inv servers` writes. The same for a
        router between the balancers and their servers."""
        points = (self.plan.servers.get((pool, server)) for pool, _, server in (n.partition("/") for n in side.names))
        host = next((self.plan.hosts[point.host] for point in points if point is not None), None)
        if side.router:
            owners = (h for h in self.plan.hosts.values() if any(i.address in side.own for i in h.addresses))
            host = next((h for h in owners if h.role == "router"), None)
        if side.nothing or host is None or host.role not in ("server", "router") or host.role not in MACHINES[machine]:
            return
        if host.role == "router" and not side.router:
            return  # a server behind a router is an address of that router here
        self.hosts[host.name].run(["dash", "-s", "up"], stdin=self._script_of(side), timeout_s=SET_UP_TIMEOUT_S)

    def _enter(self, node: str) -> None:
        """Open a shell on a booting node's console: once its HAProxy answers or it has nothing to do."""
        machine = self._nodes[node]
        deadline = Deadline(BOOT_TIMEOUT_S, f"{node}'s console", where=str(machine.console_log))
        enter(
            machine, deadline,
            answers=lambda: self._proxies and bool(self.states(node, LOOK_TIMEOUT_S)),
            idle=lambda: self.pace.idle(node, IDLE_S),
        )  # fmt: skip

    def server_script(self, pool: str, server: str, action: str) -> str:
        """Run a server's script again: `up`, `down`, `status`; what it says."""
        side = next(s for s in server_sides(self.profile) if f"{pool}/{server}" in s.names)
        ran = self.server_host(pool, server).run(["dash", "-s", action], stdin=self._script_of(side), check=False)
        return ran.stdout + ran.stderr

    def _start_server(self, pool: str, server: str, point: VantagePoint) -> None:
        host = self.plan.hosts[point.host]
        twin = next((r for (p, s), r in self.servers.items() if self.plan.servers[p, s] == point), None)
        if twin is None:
            address = "" if host.role == "server" else str(point.addresses[0])
            label = str(point.addresses[0])
            own = certificate() if self._by_tls else ""
            twin = RunningServer(self.hosts[point.host], label, point.addresses, address, host.ports, self._pages, own)
            twin.start()
        self.servers[pool, server] = twin

    # -- power ---------------------------------------------------------------------------------------------------------

    def power_off(self, node: str) -> None:
        """Cut a node's power. At the other end of a cable from it there is no carrier any more."""
        self.tell(f"{node} loses its power")
        self._nodes[node].power_off()
        self._other_ends(node, up=False)

    def power_on(self, node: str) -> float:
        """Boot a node again; the seconds until its HAProxy answers; without services until keepalived could be master,
        or its console answers."""
        started_s = time.monotonic()
        machine = self._nodes[node]
        machine.power_on()
        self._unplug(node)
        self._other_ends(node, up=True)
        self._enter(node)
        if self.profile.services:
            what = f"the statistics of {node}" if self._proxies else f"the virtual servers of {node}"
            Deadline(BOOT_TIMEOUT_S, what, where=str(machine.console_log)).wait_until(
                lambda: bool(
                    self.states(node, LOOK_TIMEOUT_S) if self._proxies else self.facts(node).virtual_servers()
                ),
                every_s=0.3,
            )
        elif self.profile.instances:
            Deadline(BOOT_TIMEOUT_S, f"keepalived on {node}", where=str(machine.console_log)).wait_until(
                lambda: not self.vrrp_trouble(node), every_s=1.0
            )
        took_s = time.monotonic() - started_s
        self.tell(f"{node} is up again after {took_s:.1f} s")
        return took_s

    def put_back(self) -> None:
        """After a claim that failed half way: every node runs, and the pair has settled. Raises what booting raises."""
        for node in self._nodes:
            if not self.is_up(node):
                self.power_on(node)
        self.settle()

    # -- cables --------------------------------------------------------------------------------------------------------

    def plug(self, node: str, card: str, *, up: bool) -> None:
        """Pull a card's cable (`up`: plug it in again). One that leads to the other node has two ends."""
        self._nodes[node].set_link(card, up)
        if card in self.plan.direct:
            self._other_ends(node, up=up, cards=(card,))

    def _other_ends(self, node: str, *, up: bool, cards: Sequence[str] | None = None) -> None:
        for other in self.profile.peers(node):
            for card in cards if cards is not None else self.plan.direct:
                if self.is_up(other):
                    self._nodes[other].set_link(card, up)
                elif self.is_up(node):  # there is nobody at the other end
                    self._nodes[node].set_link(card, False)

    # -- servers -------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def server_down(self, pool: str, server: str) -> Iterator[None]:
        """A server is dead for a while: its programs are stopped (its ports refuse connections), and where the check
        may ask for more than ports it does not answer pings either."""
        running = self.servers[pool, server]
        ignore_pings = not self.profile.pools[pool].check.needs_port
        self.tell(f"{server} stops serving")
        running.stop()
        if ignore_pings:
            running.hear_pings(heard=False)
        try:
            yield
        finally:
            running.start()
            if ignore_pings:
                running.hear_pings(heard=True)
            self.tell(f"{server} serves again")

    @contextlib.contextmanager
    def server_lies(self, pool: str, server: str) -> Iterator[None]:
        """A server answers for a while, but wrongly, as its pool's check has it."""
        running, lie = self.servers[pool, server], self.profile.pools[pool].check.lie()
        if lie is None:
            raise ValueError(f"nothing that answers is wrong for the check of pool {pool}")
        self.tell(f"{server} answers wrongly")
        if lie.speaks is not None:
            running.lie(asked_ports(self.profile, pool, server), lie.speaks)
        if lie.deaf:
            running.hear_pings(heard=False)
        try:
            yield
        finally:
            running.start()
            if lie.deaf:
                running.hear_pings(heard=True)
            self.tell(f"{server} answers as it should")

    @contextlib.contextmanager
    def pool_down(self, pool: str) -> Iterator[None]:
        """All servers of a pool are stopped for a while."""
        with contextlib.ExitStack() as stack:
            for server in self.profile.pools[pool].servers:
                stack.enter_context(self.server_down(pool, server))
            yield

    def port_of(self, host: str) -> SwitchPort:
        """The switch's port behind which a host of the lab is."""
        planned = self.plan.hosts[host]
        machine = next(name for name, roles in MACHINES.items() if planned.role in roles)
        return next(p for p in self.switch.ports(planned.segment) if p.name == f"{machine}-{planned.segment}")

    def server_host(self, pool: str, server: str) -> Host:
        """The lab host on which a server runs, for faults."""
        return self.servers[pool, server].host


def _lab_mac(machine: str, number: int) -> str:
    """The address of a card of one of the lab's own machines: the same in every lab, for it is a part of its state."""
    return mac_of("lab", machine, str(number))


def halves(cards: Sequence[_Card]) -> tuple[Sequence[_Card], Sequence[_Card]]:
    """What of a bond is plugged into the first of two switches, and what into the second."""
    middle = (len(cards) + 1) // 2
    return cards[:middle], cards[middle:]


def _spec(planned: PlannedHost) -> HostSpec:
    card = HostInterface(planned.segment, planned.mac, tuple(map(str, planned.addresses)), planned.vlan)
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
