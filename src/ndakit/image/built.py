"""What a build of an image gave: the files, what is in them, and that the disk was full."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ndakit.core.errors import MachineError
from ndakit.image import disk as image_disk
from ndakit.image import flash as image_flash


@dataclass(frozen=True)
class BuiltImage:
    """An image file that was made and looked into; `disk` is None for images that are no disks.

    `format`: `img`, or `rootfs` for an archive; others are made of these by `formats`.
    """

    path: Path
    kind: str
    filesystem: str
    sha256: str
    disk: image_disk.DiskFacts | None
    format: str = "img"
    flash: image_flash.FlashFacts | None = None
    """What is in an image for a device with flash that we know."""


@dataclass(frozen=True)
class Built:
    """What came of `image`: the files, the packages inside with their versions, and what should be known about it."""

    images: tuple[BuiltImage, ...]
    packages: Mapping[str, str]
    argv: tuple[str, ...]
    elapsed_s: float
    warnings: tuple[str, ...]


class DiskFull(MachineError):
    """There was no space left in the middle of it."""

    def __init__(self, where: str, detail: str = "") -> None:
        super().__init__(
            "no space left on the disk while the image was made" + (f": {detail}" if detail else ""),
            where=where,
            fix="free some space there (./inv clean removes what can be made again), then run it again",
        )
