"""Which libraries a program needs: the DT_NEEDED entries and the interpreter of an ELF file (elf(5)), little endian."""

from __future__ import annotations

import struct
from pathlib import Path

_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_NULL, _DT_NEEDED, _DT_STRTAB = 0, 1, 5
# By the ELF class: how and where the program headers are told of, one of them, which of its fields are kind, offset,
# address and size in the file, and an entry of DT_DYNAMIC.
_LAYOUTS: dict[int, tuple[str, int, int, str, tuple[int, int, int, int], str]] = {
    1: ("<I", 28, 42, "<IIIIIIII", (0, 1, 2, 4), "<II"),
    2: ("<Q", 32, 54, "<IIQQQQQQ", (0, 2, 3, 5), "<QQ"),
}


def needed(path: Path) -> tuple[list[str], str | None]:
    """The names of the libraries a file is linked with, and its interpreter; ([], None) if it is no ELF file."""
    with path.open("rb") as stream:
        head = stream.read(64)
        if len(head) < 64 or head[:4] != b"\x7fELF" or head[4] not in _LAYOUTS:
            return [], None
        data = head + stream.read()
    number, at_offset, at_count, header, fields, entry = _LAYOUTS[head[4]]
    (offset,) = struct.unpack_from(number, data, at_offset)
    entry_size, count = struct.unpack_from("<HH", data, at_count)
    loads: list[tuple[int, int, int]] = []
    dynamic: tuple[int, int] | None = None
    interpreter: str | None = None
    for index in range(count):
        values = struct.unpack_from(header, data, offset + index * entry_size)
        kind, at, address, size = (values[field] for field in fields)
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
    for at in range(dynamic[0], dynamic[0] + dynamic[1], struct.calcsize(entry)):
        tag, value = struct.unpack_from(entry, data, at)
        if tag == _DT_NULL:
            break
        if tag == _DT_NEEDED:
            names.append(value)
        elif tag == _DT_STRTAB:
            strings = next(file + value - start for start, file, size in loads if start <= value < start + size)
    return [data[strings + n : data.index(b"\0", strings + n)].decode() for n in names], interpreter
