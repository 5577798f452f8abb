"""Virtual machines: start, watch, freeze, unplug and end QEMU, so that nothing of it outlives us.

Owns one QEMU process per `Vm` and the files it uses while it runs. What a machine is made of stands in `spec`, its
disks in `disks`, its console in `console`, the monitor in `qmp`, the wires between machines in `switch`.
"""

from __future__ import annotations

import contextlib
import shlex
import socket
import threading
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from ndakit.core import locks, process, workspace
from ndakit.core.deadline import Deadline
from ndakit.core.errors import VerifyError
from ndakit.machine import accelerator as accelerators
from ndakit.machine import disks
from ndakit.machine.accelerator import PROGRAMS, Accelerator
from ndakit.machine.console import Console
from ndakit.machine.qmp import BACKGROUND, Monitor, MonitorLost, VmEvent
from ndakit.machine.spec import Runtime, VmSpec, qemu_argv

_START_S = 60.0
_QUIT_S = 3.0
_STATE_S = 30.0
"""For writing or reading a state of some 100 MiB."""


class VmNotStarted(VerifyError):
    """QEMU ended, or did not answer, before the machine existed."""

    def __init__(self, name: str, returncode: int | None, command: str, log: Path, said: str) -> None:
        ended = f"QEMU {process.ending(returncode)}" if returncode is not None else "QEMU did not answer"
        lines = "".join(f"\n         | {line}" for line in said.splitlines())
        super().__init__(
            f"the machine {name} did not start: {ended}{lines}",
            where=f"command: {command} (log: {log})",
            fix="QEMU's own words are above: free memory if it lacks some, end whoever locks a disk, or report them",
        )


class VmNotRunning(VerifyError):
    """Something was asked of a machine that is switched off."""

    def __init__(self, name: str, doing: str, log: Path) -> None:
        super().__init__(
            f"the machine {name} is not running, {doing} is not possible",
            where=f"QEMU log: {log}",
            fix="switch it on again (power_on), or look in the log why it ended",
        )


