"""The images of one build: file systems, disks, and the files that describe them.

Owns names and contents of the output folder (openwrt/openwrt `include/image.mk`, `target/imagebuilder/files/Makefile`).
"""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from . import boot, disk, flash
from .families import Family
from .modules import Kernel
from .resolve import Package
from .tools import ToolFailed, Tools
from .tree import REVISION

_SQUASHFS = ("-noappend", "-all-root", "-no-xattrs", "-reproducible", "-comp", "zstd", "-Xcompression-level", "4", "-b")
_EXT4 = ("-q", "-F", "-t", "ext4", "-b", "4096", "-O", "^metadata_csum_seed,^orphan_file", "-m", "0", "-I", "256")
_DATA_ALIGN = 65536  # where OpenWrt's fstools look for the writable part behind the squashfs
_SMALLEST_DATA = 2 * disk.MIB


class BuildFailed(Exception):
    """An image cannot be made; the text is what the real tools would say."""


@dataclass
class Knobs:
    """What .config says (its CONFIG_ prefix left out)."""

    values: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Knobs:
        """Read `CONFIG_X=y` and `CONFIG_X="text"` lines; everything else is a comment, as for make."""
        values = {}
        for line in path.read_text().splitlines():
            if line.startswith("CONFIG_") and "=" in line:
                name, _, value = line.removeprefix("CONFIG_").partition("=")
                values[name] = value.strip().strip('"')
        return cls(values)

    def on(self, name: str) -> bool:
        """True for `=y`."""
        return self.values.get(name) == "y"

    def text(self, name: str, default: str) -> str:
        """A string or number knob."""
        return self.values.get(name, default)


@dataclass(frozen=True)
class Job:
    """Everything one run of `make image` needs."""

    family: Family
    tools: Tools
    kernel: Kernel
    guest_root: Path
    lab: Path
    cache: Path
    root: Path
    scratch: Path
    target: Path
    extra: str
    knobs: Knobs
    partsize_mib: int
    epoch: int
    stamp: str
    say: Callable[[str], None]


def build(job: Job) -> list[dict[str, object]]:
    """Make every image that .config asks for; their records for profiles.json. Raises BuildFailed."""
    records: list[dict[str, object]] = []
    if job.knobs.on("TARGET_ROOTFS_TARGZ"):
        _targz(job)
    if job.family.target.start == "flash":
        return _flash(job) if job.knobs.on("TARGET_ROOTFS_SQUASHFS") else []
    kernel_name = f"{job.family.prefix(job.extra)}-{'generic-kernel.bin' if job.family.l2_devices else 'vmlinuz'}"
    shutil.copyfile(job.kernel.image, job.target / kernel_name)
    records.append(_record(job.target / kernel_name, "kernel", None))
    starts = _Starts(job)
    for knob, filesystem, make in (
        ("TARGET_ROOTFS_EXT4FS", "ext4", _ext4),
        ("TARGET_ROOTFS_SQUASHFS", "squashfs", _squashfs),
    ):
        if not job.knobs.on(knob):
            continue
        parts = make(job)
        ending = ".img.gz" if job.knobs.on("TARGET_IMAGES_GZIP") else ".img"
        efi_only = job.family.target.start == "efi"
        if efi_only or job.knobs.on("GRUB_IMAGES") or job.knobs.on("GRUB_EFI_IMAGES"):
            name = job.family.image_name(job.extra, filesystem, "rootfs") + ending
            rootfs = [disk.Part(p.offset, p.data, p.packed) for p in parts[:1]]
            records.append(_write(job, name, rootfs, _size(parts[0]), "rootfs", filesystem))
        disks = (("GRUB_IMAGES", "combined", False), ("GRUB_EFI_IMAGES", "combined-efi", True))
        for wanted, kind, efi in (("", job.family.combined, True),) if efi_only else disks:
            if efi_only or (job.knobs.on(wanted) and (job.family.efi or not efi)):
                name = job.family.image_name(job.extra, filesystem, kind) + ending
                head, tail, where = starts.of(efi)
                shifted = [disk.Part(where.root * disk.SECTOR + p.offset, p.data, p.packed) for p in parts]
                records.append(_write(job, name, [*head, *shifted, *tail], where.end * disk.SECTOR, kind, filesystem))
    return records


