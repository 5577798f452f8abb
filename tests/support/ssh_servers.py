"""SSH servers for tests, as a balancer has one: Debian's dropbear or OpenSSH's sshd on loopback, with BusyBox's shell.

Each runs in namespaces of its own (processes, mounts), where /usr/bin and /usr/sbin hold BusyBox's applets alone, so
that nothing that OpenWrt lacks is found by accident, and where a small file system is soon full. `Wire` stands between
a client and a server, and counts, cuts and freezes connections.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ndakit.node.host_keys import HostKey, parse

# Off in every OpenWrt (tests/render/test_applets.py), and on in Debian's BusyBox.
NOT_IN_OPENWRT = {
    *("timeout", "pkill", "stat", "base64", "realpath", "tac", "shuf", "od", "xxd", "diff", "nohup", "telnet", "httpd"),
    *("arping", "watch", "su", "adduser", "sha1sum", "sha512sum", "usleep", "printenv", "unzip", "patch", "bc", "dc"),
}
TINY_KIB = 64


def keygen(path: Path, kind: str = "ed25519", passphrase: str = "", comment: str = "test") -> str:
    """Make a key pair; the public half's line."""
    subprocess.run(
        ["ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-C", comment, "-f", str(path)], check=True, timeout=60
    )
    return path.with_name(f"{path.name}.pub").read_text().strip()


@dataclass
class SshServer:
    """One server: where it listens, its host key, root's home and a full disk there."""

    kind: str
    folder: Path
    port: int
    argv: list[str]
    child: subprocess.Popen[bytes] | None = None
    host_keys: dict[str, HostKey] = field(default_factory=dict)

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def tiny(self) -> Path:
        """A file system of 64 KiB, as the server sees it."""
        return self.folder / "tiny"

    def allow(self, *public: str) -> None:
        """These keys, and no others, let root in."""
        (self.home / ".ssh/authorized_keys").write_text("".join(f"{line}\n" for line in public))

    def program(self, name: str, script: str) -> None:
        """A program on the box beside BusyBox's, as a shell script."""
        path = self.folder / "bin" / name
        path.unlink(missing_ok=True)
        path.write_text(f"#!{self.folder}/bin/ash\n{script}\n")
        path.chmod(0o755)

    def start(self) -> None:
        script = self.folder / "start"
        applets, passwd = self.folder / "bin", self.folder / "passwd"
        script.write_text(
            "set -e\n"
            f"mount -t tmpfs -o size={TINY_KIB}k none {self.tiny}\n"
            "mount -t tmpfs none /run\nmkdir -p /run/sshd\n"
            f"mount --bind {passwd} /etc/passwd\n"
            f"mount --bind {self.folder}/shells /etc/shells\n"
            f"mount --bind {self.folder}/shadow /etc/shadow\n"
            f"mount --bind {applets} /usr/sbin\n"
            f"mount --bind {applets} /usr/bin\n"
            'exec "$@"\n'
        )
        argv = ["unshare", "-m", "-p", "--fork", "--kill-child", "--mount-proc", "sh", str(script), *self.argv]
        with (self.folder / "log").open("ab") as log:
            self.child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log)
        end_s = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            assert self.child.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < end_s, (self.folder / "log").read_text()
            time.sleep(0.05)

    def stop(self) -> None:
        if self.child is not None:
            self.child.kill()
            self.child.wait()
            self.child = None
            while True:  # its init dies a moment later, with all that it started
                try:
                    socket.create_connection(("127.0.0.1", self.port), 1).close()
                except OSError:
                    return
                time.sleep(0.02)

    def processes(self, words: str) -> list[str]:
        """Command lines of processes that hold these words, of this server or any other."""
        lines = []
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                line = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
                lines += [line] if words in line else []
        return lines


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def server(
    kind: str, folder: Path, *, host_key: str = "ed25519", settings: str = "", options: tuple[str, ...] = ("-s",)
) -> Iterator[SshServer]:
    """A running server (`dropbear` or `sshd`); `settings` are lines for sshd_config, `options` are dropbear's."""
    if os.geteuid() != 0:
        pytest.skip("an SSH server for root needs root")
    folder.mkdir(mode=0o700, parents=True)
    busybox = shutil.which("busybox")
    assert busybox
    for name in ("bin", "home", "tiny"):
        (folder / name).mkdir(mode=0o755)
    (folder / "home/.ssh").mkdir(mode=0o700)
    shutil.copy(busybox, folder / "bin/busybox")
    applets = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
    for applet in applets:
        if applet not in NOT_IN_OPENWRT | {"busybox"}:
            (folder / "bin" / applet).symlink_to("busybox")
    users = [line for line in Path("/etc/passwd").read_text().splitlines() if not line.startswith("root:")]
    passwd = "\n".join([f"root:x:0:0:root:{folder}/home:{folder}/bin/ash", *users]) + "\n"
    if "sshd:" not in passwd:
        passwd += "sshd:x:22222:65534::/run/sshd:/bin/false\n"
    (folder / "passwd").write_text(passwd)
    (folder / "shadow").write_text("root:*:19000:0:99999:7:::\n")
    (folder / "shells").write_text(f"{folder}/bin/ash\n")
    port, key = free_port(), folder / "host_key"
    keygen(key, host_key)
    program = shutil.which(kind, path="/usr/sbin:/usr/bin:/sbin:/bin")
    if program is None and kind == "sshd":  # its package starts a server: nobody gets that by running tests
        pytest.skip("openssh-server is not installed")
    assert program, f"{kind} is not installed"
    shutil.copy(program, folder / "bin" / kind)
    if kind == "dropbear":
        converted = folder / "dropbear_key"
        subprocess.run(["dropbearconvert", "openssh", "dropbear", key, converted], check=True, capture_output=True)
        argv = [kind, "-F", "-E", *options, "-r", str(converted), "-p", f"127.0.0.1:{port}", "-p", f"[::1]:{port}"]
    else:
        config = folder / "sshd_config"
        config.write_text(
            f"{settings}Port {port}\nListenAddress 127.0.0.1\nListenAddress ::1\nHostKey {key}\nUsePAM no\n"
            f"PidFile none\nStrictModes no\nPasswordAuthentication no\nMaxSessions 100\n"
        )
        argv = [f"/usr/sbin/{kind}", "-D", "-e", "-f", str(config)]
    line = key.with_name("host_key.pub").read_text().split()
    one = SshServer(kind, folder, port, argv)
    one.host_keys = {k.kind: k for k in parse(f"x {line[0]} {line[1]}\n", key, "x")}
    one.start()
    try:
        yield one
    finally:
        one.stop()


