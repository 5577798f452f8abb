"""Machines on the lab's switch, and their frames."""

from __future__ import annotations

import socket

from ndakit.lab.switch import SwitchPort

BROADCAST = b"\xff" * 6


def mac(number: int) -> bytes:
    return bytes((0x52, 0x54, 0, 0, 0, number))


def frame(to: bytes, source: bytes, payload: bytes = bytes(46), kind: bytes = b"\x88\xb5") -> bytes:
    return to + source + kind + payload


class Guest:
    """What QEMU is to the switch: a bound socket."""

    def __init__(self, port: SwitchPort) -> None:
        self.port = port
        self.wire = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.wire.bind(str(port.guest_path))
        self.wire.settimeout(30)

    def send(self, data: bytes) -> None:
        self.wire.sendto(data, str(self.port.switch_path))

    def receive(self) -> bytes:
        return self.wire.recv(65535)

    def silent(self, for_s: float = 0.05) -> bool:
        self.wire.settimeout(for_s)
        try:
            self.wire.recv(65535)
        except TimeoutError:
            return True
        finally:
            self.wire.settimeout(30)
        return False
