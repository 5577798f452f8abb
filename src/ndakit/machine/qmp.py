"""QEMU's monitor, for synchronous callers: qemu.qmp's QMPClient on one background thread of this process.

Owns that thread (an asyncio loop that lives as long as the process), the connection to one QEMU, and the record of its
events. The thread also starts the QEMU processes, for their parent-death signal is tied to the thread that starts them.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from qemu.qmp import EventListener, ExecInterruptedError, ExecuteError, QMPClient, QMPError

from ndakit.core.errors import VerifyError

_Result = TypeVar("_Result")

# The library logs what it also raises; without a handler Python would print that to the terminal.
logging.getLogger("qemu.qmp").addHandler(logging.NullHandler())


class MonitorLost(VerifyError):
    """QEMU does not answer on its monitor."""

    def __init__(self, name: str, doing: str, why: str) -> None:
        super().__init__(
            f"the machine {name} does not answer its monitor ({doing}): {why}",
            where=f"QEMU's monitor (QMP) of {name}",
            fix="read the machine's QEMU log for why it ended, and start it again",
        )


class MonitorRefused(VerifyError):
    """QEMU answered a command with an error."""

    def __init__(self, name: str, doing: str, why: str) -> None:
        super().__init__(
            f"QEMU refuses {doing} for the machine {name}: {why}",
            where=f"QEMU's monitor (QMP) of {name}",
            fix="look at the machine's state and the name in the command; a network card is named as in its VmSpec",
        )


@dataclass(frozen=True)
class VmEvent:
    """Something that QEMU told: its QMP name (STOP, RESUME, SHUTDOWN, RESET, …), its data, when (monotonic clock)."""

    name: str
    data: Mapping[str, Any]
    time_s: float


class _Background:
    """The thread with the loop; started on first use, ended with the process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name="qemu", daemon=True)
                self._thread.start()
                atexit.register(self._end)
            return self._loop

    def run(self, work: Coroutine[Any, Any, _Result], timeout_s: float) -> _Result:
        """Run a coroutine there; TimeoutError if it takes longer."""
        future = asyncio.run_coroutine_threadsafe(work, self.loop())
        try:
            return future.result(timeout_s)
        except concurrent.futures.TimeoutError:
            raise TimeoutError(f"no answer within {timeout_s:g} s") from None
        finally:
            future.cancel()

    def call(self, work: Callable[[], _Result], timeout_s: float = 60.0) -> _Result:
        """Call a function there; even when the caller is interrupted, it has ended or never begun afterwards."""

        async def called() -> _Result:
            return work()

        future = asyncio.run_coroutine_threadsafe(called(), self.loop())
        try:
            return future.result(timeout_s)
        except BaseException:
            concurrent.futures.wait([future], timeout_s)
            raise

    def _end(self) -> None:
        if self._loop is not None and self._thread is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(5)
            self._loop.close()


BACKGROUND = _Background()


class Monitor:
    """The monitor of one QEMU, over a connected socket."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._client: QMPClient | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._events: list[VmEvent] = []
        self._changed = threading.Condition()

    def open(self, wire: socket.socket, timeout_s: float) -> None:
        """Greet QEMU: once this returns, it has accepted its arguments and made the machine. Raises MonitorLost."""
        try:
            BACKGROUND.run(self._open(wire), timeout_s)
        except (QMPError, OSError, EOFError) as cause:  # TimeoutError is an OSError
            raise MonitorLost(self.name, "start", str(cause) or type(cause).__name__) from cause

    def execute(self, command: str, arguments: Mapping[str, object] | None = None, *, timeout_s: float = 10.0) -> Any:
        """Run a QMP command; its answer. Raises MonitorLost or MonitorRefused."""
        client = self._client
        if client is None:
            raise MonitorLost(self.name, command, "it is not running")
        try:
            return BACKGROUND.run(client.execute(command, dict(arguments) if arguments else None), timeout_s)
        except ExecuteError as cause:
            raise MonitorRefused(self.name, command, str(cause)) from cause
        except ExecInterruptedError as cause:
            raise MonitorLost(self.name, command, "it ended meanwhile") from cause
        except (QMPError, OSError, EOFError) as cause:
            raise MonitorLost(self.name, command, str(cause) or type(cause).__name__) from cause

    def close(self) -> None:
        """End the connection; the events stay readable."""
        if self._client is not None:
            with contextlib.suppress(TimeoutError):
                BACKGROUND.run(self._close(), 10)
            self._client = None

    @property
    def events(self) -> tuple[VmEvent, ...]:
        """All events so far, of all starts of the machine."""
        with self._changed:
            return tuple(self._events)

    def wait_event(self, name: str, timeout_s: float, *, after_s: float = 0.0) -> VmEvent | None:
        """The first event of that name after `after_s` (monotonic clock); None if it does not come in time."""

        def wanted() -> VmEvent | None:
            return next((e for e in self._events if e.name == name and e.time_s > after_s), None)

        with self._changed:
            return self._changed.wait_for(wanted, timeout_s)

    async def _open(self, wire: socket.socket) -> None:
        client = QMPClient(self.name)
        listener = EventListener()
        client.register_listener(listener)
        wire.setblocking(False)
        await client.connect(wire)
        self._client = client
        self._watcher = asyncio.create_task(self._watch(listener))

    async def _close(self) -> None:
        client, watcher = self._client, self._watcher
        if client is not None:
            with contextlib.suppress(QMPError, OSError, EOFError):
                await client.disconnect()
        if watcher is not None:
            await asyncio.sleep(0)  # what was told last is still in its queue
            watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watcher

    async def _watch(self, listener: EventListener) -> None:
        async for message in listener:
            data = message.get("data")
            event = VmEvent(str(message["event"]), data if isinstance(data, dict) else {}, time.monotonic())
            with self._changed:
                self._events.append(event)
                self._changed.notify_all()
