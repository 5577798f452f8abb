"""The disk files of virtual machines: unpacked images, throw-away layers, EFI firmware.

Owns the cache of unpacked images and what a machine may write to. Built images are never written to (except by a
machine whose spec says so).
"""

from __future__ import annotations

import hashlib
import shutil
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from ndakit.core import locks, process, workspace
from ndakit.core.errors import BuildError, MachineError
from ndakit.machine.accelerator import Architecture
from ndakit.machine.spec import Disk, DiskFile, EfiFirmware

_GZIP = b"\x1f\x8b"
_CHUNK = 1 << 20
_KEPT = 8
_YOUNG_S = 3600.0
# Code and variable store of OVMF where Debian and Ubuntu (package ovmf) and Fedora, Arch (edk2-ovmf) put them.
_OVMF = (
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
    ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
    ("/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"),
)

_EFI: Mapping[Architecture, tuple[str, Sequence[tuple[str, str]]]] = {
    "x86_64": ("ovmf", _OVMF),
    "arm": ("qemu-efi-arm", (("/usr/share/AAVMF/AAVMF32_CODE.fd", "/usr/share/AAVMF/AAVMF32_VARS.fd"),)),
    "aarch64": ("qemu-efi-aarch64", (("/usr/share/AAVMF/AAVMF_CODE.fd", "/usr/share/AAVMF/AAVMF_VARS.fd"),)),
}
"""Debian's package, and where its files are."""


_AGAIN = "build it: ./inv build PROFILE --builder openwrt (or without --builder, for the lab only)"


class ImageMissing(BuildError):
    """The image to boot is not there."""

    def __init__(self, path: Path) -> None:
        super().__init__("the image to boot does not exist", where=str(path), fix=_AGAIN)


class ImageDamaged(BuildError):
    """An image cannot be unpacked."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(
            f"the packed image is damaged: {why}",
            where=str(path),
            fix=f"delete it and {_AGAIN}",
        )


class EfiMissing(MachineError):
    """There is no UEFI firmware for virtual machines here."""

    def __init__(self, looked: Sequence[str], package: str) -> None:
        super().__init__(
            "UEFI firmware for virtual machines is needed, and is not installed",
            where=", ".join(looked),
            fix=f"apt-get install {package}",
        )


def prepare(disk: Disk, run_dir: Path, name: str, *, cache: Path | None = None) -> DiskFile:
    """The file that QEMU opens for a disk; `name` names its throw-away layer in `run_dir`, which is made anew.

    Raises ImageMissing, ImageDamaged, ToolMissing (qemu-img), ProcessFailed.
    """
    path = disk.path.absolute()
    if not path.is_file():
        raise ImageMissing(path)
    if is_gzip(path):
        if disk.format != "raw" or not (disk.snapshot or disk.read_only):
            raise ImageDamaged(path, "only raw images may be packed, and only for machines that do not keep their disk")
        path = unpack(path, cache=cache)
    if disk.read_only or not disk.snapshot:
        return DiskFile(path, disk.format, throw_away=False)
    layer = run_dir / f"{name}.qcow2"
    layer.unlink(missing_ok=True)
    tool = process.require("qemu-img", package="qemu-utils", reason="to give a machine a throw-away disk")
    # A machine writes its secrets into this layer: it is for its owner only.
    argv: list[str | Path] = [tool, "create", "-q", "-f", "qcow2", "-F", disk.format, "-b", path, layer]
    process.run(argv, timeout_s=60, umask=0o077)
    return DiskFile(layer, "qcow2", throw_away=True)


def is_gzip(path: Path) -> bool:
    """True if the file begins like a gzip stream, whatever its name."""
    with path.open("rb") as source:
        return source.read(2) == _GZIP


def unpack(path: Path, *, cache: Path | None = None) -> Path:
    """The raw image in a gzip file, from the cache if it was unpacked before (known by the packed bytes' hash).

    Reading stops at the stream's end: OpenWrt appends metadata behind it. Zeros become holes. Raises ImageDamaged.
    """
    folder = (cache or workspace.cache()) / "disks"
    folder.mkdir(parents=True, exist_ok=True)
    with path.open("rb") as source:
        digest = hashlib.file_digest(source, "sha256").hexdigest()
    raw = folder / f"{digest}.img"
    with locks.hold(folder / f"{digest}.lock", wait_s=600):
        if raw.is_file():
            raw.touch()  # its age is when it was last used
            return raw
        part = folder / f"{digest}.part"
        try:
            _inflate(path, part)
            part.replace(raw)
        finally:
            part.unlink(missing_ok=True)
    _prune(folder)
    return raw


def _inflate(path: Path, into: Path) -> None:
    """Unpack one gzip stream."""
    stream = zlib.decompressobj(wbits=31)
    zeros = bytes(_CHUNK)
    with path.open("rb") as source, into.open("wb") as sink:
        while not stream.eof:
            data = stream.unconsumed_tail or source.read(_CHUNK)
            try:
                out = stream.decompress(data, _CHUNK)
            except zlib.error as cause:
                raise ImageDamaged(path, str(cause)) from cause
            if not data and not out and not stream.eof:
                raise ImageDamaged(path, "it ends in the middle")
            if out == zeros[: len(out)]:
                sink.seek(len(out), 1)
            else:
                sink.write(out)
        sink.truncate(sink.tell())


def _prune(folder: Path) -> None:
    """Keep the images used last; never one that was used within the hour, for a machine may be about to open it."""
    for old in locks.stale(folder.glob("*.img"), keep=_KEPT, idle_s=_YOUNG_S):
        locks.give_up(old, old.with_suffix(".lock"), old.unlink, idle_s=_YOUNG_S)


def efi(
    run_dir: Path,
    name: str,
    architecture: Architecture = "x86_64",
    *,
    places: Sequence[tuple[str, str]] | None = None,
) -> EfiFirmware:
    """The UEFI firmware of this machine, with a fresh copy of the variable store. Raises EfiMissing."""
    package, usual = _EFI[architecture]
    looked = usual if places is None else places
    for code, variables in looked:
        if Path(code).is_file() and Path(variables).is_file():
            own = run_dir / f"{name}-efivars.fd"
            shutil.copyfile(variables, own)
            return EfiFirmware(Path(code), own)
    raise EfiMissing([code for code, _ in looked], package)
