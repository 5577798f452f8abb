"""What a host does with the kernel: its namespace, its addresses and routes, and programs that run in it.

Owns every call of a program (`ip`, whatever a test runs, ssh) and the private files those need.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from guest.loop import HANGUP, READ, Loop, Timer

TYPE_CHECKING = False  # what typing says as well; importing it would cost a tenth of the start under emulation
if TYPE_CHECKING:
    from typing import Any

_CLONE_NEWNET = 0x40000000
_OUTPUT_LIMIT = 4 << 20
_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LC_ALL": "C",
    "TZ": "UTC",
}
# A neighbour whose address is not known is asked for every 20 ms for half a second, not every second for three as is
# usual: otherwise a gap would be measured in whole seconds whenever its end meets an address to be resolved anew.
_NEIGHBOURS = "retrans 20 mcast_probes 25 ucast_probes 25"


class Refused(Exception):
    """A request cannot be done: the reason."""


def new_namespace() -> None:
    """Put this process into a network namespace of its own."""
    if hasattr(os, "unshare"):
        os.unshare(_CLONE_NEWNET)
    else:
        _call("unshare", _CLONE_NEWNET)


def namespace_of(pid: int) -> int:
    """The network namespace of a process, as a descriptor that keeps it alive."""
    return os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def enter_namespace(fd: int) -> None:
    """Put this process into that network namespace."""
    if hasattr(os, "setns"):
        os.setns(fd, _CLONE_NEWNET)
    else:
        _call("setns", fd, _CLONE_NEWNET)


def _call(name: str, *arguments: int) -> None:
    """A function of the C library that Python has from 3.12 on; older ones only run this outside of the lab's image."""
    import ctypes

    library = ctypes.CDLL(None, use_errno=True)
    if getattr(library, name)(*map(ctypes.c_int, arguments)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


def _spawn(argv: Sequence[str], stdin: bytes) -> tuple[int, int, int]:
    """Start a program with that input: its process id, and where its two outputs can be read.

    posix_spawn instead of the subprocess module: it neither copies this process nor loads a dozen modules.
    """
    feed = os.memfd_create("stdin")
    while stdin:
        stdin = stdin[os.write(feed, stdin) :]
    os.lseek(feed, 0, os.SEEK_SET)
    out, out_there = os.pipe2(os.O_CLOEXEC)
    err, err_there = os.pipe2(os.O_CLOEXEC)
    try:
        pid = os.posix_spawnp(
            argv[0],
            list(argv),
            _ENVIRONMENT,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, there, here) for here, there in enumerate((feed, out_there, err_there))
            ],
            setsid=True,
            setsigdef=[signal.SIGPIPE],
        )
    except OSError as cause:
        os.close(out)
        os.close(err)
        raise Refused(f"{argv[0]}: {cause.strerror}") from cause
    finally:
        for fd in (feed, out_there, err_there):
            os.close(fd)
    return pid, out, err


def ip(commands: Sequence[str]) -> None:
    """Run ip(8) commands in one go, in order, up to the first failure."""
    pid, out, err = _spawn(["ip", "-batch", "-"], "".join(f"{line}\n" for line in commands).encode())
    os.close(out)
    said = b""
    while chunk := os.read(err, 4096):
        said += chunk
    os.close(err)
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0:
        raise Refused(f"ip: {' '.join(said.decode(errors='replace').split())} (commands: {'; '.join(commands)})")


def interface_of(mac: str) -> str:
    """The interface with this MAC address. Raises Refused."""
    for folder in sorted(Path("/sys/class/net").iterdir()):
        with contextlib.suppress(OSError):
            if (folder / "address").read_text().strip() == mac.lower():
                return folder.name
    raise Refused(f"no network card has the MAC address {mac}")


def attach(parent: str, pid: int, index: int, mac: str, vlan: int | None) -> None:
    """Give the namespace of process `pid` a card of its own on the segment that `parent` is on."""
    commands = [f"link set {parent} up"]
    if vlan is not None:
        tagged = f"{parent}.{vlan}"
        if not Path("/sys/class/net", tagged).exists():
            commands.append(f"link add link {parent} name {tagged} type vlan id {vlan}")
        commands.append(f"link set {tagged} up")
        parent = tagged
    # Its final name may be taken here, so it gets that over there.
    commands.append(
        f"link add link {parent} name {_arrival(pid, index)} address {mac} netns {pid} type macvlan mode bridge"
    )
    ip(commands)


def detach(namespace: int, pid: int, cards: int) -> None:
    """Remove the cards of a namespace whose process `pid` is gone."""
    here = namespace_of(os.getpid())
    try:
        enter_namespace(namespace)
        for index in range(cards):
            for name in (f"eth{index}", _arrival(pid, index)):
                with contextlib.suppress(Refused):
                    ip([f"link delete {name}"])
                    break
    finally:
        enter_namespace(here)
        os.close(here)


def _arrival(pid: int, index: int) -> str:
    """The name under which card `index` comes into the namespace of process `pid`."""
    return f"n{pid}c{index}"


