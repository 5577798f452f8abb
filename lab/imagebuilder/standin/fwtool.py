"""The metadata that OpenWrt appends to its images, and sysupgrade reads from their end.

Format (openwrt/fwtool `fwimage.h`): a header of two words, JSON, and a trailer: magic, CRC-32 over everything before
it, type, length from the header on.
"""

from __future__ import annotations

import json
import struct
import zlib

_MAGIC = b"FWx0"
_INFO = 1


def trailer(crc: int, facts: dict[str, object]) -> bytes:
    """What is appended to a file whose bytes have this CRC-32 (zlib's)."""
    data = struct.pack(">II", 0, 0) + json.dumps(facts).encode() + b"\n"
    crc = zlib.crc32(data, crc) ^ 0xFFFFFFFF  # without the inversion at the end
    return data + struct.pack(">4sIB3sI", _MAGIC, crc, _INFO, b"", len(data) + 16)
