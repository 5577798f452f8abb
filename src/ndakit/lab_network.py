"""A lab that runs: the balancers' built images, and the servers, clients, admins and routers around them.

Owns booting and ending all machines, and the verbs that claims are made of: ask, load, poll, scan, power off. A
balancer is booted from its disk image unchanged, with the network cards its profile names and nothing else, and is
reached as an admin reaches it: serial console, SSH, the statistics page. Which hosts there are is the business of
`lab_plan`, what is claimed that of `claims`.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from testinfra.host import Host as TestinfraHost

from ndakit import vm
from ndakit.accelerator import Accelerator, probe
from ndakit.console import ConsoleBackend
from ndakit.deadline import Deadline, DeadlineExceeded
from ndakit.errors import VerifyError
from ndakit.lab_host import Answer, Host, HostSpec, Interface, LabHosts, Load, Polled, Poller, Service, SshProbe, Web
from ndakit.lab_host.image import LabImage
from ndakit.lab_host.request import literal
from ndakit.lab_plan import BootImage, LabPlan, PlannedHost, Seat, mac_of, plan
from ndakit.model import Address, Endpoint, Profile
from ndakit.probe import NodeFacts, OutputNotUnderstood, ServerState, parse_statistics
from ndakit.switch import Switch
from ndakit.vmspec import Disk, Nic, VmSpec

BALANCER_MEMORY_MIB = 256
LAB_MEMORY_MIB = 128
HOST_MEMORY_MIB = 6
BOOT_TIMEOUT_S = 240.0
SETTLE_TIMEOUT_S = 120.0
POLL_INTERVAL_S = 0.02
POLL_TIMEOUT_S = 0.25
SCAN_TIMEOUT_S = 1.0
ANSWERS_AFTER_A_GAP = 10
REQUEST_TIMEOUT_S = 5.0
MASTER_POLL_S = 0.5

MACHINES: Mapping[str, frozenset[str]] = {
    "lab-servers": frozenset({"server"}),
    "lab-people": frozenset({"client", "admin", "stranger", "router"}),
}
"""The lab's own machines and the roles of the hosts that live in each: who asks and who answers do not share a CPU."""


class LabNotReady(VerifyError):
    """The lab did not reach the state in which claims can be tried."""

    def __init__(self, what: str, where: str) -> None:
        super().__init__(
            what, where=where, fix="read the consoles' logs named above; `./inv boot PROFILE` tries one node by hand"
        )


@dataclass(frozen=True)
class LoadResult:
    """Requests through a VIP: how many, who answered (names of servers in the pool), how many failed and why."""

    total: int
    shares: dict[str, int]
    failures: int
    first_error: str = ""


@dataclass
class _Running:
    """A server's programs in the lab, by port."""

    host: Host
    label: str
    address: str
    ports: dict[int, Literal["http", "tcp"]]
    services: dict[int, Service] = field(default_factory=dict)

    def start(self) -> None:
        for port, kind in self.ports.items():
            service = self.services.get(port)
            if isinstance(service, Web):
                service.set(mode="answer")
            elif service is None:
                start = self.host.web if kind == "http" else None
                self.services[port] = (
                    start(port, address=self.address, name=self.label)
                    if start
                    else self.host.tcp(port, address=self.address, banner=self.label)
                )

    def stop(self) -> None:
        for port, service in list(self.services.items()):
            if isinstance(service, Web):
                service.set(mode="refuse")
            else:
                service.stop()
                del self.services[port]