def configure(spec: Mapping[str, Any]) -> None:
    """Bring up this namespace: sysctls first, then addresses and routes."""
    ip([f"link set {_arrival(os.getpid(), index)} name eth{index}" for index in range(len(spec["interfaces"]))])
    settings = {
        "net.ipv6.conf.all.accept_dad": "0",
        "net.ipv6.conf.default.accept_dad": "0",
        "net.ipv6.conf.default.accept_ra": "0",
        "net.ipv4.ping_group_range": "0 0",
        "net.ipv4.conf.all.arp_notify": "1",
    }
    forwarding = "1" if spec.get("forwarding") else "0"
    settings |= {"net.ipv4.ip_forward": forwarding, "net.ipv6.conf.all.forwarding": forwarding}
    for index in range(len(spec["interfaces"])):
        settings |= {
            f"net.ipv6.conf.eth{index}.accept_dad": "0",
            f"net.ipv6.conf.eth{index}.accept_ra": "0",
            f"net.ipv4.conf.eth{index}.arp_notify": "1",
        }
    settings |= spec.get("sysctls", {})
    for key, value in settings.items():
        _sysctl(key, value)
    ip(["link set lo up", *(f"address add {a} dev lo{_nodad(a)}" for a in spec.get("loopback", ()))])
    for index in range(len(spec["interfaces"])):
        connect(spec, index)
        ip([f"ntable change name {table} dev eth{index} {_NEIGHBOURS}" for table in ("arp_cache", "ndisc_cache")])


def connect(spec: Mapping[str, Any], index: int) -> None:
    """Bring one card up with all that is lost when it goes down: IPv6 addresses, and every route through it."""
    name = f"eth{index}"
    commands = [f"link set {name} up"]
    commands += [f"address replace {a} dev {name}{_nodad(a)}" for a in spec["interfaces"][index]["addresses"]]
    ip(commands)
    # A gateway may lie behind a card that is down just now; the others must come up all the same.
    for to, via in spec.get("routes", ()):
        line = f"route replace {to} via {via}"
        if not via:
            ip([f"route replace {to} dev {name}"])
        elif len(spec["interfaces"]) == 1:
            ip([f"{line} dev {name} onlink"])
        else:
            with contextlib.suppress(Refused):
                ip([line])


def disconnect(index: int) -> None:
    """Take one card down."""
    ip([f"link set eth{index} down"])


def _nodad(address: str) -> str:
    return " nodad" if ":" in address else ""


def _sysctl(key: str, value: str) -> None:
    # As in sysctl(8): where the key's parts are separated by slashes, dots belong to the names.
    path = Path("/proc/sys", key if "/" in key else key.replace(".", "/"))
    try:
        path.write_text(value)
    except OSError as cause:
        raise Refused(f"sysctl {key}={value}: {cause.strerror}") from cause


class Program:
    """A program run to its end in this namespace; calls back once with its exit code and output.

    Its end counts, not the end of its output: what it leaves in the background does not delay the answer.
    """

    def __init__(
        self, loop: Loop, argv: Sequence[str], *, stdin: bytes, timeout_s: float, done: Callable[[dict[str, Any]], None]
    ) -> None:
        self._loop = loop
        self._done = done
        self._timed_out = False
        self._pid, *self._fds = _spawn(argv, stdin)
        self._output = {fd: bytearray() for fd in self._fds}
        for fd in self._fds:
            os.set_blocking(fd, False)
            self._watch(fd)
        self._end = os.pidfd_open(self._pid)
        loop.watch(self._end, READ | HANGUP, self._ended)
        self._timer: Timer = loop.after(timeout_s, self._late)

    def _watch(self, fd: int) -> None:
        self._loop.watch(fd, READ, lambda _events: self._read(fd))

    def _read(self, fd: int) -> None:
        try:
            while chunk := os.read(fd, 65536):
                if len(self._output[fd]) < _OUTPUT_LIMIT:
                    self._output[fd] += chunk
        except BlockingIOError:
            return
        self._loop.unwatch(fd)

    def _late(self) -> None:
        self._timed_out = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGKILL)

    def _ended(self, _events: int) -> None:
        self._timer.cancel()
        self._loop.unwatch(self._end)
        os.close(self._end)
        code = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        for fd in self._fds:
            self._read(fd)
            self._loop.unwatch(fd)
            os.close(fd)
        out, err = (bytes(self._output[fd]) for fd in self._fds)
        self._done(
            {
                "returncode": code,
                "stdout": out.decode(errors="surrogateescape"),
                "stderr": err.decode(errors="surrogateescape"),
                "timed_out": self._timed_out,
            }
        )


def ssh_argv(given: Mapping[str, Any], options: Sequence[str]) -> list[str]:
    """OpenSSH's client, without any configuration, memory of host keys, or question."""
    fixed = {
        "BatchMode": "yes",
        "ConnectTimeout": str(max(1, int(given["timeout_s"]))),
        "StrictHostKeyChecking": "no",
        "UserKnownHostsFile": "/dev/null",
        "GlobalKnownHostsFile": "/dev/null",
        "IdentitiesOnly": "yes",
        "IdentityAgent": "none",
    }
    words = ["ssh", "-F", "none", "-T", "-p", str(given["port"]), "-l", given["user"]]
    if given.get("source"):
        words += ["-b", given["source"]]
    for key, value in fixed.items():
        words += ["-o", f"{key}={value}"]
    return [*words, *options, given["address"]]


def ssh_with_key(loop: Loop, given: Mapping[str, Any], stdin: bytes, done: Callable[[dict[str, Any]], None]) -> None:
    """Run a command over SSH; the private key lies in a nameless file in memory until the command has ended."""
    fd = os.memfd_create("key")
    os.fchmod(fd, 0o600)
    os.write(fd, given["key"].rstrip("\n").encode() + b"\n")

    def ended(result: dict[str, Any]) -> None:
        os.close(fd)
        done(result)

    options = ["-i", f"/proc/{os.getpid()}/fd/{fd}", "-o", "PreferredAuthentications=publickey", "-o", "LogLevel=ERROR"]
    try:
        words = [*ssh_argv(given, options), shlex.join(given["argv"])]
        Program(loop, words, stdin=stdin, timeout_s=given["timeout_s"], done=ended)
    except BaseException:
        os.close(fd)
        raise
