"""A balancer over SSH, by the system's OpenSSH client: one connection, shared by any number of commands.

The connection is a master process of ssh with a socket in a private folder (ssh_config(5), ControlMaster); each command
is a small ssh that goes through it. It ends with the context, on Ctrl-C, and with this process. OpenWrt has no
sftp-server, so that files go through `cat` with a checksum (`files`).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import secrets
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from ndakit.core import locks, process, workspace
from ndakit.core.files import file_sha256
from ndakit.node import files, ssh_options
from ndakit.node.errors import (
    AnybodyGetsIn,
    CommandTimeout,
    ConnectionLost,
    HostKeyChanged,
    HostKeyNotTheOne,
    HostKeyUnknown,
    OutputTooLarge,
)
from ndakit.node.host_keys import HostKey, Pins, checked_fingerprint, parse
from ndakit.node.keys import Keys
from ndakit.node.shell import (
    FILE_TIMEOUT_S,
    OUTPUT_MAX_BYTES,
    RUN_TIMEOUT_S,
    Command,
    Progress,
    Ran,
    command_line,
)
from ndakit.node.ssh_options import CONNECT_TIMEOUT_S, Target

_OPEN_S = CONNECT_TIMEOUT_S + 30.0
"""For the connection, the keys' exchange on a slow box, and the login."""
_GRACE_S = 5.0
"""Beyond a command's own time, for ssh."""
_END_S = 15.0
_STDERR_MAX_BYTES = 1 << 20
_POLL_S = 0.02

# Tells on stderr when the command begins and what it came to: 255 is also ssh's own exit code, and a connection that
# ends leaves none. The command gets its mark as a variable of its environment, by which all that it started is found.
_WRAPPED = """printf '%s<' "$0" >&2
NDAKIT_RUN=$0 sh -c "$1"
printf '\\n%s>%s\\n' "$0" $? >&2"""

# BusyBox has no pkill, and its grep stops at a NUL byte; the shell drops those. Twice, for what was just being started.
_KILL = """for n in 1 2; do for e in /proc/[0-9]*/environ; do
case $(cat "$e" 2>/dev/null) in *"NDAKIT_RUN=$1"*) e=${e#/proc/}; kill -9 "${e%/*}";; esac
done; done 2>/dev/null
exit 0"""


