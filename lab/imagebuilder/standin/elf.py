"""Which libraries a program needs: the DT_NEEDED entries and the interpreter of an ELF file (elf(5)), 64-bit only."""

from __future__ import annotations

import struct
from pathlib import Path

_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_NULL, _DT_NEEDED, _DT_STRTAB = 0, 1, 5


def needed(path: Path) -> tuple[list[str], str | None]:
    """The names of the libraries a file is linked with, and its interpreter; ([], None) if it is no ELF file."""
    with path.open("rb") as stream:
        head = stream.read(64)
        if len(head) < 64 or head[:5] != b"\x7fELF\x02":
            return [], None
        data = head + stream.read()
    offset, entry_size, count = struct.unpack_from("<Q", data, 32)[0], *struct.unpack_from("<HH", data, 54)
    loads: list[tuple[int, int, int]] = []
    dynamic: tuple[int, int] | None = None
    interpreter: str | None = None
    for index in range(count):
        kind, _, at, address, _, size = struct.unpack_from("<IIQQQQ", data, offset + index * entry_size)
        if kind == _PT_LOAD:
            loads.append((address, at, size))
        elif kind == _PT_DYNAMIC:
            dynamic = (at, size)
        elif kind == _PT_INTERP:
            interpreter = data[at : at + size].rstrip(b"\0").decode()
    if dynamic is None:
        return [], interpreter
    names: list[int] = []
    strings = 0
    for at in range(dynamic[0], dynamic[0] + dynamic[1], 16):
        tag, value = struct.unpack_from("<QQ", data, at)
        if tag == _DT_NULL:
            break
        if tag == _DT_NEEDED:
            names.append(value)
        elif tag == _DT_STRTAB:
            strings = next(file + value - start for start, file, size in loads if start <= value < start + size)
    return [data[strings + n : data.index(b"\0", strings + n)].decode() for n in names], interpreter
