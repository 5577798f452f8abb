"""One image to be asked for: the request, its command line, its settings, and what is refused before make runs.

Pure but for looking at the folder to be laid over the root: the ImageBuilder skips a missing folder, and drops some
files, without a word. Running make is the business of `imagebuilder`.
Interface: openwrt/openwrt `target/imagebuilder/files/Makefile`, `config/Config-images.in`, `include/rootfs.mk`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ndakit.core.errors import BuildError, InputError
from ndakit.core.release import Release

GRUB_TIMEOUT_S = 1
_PARTSIZE_VARIABLE = (23, 5)
_EFI_SINCE = (21, 2)
_FILESYSTEM_KNOBS = ("SQUASHFS", "EXT4FS", "TARGZ", "CPIOGZ", "UBIFS", "JFFS2", "EROFS", "ISO")
KNOB_OF = {"squashfs": "SQUASHFS", "ext4": "EXT4FS"}
_OTHER_DISKS = ("VDI", "VMDK", "VHDX", "QCOW2", "ISO")


class PathUnusable(InputError):
    """A path that make cannot work in."""

    def __init__(self, path: Path, character: str) -> None:
        shown = "a space" if character == " " else repr(character)
        super().__init__(
            f"there is {shown} in this path, and the ImageBuilder's makefiles cannot work in such a folder",
            where=str(path),
            fix="move the workspace (or the ImageBuilder) to a path of letters, digits and . _ - + , @ only",
        )


class FilesMissing(BuildError):
    """What should be laid over the root is not there; the ImageBuilder would silently build without it."""

    def __init__(self, path: Path, detail: str) -> None:
        super().__init__(
            f"the rendered files cannot be used: {detail}", where=str(path), fix="render them again: ./inv render"
        )


class FilesDropped(BuildError):
    """Files that the ImageBuilder removes from every root without a word."""

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        super().__init__(
            f"the ImageBuilder would silently leave these files out: {', '.join(names)}",
            where=str(path),
            fix="put them elsewhere: /tmp, /boot, .git, .svn and names that begin with .# do not reach an image",
        )


class FilesystemUnavailable(InputError):
    """The target does not make this kind of root file system."""

    def __init__(self, filesystem: str, offered: Sequence[str], root: Path) -> None:
        super().__init__(
            f"this target makes no {filesystem} images",
            where=str(root / ".config"),
            fix=f"write image: {{filesystem: {offered[0]}}}" if offered else "choose another device",
        )


class EfiUnavailable(InputError):
    """Releases before 21.02 make no EFI images."""

    def __init__(self, release: Release) -> None:
        super().__init__(
            f"OpenWrt {release} makes no EFI images (they came with 21.02)",
            where="image.firmware",
            fix="write image: {firmware: bios}, or choose a newer release",
        )


@dataclass(frozen=True)
class ImageRequest:
    """One image to be made. `files` is laid over the root, `extra_name` becomes part of the file names."""

    device: str
    target: str
    add: tuple[str, ...]
    remove: tuple[str, ...]
    files: Path
    extra_name: str
    rootfs_mib: int
    filesystem: Literal["squashfs", "ext4"] = "squashfs"
    firmware: Literal["efi", "bios"] = "efi"
    disabled_services: tuple[str, ...] = ()
    archive: bool = False
    """Whether the root file system is wanted as an archive as well."""

    @property
    def packages(self) -> str:
        """PACKAGES: names to add, then names to leave out with a `-` before them."""
        return " ".join([*sorted(set(self.add)), *(f"-{name}" for name in sorted(set(self.remove)))])

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of image that are wanted, any of them; as profiles.json names them."""
        board = self.target.partition("/")[0]
        if board == "x86":
            return ("combined-efi",) if self.firmware == "efi" else ("combined",)
        if board in ("armsr", "armvirt"):
            return ("combined-efi", "combined")
        return ("sysupgrade", "factory", "sdcard")


def usable_path(path: Path) -> Path:
    """The path, if make can work in it. Raises PathUnusable."""
    character = re.search(r"[^\w./+,@-]", str(path))
    if character:
        raise PathUnusable(path, character[0])
    return path


def image_argv(request: ImageRequest, release: Release, bin_dir: Path) -> list[str]:
    """The command line for one image. ROOTFS_PARTSIZE only where make knows it (23.05); before, .config decides."""
    argv = ["make", "image", f"PROFILE={request.device}", f"PACKAGES={request.packages}", f"FILES={request.files}"]
    argv += [f"BIN_DIR={bin_dir}", f"EXTRA_IMAGE_NAME={request.extra_name}"]
    if request.disabled_services:
        argv.append(f"DISABLED_SERVICES={' '.join(sorted(request.disabled_services))}")
    if release.branch >= _PARTSIZE_VARIABLE:
        argv.append(f"ROOTFS_PARTSIZE={request.rootfs_mib}")
    return argv


def manifest_argv(device: str, packages: str) -> list[str]:
    """The command line for the list of packages that an image would have."""
    return ["make", "manifest", f"PROFILE={device}", f"PACKAGES={packages}"]


def wanted_knobs(request: ImageRequest) -> dict[str, bool | int | str]:
    """The settings of .config with which only the wanted file system and disk format are made."""
    wanted: dict[str, bool | int | str] = {f"CONFIG_TARGET_ROOTFS_{name}": False for name in _FILESYSTEM_KNOBS}
    wanted[f"CONFIG_TARGET_ROOTFS_{KNOB_OF[request.filesystem]}"] = True
    wanted["CONFIG_TARGET_ROOTFS_TARGZ"] = request.archive
    wanted["CONFIG_TARGET_ROOTFS_PARTSIZE"] = request.rootfs_mib
    wanted["CONFIG_TARGET_IMAGES_GZIP"] = True
    if request.target.startswith("x86/"):
        wanted |= {
            "CONFIG_GRUB_IMAGES": request.firmware == "bios",
            "CONFIG_GRUB_EFI_IMAGES": request.firmware == "efi",
            "CONFIG_GRUB_TIMEOUT": str(GRUB_TIMEOUT_S),
            "CONFIG_GRUB_CONSOLE": True,  # the screen; the serial console is there either way
            "CONFIG_GRUB_BAUDRATE": 115200,  # x86/generic's own default is 38400
        }
        # Disks of virtual machines are made of the raw one afterwards, by `image.formats`.
        wanted |= {f"CONFIG_{name}_IMAGES": False for name in _OTHER_DISKS}
    elif request.target.startswith("armsr/"):
        wanted |= {"CONFIG_GRUB_TIMEOUT": str(GRUB_TIMEOUT_S), "CONFIG_VMDK_IMAGES": False}
    return wanted


def check_request(request: ImageRequest, release: Release) -> None:
    """Refuse what no ImageBuilder of this release makes, before anything runs. Raises EfiUnavailable."""
    if request.target.startswith("x86/") and request.firmware == "efi" and release.branch < _EFI_SINCE:
        raise EfiUnavailable(release)


def check_files(folder: Path) -> None:
    """The folder to be laid over the root must exist, have files, and lose none. Raises FilesMissing, FilesDropped."""
    usable_path(folder)
    if not folder.is_dir():
        raise FilesMissing(folder, "the folder does not exist")
    names = sorted(p.relative_to(folder) for p in folder.rglob("*"))
    if not names:
        raise FilesMissing(folder, "the folder is empty")
    dropped = [
        f"/{n}" for n in names
        if n.parts[0] in ("tmp", "boot") or any(p in (".git", ".svn") or p.startswith(".#") for p in n.parts)
    ]  # fmt: skip
    if dropped:
        raise FilesDropped(folder, dropped)
