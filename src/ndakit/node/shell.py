"""What can be done with a shell on a balancer, whatever carries it: run a command, put a file, get a file.

`Shell` is the protocol. The serial console of a lab's machine serves it (`console`), and so does SSH (`node/ssh`). Who
asks a balancer something, or changes something there, is written against this protocol alone.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from testinfra.backend.base import BaseBackend, CommandResult
from testinfra.host import Host as TestinfraHost

Command = str | Sequence[str]
"""A line for the shell as it is, or the words of one command, which are quoted."""

Progress = Callable[[int, int | None], None]
"""Gets the bytes that are done, and how many there are (None: unknown)."""

RUN_TIMEOUT_S = 30.0
FILE_TIMEOUT_S = 600.0
OUTPUT_MAX_BYTES = 16 << 20
"""More than that of a command's output is an error, unless the caller sets another limit."""


@dataclass(frozen=True)
class Ran:
    """What a command came to: its exit code, and what it wrote, byte for byte."""

    rc: int
    stdout_bytes: bytes
    stderr_bytes: bytes

    @property
    def stdout(self) -> str:
        """Its output as text."""
        return self.stdout_bytes.decode(errors="replace")

    @property
    def stderr(self) -> str:
        """Its complaints as text."""
        return self.stderr_bytes.decode(errors="replace")


class Shell(Protocol):
    """root's shell on one balancer."""

    @property
    def name(self) -> str:
        """The node, in words for errors."""
        ...

    def run(
        self, command: Command, timeout_s: float = RUN_TIMEOUT_S, *, output_max_bytes: int = OUTPUT_MAX_BYTES
    ) -> Ran:
        """Run a command with an empty stdin. An exit code other than 0 is no error here.

        After `timeout_s` it is ended on the balancer, with what it started. Raises CommandTimeout, OutputTooLarge, and
        what tells that the shell itself is lost (SSH: ConnectionLost; console: ConsoleSilent, ConsoleClosed, …).
        """
        ...

    def put(self, content: bytes, path: str, *, mode: int = 0o644, timeout_s: float = FILE_TIMEOUT_S) -> None:
        """Write a file: readers there see the old one or the new one, never half of it.

        It is compared by its SHA-256 before it takes the old one's place. A link at `path` is replaced by the file.
        Raises RemoteDiskFull, ChecksumMismatch, RemoteFileFailed, and what `run` raises.
        """
        ...

    def get(self, path: str, *, max_bytes: int = OUTPUT_MAX_BYTES, timeout_s: float = FILE_TIMEOUT_S) -> bytes:
        """The content of a file. Raises RemoteFileFailed, OutputTooLarge, ChecksumMismatch, and what `run` raises."""
        ...

    def put_file(
        self,
        source: Path,
        path: str,
        *,
        mode: int = 0o644,
        timeout_s: float = FILE_TIMEOUT_S,
        progress: Progress | None = None,
    ) -> None:
        """The same as `put` for a file that need not fit into memory here."""
        ...

    def get_file(
        self, path: str, target: Path, *, timeout_s: float = FILE_TIMEOUT_S, progress: Progress | None = None
    ) -> None:
        """The same as `get` into a file here (mode 0600), which is there whole or not at all. Raises OSError too."""
        ...


def command_line(command: Command) -> str:
    """One line for a POSIX shell. Raises ValueError for a NUL, which no command can hold."""
    line = command if isinstance(command, str) else shlex.join(command)
    if "\0" in line:
        raise ValueError("a shell command cannot hold a NUL byte")
    return line


def short(command: Command) -> str:
    """A command in one line of bearable length."""
    line = " ".join(command_line(command).split())
    return line if len(line) <= 100 else line[:97] + "…"


# -- testinfra ---------------------------------------------------------------------------------------------------------


class ShellBackend(BaseBackend):  # type: ignore[misc]  # testinfra ships no types
    """pytest-testinfra over any shell."""

    NAME = "ndakit"

    def __init__(self, shell: Shell, *, timeout_s: float = RUN_TIMEOUT_S) -> None:
        super().__init__(shell.name)
        self.shell = shell
        self.timeout_s = timeout_s

    def run(self, command: str, *args: str, **kwargs: Any) -> CommandResult:
        """Run a command with its arguments quoted into it; `timeout_s` may be given by name."""
        line = self.get_command(command, *args)
        ran = self.shell.run(line, float(kwargs.get("timeout_s", self.timeout_s)))
        return self.result(ran.rc, line.encode(errors="surrogateescape"), ran.stdout_bytes, ran.stderr_bytes)

    def get_encoding(self) -> str:
        """UTF-8: OpenWrt has no locales, and asking a balancer's Python would be in vain."""
        return "utf-8"

    def decode(self, data: bytes) -> str:
        """As UTF-8; a byte that is none becomes a replacement character."""
        return data.decode(errors="replace")


def host_over(shell: Shell) -> TestinfraHost:
    """testinfra's host over a shell."""
    return TestinfraHost(ShellBackend(shell))
