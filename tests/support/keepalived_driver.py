"""Runs the rendered keepalived.conf of two nodes with a real keepalived, each in namespaces of its own, and tries one
thing with them: both are master for a while, or one hangs.

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
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ndakit.lab.frames import decode_vrrp

NODES = ("lb1", "lb2")
_CLONE_NEWNET = 0x40000000
_ETH_P_ALL = 3
_ASK_S = 0.2
_VOLLEY_S = 0.05
"""In this time a node sends the adverts of all its networks, which it began to send together."""
_LIBC = ctypes.CDLL(None, use_errno=True)


class Machine:
    """Namespaces for network, processes and mounts, in which `root` has a /proc of its own; all that runs in them ends
    with the first process, which sleeps."""

    def __init__(self, name: str, root: str, kept: contextlib.ExitStack) -> None:
        self.name, self._root, self._kept = name, root, kept
        first = f"mount -t proc proc {shlex.quote(root)}/proc && exec sleep 300"
        process = subprocess.Popen(["unshare", "-npmf", "--kill-child", "sh", "-c", first])
        kept.callback(process.wait)
        kept.callback(process.kill)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while not (pid := children.read_text().strip()) or Path(f"/proc/{pid}/comm").read_text() != "sleep\n":
            time.sleep(0.01)
        self.pid = pid
        self._net = Path(f"/proc/{pid}/ns/net")

    def enter(self) -> None:
        """Open this thread's next sockets here."""
        with self._net.open() as file:
            if _LIBC.setns(file.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")

    def inside(self, *words: str) -> list[str]:
        """The command that runs one here, in the root; what the root does not have is busybox's."""
        path = "PATH=/mnt:/usr/sbin:/usr/bin:/sbin:/bin:/run/bin"
        return ["nsenter", "-t", self.pid, "-n", "-p", "-m", "chroot", self._root, "/bin/busybox", "env", path, *words]

    def run(self, *words: str) -> str:
        """Run a command here; what it says."""
        return subprocess.run(self.inside(*words), check=True, stdout=subprocess.PIPE, text=True).stdout

    def start(self, log: Path, *words: str) -> None:
        """Start a command that runs until it is killed, or the machine ends."""
        with log.open("w") as file:
            process = subprocess.Popen(self.inside(*words), stdout=file, stderr=file)
        # nsenter stops with what is stopped in it, and does not go on by itself.
        self._kept.callback(process.wait)
        self._kept.callback(process.kill)

    def holds(self, addresses: list[str]) -> bool:
        """True if one of these addresses is here."""
        return any(f" {address}/" in self.run("ip", "-o", "address", "show") for address in addresses)


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
    """Hears the adverts that the nodes send, at their ports of the bridges."""

    def __init__(self, networks: Iterable[str]) -> None:
        self._selector = selectors.DefaultSelector()
        for node, network in itertools.product(NODES, networks):
            heard = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
            heard.bind((f"{node}-{network}", _ETH_P_ALL))
            heard.setblocking(False)
            self._selector.register(heard, selectors.EVENT_READ, node)

    def advert(self, node: str) -> None:
        """Wait for the next one of a node; a unicast one of a node that is cut off may wait for the other's MAC address
        and never come."""
        set(self._read())
        end_s = time.monotonic() + 2
        while time.monotonic() < end_s and node not in set(self._read()):
            self._selector.select(1)

    def _read(self) -> Iterator[str]:
        """Whose adverts have come."""
        for key, _ in self._selector.select(0):
            assert isinstance(key.fileobj, socket.socket)
            with contextlib.suppress(BlockingIOError):
                while True:
                    data, (_, _, kind, *_) = key.fileobj.recvfrom(65536)
                    if kind != socket.PACKET_OUTGOING and decode_vrrp(data) is not None:
                        yield key.data


@contextlib.contextmanager
def plugged(order: dict[str, Any]) -> Iterator[dict[str, Machine]]:
    """The machines with their cards and the bridges."""
    ip = order["ip"]
    with contextlib.ExitStack() as kept:
        machines = {name: Machine(name, order["root"], kept) for name in (*NODES, "client")}
        for network, card in order["cards"].items():
            subprocess.run([*ip, "link", "add", network, "type", "bridge", "mcast_snooping", "0"], check=True)
            subprocess.run([*ip, "link", "set", network, "up"], check=True)
            for name, machine in machines.items():
                words = ["link", "add", f"{name}-{network}", "type", "veth", "peer", "name", card, "netns"]
                subprocess.run([*ip, *words, machine.pid], check=True)
                subprocess.run([*ip, "link", "set", f"{name}-{network}", "up", "master", network], check=True)
                for address in order["addresses"][name][network]:
                    machine.run("ip", "addr", "add", address, "dev", card, *(["nodad"] if ":" in address else []))
                machine.run("ip", "link", "set", card, "up")
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


def pair(order: dict[str, Any], kept: contextlib.ExitStack) -> tuple[dict[str, Machine], Client]:
    """Both nodes with their keepaliveds, and if ordered their vips-watch; lb1 is master."""
    machines = kept.enter_context(plugged(order))
    client = Client(machines["client"], order["vips"])
    folder = Path(order["folder"])
    for name in NODES:
        machine = machines[name]
        files = [f"-{letter}/run/{name}.{letter}" for letter in "prc"]
        words = ["keepalived", "-n", "-l", "-D", *files, "-f", f"/mnt/{name}.conf"]
        machine.start(folder / f"{name}.log", *words)
        if name == "lb1":
            served_by(client, "lb1", 20)
        if order.get("watched"):
            machine.start(folder / f"{name}.watch.log", "sh", f"/mnt/{name}.watch")
    time.sleep(1 + order["advert_s"])
    return machines, client


def served_by(client: Client, who: str, timeout_s: float) -> None:
    """Wait until one node answers at all addresses."""
    if client.wait(who, timeout_s) is None:
        raise SystemExit(f"clients do not get {who}: {client.heard[1]}")


def two_masters(order: dict[str, Any]) -> dict[str, Any]:
    """Cut the nodes from each other until clients are the second one's, and heal it right after that one has spoken, so
    that the first one speaks first; as often as ordered. `again_s`: each time the seconds until clients are the first
    one's again, the last one null if they were not in time; `answers`: who answers then."""
    again_s: list[float | None] = []
    with contextlib.ExitStack() as kept:
        _, client = pair(order, kept)
        ear = Ear(order["cards"])
        while len(again_s) < order["times"] and None not in again_s:
            cut(order, apart=True)
            served_by(client, "lb2", 20)
            ear.advert("lb2")
            time.sleep(_VOLLEY_S)
            cut(order, apart=False)
            again_s.append(client.wait("lb1", order["wait_s"]))
        return {"again_s": again_s, "answers": client.heard[1]}


def hangs(order: dict[str, Any]) -> dict[str, Any]:
    """Run a command on lb1 that does something to its keepalived. For how long both nodes then hold VIPs, in seconds
    (null: for longer than the order waits), and whether clients are served by lb2 after that."""
    with contextlib.ExitStack() as kept:
        machines, client = pair(order, kept)
        machines["lb1"].run("sh", "-c", order["command"])
        began_s = time.monotonic()
        while not machines["lb2"].holds(order["vips"]):
            if time.monotonic() - began_s > 20:
                raise SystemExit("lb2 does not become master")
        both_s = time.monotonic()
        while machines["lb1"].holds(order["vips"]):
            if time.monotonic() - both_s > order["wait_s"]:
                return {"both_s": None}
        return {"both_s": time.monotonic() - both_s, "served": client.wait("lb2", 5) is not None}


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
    for argv in (["mkdir", "/run/bin"], ["--install", "-s", "/run/bin"]):
        subprocess.run(["chroot", root, "/bin/busybox", *argv], check=True)
    json.dump(globals()[order["try"]](order), sys.stdout)


if __name__ == "__main__":
    main()
