"""Capture files that tcpdump and Wireshark read (classic pcap with nanoseconds, Ethernet)."""

from __future__ import annotations

import struct
import time
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

_MAGIC_NANOSECONDS = 0xA1B23C4D
_ETHERNET = 1


class PcapWriter:
    """Writes frames with times of the monotonic clock; the file gets its name when it is complete."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._part = path.with_name(f"{path.name}.part")
        self._sink: BinaryIO | None = None
        self._offset_ns = 0

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._offset_ns = time.time_ns() - time.monotonic_ns()
        self._sink = self._part.open("wb")
        self._sink.write(struct.pack("=IHHiIII", _MAGIC_NANOSECONDS, 2, 4, 0, 0, 65535, _ETHERNET))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._sink is not None:
            self._sink.close()
            self._part.replace(self.path)

    def write(self, time_s: float, data: bytes) -> None:
        """Add one frame."""
        if self._sink is not None:
            seconds, nanoseconds = divmod(int(time_s * 1e9) + self._offset_ns, 1_000_000_000)
            self._sink.write(struct.pack("=IIII", seconds, nanoseconds, len(data), len(data)) + data)
