"""The control channel of a lab host, and its hosts as processes.

    python3 -m guest --port DEVICE     a serial or virtio port (in a virtual machine)
    python3 -m guest --listen SOCKET   a Unix socket, one caller at a time (on any machine, inside a namespace)

A request is one line, `NUMBER WHO JSON`, its answer one line, `NUMBER JSON` with either "result" or "error". WHO is
`-` for this process, a host, or `host/n` for another process in that host's namespace. Requests to hosts are passed on
unread, so a slow command of one delays no other. When a host's process ends, its namespace and cards go with it.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import socket
import sys
import termios
import time
import tty
from collections.abc import Callable
from pathlib import Path

from guest import system, worker
from guest.loop import READ, Lines, Loop

TYPE_CHECKING = False  # what typing says as well; importing it would cost a tenth of the start under emulation
if TYPE_CHECKING:
    from typing import Any

PROTOCOL = 1
_NAME_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")
_OWN = "-"


class Process:
    """A worker process: its channel, its namespace if that is its own, and the requests it has not answered yet."""

    def __init__(self, pid: int, lines: Lines) -> None:
        self.pid = pid
        self.lines = lines
        self.pending: set[bytes] = set()
        self.namespace: int | None = None
        self.cards = 0
        self.configuring = b""


class Switchboard:
    """Passes requests to the processes they are for and answers back to the caller."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._processes: dict[str, Process] = {}
        self._reply: Callable[[bytes], None] = lambda line: None
        self._count = 0

    def connect(self, reply: Callable[[bytes], None]) -> None:
        """Answer to this caller from now on."""
        self._reply = reply

    def asked(self, line: bytes) -> None:
        """A request came."""
        number, _, rest = line.partition(b" ")
        who, _, text = rest.partition(b" ")
        if not number.strip() or not text:
            return  # the remains of a line from before the caller connected
        name = who.decode(errors="replace")
        if name != _OWN:
            self._pass_on(name, number, text)
            return
        try:
            given = json.loads(text)
            command = getattr(self, "do_" + str(given.pop("do")), None)
            if command is None:
                raise system.Refused("no such command")
            result = command(number, given)
        except (system.Refused, ValueError, KeyError, TypeError, OSError) as cause:
            self._answer(number, {"error": str(cause) or type(cause).__name__})
            return
        if result is not None:
            self._answer(number, {"result": result})

    # -- commands

    def do_hello(self, _number: bytes, _given: dict[str, Any]) -> dict[str, Any]:
        """Who is here."""
        return {"protocol": PROTOCOL, "hosts": sorted(self._processes), "now_ms": _now_ms()}

    def do_clock(self, _number: bytes, _given: dict[str, Any]) -> dict[str, Any]:
        """The monotonic clock of all the hosts here."""
        return {"now_ms": _now_ms()}

    def do_resumed(self, _number: bytes, given: dict[str, Any]) -> dict[str, Any]:
        """This machine goes on from a state that was kept some time ago, as others do: what time it is, and random
        numbers of its own (random(4), RNDRESEEDCRNG)."""
        import fcntl

        time.clock_settime(time.CLOCK_REALTIME, given["now_s"])
        with Path("/dev/urandom").open("wb", buffering=0) as pool:
            pool.write(bytes.fromhex(given["seed"]))
            fcntl.ioctl(pool, 0x5207)
        return {}

    def do_add(self, number: bytes, given: dict[str, Any]) -> None:
        """A new host; answered by itself once it is configured."""
        spec = given["spec"]
        name = spec["name"]
        if not name or len(name) > 63 or not _NAME_LETTERS.issuperset(name):
            raise system.Refused(f"not a host name: {name!r}")
        if name in self._processes:
            raise system.Refused(f"there is a host {name} already")
        parents = [system.interface_of(card["nic"]) for card in spec["interfaces"]]
        process = self._start(name, system.new_namespace, urgent=False)
        try:
            process.namespace = system.namespace_of(process.pid)
            for index, (card, parent) in enumerate(zip(spec["interfaces"], parents, strict=True)):
                system.attach(parent, process.pid, index, card["mac"], card.get("vlan"))
                process.cards += 1
        except BaseException:
            self._stop(name)
            raise
        process.configuring = number
        self._pass_on(name, number, json.dumps({"do": "configure", "spec": spec}).encode())

    def do_fork(self, _number: bytes, given: dict[str, Any]) -> dict[str, Any]:
        """Another process in a host's namespace, for what must not wait for anything else there."""
        host = self._processes[given["host"]]
        namespace = host.namespace
        if namespace is None:
            raise system.Refused(f"{given['host']} is not a host")
        self._count += 1
        name = f"{given['host']}/{self._count}"
        self._start(name, lambda: system.enter_namespace(namespace), urgent=bool(given.get("urgent")))
        return {"who": name}

    def do_remove(self, _number: bytes, given: dict[str, Any]) -> dict[str, Any]:
        """End a host, or a process of one."""
        name = given["name"]
        if name not in self._processes:
            raise system.Refused(f"there is no {name}")
        for each in [n for n in self._processes if n == name or n.startswith(f"{name}/")]:
            self._stop(each)
        return {}

    # -- processes

    def _pass_on(self, name: str, number: bytes, text: bytes) -> None:
        process = self._processes.get(name)
        if process is None:
            self._answer(number, {"error": f"there is no host {name}"})
            return
        process.pending.add(number)
        process.lines.send(number + b" " + text)

    def _start(self, name: str, into: Callable[[], None], *, urgent: bool) -> Process:
        ours, theirs = socket.socketpair()
        ready, is_ready = os.pipe()
        pid = os.fork()
        if pid == 0:
            _be_worker(theirs.detach(), is_ready, into, urgent=urgent)
        theirs.close()
        os.close(is_ready)
        problem = b""
        while chunk := os.read(ready, 4096):
            problem += chunk
        os.close(ready)
        if problem != b"ok":
            ours.close()
            os.waitpid(pid, 0)
            raise system.Refused(problem.decode() or "the host's process ended at once")
        fd = ours.detach()
        process = Process(pid, Lines(self._loop, fd, lambda line: self._answered(name, line), lambda: self._gone(name)))
        self._processes[name] = process
        return process

    def _answered(self, name: str, line: bytes) -> None:
        number, _, text = line.partition(b" ")
        process = self._processes[name]
        process.pending.discard(number)
        if number == process.configuring and text.startswith(b'{"error"'):
            self._stop(name)  # half a host must not be in the way of the next attempt
        self._reply(line)

    def _stop(self, name: str) -> None:
        os.kill(self._processes[name].pid, signal.SIGKILL)
        self._gone(name)

    def _gone(self, name: str) -> None:
        process = self._processes.pop(name)
        process.lines.close()
        os.waitpid(process.pid, 0)
        if process.namespace is not None:
            # The kernel would remove the cards as well, but some time later; until then they would answer.
            system.detach(process.namespace, process.pid, process.cards)
            os.close(process.namespace)
        for number in process.pending:
            self._answer(number, {"error": f"the process of {name} ended before it answered"})

    def _answer(self, number: bytes, answer: dict[str, Any]) -> None:
        self._reply(number + b" " + json.dumps(answer).encode())