class LabNetwork:
    """One profile's lab. A context manager: everything it started ends with it."""

    def __init__(
        self,
        profile: Profile,
        images: Mapping[str, BootImage],
        run_dir: Path,
        lab_image: LabImage,
        *,
        identity: str | None = None,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.profile = profile
        self.plan: LabPlan = plan(profile)
        self.identity = identity
        self.tell = tell
        self.boot_s: dict[str, float] = {}
        self.accelerator: Accelerator = probe()
        self._images = images
        self._run_dir = run_dir
        self._lab_image = lab_image
        self._stack = contextlib.ExitStack()
        self._nodes: dict[str, vm.Vm] = {}
        self._hosts: dict[str, Host] = {}
        self._servers: dict[tuple[str, str], _Running] = {}

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
        count = len(self._nodes)
        self.tell(f"{count} balancer(s) and {len(machines)} machines of the lab boot ({self.accelerator.name})")
        for name, machine in machines.items():
            self._populate(name, machine)
        for node, machine in self._nodes.items():
            machine.console.activate(Deadline(BOOT_TIMEOUT_S, f"{node}'s console", where=str(machine.console_log)))
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
        return VmSpec(
            name=node, memory_mib=BALANCER_MEMORY_MIB, disks=(Disk(image.path),), nics=nics, firmware=image.firmware
        )

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
                self._hosts[planned.name] = hosts.add(_spec(planned))
        for (pool, server), seat in self.plan.servers.items():
            if self.plan.hosts[seat.host].role in MACHINES[name]:
                self._start_server(pool, server, seat)
        for seat in self.plan.outside.values():
            if self.plan.hosts[seat.host].role in MACHINES[name]:
                for address in seat.addresses:
                    self._hosts[seat.host].web(80, address=address, name="outside")

    def _start_server(self, pool: str, server: str, seat: Seat) -> None:
        host = self.plan.hosts[seat.host]
        twin = next((r for (p, s), r in self._servers.items() if self.plan.servers[p, s] == seat), None)
        if twin is None:
            address = "" if host.role == "server" else str(seat.addresses[0])
            twin = _Running(
                self._hosts[seat.host], str(seat.addresses[0]), address, {p.number: p.kind for p in host.ports}
            )
            twin.start()
        self._servers[pool, server] = twin

    # -- the nodes -----------------------------------------------------------------------------------------------------

    def facts(self, node: str) -> NodeFacts:
        """What can be asked of a node on its console."""
        return NodeFacts(TestinfraHost(ConsoleBackend(self._nodes[node].console)))

    def run(self, node: str, command: str, timeout_s: float = 30.0) -> str:
        """Type a command on a node's console; what it printed."""
        return self._nodes[node].console.run(command, timeout_s).stdout

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
        machine.console.activate(Deadline(BOOT_TIMEOUT_S, f"{node}'s console", where=str(machine.console_log)))
        if self.profile.services:
            Deadline(BOOT_TIMEOUT_S, f"HAProxy on {node}", where=str(machine.console_log)).wait_until(
                lambda: bool(self.states(node)), every_s=0.3
            )
        took_s = time.monotonic() - started_s
        self.tell(f"{node} is up again after {took_s:.1f} s")
        return took_s

    def vip_holders(self) -> dict[str, tuple[str, ...]]:
        """VIP → the nodes that hold any address of it; nodes without power hold nothing."""
        held = {
            node: {i.ip for found in self.facts(node).addresses().values() for i in found}
            for node in self._nodes
            if self.is_up(node)
        }
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

    def taken_over(self, poll: Poller, old: str, timeout_s: float) -> str:
        """Wait until a client is answered again after a gap, and only then ask who holds the VIPs; "" if nobody does.

        Asking consoles meanwhile would keep the new master's one processor busy, and lengthen what is measured.
        """
        with contextlib.suppress(DeadlineExceeded):
            poll.wait_until(_answers_again, Deadline(timeout_s, "answers after the master's end"), every_s=0.2)
        return self.wait_other_master(old, timeout_s=2.0)

    def settle(self, timeout_s: float = SETTLE_TIMEOUT_S) -> None:
        """Wait until every running node sees every server up, can be master, and every VIP is where it belongs.

        Raises LabNotReady.

        It belongs on one node; with preemption on the preferred one, if that runs.
        """
        end_s = time.monotonic() + timeout_s
        while trouble := self._unsettled():
            if time.monotonic() >= end_s:
                logs = ", ".join(str(m.console_log) for m in self._nodes.values())
                raise LabNotReady(f"the lab is not ready after {timeout_s:.0f} s: {trouble}", logs)
            time.sleep(0.5)

    def _unsettled(self) -> str:
        for node in self._nodes:
            if self.profile.services and self.is_up(node):
                states = self.states(node)
                if not states:
                    return f"the statistics of {node} do not answer"
                down = [f"{s.proxy}/{s.server} {s.status}" for s in states if not s.up]
                if down:
                    return f"{node} sees {', '.join(down)}"
            if self.is_up(node) and (trouble := self.vrrp_trouble(node)):
                return trouble
        holders = self.vip_holders()
        wrong = [f"VIP {v} is on {', '.join(n) or 'no node'}" for v, n in holders.items() if len(n) != 1]
        preferred = self.profile.preferred()
        if not wrong and self.profile.vrrp.preempt and not self.profile.standalone and self.is_up(preferred):
            wrong = [
                f"VIP {v} is not on {preferred}, the preferred node" for v, n in holders.items() if n != (preferred,)
            ]
        return "; ".join(wrong)

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

    def statistics(self, seat: Seat, address: Address) -> list[ServerState]:
        """The statistics page of a node's address, as somebody gets it; empty if it does not answer."""
        port = self.profile.monitoring.statistics.port
        url = f"http://{literal(address)}:{port}/;csv"
        answer = self._host(seat).get(url, source=self._source(seat, address), timeout_s=REQUEST_TIMEOUT_S)
        if answer.status != 200:
            return []
        try:
            return parse_statistics(answer.body)
        except OutputNotUnderstood:
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
        found = [s.up for s in self.states(node) if s.server == server and s.proxy.partition(".")[0] == pool]
        return all(found) if found else None

    # -- servers -------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def server_down(self, pool: str, server: str) -> Iterator[None]:
        """A server's programs are stopped for a while (its ports refuse connections)."""
        running = self._servers[pool, server]
        self.tell(f"{server} stops serving")
        running.stop()
        try:
            yield
        finally:
            running.start()
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
        return self._servers[pool, server].host

    # -- asking --------------------------------------------------------------------------------------------------------

    def client_for(self, endpoint: Endpoint) -> Seat:
        """Somebody who uses a service on an endpoint: in the VIP's network. Raises LabNotReady if nobody can."""
        seat = self.plan.clients.get(endpoint.network)
        if seat is None or seat.address(endpoint.address.version) is None:
            raise LabNotReady(
                f"there is no free address for a client of {endpoint.address}", f"network {endpoint.network}"
            )
        return seat

    def get(
        self, seat: Seat, address: Address, port: int, *, path: str = "/", headers: Mapping[str, str] | None = None
    ) -> Answer:
        """One HTTP request."""
        url = f"http://{literal(address)}:{port}{path}"
        source = self._source(seat, address)
        return self._host(seat).get(url, headers=headers or {}, source=source, timeout_s=REQUEST_TIMEOUT_S)

    def load(self, seat: Seat, address: Address, port: int, pool: str, requests: int) -> LoadResult:
        """Requests one after the other in small batches; who answered, in names of the pool's servers."""
        names = self._names(pool)
        host, source = self._host(seat), self._source(seat, address)
        shares: Counter[str] = Counter()
        errors: list[str] = []
        if self._speaks_http(pool, port):
            url = f"http://{literal(address)}:{port}/"
            for batch in _batches(requests, 20):
                found: Load = host.load(url, batch, at_once=1, sources=[source], timeout_s=REQUEST_TIMEOUT_S)
                for attempt in found.tries:
                    if attempt.ok and attempt.status == 200:
                        shares[names.get(attempt.server, attempt.server or "?")] += 1
                    else:
                        errors.append(attempt.error or f"status {attempt.status}")
                self.tell(f"{address}:{port} " + _bar(shares))
        else:
            for _ in range(requests):
                answer = host.ask(f"tcp://{literal(address)}:{port}", source=source, timeout_s=REQUEST_TIMEOUT_S)
                if answer.ok:
                    label = answer.server or answer.body.strip()
                    shares[names.get(label, label)] += 1
                else:
                    errors.append(answer.error)
            self.tell(f"{address}:{port} " + _bar(shares))
        return LoadResult(requests, dict(shares), len(errors), errors[0] if errors else "")

    def ask(self, front: tuple[str, Endpoint, int], requests: int = 30) -> LoadResult:
        """Some requests to a service."""
        name, endpoint, port = front
        service = self.profile.services[name]
        return self.load(self.client_for(endpoint), endpoint.address, port, service.pool, requests)

    def poller(self, front: tuple[str, Endpoint, int], interval_s: float = POLL_INTERVAL_S) -> Poller:
        """Ask a service every 20 ms (or another interval) over fresh connections, until the context ends."""
        name, endpoint, port = front
        seat = self.client_for(endpoint)
        http = self._speaks_http(self.profile.services[name].pool, port)
        url = f"{'http' if http else 'tcp'}://{literal(endpoint.address)}:{port}" + ("/" if http else "")
        return self._host(seat).poller(
            url,
            interval_s=interval_s,
            timeout_s=POLL_TIMEOUT_S,
            source=self._source(seat, endpoint.address),
            lines=0 if http else 1,
        )

    def _speaks_http(self, pool: str, port: int) -> bool:
        """True if the lab's servers of a pool answer HTTP to what comes in on a service's port (also behind tcp)."""
        for name, server in self.profile.pools[pool].servers.items():
            number = self.profile.server_port(pool, server) or port
            kinds = {p.number: p.kind for p in self.plan.hosts[self.plan.servers[pool, name].host].ports}
            return kinds.get(number) == "http"
        return False

    def scan(self, seat: Seat, address: Address, ports: Sequence[int]) -> dict[int, str]:
        """Port → open, closed (refused), filtered (nothing came within a second), …."""
        host, source = self._host(seat), self._source(seat, address)
        return host.scan(address, ports, source=source, timeout_s=SCAN_TIMEOUT_S)

    def scan_all(self, wanted: Sequence[tuple[Seat, Address, Sequence[int]]]) -> list[dict[int, str]]:
        """Several scans at once, for each spends its time waiting for ports that keep silent."""
        with ThreadPoolExecutor(max_workers=max(1, len(wanted))) as pool:
            return list(pool.map(lambda one: self.scan(*one), wanted))

    def ssh_probe(self, seat: Seat, address: Address) -> SshProbe:
        """Banner and ways to authenticate."""
        return self._host(seat).ssh_probe(address, source=self._source(seat, address))

    def ssh_run(self, seat: Seat, address: Address, argv: Sequence[str]) -> str:
        """Log in with the key that the user gave, and run a command; its output, "" if the login fails."""
        ran = self._host(seat).ssh_run(address, self.identity or "", argv, source=self._source(seat, address))
        return ran.stdout if ran.returncode == 0 else ""

    def _host(self, seat: Seat) -> Host:
        return self._hosts[seat.host]

    def _source(self, seat: Seat, address: Address) -> str:
        found = seat.address(address.version)
        if found is None:
            raise LabNotReady(f"{seat.host} has no IPv{address.version} address", f"asking {address}")
        return str(found)

    def _names(self, pool: str) -> dict[str, str]:
        """What the lab's servers call themselves → their names, those of this pool first."""
        everyone = {r.label: f"{p}/{s}" for (p, s), r in self._servers.items()}
        chain, at = {pool}, self.profile.pools[pool].sorry
        while at is not None and at.pool is not None and at.pool not in chain:
            chain.add(at.pool)
            at = self.profile.pools[at.pool].sorry
        near = {r.label: s for (p, s), r in self._servers.items() if p in chain and p != pool}
        own = {r.label: s for (p, s), r in self._servers.items() if p == pool}
        return everyone | near | own


def _answers_again(polled: Polled) -> bool:
    return bool(polled.gaps()) and polled.answers_in_a_row() >= ANSWERS_AFTER_A_GAP


def _spec(planned: PlannedHost) -> HostSpec:
    card = Interface(planned.segment, planned.mac, tuple(map(str, planned.addresses)), planned.vlan)
    return HostSpec(
        name=planned.name,
        interfaces=(card,),
        gateways=tuple(map(str, planned.gateways)),
        routes=tuple((str(to), str(via)) for to, via in planned.routes),
        loopback=tuple(f"{a}/{a.max_prefixlen}" for a in planned.behind),
        forwarding=planned.role == "router",
    )


def _batches(total: int, size: int) -> Iterator[int]:
    while total > 0:
        yield min(size, total)
        total -= size


def _bar(shares: Counter[str]) -> str:
    """`web1 ######## 40  web2 #### 20`."""
    total = sum(shares.values()) or 1
    return "  ".join(f"{n} {'#' * round(20 * c / total)} {c}" for n, c in sorted(shares.items())) or "no answer"