class Ssh:
    """root's shell on a balancer over SSH (`shell.Shell`). A context manager that connects and logs in.

    Open, use and close it in one thread: the connection ends with the thread that opened it (process.spawn).
    """

    def __init__(self, target: Target, pins: Pins, keys: Keys) -> None:
        self.target = target
        self.pins = pins
        self.keys = keys
        self._stack = contextlib.ExitStack()
        self._socket: Path | None = None
        self._log: Path | None = None
        self._master: process.Child | None = None

    @property
    def name(self) -> str:
        """The node, in words for errors."""
        return self.target.name

    # -- life ----------------------------------------------------------------------------------------------------------

    def open(self) -> Self:
        """Connect and log in. Raises HostKeyUnknown, HostKeyChanged, KeyNotAccepted, NodeSilent, NodeRefused,
        AddressUnknown, JumpHostFailed, OldAlgorithmsOnly, SshFailed, PinsUnreadable, ToolMissing."""
        known = self.pins.read()
        if not known:
            key = host_key(self.target)
            raise HostKeyUnknown(self.target.where, key.kind, key.fingerprint, self.target.command)
        try:
            folder = self._stack.enter_context(locks.scratch_folder(workspace.runtime(), "ssh"))
            self._socket, self._log = folder / "s", folder / "log"
            self._start(self._log)
        except BaseException:
            self.close()
            raise
        return self

    def _start(self, log: Path) -> None:
        """Start the master, and wait until it is logged in or has failed."""
        argv = [
            *ssh_options.options(self.target, self.pins.path), *ssh_options.identity(self.keys),
            "-v", "-N", "-o", "ControlMaster=yes", "-o", f"ControlPath={self._socket}", "-o", "ControlPersist=no",
            *ssh_options.destination(self.target),
        ]  # fmt: skip
        env = {"SSH_AUTH_SOCK": self.keys.agent} if self.keys.agent else {}
        process.require("ssh", package="openssh-client", reason="to log in to balancers")
        self._master = master = process.spawn(argv, log=log, env=env)
        self._stack.callback(master.stop)
        end_s = time.monotonic() + _OPEN_S
        while master.running and not self._answers():
            process.go_on()
            if time.monotonic() > end_s:
                break
            time.sleep(_POLL_S)
        if not master.running or time.monotonic() > end_s:
            master.stop()
            raise self._failure(log.read_text(errors="replace"))

    def _answers(self) -> bool:
        """True once the master has logged in: only then its socket is there."""
        return self._socket is not None and self._socket.exists()

    def _failure(self, log: str) -> Exception:
        if ssh_options.host_key_refused(log):
            with contextlib.suppress(HostKeyUnknown):
                key = host_key(self.target)
                expected = self.pins.read()
                if key not in expected:
                    return HostKeyChanged(
                        self.target.where, expected=[f"{k.kind} {k.fingerprint}" for k in expected], kind=key.kind,
                        fingerprint=key.fingerprint, pins=str(self.pins.path), command=self.target.command,
                    )  # fmt: skip
        return ssh_options.explained(log, self.target, self.keys)

    def close(self) -> None:
        """End the connection; what still runs over it loses it."""
        if self._master is not None and self._master.running and self._answers():
            with contextlib.suppress(Exception):
                argv = ["ssh", "-F", "none", "-o", f"ControlPath={self._socket}", "-O", "exit", self.target.address]
                process.run(argv, timeout_s=2, check=False)
        self._master = self._socket = None
        self._stack.close()

    def __enter__(self) -> Self:
        return self if self._master is not None else self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def alive(self) -> bool:
        """True while the connection stands."""
        return self._master is not None and self._master.running

    # -- commands ------------------------------------------------------------------------------------------------------

    def run(
        self, command: Command, timeout_s: float = RUN_TIMEOUT_S, *, output_max_bytes: int = OUTPUT_MAX_BYTES
    ) -> Ran:
        """See Shell.run. Raises CommandTimeout, ConnectionLost, OutputTooLarge."""
        collected = bytearray()

        def take(piece: bytes) -> None:
            if len(collected) + len(piece) > output_max_bytes:
                raise OutputTooLarge(self.target.where, command, output_max_bytes)
            collected.extend(piece)

        rc, stderr = self.stream(command, timeout_s=timeout_s, sink=take, said=lambda: bytes(collected))
        return Ran(rc, bytes(collected), stderr)

    def stream(
        self,
        command: Command,
        *,
        timeout_s: float,
        sink: Callable[[bytes], None],
        source: Callable[[int], bytes] | None = None,
        said: Callable[[], bytes] = lambda: b"",
        watch: Callable[[], None] = lambda: None,
    ) -> tuple[int, bytes]:
        """Run a command whose stdin is what `source` reads (at most so many bytes; None: empty), and whose output goes
        to `sink` as it comes; its exit code and stderr. `watch` is called again and again meanwhile.

        Raises CommandTimeout, ConnectionLost, OutputTooLarge (stderr: 1 MiB) and what `sink` and `watch` raise; the
        command is ended then, as it is on Ctrl-C.
        """
        line = command_line(command)
        mark = secrets.token_hex(12)
        complaints = bytearray()

        def complain(piece: bytes) -> None:
            if len(complaints) > _STDERR_MAX_BYTES:
                raise OutputTooLarge(self.target.where, command, _STDERR_MAX_BYTES)
            complaints.extend(piece)

        if not self.alive:
            raise ConnectionLost(
                self.target.where, command, begun=False, look=self.target.command, said=self._last_words()
            )
        remote = ssh_options.quoted_remote(["sh", "-c", _WRAPPED, mark, line])
        try:
            process.stream(
                self._client(remote), timeout_s=timeout_s + _GRACE_S, source=source, on_stdout=sink,
                on_stderr=complain, watch=watch,
            )  # fmt: skip
        except process.ProcessTimeout:
            done = _answer(bytes(complaints), mark)
            if done is not None:  # something that it left behind holds the connection's ends open
                return done
            ended = self._end(mark)
            output = (said() + _between(bytes(complaints), mark)).decode(errors="replace")[-2000:]
            raise CommandTimeout(self.name, command, timeout_s, self.target.where, output, ended=ended) from None
        except BaseException:
            self._end(mark)
            raise
        done = _answer(bytes(complaints), mark)
        if done is None:
            begun = f"{mark}<".encode() in complaints
            words = (
                _between(bytes(complaints), mark).decode(errors="replace")
                if begun
                else complaints.decode(errors="replace")
            )
            raise ConnectionLost(
                self.target.where,
                command,
                begun=begun,
                look=self.target.command,
                said=f"{words}\n{self._last_words()}".strip(),
            )
        return done

    def _client(self, remote: str) -> list[str]:
        """One ssh through the master. Where that is gone it must not connect by itself: nobody would know."""
        return [
            "ssh", "-F", "none", "-T", "-o", "BatchMode=yes", "-o", "LogLevel=ERROR", "-o", "ControlMaster=no",
            "-o", f"ControlPath={self._socket}", "-o", "ProxyCommand=false", "--", self.target.address, remote,
        ]  # fmt: skip

    def _end(self, mark: str) -> bool:
        """End what a command started on the box; False if that cannot be done any more."""
        remote = ssh_options.quoted_remote(["sh", "-c", _KILL, "end", mark])
        with contextlib.suppress(Exception):
            return self.alive and process.run(self._client(remote), timeout_s=_END_S, check=False).returncode == 0
        return False

    def _last_words(self) -> str:
        """What the master said when the connection ended."""
        with contextlib.suppress(OSError):
            if self._log is not None and (self._master is None or self._master.wait(1.0) is not None):
                return "\n".join(ssh_options.said(self._log.read_text(errors="replace")).splitlines()[-2:])
        return ""

    # -- files ---------------------------------------------------------------------------------------------------------

    def put(self, content: bytes, path: str, *, mode: int = 0o644, timeout_s: float = FILE_TIMEOUT_S) -> None:
        """See Shell.put."""
        self._put(io.BytesIO(content).read, len(content), files.sha256(content), path, mode, timeout_s)

    def put_file(
        self,
        source: Path,
        path: str,
        *,
        mode: int = 0o644,
        timeout_s: float = FILE_TIMEOUT_S,
        progress: Progress | None = None,
    ) -> None:
        """See Shell.put_file."""
        digest = file_sha256(source)
        size = source.stat().st_size
        with source.open("rb") as opened:
            done = 0

            def read(most: int) -> bytes:
                nonlocal done
                piece = opened.read(most)
                done += len(piece)
                if progress is not None and piece:
                    progress(done, size)
                return piece

            self._put(read, size, digest, path, mode, timeout_s)

    def _put(
        self, source: Callable[[int], bytes], size: int, digest: str, path: str, mode: int, timeout_s: float
    ) -> None:
        command = files.put_command(path, mode, digest)
        rc, stderr = self.stream(command, timeout_s=timeout_s, sink=_nothing, source=source)
        files.check_put(self, path, size, digest, Ran(rc, b"", stderr), self.target.where)

    def get(self, path: str, *, max_bytes: int = OUTPUT_MAX_BYTES, timeout_s: float = FILE_TIMEOUT_S) -> bytes:
        """See Shell.get."""
        return files.get(self, path, max_bytes, timeout_s, self.target.where)

    def get_file(
        self, path: str, target: Path, *, timeout_s: float = FILE_TIMEOUT_S, progress: Progress | None = None
    ) -> None:
        """See Shell.get_file."""
        total = files.size_bytes(self, path, self.target.where)
        digest, done = hashlib.sha256(), 0
        fd, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        try:
            with os.fdopen(fd, "wb") as opened:

                def keep(piece: bytes) -> None:
                    nonlocal done
                    opened.write(piece)
                    digest.update(piece)
                    done += len(piece)
                    if progress is not None:
                        progress(done, total)

                rc, stderr = self.stream(files.get_command(path), timeout_s=timeout_s, sink=keep)
                files.check_got(path, rc, stderr, digest.hexdigest(), self.target.where)
                opened.flush()
                os.fsync(opened.fileno())
            Path(name).replace(target)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(name).unlink()
            raise


