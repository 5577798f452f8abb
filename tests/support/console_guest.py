"""A guest for the serial console: a shell script on a pseudo terminal."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import socket
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

from ndakit.machine.console import Console

ASK = "\n\nPlease press Enter to activate this console.\n"


Meddle = Callable[[bytes], bytes]


class Guest:
    """A shell script on a pseudo terminal; what it writes passes through `meddle` on its way to the console."""

    def __init__(self, script: str, tmp_path: Path, *, path: str = os.environ["PATH"]) -> None:
        self.meddle: Meddle = lambda data: data
        self.ended = False
        self.log = tmp_path / "guest.console.log"
        self.log.touch()
        master, slave = pty.openpty()
        self.child = subprocess.Popen(
            ["/bin/sh", "-c", script],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env={"PATH": path, "HOME": str(tmp_path), "TERM": "dumb"},
            preexec_fn=self._take_terminal,
        )
        os.close(slave)
        self.master = master
        ours, theirs = socket.socketpair()
        self.wire = theirs
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._out, self._in)]
        for thread in self._threads:
            thread.start()
        self.console = Console("guest", log=self.log, facts=lambda: "the facts")
        self.console.attach(ours)

    @staticmethod
    def _take_terminal() -> None:
        import fcntl
        import termios

        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    def _out(self) -> None:
        with contextlib.suppress(OSError):
            while not self.ended:
                if select.select([self.master], [], [], 0.05)[0]:
                    self.wire.sendall(self.meddle(os.read(self.master, 700)))
        with contextlib.suppress(OSError):
            self.wire.shutdown(socket.SHUT_RDWR)

    def _in(self) -> None:
        with contextlib.suppress(OSError):
            while data := self.wire.recv(256):
                os.write(self.master, data)

    def close(self) -> None:
        self.console.close()
        self.signal(signal.SIGKILL)
        self.child.wait()
        self.ended = True
        with contextlib.suppress(OSError):
            self.wire.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()  # before its descriptors are closed, whose numbers others would get
        self.wire.close()
        os.close(self.master)

    def signal(self, number: int) -> None:
        """To every process of the guest: jobs of a shell have process groups of their own, the session is one."""
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                if int(stat.read_text().rpartition(")")[2].split()[3]) == self.child.pid:
                    os.kill(int(stat.parent.name), number)
