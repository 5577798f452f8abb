"""What a host does with the kernel: its namespace, its addresses and routes, and programs that run in it.

Owns every call of a program (`ip`, whatever a test runs, ssh) and the private files those need.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from guest.loop import HANGUP, READ, Loop, Timer

_CLONE_NEWNET = 0x40000000
_OUTPUT_LIMIT = 4 << 20
_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LC_ALL": "C",
    "TZ": "UTC",
}
# A neighbour whose address is not known is asked for every 20 ms, not every second as is usual: otherwise a gap would
# be measured in whole seconds whenever its end meets an address that has to be resolved anew.
_NEIGHBOUR_RETRY_MS = 20


class Refused(Exception):
    """A request cannot be done: the reason."""


def new_namespace() -> None:
    """Put this process into a network namespace of its own."""
    _call("unshare", ctypes.c_int(_CLONE_NEWNET))


def enter_namespace(pid: int) -> None:
    """Put this process into the network namespace of another one."""
    fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    try:
        _call("setns", ctypes.c_int(fd), ctypes.c_int(_CLONE_NEWNET))
    finally:
        os.close(fd)


def _call(name: str, *arguments: ctypes.c_int) -> None:
    # os.unshare and os.setns exist from Python 3.12 on.
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments) != 0:
        code = ctypes.get_errno()
        raise Refused(f"{name}: {os.strerror(code)}")


def ip(commands: Sequence[str]) -> None:
    """Run ip(8) commands in one go, in order, up to the first failure."""
    text = "".join(f"{line}\n" for line in commands)
    done = subprocess.run(
        ["ip", "-batch", "-"], input=text, env=_ENVIRONMENT, capture_output=True, text=True, check=False, timeout=30
    )
    if done.returncode != 0:
        raise Refused(f"ip: {' '.join(done.stderr.split())} (commands: {'; '.join(commands)})")


def interface_of(mac: str) -> str:
    """The interface with this MAC address. Raises Refused."""
    for folder in sorted(Path("/sys/class/net").iterdir()):
        with contextlib.suppress(OSError):
            if (folder / "address").read_text().strip() == mac.lower():
                return folder.name
    raise Refused(f"no network card has the MAC address {mac}")


def attach(parent: str, pid: int, name: str, mac: str, vlan: int | None) -> None:
    """Give the namespace of process `pid` a card of its own on the segment that `parent` is on."""
    commands = [f"link set {parent} up"]
    if vlan is not None:
        tagged = f"{parent}.{vlan}"
        if not Path("/sys/class/net", tagged).exists():
            commands.append(f"link add link {parent} name {tagged} type vlan id {vlan}")
        commands.append(f"link set {tagged} up")
        parent = tagged
    commands.append(f"link add link {parent} name {name} address {mac} netns {pid} type macvlan mode bridge")
    ip(commands)


def configure(spec: Mapping[str, Any]) -> None:
    """Bring up this namespace: sysctls first, then addresses and routes."""
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
        for table in ("arp_cache", "ndisc_cache"):
            ip([f"ntable change name {table} dev eth{index} retrans {_NEIGHBOUR_RETRY_MS}"])


def connect(spec: Mapping[str, Any], index: int) -> None:
    """Bring one card up with all that is lost when it goes down: IPv6 addresses, and every route through it."""
    name = f"eth{index}"
    commands = [f"link set {name} up"]
    commands += [f"address replace {a} dev {name}{_nodad(a)}" for a in spec["interfaces"][index]["addresses"]]
    ip(commands)
    # A gateway may lie behind a card that is down just now; the others must come up all the same.
    for to, via in spec.get("routes", ()):
        line = f"route replace {to} via {via}"
        if len(spec["interfaces"]) == 1:
            ip([f"{line} dev {name}"])
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
        with tempfile.TemporaryFile() as feed:
            feed.write(stdin)
            feed.seek(0)
            try:
                self._child = subprocess.Popen(
                    list(argv),
                    stdin=feed,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    env=_ENVIRONMENT,
                    start_new_session=True,
                )
            except OSError as cause:
                raise Refused(f"{argv[0]}: {cause.strerror}") from cause
        assert self._child.stdout is not None
        assert self._child.stderr is not None
        self._output = {self._child.stdout.fileno(): bytearray(), self._child.stderr.fileno(): bytearray()}
        self._fds = list(self._output)
        for fd in self._fds:
            os.set_blocking(fd, False)
            loop.watch(fd, READ, lambda _events, fd=fd: self._read(fd))  # type: ignore[misc]  # bound per descriptor
        self._end = os.pidfd_open(self._child.pid)
        loop.watch(self._end, READ | HANGUP, self._ended)
        self._timer: Timer = loop.after(timeout_s, self._late)

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
            os.killpg(self._child.pid, signal.SIGKILL)

    def _ended(self, _events: int) -> None:
        self._timer.cancel()
        self._loop.unwatch(self._end)
        os.close(self._end)
        code = self._child.wait()
        for fd in self._fds:
            self._read(fd)
            self._loop.unwatch(fd)
        for stream in (self._child.stdout, self._child.stderr):
            assert stream is not None
            stream.close()
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
    """Run a command over SSH; the private key lies in a private folder in memory until it has ended."""
    folder = Path(tempfile.mkdtemp(prefix="key-", dir="/run" if os.access("/run", os.W_OK) else None))

    def ended(result: dict[str, Any]) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        done(result)

    try:
        file = folder / "key"
        file.touch(mode=0o600)
        file.write_text(given["key"].rstrip("\n") + "\n")
        options = ["-i", str(file), "-o", "PreferredAuthentications=publickey", "-o", "LogLevel=ERROR"]
        words = [*ssh_argv(given, options), shlex.join(given["argv"])]
        Program(loop, words, stdin=stdin, timeout_s=given["timeout_s"], done=ended)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
