"""The serial console of an OpenWrt-like guest, used as an admin uses it: wait, press Enter, run commands.

Owns finding the root shell on a console, and carrying commands; nothing is assumed about the guest but BusyBox ash. The
stream itself is in `console_stream`, how commands survive the wire in `console_protocol`.
"""

from __future__ import annotations

import io
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from ndakit.core.deadline import Deadline
from ndakit.core.files import write_atomic
from ndakit.machine.console_errors import (
    ConsoleLocked,
    ConsoleNotActive,
    ConsoleSilent,
    GuestPanicked,
    GuestRestarted,
    OutputDamaged,
)
from ndakit.machine.console_protocol import ConsoleAnswer, Damaged, Session, place_with_noise, without_noise
from ndakit.machine.console_stream import ConsoleStream
from ndakit.node import files
from ndakit.node.errors import CommandTimeout, OutputTooLarge
from ndakit.node.shell import (
    FILE_TIMEOUT_S,
    OUTPUT_MAX_BYTES,
    RUN_TIMEOUT_S,
    Command,
    Progress,
    Ran,
    command_line,
    short,
)

_ASK_FIRST = "Please press Enter to activate this console"  # procd, utils/askfirst.c
_READY = re.compile(rb"Please press Enter to activate this console|login: *$|[#$] $")
_PROMPT = re.compile(rb"[#$] $")
_PASSWORD = re.compile(rb"Password: *$", re.I)
_PANIC = b"Kernel panic - not syncing"
_NUDGE_S = 8.0  # a console silent for so long is asked with Enter whether a shell is there already
_STEP_S = 4.0
_GRACE_S = 20.0  # beyond a command's own time, before the guest is taken for dead: a busy TCG guest is slow
_QUIET_S = 1.0
_AGAIN_S = 3.0  # an answer whose marks were broken is asked for again after so long, then ever more seldom
_NEVER_SILENT_S = 2.0  # where something writes all the time, asking again waits no longer for silence
_RESENDS = 6