def _be_worker(fd: int, is_ready: int, into: Callable[[], None], *, urgent: bool) -> None:
    """What a new process does; it never returns."""
    code = 1
    try:
        try:
            into()
        except (system.Refused, OSError) as cause:
            os.write(is_ready, str(cause).encode())
            return
        for inherited in map(int, os.listdir("/proc/self/fd")):  # noqa: PTH208  # only the names, and quickly
            if inherited > 2 and inherited not in (fd, is_ready):
                with contextlib.suppress(OSError):
                    os.close(inherited)
        os.write(is_ready, b"ok")
        os.close(is_ready)
        worker.serve(fd, urgent=urgent)
        code = 0
    except BaseException:  # noqa: BLE001  # the process ends here, and its last word belongs on the console
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)


def _now_ms() -> float:
    return round(time.monotonic() * 1000, 3)


def _open_port(device: Path) -> int:
    """The control port, without echo and line editing if it is a serial line."""
    fd = os.open(device, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    if os.isatty(fd):
        tty.setraw(fd, termios.TCSANOW)
    return fd


def _serve_socket(loop: Loop, board: Switchboard, path: Path) -> None:
    """Accept callers on a Unix socket; a new one replaces the one before."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    made = path.with_name(f"{path.name}.new")
    listening.bind(str(made))
    listening.listen()
    made.rename(path)  # whoever finds it can connect
    current: list[Lines] = []

    def accept(_events: int) -> None:
        caller, _ = listening.accept()
        while current:
            current.pop().close()

        def ended() -> None:
            while current:
                current.pop().close()
            board.connect(lambda line: None)

        current.append(Lines(loop, caller.detach(), board.asked, ended))
        board.connect(current[0].send)

    loop.watch(listening.fileno(), READ, accept)
    loop.run()


def main() -> int:
    """Serve for ever."""
    if len(sys.argv) != 3 or sys.argv[1] not in ("--port", "--listen"):
        sys.stderr.write("usage: guest --port DEVICE | --listen SOCKET\n")
        return 2
    place = Path(sys.argv[2])
    # What is loaded by now is shared by all hosts' processes; the collector would write into it.
    gc.collect()
    gc.freeze()
    loop = Loop()
    board = Switchboard(loop)
    if sys.argv[1] == "--listen":
        _serve_socket(loop, board, place)
    else:
        lines = Lines(loop, _open_port(place), board.asked, lambda: None, reattach=True)
        board.connect(lines.send)
        loop.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
