"""The disks of this machine, and which of them may be overwritten.

What the disks are is lsblk's answer (lsblk(8), util-linux): it knows partitions, crypt, LVM, RAID and multipath, and
what is mounted of them. Nothing here writes. That a disk is in use is found out twice: here, in words, and by the
kernel when `flash` opens the disk for itself alone (open(2), O_EXCL).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ndakit.core import json_text, process
from ndakit.core.errors import InputError, MachineError
from ndakit.core.mistakes import clean

COLUMNS = "NAME,PATH,TYPE,SIZE,MODEL,SERIAL,RO,RM,TRAN,FSTYPE,LABEL,MOUNTPOINTS,MAJ:MIN"
SYSTEM = ("/", "/boot", "/boot/efi", "/boot/firmware", "/usr", "/var", "/home", "/etc", "[SWAP]")
"""A disk with one of these mounted is the one that this machine runs from; `[SWAP]` is lsblk's word for swap."""
WHOLE = ("disk", "loop")
"""lsblk's types of what can be written as a whole; loop is a file that stands for a disk."""
_LSBLK_S = 30.0


class DisksUnknown(MachineError):
    """What disks there are cannot be found out."""

    def __init__(self, detail: str) -> None:
        super().__init__(
            f"the disks of this machine cannot be listed: {detail}",
            where="lsblk --json",
            fix="write the image by hand, as FLASH.md beside it says; or into a file: --to FILE",
        )


class TargetUnusable(InputError):
    """What was named cannot be overwritten: no disk, a part of one, in use, read-only, too small."""


@dataclass(frozen=True)
class Part:
    """What is on a disk: a partition, or what is made of one (crypt, lvm, raid1, mpath)."""

    name: str
    kind: str
    size_bytes: int
    filesystem: str
    label: str
    mounted: tuple[str, ...]

    def __str__(self) -> str:
        words = [self.name, size(self.size_bytes), self.filesystem or "no file system known"]
        words += [f"'{self.label}'"] if self.label else []
        words += [f"mounted at {', '.join(self.mounted)}"] if self.mounted else []
        return "  ".join(words)


@dataclass(frozen=True)
class TargetDisk:
    """A whole disk. `numbers` are its major and minor device numbers; `parts` all that is on it, in lsblk's order."""

    name: str
    path: Path
    kind: str
    size_bytes: int
    model: str
    serial: str
    bus: str
    read_only: bool
    removable: bool
    filesystem: str
    mounted: tuple[str, ...]
    numbers: tuple[int, int]
    parts: tuple[Part, ...]

    @property
    def called(self) -> str:
        """What has to be typed before it is overwritten: its serial number, or its name if it has none."""
        return self.serial or self.name

    def __str__(self) -> str:
        words = [str(self.path), size(self.size_bytes), self.model or "no model", f"serial {self.serial or '(none)'}"]
        words += [self.bus] if self.bus else []
        words += ["removable"] if self.removable else []
        return "  ".join(words)

    def refusal(self, needed_bytes: int) -> TargetUnusable | None:
        """Why it must not be overwritten with an image of so many bytes; None if it may."""
        mounts = [(self.name, place) for place in self.mounted]
        mounts += [(part.name, place) for part in self.parts for place in part.mounted]
        where = str(self)
        if system := [place for _, place in mounts if place in SYSTEM]:
            what = f"this machine runs from {self.path} ({', '.join(system)})"
            return TargetUnusable(what, where=where, fix="name another disk, or run this from a live system")
        if mounts:
            what = f"{self.path} is mounted: {', '.join(f'{name} at {place}' for name, place in mounts)}"
            places = " ".join(f"/dev/{name}" for name in dict.fromkeys(name for name, _ in mounts))
            return TargetUnusable(what, where=where, fix=f"unmount it if it is the right one: umount {places}")
        if used := [f"{part.name} ({part.kind})" for part in self.parts if part.kind != "part"]:
            what = f"{self.path} is in use: {', '.join(used)}"
            fix = "end that first (vgchange -an, mdadm --stop, cryptsetup close), or name another disk"
            return TargetUnusable(what, where=where, fix=fix)
        if self.read_only:
            fix = "move the switch for write protection, or name another disk"
            return TargetUnusable(f"{self.path} is read-only", where=where, fix=fix)
        if self.size_bytes < needed_bytes:
            what = f"{self.path} has {self.size_bytes} bytes, and the image needs {needed_bytes}"
            fix = "take a larger disk, or a smaller image.rootfs_mib in the profile and build again"
            return TargetUnusable(what, where=where, fix=fix)
        return None