class Console(ConsoleStream):
    """The console of one guest, whose root shell runs commands: a node's `Shell`."""

    def __init__(self, name: str, *, log: Path, facts: Callable[[], str] = lambda: "") -> None:
        super().__init__(name, log=log, facts=facts)
        self._session: Session | None = None
        self._command_lock = threading.RLock()

    def attach(self, wire: socket.socket) -> None:
        """Take a connected stream; after a restart of the machine, its new one. The console owns and closes it."""
        self.close()
        self._session = None
        super().attach(wire)

    @property
    def active(self) -> bool:
        """True once `activate` has opened the shell, until the machine is started anew."""
        return self._session is not None and not self._closed

    def wait_for(self, wanted: str | re.Pattern[str], deadline: Deadline) -> re.Match[str]:
        """Wait until a text or pattern is shown, after what the last call found; lines of the kernel do not break it.

        Raises ConsoleSilent, ConsoleClosed, GuestPanicked.
        """
        pattern = re.compile(re.escape(wanted)) if isinstance(wanted, str) else wanted
        with self._changed:
            start = max(self._position, self._base)
        while True:
            end, data, closed = self._since(start)
            for noisy, candidate in ((True, data), (False, without_noise(data))):
                text = candidate.decode(errors="surrogateescape")
                match = pattern.search(text)
                if match is not None:
                    place = len(text[: match.end()].encode(errors="surrogateescape"))
                    self._position = start + (place if noisy else place_with_noise(data, place))
                    return match
            self._check_panic(start)
            if closed:
                raise self._ended()
            self._wait_for_more(end, deadline, deadline.what)

    def activate(self, deadline: Deadline) -> None:
        """Wait until the guest has booted, press Enter, and open the root shell there.

        A shell that is open already is found as well. Raises ConsoleSilent, ConsoleClosed, ConsoleLocked and
        GuestPanicked.
        """
        with self._command_lock:
            if self.active:
                return
            self._find_shell(deadline)
            session = Session(secrets.token_hex(5))
            while not self._set_up(session, deadline):
                session = Session(secrets.token_hex(5))
            self._session = session

    def run(
        self, command: Command, timeout_s: float = RUN_TIMEOUT_S, *, output_max_bytes: int = OUTPUT_MAX_BYTES
    ) -> Ran:
        """Run a command in the guest (Shell.run); its exit code, stdout and stderr, byte for byte.

        Its stdin is empty, its folder that of a login, variables do not last. After `timeout_s` (guest's clock, whole
        seconds) it is killed with what it started. Raises CommandTimeout, OutputTooLarge, ConsoleSilent, ConsoleClosed,
        ConsoleNotActive, GuestRestarted, GuestPanicked, OutputDamaged, and ValueError for a NUL in the command.
        """
        line = command_line(command)
        with self._command_lock:
            session = self._session
            if session is None:
                raise ConsoleNotActive(self.name, self.log)
            for _ in range(3):
                answer = self._attempt(session, line, timeout_s)
                if answer is None:
                    continue  # the terminal lost characters on the way there
                if answer.rc is None:
                    output = (answer.stdout + answer.stderr).decode(errors="replace")
                    raise CommandTimeout(self.name, command, timeout_s, self._where, output[-2000:])
                if len(answer.stdout) > output_max_bytes:
                    raise OutputTooLarge(self._where, command, output_max_bytes)
                return Ran(answer.rc, answer.stdout, answer.stderr)
            raise OutputDamaged(self.name, line, self.log)

    @property
    def _where(self) -> str:
        return f"console log: {self.log}"

    def get(self, path: str, *, max_bytes: int = OUTPUT_MAX_BYTES, timeout_s: float = FILE_TIMEOUT_S) -> bytes:
        """See Shell.get."""
        return files.get(self, path, max_bytes, timeout_s, self._where)

    def put(self, content: bytes, path: str, *, mode: int = 0o644, timeout_s: float = FILE_TIMEOUT_S) -> None:
        """See Shell.put. A console carries some KiB in a second."""
        files.put_in_parts(self, io.BytesIO(content), path, mode, timeout_s, self._where)

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
        with source.open("rb") as opened:
            files.put_in_parts(self, opened, path, mode, timeout_s, self._where, progress)

    def get_file(
        self, path: str, target: Path, *, timeout_s: float = FILE_TIMEOUT_S, progress: Progress | None = None
    ) -> None:
        """See Shell.get_file; the file passes through memory here, so that it is one of at most 16 MiB."""
        content = self.get(path, timeout_s=timeout_s)
        write_atomic(target, content, mode=0o600)
        if progress is not None:
            progress(len(content), len(content))

    def release(self) -> None:
        """Leave the shell as a person would find it: at its prompt. `activate` opens it for commands again."""
        with self._command_lock:
            if self._session is not None:
                self._session = None
                self.send(b"x\n")

    def forget(self) -> None:
        """The guest is about to start anew: its shell is no more; what is shown from now on counts."""
        with self._command_lock, self._changed:
            self._session = None
            self._position = self._end

    # -- opening the shell ---------------------------------------------------------------------------------------------

    def _find_shell(self, deadline: Deadline) -> None:
        """Wait for the sign of a shell, or of one to be had for an Enter."""
        with self._changed:
            start = max(self._position, self._base)
        nudged_s = time.monotonic()
        while True:
            end, data, closed = self._since(start)
            prompt = _READY.search(without_noise(data)[-4096:])
            if prompt is not None:
                self._position = end
                if prompt[0].startswith(b"login"):
                    self.send(b"root\n")
                    self._check_password(deadline)
                else:
                    self.send(b"\n")
                return
            self._check_panic(start)
            if closed:
                raise self._ended()
            if time.monotonic() - max(nudged_s, self._last_byte_s) > _NUDGE_S:
                nudged_s = time.monotonic()
                self.send(b"\n")
            self._wait_for_more(end, deadline, f"'{_ASK_FIRST}' or a shell's prompt")

    def _check_password(self, deadline: Deadline) -> None:
        """After the user's name: a shell, or the question for a password."""
        start, limit_s = self._end, time.monotonic() + min(_STEP_S, deadline.remaining_s)
        while time.monotonic() < limit_s:
            end, data, _ = self._since(start)
            if _PASSWORD.search(without_noise(data)):
                raise ConsoleLocked(self.name, self.log)
            if _PROMPT.search(without_noise(data)):
                return
            self._wait(end, 0.2)

    def _set_up(self, session: Session, deadline: Deadline) -> bool:
        """Bring the command loop into the shell; False if it has to be tried again from the start."""
        for line, answer in session.setup():
            begun, start = time.monotonic(), self._end
            self.send(line.encode() + b"\n")
            while True:
                end, data, closed = self._since(start)
                if session.started(data) or (answer[0] == "=" and answer.encode() in without_noise(data)):
                    break
                self._check_panic(start)
                if closed:
                    raise self._ended()
                if time.monotonic() - begun > _STEP_S:
                    self.send(b"\x03\n")
                    return False
                self._wait_for_more(end, deadline, "an answer of the root shell")
        return True

    # -- commands ------------------------------------------------------------------------------------------------------

    def _attempt(self, session: Session, command: str, timeout_s: float) -> ConsoleAnswer | None:
        """Send a command and wait for its answer; None if it did not arrive whole."""
        number, start = session.next_number(), self._end
        for line, ack in session.lines(command, number, timeout_s):
            self.send(line.encode() + b"\n")
            limit_s = time.monotonic() + _GRACE_S
            while ack:
                end, data, _ = self._since(start)
                if ack in without_noise(data):
                    break
                self._check_state(session, start, limit_s, command, timeout_s=_GRACE_S)
                self._wait(end, 0.2)
        begun_s = time.monotonic()
        limit_s, again_s = begun_s + timeout_s + _GRACE_S, begun_s + _AGAIN_S
        mark, seen, resends, asked = session.end_mark(number), start, 0, start
        wanted_s: float | None = None  # since when the answer has to be asked for again
        while True:
            end, data, _ = self._since(asked)
            damaged, now_s = False, time.monotonic()
            if now_s - self._last_byte_s > _QUIET_S or mark in data[max(0, seen - asked - 64) :] or now_s > again_s:
                try:
                    answer = session.answer(data, number)
                except Damaged:
                    answer, damaged = None, True
                if answer is not None:
                    return answer
                if session.lost(data, number):
                    return None
                seen = end
            if not damaged and not (now_s > again_s and session.stirred(data)):
                wanted_s = None
            elif wanted_s is None:
                wanted_s = now_s
            # Into silence if it comes: the echo of what is sent would break an answer that is on its way.
            silent = now_s - self._last_byte_s > _QUIET_S
            if wanted_s is not None and (silent or now_s - wanted_s > _NEVER_SILENT_S):
                wanted_s = None
                if resends == _RESENDS:
                    raise OutputDamaged(self.name, command, self.log)
                resends += 1
                asked = end if damaged else asked
                again_s = now_s + _AGAIN_S * 2**resends
                self.send(b"?\n" if resends == 1 else b"#\n")
            self._check_state(session, start, limit_s, command, timeout_s=timeout_s + _GRACE_S)
            self._wait(end, 0.2)

    def _check_state(self, session: Session, start: int, limit_s: float, command: str, *, timeout_s: float) -> None:
        """Raise when no answer can come any more."""
        _, data, closed = self._since(start)
        self._check_panic(start)
        if closed:
            raise self._ended()
        asks = data.rfind(_ASK_FIRST.encode())
        # Behind the last line that the loop wrote, and not inside an answer that is still coming (a file may say it).
        if asks > data.rfind(b"\n@") and (time.monotonic() > limit_s or not session.answering(data)):
            self._session = None
            raise GuestRestarted(self.name, self.log)
        if time.monotonic() > limit_s:
            self._session = None
            wanted = f"the answer to '{short(command)}'"
            raise ConsoleSilent(self.name, timeout_s, wanted, self.log, self.tail(), self._facts())

    def _check_panic(self, start: int) -> None:
        """Raise GuestPanicked if the kernel gave up since `start`."""
        _, data, _ = self._since(start)
        at = data.find(_PANIC)
        if at >= 0 and b"\n" in data[at:]:
            self._position = start + at + len(_PANIC)
            self._session = None
            message = data[at + len(_PANIC) :].splitlines()[0].decode(errors="replace").strip(" :")
            raise GuestPanicked(self.name, message, self.log)
