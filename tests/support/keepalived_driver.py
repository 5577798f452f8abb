"""Runs the rendered keepalived.conf of two nodes with a real keepalived, each in a network namespace, and has both be
master for a while.

Called by `keepalived_live`, inside `unshare -Urnm`. The order is JSON on stdin, the result JSON on stdout. Each network
is a bridge: both nodes and a client are plugged into it. Cut from each other the nodes are by the bridge's isolated
ports, so that the client hears both of them all the time.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import selectors
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ndakit.lab.frames import decode_vrrp

NODES = ("lb1", "lb2")
TRIES = 5
"""A busy machine may heal the cut too late."""
_CLONE_NEWNET = 0x40000000
_ETH_P_ALL = 3
_SO_TIMESTAMPNS = 35
_ASK_S = 0.2
_VOLLEY_S = 0.05
"""In this time a node sends the adverts of all its networks, which it began to send together."""
_LIBC = ctypes.CDLL(None, use_errno=True)


class Machine:
    """A network namespace, which a sleeping process keeps."""

    def __init__(self, name: str, kept: contextlib.ExitStack) -> None:
        self.name = name
        process = subprocess.Popen(["unshare", "-n", "sleep", "300"])
        kept.callback(process.wait)
        kept.callback(process.kill)
        self._net = Path(f"/proc/{process.pid}/ns/net")
        own = Path("/proc/self/ns/net").readlink()
        while self._net.readlink() == own:
            time.sleep(0.01)
        self.pid = process.pid

    def enter(self) -> None:
        """Open this thread's next sockets here."""
        with self._net.open() as file:
            if _LIBC.setns(file.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")

    def ip(self, ip: list[str], *words: str) -> str:
        """Run `ip` here."""
        return subprocess.run(
            ["nsenter", "-t", str(self.pid), "-n", *ip, *words], check=True, capture_output=True, text=True
        ).stdout


def serve(machine: Machine) -> None:
    """Tell everybody who connects which machine this is."""

    def accept() -> None:
        machine.enter()
        listener = socket.create_server(("::", 80), family=socket.AF_INET6, dualstack_ipv6=True)
        ready.set()
        while True:
            sock, _ = listener.accept()
            with contextlib.suppress(OSError), sock:
                sock.sendall(machine.name.encode())

    ready = threading.Event()
    threading.Thread(target=accept, daemon=True).start()
    ready.wait(10)


class Client(threading.Thread):
    """Asks each address over and over, by fresh connections."""

    def __init__(self, machine: Machine, addresses: list[str]) -> None:
        super().__init__(daemon=True)
        self._machine, self._addresses = machine, addresses
        self.heard: tuple[float, dict[str, str]] = (0.0, {})
        """When the last round began, and who answered."""
        self.start()

    def run(self) -> None:
        """For ever."""
        self._machine.enter()
        while True:
            start_s = time.monotonic()
            self.heard = start_s, {address: self._ask(address) for address in self._addresses}
            time.sleep(0.02)

    def _ask(self, address: str) -> str:
        try:
            with socket.create_connection((address, 80), _ASK_S) as sock:
                sock.settimeout(_ASK_S)
                return sock.recv(99).decode()
        except OSError:
            return "nobody"

    def wait(self, who: str, timeout_s: float) -> float | None:
        """The seconds until one node answers at all addresses; None: it did not."""
        start_s = time.monotonic()
        while time.monotonic() - start_s < timeout_s:
            asked_s, answers = self.heard
            if asked_s > start_s and set(answers.values()) == {who}:
                return time.monotonic() - start_s
            time.sleep(0.01)
        return None


class Ear:
    """The adverts that the nodes send, heard at their ports of the bridges, with the kernel's times."""

    def __init__(self, networks: Iterable[str]) -> None:
        self._selector = selectors.DefaultSelector()
        self._heard: list[tuple[float, str]] = []
        for node, network in itertools.product(NODES, networks):
            heard = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
            heard.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
            heard.bind((f"{node}-{network}", _ETH_P_ALL))
            heard.setblocking(False)
            self._selector.register(heard, selectors.EVENT_READ, node)

    def first(self, node: str, since_s: float) -> float | None:
        """When a node's first advert after a time (time.time) was sent; None if none is."""
        end_s = time.monotonic() + 5
        while time.monotonic() < end_s:
            self._selector.select(1)
            time.sleep(0.005)  # what was sent before on another network may be read after it
            self._heard += self._read()
            times = [when_s for when_s, whose in self._heard if whose == node and when_s > since_s]
            if times:
                return min(times)
        return None

    def said(self, node: str, after_s: float, before_s: float) -> bool:
        """True if a node sent an advert between two times that are over."""
        return any(whose == node and after_s < when_s < before_s for when_s, whose in self._heard)

    def _read(self) -> Iterator[tuple[float, str]]:
        for key, _ in self._selector.select(0):
            assert isinstance(key.fileobj, socket.socket)
            with contextlib.suppress(BlockingIOError):
                while True:
                    data, more, _, (_, _, kind, *_) = key.fileobj.recvmsg(65536, 64)
                    if kind != socket.PACKET_OUTGOING and decode_vrrp(data) is not None:
                        seconds, nanoseconds = struct.unpack("@ll", more[0][2])
                        yield seconds + nanoseconds / 1e9, key.data


@contextlib.contextmanager
def plugged(order: dict[str, Any]) -> Iterator[dict[str, Machine]]:
    """The machines with their cards and the bridges."""
    ip = order["ip"]
    with contextlib.ExitStack() as kept:
        machines = {name: Machine(name, kept) for name in (*NODES, "client")}
        for network, card in order["cards"].items():
            subprocess.run([*ip, "link", "add", network, "type", "bridge", "mcast_snooping", "0"], check=True)
            subprocess.run([*ip, "link", "set", network, "up"], check=True)
            for name, machine in machines.items():
                words = ["link", "add", f"{name}-{network}", "type", "veth", "peer", "name", card, "netns"]
                subprocess.run([*ip, *words, str(machine.pid)], check=True)
                subprocess.run([*ip, "link", "set", f"{name}-{network}", "up", "master", network], check=True)
                for address in order["addresses"][name][network]:
                    machine.ip(ip, "addr", "add", address, "dev", card, *(["nodad"] if ":" in address else []))
                machine.ip(ip, "link", "set", card, "up")
        for name in NODES:
            serve(machines[name])
        yield machines


def cut(order: dict[str, Any], *, apart: bool) -> None:
    """Let no frame pass between the nodes, or let all pass again, on all networks at once."""
    lines = [
        f"link set dev {node}-{network} type bridge_slave isolated {'on' if apart else 'off'}\n"
        for network in order["cards"] for node in NODES
    ]  # fmt: skip
    subprocess.run([*order["ip"], "-batch", "-"], input="".join(lines), text=True, check=True)


@contextlib.contextmanager
def keepalived(order: dict[str, Any], machine: Machine) -> Iterator[None]:
    """keepalived of a node."""
    folder = Path(order["folder"])
    name = machine.name
    files = [f"-{letter}/run/{name}.{letter}" for letter in "prc"]
    with (folder / f"{name}.log").open("w") as log:
        argv = ["nsenter", "-t", str(machine.pid), "-n", "chroot", order["root"], "keepalived"]
        argv += ["-n", "-l", "-D", *files, "-f", f"/mnt/{name}.conf"]
        process = subprocess.Popen(argv, stdout=log, stderr=log)
        try:
            yield
        finally:
            process.terminate()
            process.wait(10)


def two_masters(order: dict[str, Any]) -> dict[str, Any]:
    """Cut the nodes from each other until clients are the second one's, and heal it so that the first one speaks first;
    the seconds until clients are the first one's again (null: they were not)."""
    advert_s: float = order["advert_s"]
    with contextlib.ExitStack() as kept:
        machines = kept.enter_context(plugged(order))
        client = Client(machines["client"], order["vips"])
        ear = Ear(order["cards"])

        def served_by(who: str, timeout_s: float) -> None:
            if client.wait(who, timeout_s) is None:
                raise SystemExit(f"clients do not get {who}: {client.heard[1]}")

        kept.enter_context(keepalived(order, machines["lb1"]))
        served_by("lb1", 20)
        kept.enter_context(keepalived(order, machines["lb2"]))
        time.sleep(1 + advert_s)
        for _ in range(TRIES):
            cut(order, apart=True)
            served_by("lb2", 20)
            spoke_s = ear.first("lb2", time.time())
            time.sleep(_VOLLEY_S)
            cut(order, apart=False)
            answered_s = ear.first("lb1", time.time())
            # A unicast advert of a node that was cut off for long waits for the other's MAC address, and is not seen.
            if spoke_s and answered_s and not ear.said("lb2", spoke_s + _VOLLEY_S, answered_s):
                return {"answered_s": client.wait("lb1", order["wait_s"]), "answers": client.heard[1]}
            served_by("lb1", 60)
    raise SystemExit("lb2 spoke first each time")


def main() -> None:
    """Do what is ordered."""
    order = json.load(sys.stdin)
    root = order["root"]
    for words in (
        ["-t", "tmpfs", "none", f"{root}/run"],
        ["--rbind", "/dev", f"{root}/dev"],
        ["--rbind", "/proc", f"{root}/proc"],
        ["--bind", order["folder"], f"{root}/mnt"],
    ):
        subprocess.run(["mount", *words], check=True)
    json.dump(globals()[order["try"]](order), sys.stdout)


if __name__ == "__main__":
    main()
