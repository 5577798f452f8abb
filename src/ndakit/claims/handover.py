"""The claim that connections through the pair outlive their master: one is held while the VIPs move there and back."""

from __future__ import annotations

import time

from ndakit.claims.base import Outcome
from ndakit.claims.failover import gap_bound_s
from ndakit.claims.firewall import egress_way
from ndakit.lab_host import Host
from ndakit.lab_network import LabNetwork
from ndakit.model import Address

PORT = 7007
"""Where the outside host waits."""
HELD_S = 600
STEP_S = 0.1
RETRANSMIT_S = 6.0
"""What lies unanswered during the gap is sent again after 0.2, 0.4, 0.8 … s (RFC 6298): the gap may nearly double."""


class Held:
    """A connection that one host opens to another, which then sends numbers, while the first one only listens.

    So whoever carries it must know it: packets from inside would teach the connection to a node that does not.
    """

    def __init__(self, inside: Host, outside: Host, address: Address) -> None:
        self._inside, self._outside = inside, outside
        self._path = f"/tmp/held-{inside.name}"
        numbers = f"( n=0; while echo $n; do n=$((n + 1)); sleep {STEP_S}; done )"
        self._start(outside, f"{numbers} | nc -l -p {PORT}", "/dev/null")
        time.sleep(STEP_S)
        self._start(inside, f"sleep {HELD_S} | nc {address} {PORT}", self._path)

    def _start(self, host: Host, pipe: str, output: str) -> None:
        quiet = "exec >/dev/null 2>&1 </dev/null"
        host.run(["sh", "-c", f"{quiet}\n{pipe} >{output} &\necho $! >{self._path}.{host.name}"])

    def last(self) -> int:
        """The last number that came back; -1 before the first."""
        words = self._inside.run(["tail", "-n", "1", self._path], check=False).stdout.split()
        return int(words[-1]) if words and words[-1].isdigit() else -1

    def goes_on(self, timeout_s: float) -> float | None:
        """The seconds until another number comes back; None if none does in time."""
        begun_s, before = time.monotonic(), self.last()
        while time.monotonic() - begun_s < timeout_s:
            if self.last() > before:
                return time.monotonic() - begun_s
            time.sleep(STEP_S)
        return None

    def stop(self) -> None:
        """Close it."""
        for host in (self._inside, self._outside):
            host.run(["sh", "-c", f"kill $(cat {self._path}.{host.name}); rm -f {self._path}*"], check=False)


def connections(lab: LabNetwork, network: str) -> Outcome:
    """A server talks to the outside through the gateway VIP; keepalived stops on the master, and starts again."""
    way = egress_way(lab.profile, network)
    seats = [s for s in lab.plan.servers.values() if lab.plan.hosts[s.host].network == network and s.address(4)]
    server = next((s for s in seats if lab.plan.hosts[s.host].role == "server"), None)
    outside = lab.plan.outside.get(way or "")
    target = outside.address(4) if outside is not None else None
    if server is None or outside is None or target is None:
        return Outcome(False, "not tried", f"there is no server in {network}, or nobody outside, to try it with")
    held = Held(lab.hosts[server.host], lab.hosts[outside.host], target)
    try:
        if held.goes_on(5.0) is None:
            return Outcome(False, "not tried", f"{server.host} does not get out to {target}, port {PORT}")
        return _moved(lab, held)
    finally:
        held.stop()


def _moved(lab: LabNetwork, held: Held) -> Outcome:
    master = lab.master()
    bound_s = gap_bound_s(lab.profile, master) + RETRANSMIT_S
    wrong: list[str] = []
    lab.run(master, "/etc/init.d/keepalived stop")
    moved = lab.wait_other_master(master, timeout_s=bound_s)
    there_s = held.goes_on(bound_s)
    lab.run(master, "/etc/init.d/keepalived start")
    lab.settle()
    back_s = held.goes_on(bound_s)
    if not moved:
        wrong.append(f"the VIPs stayed on {master}")
    if there_s is None:
        wrong.append(f"the connection died when {moved or 'another node'} became master")
    elif back_s is None:
        wrong.append(f"the connection died when {master} had returned")
    figure = "broken" if wrong else f"went on {there_s:.1f} s after {moved} was master, and after {master} returned"
    return Outcome(not wrong, figure, "; ".join(wrong), {"there_s": round(there_s or -1, 1)})
