"""The lab's Ethernet switch: unix datagram sockets for QEMU's `-netdev dgram`, learning, faults, counters, capture.

Owns the wires between virtual machines and the thread that carries their frames. VLAN tags pass unchanged (learning is
per outer VLAN). Nothing is lost silently: whatever is not delivered is counted by its reason. What lies in a frame is
the business of `frames`, who is plugged in where that of the callers.
"""

from __future__ import annotations

import contextlib
import errno
import heapq
import itertools
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from ndakit.core import locks, workspace
from ndakit.lab.frames import mac_text, protocol_name, protocol_of
from ndakit.lab.lacp import SLOW_PROTOCOLS, Bundle
from ndakit.lab.pcap import PcapWriter
from ndakit.lab.switch_port import DropReason, Flow, Frame, PortCounters, SwitchPort

__all__ = ["DropReason", "Flow", "Frame", "Observation", "PortCounters", "Switch", "SwitchPort"]

_Result = TypeVar("_Result")

_FRAME_BYTES = 65535
_BURST = 64  # frames taken from one port before the others have their turn
_QUEUE_FRAMES = 256  # what waits for a guest whose socket is full (10 frames, net.unix.max_dgram_qlen) …
_QUEUE_S = 0.2  # … and for how long: a frozen guest must not get old frames when it thaws
_RETRY_S = 0.001
_LACP_S = 0.1  # how often bundles are looked after
_COMMAND_S = 10.0


class Observation:
    """An observer of frames; `end` takes it off, and raises what its callback raised (after which it saw no more)."""

    def __init__(self, switch: Switch, callback: Callable[[Frame], None], segment: str | None) -> None:
        self._switch = switch
        self._callback = callback
        self._segment = segment
        self._failure: Exception | None = None

    def end(self) -> None:
        """Stop observing."""
        self._switch._forget(self)
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.end()
        else:
            with contextlib.suppress(Exception):
                self.end()

    def _see(self, frame: Frame) -> None:
        if self._failure is None and self._segment in (None, frame.segment):
            try:
                self._callback(frame)
            except Exception as failure:  # noqa: BLE001  # whatever an observer does, the wires go on; `end` raises it
                self._failure = failure