class Vm:
    """One machine. Made and started by `launch`; a context manager that ends it."""

    def __init__(
        self,
        spec: VmSpec,
        run_dir: Path,
        accelerator: Accelerator,
        *,
        program: str | None = None,
        cache: Path | None = None,
        state: Path | None = None,
    ) -> None:
        self.spec = spec
        self.run_dir = run_dir.absolute()
        self.accelerator = accelerators.suited(accelerator, spec.architecture)
        self.console_log = self.run_dir / f"{spec.name}.console.log"
        self.qemu_log = self.run_dir / f"{spec.name}.qemu.log"
        self.firmware_log = self.run_dir / f"{spec.name}.firmware.log"
        self.console = Console(spec.name, log=self.console_log, facts=self.facts)
        self._program = program or PROGRAMS[spec.architecture]
        self._cache = cache
        self._state = state
        self.resumed = False
        """Whether it went on from a state, instead of booting."""
        self._monitor = Monitor(spec.name)
        self._child: process.Child | None = None
        self._lock = threading.RLock()
        self._kept = contextlib.ExitStack()
        self._runtime: Runtime | None = None
        self._agent: Path | None = None

    # -- life ----------------------------------------------------------------------------------------------------------

    def open(self) -> Self:
        """Make the machine's files and switch it on. See `launch`."""
        with self._lock:
            try:
                self._prepare()
                self.power_on()
            except BaseException:
                self.close()
                raise
        return self

    def close(self) -> None:
        """End the machine at once and remove its throw-away files; its logs stay."""
        with self._lock:
            self.power_off()
            self._kept.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def power_on(self) -> None:
        """Switch the machine on (after `power_off` or its own shutdown: again, with the disks as they were left).

        Raises VmNotStarted, ToolMissing. The console has to be activated anew. From a state it goes on only the first
        time; one that QEMU does not take is removed, and the machine boots.
        """
        with self._lock:
            if self.alive or self._runtime is None:
                return
            state, self._state = self._state, None
            self.resumed = False
            if state is not None and state.is_file():
                with contextlib.suppress(VmNotStarted):
                    self._start(incoming=True)
                    self.resumed = self._resume(state)
                if not self.resumed:
                    state.unlink(missing_ok=True)
            if not self.resumed:
                self._start(incoming=False)
            self._tell_carrier(True)

    def _start(self, *, incoming: bool) -> None:
        """Start QEMU; `incoming`: it waits for a state."""
        with self._lock:
            runtime = self._runtime
            assert runtime is not None, "power_on looks"
            self._end_process()
            ours_qmp, theirs_qmp = socket.socketpair()
            ours_console, theirs_console = socket.socketpair()
            with theirs_qmp, theirs_console:
                fds = (theirs_qmp.fileno(), theirs_console.fileno())
                runtime = replace(runtime, qmp_fd=fds[0], console_fd=fds[1], incoming=incoming)
                argv = qemu_argv(self.spec, self.accelerator, runtime)
                self.qemu_log.unlink(missing_ok=True)
                try:
                    BACKGROUND.call(lambda: self._spawn(argv, fds))
                except BaseException:
                    ours_qmp.close()
                    ours_console.close()
                    raise
            self.console.attach(ours_console)
            try:
                self._monitor.open(ours_qmp, _START_S)
            except MonitorLost as cause:
                ours_qmp.close()
                child = self._child
                returncode = None if child is None else child.wait(1.0)
                self._end_process()
                said = "" if child is None else child.log_tail()
                raise VmNotStarted(self.spec.name, returncode, shlex.join(argv), self.qemu_log, said) from cause

    def _resume(self, state: Path) -> bool:
        """Go on from a state; False if QEMU does not take it (then it may have ended)."""
        try:
            self._execute("migrate-incoming", {"uri": f"exec:cat {shlex.quote(str(state))}"})
            deadline = Deadline(_STATE_S, f"the state of {self.spec.name}", where=str(self.qemu_log))
            deadline.wait_until(lambda: self.status() != "inmigrate", every_s=0.02)
            self._execute("cont")
        except VerifyError:
            return False
        return self.status() == "running"

    def save_state(self, path: Path) -> bool:
        """Write the machine's state into a file, from which one with the same spec can go on; False, and no file, if
        that does not work. It stands still meanwhile. Its disks are no part of the state: they must not be written."""
        self.freeze()
        try:
            self._execute("migrate-set-parameters", {"max-bandwidth": 1 << 40})
            self._execute("migrate", {"uri": f"exec:cat >{shlex.quote(str(path))}"})
            deadline = Deadline(_STATE_S, f"the state of {self.spec.name}", where=str(self.qemu_log))
            deadline.wait_until(lambda: self._moved() not in ("setup", "active", "device", "none"), every_s=0.02)
            saved = self._moved() == "completed"
        except VerifyError:
            saved = False
        finally:
            self.thaw()
        if not saved:
            path.unlink(missing_ok=True)
        return saved

    def _moved(self) -> str:
        return str(self._execute("query-migrate").get("status", "none"))

    def power_off(self) -> None:
        """Pull the plug: QEMU quits, nothing is written back, no goodbye is sent."""
        with self._lock:
            if self.alive:
                with contextlib.suppress(VerifyError):
                    self._monitor.execute("quit", timeout_s=_QUIT_S)
                if self._child is not None:
                    self._child.wait(_QUIT_S)
            self._end_process()
            self._tell_carrier(False)

    def powerdown(self) -> None:
        """Press the power button (ACPI): the guest shuts itself down; see `wait_gone`."""
        self._execute("system_powerdown")

    def reset(self) -> None:
        """Press the reset button. The console has to be activated anew."""
        self._execute("system_reset")
        self.console.forget()

    def freeze(self) -> None:
        """Stop the CPU: the machine hangs, its cables stay plugged in."""
        self._execute("stop")

    def thaw(self) -> None:
        """Let the CPU go on."""
        self._execute("cont")

    def set_link(self, nic: str, up: bool) -> None:
        """Unplug (False) or plug in (True) a network card's cable: the guest sees its carrier go or come, the switch
        as well."""
        self._execute("set_link", {"name": nic, "up": up})
        self._tell_carrier(up, nic)

    def _tell_carrier(self, up: bool, only: str = "") -> None:
        for nic in self.spec.nics:
            if nic.segment_port is not None and only in ("", nic.name):
                nic.segment_port.carrier(up)

    def wait_gone(self, timeout_s: float) -> bool:
        """Wait until the guest has switched itself off; False if it still runs after `timeout_s`."""
        child = self._child
        return child is None or child.wait(timeout_s) is not None

    # -- facts ---------------------------------------------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        """True while QEMU runs (frozen or not)."""
        return self._child is not None and self._child.running

    @property
    def pid(self) -> int:
        """QEMU's process id. Raises VmNotRunning."""
        child = self._child
        if child is None:
            raise VmNotRunning(self.spec.name, "asking for its process", self.qemu_log)
        return child.pid

    @property
    def agent_path(self) -> Path:
        """The unix stream socket of the agent's port (see VmSpec.agent_serial); the same after a restart."""
        if self._agent is None:
            raise ValueError(f"{self.spec.name} was made without agent_serial")
        return self._agent

    @property
    def events(self) -> tuple[VmEvent, ...]:
        """What QEMU told so far."""
        return self._monitor.events

    def wait_event(self, name: str, deadline: Deadline, *, after_s: float = 0.0) -> VmEvent:
        """Wait for an event of QEMU (QMP name) later than `after_s` (monotonic clock). Raises DeadlineExceeded."""
        event = self._monitor.wait_event(name, deadline.remaining_s, after_s=after_s)
        if event is None:
            deadline.check(f"QEMU log: {self.qemu_log}")
            raise AssertionError("a deadline that is over raises")
        return event

    def status(self) -> str:
        """QEMU's run state: running, paused, internal-error, …; `off` when it does not run."""
        if not self.alive:
            return "off"
        try:
            return str(self._execute("query-status")["status"])
        except VerifyError:
            return "off"

    def facts(self) -> str:
        """The machine's state in words, for error texts."""
        child, state = self._child, self.status()
        if child is None:
            return "switched off"
        if state == "off":
            code = child.wait(2.0)  # its sockets close a moment before it has ended
            if code is not None:
                said = child.log_tail(1).strip() or "it said nothing"
                return "switched off" if code == 0 else f"QEMU {process.ending(code)}: {said}"
        words = [f"QEMU {state}, {self.accelerator.name}"]
        if state == "internal-error" and self.accelerator.name == "kvm":
            accelerators.distrust_kvm(f"{self.spec.name} stopped with an internal error of KVM", program=self._program)
            words.append("KVM failed; TCG will be used from now on: run it again")
        with contextlib.suppress(OSError):
            if "No bootable device" in self.firmware_log.read_text(errors="replace"):
                words.append("the firmware found nothing to boot from")
        return ", ".join(words)

    # -- inside --------------------------------------------------------------------------------------------------------

    def _execute(self, command: str, arguments: dict[str, object] | None = None) -> dict[str, object]:
        if not self.alive:
            raise VmNotRunning(self.spec.name, command, self.qemu_log)
        answer = self._monitor.execute(command, arguments)
        return answer if isinstance(answer, dict) else {}

    def _prepare(self) -> None:
        """Disks, firmware, sockets: everything but the process."""
        spec, name = self.spec, self.spec.name
        qemu = accelerators.find_qemu(self._program)
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self._kept.enter_context(locks.hold(self.run_dir / f"{name}.lock", wait_s=0))
        for log in (self.console_log, self.firmware_log):
            log.write_bytes(b"")
        files = []
        for n, disk in enumerate(spec.disks):
            file = disks.prepare(disk, self.run_dir, f"{name}-disk{n}", cache=self._cache)
            files.append(file)
            if file.throw_away:
                self._kept.callback(file.path.unlink, missing_ok=True)
        efi = disks.efi(self.run_dir, name, spec.architecture) if spec.firmware == "efi" else None
        if efi is not None:
            self._kept.callback(efi.variables.unlink, missing_ok=True)
        if spec.agent_serial:
            sockets = self._kept.enter_context(locks.scratch_folder(workspace.runtime(), "vm"))
            self._agent = sockets / "agent"
        self._runtime = Runtime(
            qemu=qemu.path,
            disks=tuple(files),
            qmp_fd=-1,
            console_fd=-1,
            firmware_log=self.firmware_log,
            agent_path=self._agent,
            efi=efi,
        )

    def _spawn(self, argv: list[str], fds: tuple[int, int]) -> None:
        """On the background thread: what is started is known at once, whatever interrupts the caller."""
        self._child = process.spawn(argv, log=self.qemu_log, cwd=self.run_dir, pass_fds=fds)

    def _end_process(self) -> None:
        """Make sure that the process is gone, and let go of what was tied to it."""
        child = self._child
        if child is not None and child.running:
            child.stop()
        self._monitor.close()
        self.console.close()


def launch(
    spec: VmSpec,
    run_dir: Path,
    accelerator: Accelerator,
    *,
    program: str | None = None,
    cache: Path | None = None,
    state: Path | None = None,
) -> Vm:
    """Start a machine; logs and throw-away disks go to `run_dir`, which may be shared by machines of other names.

    Use it as `with launch(…) as vm:`. QEMU ends with the context, and with this process, however that ends. `program`
    is QEMU's name or path (default: that of the architecture), `cache` where unpacked images are kept, `state` what
    `save_state` wrote for the same spec: if it is there, the machine goes on from it instead of booting. Raises
    ToolMissing, QemuTooOld, VmNotStarted, ImageMissing, ImageDamaged, EfiMissing, WorkspaceBusy (a machine of that
    name runs from `run_dir` already).
    """
    return Vm(spec, run_dir, accelerator, program=program, cache=cache, state=state).open()