class Wire:
    """A TCP relay to a port of loopback: counts connections, cuts them, or lets nothing through any more."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.connections = 0
        self._open: list[socket.socket] = []
        self._passes = threading.Event()
        self._passes.set()
        self.cut_after_bytes: int | None = None
        """Bytes from the client, after which the connection is cut."""
        self._up = 0
        self._threads: list[threading.Thread] = []
        self._begin(self._accept)

    def _begin(self, work: Callable[..., None], *given: object) -> None:
        self._threads.append(threading.Thread(target=work, args=given, daemon=True))
        self._threads[-1].start()

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *details: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._passes.set()
        self.cut()
        for thread in self._threads:
            thread.join()
        for end in (self._listener, *self._open):
            end.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            try:
                there = socket.create_connection(("127.0.0.1", self._to))
            except OSError:
                client.close()
                continue
            self._open += [client, there]
            for a, b, up in ((client, there, True), (there, client, False)):
                self._begin(self._relay, a, b, up)

    def _relay(self, source: socket.socket, sink: socket.socket, up: bool) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(65536):
                self._passes.wait()
                sink.sendall(piece)
                if up:
                    self._up += len(piece)
                    if self.cut_after_bytes is not None and self._up > self.cut_after_bytes:
                        self.cut()
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """End every connection now."""
        for end in self._open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def freeze(self) -> None:
        """Let nothing through from now on, and tell nobody."""
        self._passes.clear()

    def thaw(self) -> None:
        """Let everything through again."""
        self._passes.set()