class Switch:
    """A switch with any number of segments (broadcast domains) and ports. Use it as `with Switch() as switch:`."""

    def __init__(self) -> None:
        self._kept = contextlib.ExitStack()
        self._folder: Path | None = None
        self._ports: dict[str, list[SwitchPort]] = {}
        self._numbers = itertools.count(1)
        self._learned: dict[tuple[str, bytes, bytes], SwitchPort] = {}
        self._blocked: set[tuple[SwitchPort, SwitchPort]] = set()
        self._delayed: list[tuple[float, int, SwitchPort, bytes]] = []
        self._backlogged: set[SwitchPort] = set()
        self._bundled: set[SwitchPort] = set()
        self._observers: tuple[Observation, ...] = ()
        self._commands: deque[Callable[[], None]] = deque()
        self._selector = selectors.DefaultSelector()
        self._wake_in, self._wake_out = socket.socketpair()
        self._lacp_s = 0.0
        self._running = False
        self._thread = threading.Thread(target=self._carry, name="switch", daemon=True)

    # -- life ----------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self._folder = self._kept.enter_context(locks.scratch_folder(workspace.runtime(), "sw"))
        self._wake_in.setblocking(False)
        self._selector.register(self._wake_in, selectors.EVENT_READ, None)
        self._running = True
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        def stop() -> None:
            self._running = False

        if self._running:
            self._do(stop)
        self._thread.join()
        for port in itertools.chain.from_iterable(self._ports.values()):
            port._socket.close()
        self._selector.close()
        self._wake_in.close()
        self._wake_out.close()
        self._kept.close()

    def port(self, segment: str, name: str) -> SwitchPort:
        """A new port on a segment (made if new), to be given to one `Nic`. Names are unique in a switch."""
        folder = self._folder
        if folder is None:
            raise ValueError("the switch is not open")

        def made() -> SwitchPort:
            if any(port.name == name for ports in self._ports.values() for port in ports):
                raise ValueError(f"the switch has a port {name} already")
            number = next(self._numbers)
            wire = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            wire.setblocking(False)
            for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
                wire.setsockopt(socket.SOL_SOCKET, option, 1 << 20)
            port = SwitchPort(
                segment, name, folder / f"{number}.guest", folder / f"{number}.switch", self._carrier, wire
            )
            wire.bind(str(port.switch_path))
            self._ports.setdefault(segment, []).append(port)
            self._selector.register(wire, selectors.EVENT_READ, port)
            return port

        return self._do(made)

    def ports(self, segment: str | None = None) -> tuple[SwitchPort, ...]:
        """The ports of a segment, or all."""
        by_segment = self._ports.items()
        return self._do(lambda: tuple(p for name, ports in by_segment if segment in (None, name) for p in ports))

    # -- bundles -------------------------------------------------------------------------------------------------------

    def bundle(self, ports: Sequence[SwitchPort], system: str, *, speaks: bool = True) -> Bundle:
        """Make one link of several ports to one machine, by LACP; each leaves the bundle that it was in.

        `system`: the MAC address by which the switch calls itself. Ports whose switches call themselves by the same are
        an MLAG pair's. `speaks`: False for plain ports, on a switch that does not know of the bundle.
        """
        made = Bundle(bytes.fromhex(system.replace(":", "")), ports, speaks=speaks)

        def apply() -> None:
            for port in ports:
                if port._bundle is not None:
                    made.members[port].linked = port._bundle.members.pop(port).linked
                port._bundle = made
                self._bundled.add(port)
            self._forget_learned(set(ports))

        self._do(apply)
        return made

    def carries(self, port: SwitchPort) -> bool:
        """True if frames pass a port as far as its bundle is concerned."""
        return self._do(lambda: port._bundle is None or port._bundle.members[port].carries)

    def _carrier(self, port: SwitchPort, up: bool) -> None:
        def apply() -> None:
            if port._bundle is not None:
                port._bundle.members[port].link(up)
            self._forget_learned({port})

        if self._running:
            self._do(apply)

    def _forget_learned(self, ports: set[SwitchPort]) -> None:
        self._learned = {key: at for key, at in self._learned.items() if at not in ports}

    # -- faults --------------------------------------------------------------------------------------------------------

    def cut(self, port: SwitchPort) -> None:
        """Nothing passes this port any more, in both directions; the machine sees its carrier all the same.

        (With the carrier: `Vm.set_link`.) What waits for it is dropped, what was learned behind it forgotten.
        """

        def apply() -> None:
            port._is_cut = True
            port._drops["cut"] += len(port._queue)
            port._queue.clear()
            self._forget_learned({port})

        self._do(apply)

    def heal(self, port: SwitchPort) -> None:
        """Undo `cut`."""

        def apply() -> None:
            port._is_cut = False

        self._do(apply)

    def block(self, source: SwitchPort, destination: SwitchPort) -> None:
        """Frames from one port do not reach another; the other way stays open (a one-directional fault)."""
        self._do(lambda: self._blocked.add((source, destination)))

    def unblock(self, source: SwitchPort, destination: SwitchPort) -> None:
        """Undo `block`."""
        self._do(lambda: self._blocked.discard((source, destination)))

    def delay(self, port: SwitchPort, delay_ms: float) -> None:
        """Frames to this port's machine arrive so much later (0: at once)."""

        def apply() -> None:
            port._delay_s = max(0.0, delay_ms) / 1000

        self._do(apply)

    def inject(self, segment: str, data: bytes) -> None:
        """Send a frame onto a segment as if from a port of its own."""
        self._do(lambda: self._forward(segment, None, data, time.monotonic()))

    # -- facts ---------------------------------------------------------------------------------------------------------

    def counters(self, port: SwitchPort) -> PortCounters:
        """What has passed a port so far."""

        def taken() -> PortCounters:
            flows = {Flow(mac_text(m), way, protocol_name(*what)): n for (m, way, what), n in port._flows.items()}
            return PortCounters(port._in[0], port._in[1], port._out[0], port._out[1], dict(port._drops), flows)

        return self._do(taken)

    def on_frame(self, callback: Callable[[Frame], None], *, segment: str | None = None) -> Observation:
        """Have every frame that enters (a segment, or all) shown to `callback`, on the switch's thread: be quick."""
        observation = Observation(self, callback, segment)

        def apply() -> None:
            self._observers = (*self._observers, observation)

        self._do(apply)
        return observation

    @contextlib.contextmanager
    def capture(self, segment: str, path: Path) -> Iterator[Path]:
        """Write every frame that enters a segment to a pcap file (`tcpdump -r`), which appears when it is complete."""
        with PcapWriter(path) as writer, self.on_frame(lambda f: writer.write(f.time_s, f.data), segment=segment):
            yield path

    def _forget(self, observation: Observation) -> None:
        def apply() -> None:
            self._observers = tuple(known for known in self._observers if known is not observation)

        if self._running:
            self._do(apply)

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _do(self, work: Callable[[], _Result]) -> _Result:
        """Run something on the switch's thread, between two frames, and wait for it."""
        if threading.current_thread() is self._thread:
            return work()
        results: list[_Result] = []
        failures: list[Exception] = []
        done = threading.Event()

        def command() -> None:
            try:
                results.append(work())
            except Exception as failure:  # noqa: BLE001  # it belongs to the caller, who waits for it
                failures.append(failure)
            done.set()

        if not self._running:
            raise ValueError("the switch is not open")
        self._commands.append(command)
        self._wake_out.send(b"\0")
        if not done.wait(_COMMAND_S):
            raise RuntimeError("the switch's thread does not answer")
        if failures:
            raise failures[0]
        return results[0]

    def _carry(self) -> None:
        while self._running:
            timeout_s: float | None = None
            if self._delayed:
                timeout_s = max(0.0, self._delayed[0][0] - time.monotonic())
            if self._bundled:
                timeout_s = min(_LACP_S, _LACP_S if timeout_s is None else timeout_s)
            if self._backlogged:
                timeout_s = min(_RETRY_S, _RETRY_S if timeout_s is None else timeout_s)
            for key, _ in self._selector.select(timeout_s):
                if key.data is None:
                    self._obey()
                else:
                    self._take(key.data)
            now_s = time.monotonic()
            while self._delayed and self._delayed[0][0] <= now_s:
                _, _, port, data = heapq.heappop(self._delayed)
                self._send(port, data, now_s)
            for port in tuple(self._backlogged):
                self._drain(port, now_s)
            if now_s >= self._lacp_s:
                self._lacp_s = now_s + _LACP_S
                for port in self._bundled:
                    self._negotiate(port, now_s)

    def _obey(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wake_in.recv(4096)
        while self._commands:
            self._commands.popleft()()

    def _take(self, port: SwitchPort) -> None:
        """Take what a machine has sent."""
        wire = port._socket
        for _ in range(_BURST):
            try:
                data = wire.recv(_FRAME_BYTES)
            except BlockingIOError:
                return
            now_s = time.monotonic()
            port._in[0] += 1
            port._in[1] += len(data)
            if len(data) < 14:
                port._drops["runt"] += 1
            elif port._is_cut:
                port._drops["cut"] += 1
            else:
                port._flows[data[6:12], "in", protocol_of(data)] += 1
                if data[0:6] == SLOW_PROTOCOLS:
                    self._hear(port, data, now_s)
                elif port._bundle is not None and not port._bundle.members[port].carries:
                    port._drops["unbundled"] += 1
                else:
                    self._forward(port.segment, port, data, now_s)

    def _hear(self, port: SwitchPort, data: bytes, now_s: float) -> None:
        """Take a frame that no switch passes on."""
        if port._bundle is None:
            port._drops["link-local"] += 1
            return
        carried = port._bundle.members[port].carries
        port._bundle.members[port].hear(data, now_s)
        if carried and not port._bundle.members[port].carries:
            self._forget_learned({port})
        self._negotiate(port, now_s)

    def _negotiate(self, port: SwitchPort, now_s: float) -> None:
        """Say by LACP what is due."""
        assert port._bundle is not None
        words = port._bundle.members[port].due(now_s)
        if words is not None:
            self._send(port, words, now_s)

    def _forward(self, segment: str, source: SwitchPort | None, data: bytes, now_s: float) -> None:
        """Deliver a frame where it belongs: to the port where its destination was seen, else to all others."""
        vlan = data[14:16] if data[12:14] in (b"\x81\x00", b"\x88\xa8") else b""
        vlan = bytes((vlan[0] & 0x0F, vlan[1])) if len(vlan) == 2 else b""
        if source is not None and not data[6] & 1:
            self._learned[segment, vlan, data[6:12]] = source
        if self._observers:
            frame = Frame(now_s, segment, "" if source is None else source.name, data)
            for observer in self._observers:
                observer._see(frame)
        known = None if data[0] & 1 else self._learned.get((segment, vlan, data[0:6]))
        own = None if source is None else source._bundle
        for port in (known,) if known is not None else self._ports.get(segment, ()):
            bundle = port._bundle
            if port is source or (bundle is not None and bundle is own and bundle.speaks):
                continue
            if bundle is not None and bundle.speaks:
                # Of all its ports the one over which this conversation goes; flooded frames come by here for each.
                way = bundle.way(data)
                if known is not None and isinstance(way, SwitchPort):
                    port = way  # where it was learned is the bundle, not the port
                elif way is not port:
                    if way is None:
                        port._drops["unbundled"] += 1
                    continue
            if port._is_cut:
                port._drops["cut"] += 1
            elif (source, port) in self._blocked:
                port._drops["blocked"] += 1
            elif port._delay_s:
                heapq.heappush(self._delayed, (now_s + port._delay_s, next(self._numbers), port, data))
            else:
                self._send(port, data, now_s)

    def _send(self, port: SwitchPort, data: bytes, now_s: float) -> None:
        """Hand a frame to a machine, behind those that wait for it already."""
        if port._is_cut:
            port._drops["cut"] += 1
        elif port._queue or not self._pass(port, data):
            if len(port._queue) >= _QUEUE_FRAMES:
                port._drops["queue-full"] += 1
            else:
                port._queue.append((now_s, data))
                self._backlogged.add(port)

    def _pass(self, port: SwitchPort, data: bytes) -> bool:
        """Put a frame into a machine's socket; False if that is full."""
        try:
            port._socket.sendto(data, str(port.guest_path))
        except OSError as failure:
            if failure.errno in (errno.EAGAIN, errno.ENOBUFS):
                return False
            gone = failure.errno in (errno.ENOENT, errno.ECONNREFUSED)
            port._drops["absent" if gone else "error"] += 1
        else:
            port._out[0] += 1
            port._out[1] += len(data)
            port._flows[data[0:6], "out", protocol_of(data)] += 1
        return True

    def _drain(self, port: SwitchPort, now_s: float) -> None:
        """Try what waits for a machine; drop what has waited too long."""
        queue = port._queue
        while queue:
            since_s, data = queue[0]
            if now_s - since_s > _QUEUE_S:
                port._drops["queue-full"] += 1
            elif not self._pass(port, data):
                return
            queue.popleft()
        self._backlogged.discard(port)