def _nothing(piece: bytes) -> None:
    """For output that nobody wants."""


def _answer(stderr: bytes, mark: str) -> tuple[int, bytes] | None:
    """Exit code and stderr of a command; None if it did not come to its end."""
    end = re.search(rf"\n{mark}>(\d+)\n".encode(), stderr)
    return (int(end[1]), _between(stderr[: end.start()], mark)) if end else None


def _between(stderr: bytes, mark: str) -> bytes:
    """What the command itself wrote on stderr."""
    return stderr.partition(f"{mark}<".encode())[2]


# -- host keys ---------------------------------------------------------------------------------------------------------


def host_key(target: Target) -> HostKey:
    """The host key that the box shows (it has proved that it owns it, RFC 4253, 8); nobody logs in for that.

    Raises NodeSilent, NodeRefused, … and AnybodyGetsIn if the box lets one in without a key.
    """
    with locks.scratch_folder(workspace.runtime(), "ssh") as folder:
        file = folder / "known_hosts"
        argv = [
            *ssh_options.options(target, file, strict="accept-new"), "-v", "-T", "-o", "PubkeyAuthentication=no",
            "-o", "PreferredAuthentications=none", "-o", "IdentityAgent=none", *ssh_options.destination(target), "true",
        ]  # fmt: skip
        process.require("ssh", package="openssh-client", reason="to ask balancers for their host keys")
        asked = process.run(argv, timeout_s=_OPEN_S, check=False)
        try:
            keys = parse(file.read_text(), file, target.alias)
        except FileNotFoundError:
            keys = ()
        if not keys:
            raise ssh_options.explained(asked.stderr, target, None)
        if asked.returncode == 0:
            raise AnybodyGetsIn(target.where)
        return keys[0]


def accept(target: Target, pins: Pins, fingerprint: str) -> HostKey:
    """Pin the host key with this fingerprint, if the box shows it now; the key.

    What was pinned before is replaced. Raises FingerprintMalformed, HostKeyNotTheOne and what `host_key` raises.
    """
    wanted = checked_fingerprint(fingerprint)
    key = host_key(target)
    if key.fingerprint != wanted:
        raise HostKeyNotTheOne(target.where, accepted=wanted, kind=key.kind, fingerprint=key.fingerprint)
    pins.write([key])
    return key


def session_argv(target: Target, pins: Pins, keys: Keys) -> list[str]:
    """The command line of a session for a person: the same options, a terminal, ssh's escape character."""
    words = ssh_options.options(target, pins.path)
    words[words.index("EscapeChar=none")] = "EscapeChar=~"
    return [*words, *ssh_options.identity(keys), *ssh_options.destination(target)]