class _Starts:
    """The parts before and after the root file system, for MBR and for GPT disks."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._cores: boot.Cores | None = None
        self._initrd = b""

    def of(self, efi: bool) -> tuple[list[disk.Part], list[disk.Part], disk.Layout]:
        job = self._job
        target = job.family.target
        where = disk.layout(int(job.knobs.text("TARGET_KERNEL_PARTSIZE", str(target.kernel_mib))), job.partsize_mib)
        who = disk.identity(f"{job.epoch} {job.kernel.version}")
        core_lba = 34 if efi else 1
        # The cores do not change with the image: they are kept beside the boot partitions.
        cores = self._cores or _cached_cores(job)
        self._cores = cores
        self._initrd = self._initrd or _cached_initrd(job)
        settings = boot.GrubSettings(
            timeout=job.knobs.text("GRUB_TIMEOUT", "1"),
            title=job.knobs.text("GRUB_TITLE", "OpenWrt"),
            serial=job.knobs.text("TARGET_SERIAL", job.knobs.text("GRUB_SERIAL", target.serial)),
            baudrate=job.knobs.text("GRUB_BAUDRATE", "115200"),
            bootopts=job.knobs.text("GRUB_BOOTOPTS", ""),
        )
        console = "console=tty1" if job.family.number >= (24, 10) else "console=tty0"
        root = disk.gpt_root(who) if efi else disk.mbr_root(who)
        config = boot.grub_config(settings, root, console if job.knobs.on("GRUB_CONSOLE") else "", target)
        size = where.boot_size * disk.SECTOR
        try:
            fat = boot.fat(
                job.tools, job.kernel, self._initrd, config, (target.efi_name, cores.efi) if efi else None, size,
                job.epoch, job.cache,
            )  # fmt: skip
        except ToolFailed as failure:
            raise BuildFailed(f"boot partition of {size // disk.MIB} MiB: {failure}") from failure
        code = boot.boot_sector(cores, core_lba)
        core = boot.placed_core(cores.gpt_core if efi else cores.mbr_core, core_lba) if target.x86 else b""
        tail: list[disk.Part] = []
        if efi:
            first, last = disk.gpt(code, who, where)
            head = [disk.Part(0, first)]
            tail = [disk.Part(where.end * disk.SECTOR - len(last), last)]
        else:
            head = [disk.Part(0, disk.mbr(code, who, where))]
        if target.x86:
            head.append(disk.Part(core_lba * disk.SECTOR, core))
        # A large partition is mostly empty: what is behind the last file is left to the gap, which compresses well.
        data = fat if target.x86 else fat.read_bytes().rstrip(b"\0")
        head.append(disk.Part(where.boot * disk.SECTOR, data, packed=True))
        return head, tail, where


def _cached_cores(job: Job) -> boot.Cores:
    target = job.family.target
    name = f"grub-{job.tools.root.name}" + ("" if target.x86 else f"-{target.grub}")
    folder = job.cache / "boot" / name
    names = ("boot", "mbr", "gpt", "efi")
    if not folder.is_dir():
        made = boot.cores(job.tools, job.cache, target)
        partial = folder.with_name(f"{folder.name}.{job.scratch.name}.partial")
        partial.mkdir(parents=True, exist_ok=True)
        for name, data in zip(names, (made.boot, made.mbr_core, made.gpt_core, made.efi), strict=True):
            (partial / name).write_bytes(data)
        if folder.is_dir():
            shutil.rmtree(partial)
        else:
            partial.rename(folder)
    return boot.Cores(*((folder / name).read_bytes() for name in names))


def _cached_initrd(job: Job) -> bytes:
    script = job.lab / "base/initramfs/init"
    words = (job.kernel.version, job.stamp, str(job.epoch), job.guest_root.name)
    path = job.cache / "boot" / f"initrd-{hashlib.sha256(chr(0).join(words).encode()).hexdigest()[:24]}"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{job.scratch.name}.partial")
        partial.write_bytes(boot.initramfs(job.kernel, job.guest_root, script, job.epoch, job.family.target))
        partial.replace(path)
    return path.read_bytes()


def _flash(job: Job) -> list[dict[str, object]]:
    """The two images of a device with NAND flash."""
    family, device = job.family, job.family.profile
    initrd = _cached_initrd(job)
    name = f"ARM ndakit lab Linux-{job.kernel.version}"
    kernel = flash.kernel(job.kernel.image.read_bytes(), initrd, name, job.epoch)
    parts = flash.Parts(kernel, _mksquashfs(job))
    records = []
    for kind, data in (
        ("factory", flash.factory(job.cache, parts, job.scratch, job.epoch)),
        ("sysupgrade", flash.sysupgrade(parts, device, job.epoch, _metadata(family))),
    ):
        path = job.target / f"{family.image_name(job.extra, 'squashfs', kind)}.bin"
        partial = path.with_name(f".{path.name}.partial")
        partial.write_bytes(data)
        partial.replace(path)
        records.append(_record(path, kind, "squashfs"))
    return records


def _mksquashfs(job: Job) -> Path:
    image = job.scratch / "root.squashfs"
    image.unlink(missing_ok=True)
    stamp = str(job.epoch)
    times = ("-mkfs-time", stamp, "-all-time", stamp)
    job.tools.run("usr/bin/mksquashfs", job.root, image, *_SQUASHFS, "256k", *times, "-no-progress", "-quiet")
    return image


def _squashfs(job: Job) -> list[disk.Part]:
    """The root as squashfs, and an empty ext4 behind it (where OpenWrt makes its own at the first boot)."""
    image = _mksquashfs(job)
    size = image.stat().st_size
    parts = [disk.Part(0, image, packed=True)]
    start = -(-size // _DATA_ALIGN) * _DATA_ALIGN
    room = job.partsize_mib * disk.MIB - start
    # gen_image_generic.sh does not look whether it fits: what is too large makes a disk that does not boot.
    if room >= _SMALLEST_DATA:
        data = job.scratch / "data.ext4"
        _mke2fs(job, data, room, "rootfs_data", None)
        parts.append(disk.Part(start, data))
    return parts


def _ext4(job: Job) -> list[disk.Part]:
    image = job.scratch / "root.ext4"
    try:
        _mke2fs(job, image, job.partsize_mib * disk.MIB, "rootfs", job.root)
    except ToolFailed as failure:
        if "Could not allocate" in str(failure) or "No space" in str(failure):
            if job.family.l2_devices:
                blocks = sum(p.stat().st_size for p in job.root.rglob("*") if p.is_file()) // 4096
                text = f"error: ext4_allocate_best_fit_partial: failed to allocate {blocks} blocks, out of space?"
            else:
                text = "error: make_file: failed to allocate inode"
            raise BuildFailed(text) from failure
        raise
    return [disk.Part(0, image)]


def _mke2fs(job: Job, image: Path, size: int, label: str, content: Path | None) -> None:
    image.unlink(missing_ok=True)
    with image.open("wb") as stream:
        stream.truncate(size)
    env = {
        "MKE2FS_CONFIG": str(job.tools.root / "etc/mke2fs.conf"),
        "SOURCE_DATE_EPOCH": str(job.epoch),
        "E2FSPROGS_FAKE_TIME": str(job.epoch),
    }
    who = str(disk.identity(f"{label} {job.epoch}"))
    words = ["-L", label, "-U", who, "-E", f"hash_seed={who},lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0"]
    if content is not None:
        words += ["-d", str(content)]
    job.tools.run("usr/sbin/mke2fs", *_EXT4, *words, image, str(size // 4096), env=env)


def _targz(job: Job) -> None:
    device = f"{job.family.target.device}-" if job.family.l2_devices else ""
    name = f"{job.family.prefix(job.extra)}-{device}rootfs.tar.gz"

    def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = 0
        entry.uname = entry.gname = "root"
        entry.mtime = job.epoch
        if entry.islnk():  # hard links to the cache are ours, not the image's
            entry.type = tarfile.REGTYPE
        return entry

    with (
        (job.target / name).open("wb") as raw,
        gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=1, mtime=0, filename="") as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as tar,
    ):
        for path in sorted(job.root.rglob("*")):
            tar.add(path, arcname=f"./{path.relative_to(job.root)}", recursive=False, filter=plain)


def _write(job: Job, name: str, parts: list[disk.Part], size: int, kind: str, filesystem: str) -> dict[str, object]:
    """Write one image. Parts that reach over the end make a longer disk, as dd does."""
    for part in parts:
        end = part.offset + (len(part.data) if isinstance(part.data, bytes) else part.data.stat().st_size)
        size = max(size, end)
    ordered = sorted(parts, key=lambda p: p.offset)
    compress = name.endswith(".gz")
    digest = disk.write(job.target / name, ordered, size, compress=compress, metadata=_metadata(job.family))
    return {"type": kind, "filesystem": filesystem, "name": name, "sha256": digest, "sha256_unsigned": digest}


def _metadata(family: Family) -> dict[str, object]:
    """What stands behind an image for sysupgrade (openwrt/openwrt `include/image-commands.mk`, metadata_json)."""
    return {
        "metadata_version": "1.1",
        "compat_version": "1.0",
        "supported_devices": list(family.target.supported) or [family.profile],
        "version": {
            "dist": "OpenWrt", "version": family.release, "revision": REVISION, "target": family.info_target,
            "board": family.profile,
        },
    }  # fmt: skip


def _size(part: disk.Part) -> int:
    return len(part.data) if isinstance(part.data, bytes) else part.data.stat().st_size


def _record(path: Path, kind: str, filesystem: str | None) -> dict[str, object]:
    record: dict[str, object] = {"type": kind, "name": path.name, "sha256": _sha256(path)}
    if filesystem is not None:
        record["filesystem"] = filesystem
    return record


def describe(job: Job, records: list[dict[str, object]], packages: list[Package], versions: dict[str, str]) -> None:
    """Write the manifest, profiles.json (21.02 and later) and sha256sums."""
    manifest = "".join(f"{name} - {version}\n" for name, version in manifest_lines(packages, versions))
    device = job.family.target.device
    (job.target / f"{job.family.prefix(job.extra)}-{device}.manifest").write_text(manifest)
    if job.family.l2_devices:
        overview = {
            "arch_packages": job.family.target.architecture,
            "default_packages": list(job.family.default_packages),
            "metadata_version": 1,
            "profiles": {
                device: {
                    "device_packages": list(job.family.profile_packages),
                    "image_prefix": f"{job.family.prefix(job.extra)}-{device}",
                    "images": records,
                    "supported_devices": list(job.family.target.supported),
                    "titles": [{"title": job.family.target.title}],
                }
            },
            "source_date_epoch": job.epoch,
            "target": job.family.info_target,
            "version_code": REVISION,
            "version_number": job.family.release,
        }
        (job.target / "profiles.json").write_text(json.dumps(overview, sort_keys=True))
    known = {str(r["name"]): str(r["sha256"]) for r in records}
    lines = [
        f"{known.get(p.name) or _sha256(p)} *{p.name}\n"
        for p in sorted(job.target.iterdir())
        if p.is_file() and p.name != "sha256sums" and not p.name.startswith(".")
    ]
    (job.target / "sha256sums").write_text("".join(lines))


def manifest_lines(packages: list[Package], versions: dict[str, str]) -> list[tuple[str, str]]:
    """Name and version of every package people can see, in order."""
    return [(p.name, versions[p.name]) for p in packages if not p.hidden]


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