def present() -> tuple[TargetDisk, ...]:
    """The disks of this machine that are not empty drives. Raises DisksUnknown, ToolMissing."""
    process.require("lsblk", package="util-linux", reason="to look at the disks")
    done = process.run(["lsblk", "--json", "--bytes", "--tree", "--output", COLUMNS], timeout_s=_LSBLK_S, check=False)
    if done.returncode != 0:
        raise DisksUnknown(clean(done.stderr.strip() or process.ending(done.returncode)))
    return parse(done.stdout)


def parse(text: str) -> tuple[TargetDisk, ...]:
    """lsblk's JSON as disks. Raises DisksUnknown."""
    try:
        devices = json_text.mapping(text)["blockdevices"]
        return tuple(_disk(facts) for facts in devices if facts["type"] in WHOLE and int(facts["size"]) > 0)
    except (ValueError, KeyError, TypeError) as cause:
        raise DisksUnknown(f"its answer cannot be read ({clean(repr(cause))})") from cause


def choose(disks: Sequence[TargetDisk], wanted: str) -> TargetDisk:
    """The disk that is meant by a path (also a link such as /dev/disk/by-id/…) or a serial number.

    Raises TargetUnusable: nothing is called so, several are, or it is only a part of a disk.
    """
    path = Path(wanted)
    if "/" in wanted:
        try:
            facts = path.stat()
        except OSError as cause:
            raise TargetUnusable(
                f"there is no disk {clean(wanted)}: {cause.strerror}", where="--to", fix=_one_of(disks)
            ) from cause
        if not stat.S_ISBLK(facts.st_mode):
            fix = f"for a file, name a place outside of /dev; for a disk, {_one_of(disks)}"
            raise TargetUnusable(f"{clean(wanted)} is no disk", where="--to", fix=fix)
        numbers = (os.major(facts.st_rdev), os.minor(facts.st_rdev))
        if disk := next((disk for disk in disks if disk.numbers == numbers), None):
            return disk
        real = path.resolve()
        whole = next((disk for disk in disks if real.name in {part.name for part in disk.parts}), None)
        if whole is not None:
            fix = f"if the whole disk is to be overwritten, name it: --to {whole.path}"
            raise TargetUnusable(f"{clean(wanted)} is only a part of {whole.path}", where=str(whole), fix=fix)
        raise TargetUnusable(f"{clean(wanted)} is no disk that can hold an image", where="--to", fix=_one_of(disks))
    meant = [disk for disk in disks if wanted and disk.serial == wanted]
    if len(meant) > 1:
        names = ", ".join(str(disk.path) for disk in meant)
        what = f"{len(meant)} disks have the serial number {clean(wanted)}: {names}"
        fix = "take one away, or name its path; two paths to one disk (multipath) are not to be written like this"
        raise TargetUnusable(what, where="--to", fix=fix)
    if not meant:
        raise TargetUnusable(f"no disk has the serial number {clean(wanted)}", where="--to", fix=_one_of(disks))
    return meant[0]


def size(size_bytes: int) -> str:
    """A size as disks are sold: `32.0 GB`."""
    number, unit = float(size_bytes), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if number < 1000 or unit == "TB":
            break
        number /= 1000
    return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"


def _one_of(disks: Sequence[TargetDisk]) -> str:
    usable = [f"{disk.path} ({size(disk.size_bytes)}, {disk.called})" for disk in disks if disk.refusal(0) is None]
    return f"name one of {', '.join(usable)}" if usable else "plug the disk in; none that is free is here now"


def _disk(facts: Mapping[str, Any]) -> TargetDisk:
    major, _, minor = str(facts["maj:min"]).partition(":")
    return TargetDisk(
        name=_text(facts, "name"),
        path=Path(_text(facts, "path")),
        kind=_text(facts, "type"),
        size_bytes=int(facts["size"]),
        model=_text(facts, "model"),
        serial=_text(facts, "serial"),
        bus=_text(facts, "tran"),
        read_only=_true(facts, "ro"),
        removable=_true(facts, "rm"),
        filesystem=_text(facts, "fstype"),
        mounted=_mounts(facts),
        numbers=(int(major), int(minor)),
        parts=tuple(_parts(facts)),
    )


def _parts(facts: Mapping[str, Any]) -> Iterator[Part]:
    for child in facts.get("children") or ():
        yield Part(
            _text(child, "name"), _text(child, "type"), int(child["size"]), _text(child, "fstype"),
            _text(child, "label"), _mounts(child),
        )  # fmt: skip
        yield from _parts(child)


def _mounts(facts: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(clean(str(place)) for place in facts.get("mountpoints") or () if place)


def _text(facts: Mapping[str, Any], key: str) -> str:
    return clean(str(facts.get(key) or "").strip())


def _true(facts: Mapping[str, Any], key: str) -> bool:
    return facts.get(key) in (True, 1, "1")
