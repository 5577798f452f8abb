"""What can go wrong in an ImageBuilder: the errors of building images that the user can act on.

Which of them a text tells of is the business of `diagnosis`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path

from ndakit.core import process
from ndakit.core.errors import BuildError, InputError, MachineError


class DeviceUnknown(InputError):
    """The ImageBuilder makes no images for this device."""

    def __init__(self, device: str, devices: Sequence[str], where: str) -> None:
        near = difflib.get_close_matches(device, devices, 3, 0.5)
        said = f"write <target>:{near[0]} as device" if near else "choose a device of this target"
        some = ", ".join(list(devices)[:12]) + (", …" if len(devices) > 12 else "")
        super().__init__(
            f"this ImageBuilder makes no images for device {device}",
            where=where,
            fix=f"{said}, or use the ImageBuilder of the device's target; this one knows {some}",
        )
        self.device = device


class FeedsUnreachable(MachineError):
    """Lists of packages, or packages, could not be downloaded; what was said after that is a consequence of it.

    `failed`: address → why. `then` is what the package manager made of it, in our words.
    """

    def __init__(self, failed: Mapping[str, str], then: str, where: str, *, offline: bool) -> None:
        first, why = next(iter(failed.items()))
        more = f", and {len(failed) - 1} more" if len(failed) > 1 else ""
        reason = f" ({why})" if why and not offline else ""
        what = f"not downloaded: {first}{reason}{more}"
        if offline:
            what = f"with --offline nothing is downloaded, and earlier builds have not kept all of it; {what}"
        fix = "look at this machine's network and proxy (https_proxy), then run it again"
        if offline:
            fix = "build once without --offline: what is downloaded is kept"
        super().__init__(
            f"{what}. So it ended with: {then}",
            where=where,
            fix=f"{fix}; or put the package files into the workspace's packages/",
        )
        self.failed = dict(failed)


class PackagesMissing(BuildError):
    """Packages that are asked for do not exist in this release."""

    def __init__(self, missing: Sequence[str], near: dict[str, list[str]], where: str) -> None:
        hints = "; ".join(f"for {name} there is {', '.join(names)}" for name, names in near.items() if names)
        super().__init__(
            f"no such package in this release: {', '.join(missing)}" + (f" ({hints})" if hints else ""),
            where=where,
            fix="in image.packages write the name that this release uses, or put the package into the workspace's"
            " packages/; what ndakit itself asks for must be in the ImageBuilder's feeds or there",
        )
        self.missing = tuple(missing)


class PackageFilesUnusable(BuildError):
    """Package files lie in the ImageBuilder's packages/ folder, and the package manager cannot use them."""

    def __init__(self, files: Sequence[str], detail: str, where: str) -> None:
        super().__init__(
            f"package files that cannot be used: {', '.join(files)} ({detail})",
            where=where,
            fix="get them again, made for exactly this release and this device's architecture",
        )


class DependenciesMissing(BuildError):
    """Packages exist, but something that they need does not."""

    def __init__(self, pairs: Sequence[tuple[str, tuple[str, ...]]], where: str) -> None:
        told = "; ".join(f"{package} needs {', '.join(needs)}" for package, needs in pairs)
        super().__init__(
            f"packages cannot be installed: {told}",
            where=where,
            fix="for a package of yours, put what it needs beside it or correct its DEPENDS; package files made for"
            " another release or kernel do that, too: use those of exactly this one",
        )


class PackagesConflict(BuildError):
    """Packages that exclude one another."""

    def __init__(self, pairs: Sequence[tuple[str, tuple[str, ...]]], where: str) -> None:
        told = "; ".join(f"{one} conflicts with {', '.join(others)}" for one, others in pairs)
        others = sorted({o for _, needs in pairs for o in needs})
        super().__init__(
            f"packages exclude one another: {told}",
            where=where,
            fix=f"in image.packages, remove one of them: {{{others[0] if others else pairs[0][0]}: remove}}",
        )


class FilesClash(BuildError):
    """Two packages bring the same file."""

    def __init__(self, clashes: Sequence[tuple[str, str, str]], where: str) -> None:
        told = "; ".join(f"{path} is in {one} and in {other}" for one, path, other in clashes)
        super().__init__(
            f"two packages bring the same file: {told}",
            where=where,
            fix=f"in image.packages, remove one of them: {{{clashes[0][2]}: remove}}",
        )


class PackagesUntrusted(BuildError):
    """A package or list has no valid signature."""

    def __init__(self, names: Sequence[str], where: str) -> None:
        super().__init__(
            f"no valid signature: {', '.join(names)}",
            where=where,
            fix="a package file of your own must be signed with the ImageBuilder's local key; one from elsewhere may"
            " be damaged or forged: get it again from where it was made",
        )


class RootTooSmall(BuildError):
    """What is to be installed does not fit into the root partition."""

    def __init__(self, detail: str, rootfs_mib: int, where: str, needed_mib: int | None = None) -> None:
        wanted = max(needed_mib or 0, rootfs_mib * 2)
        super().__init__(
            f"what is to be installed does not fit into the root partition of {rootfs_mib} MiB: {detail}",
            where=where,
            fix=f"write image: {{rootfs_mib: {wanted}}}, or remove packages in image.packages",
        )


class ImageTooBig(BuildError):
    """The image is larger than the device's flash; the real tools delete it and may still end with 0."""

    def __init__(self, detail: str, where: str) -> None:
        super().__init__(
            f"the image does not fit into this device's flash: {detail}",
            where=where,
            fix="remove packages in image.packages, or choose a device with more flash",
        )


class PrerequisitesMissing(MachineError):
    """This machine lacks programs that the ImageBuilder needs."""

    def __init__(
        self, wishes: Sequence[str], packages: Sequence[str], where: str, *, refused: Sequence[str] = ()
    ) -> None:
        """`refused` are compilers that are installed: old ImageBuilders take numbers from 4.8 to 10 only."""
        folder = any("case-sensitive" in wish for wish in wishes)
        needs = (
            "a file system that tells capitals from small letters" if folder else "programs that are not installed here"
        )
        fix = "move the workspace to one, such as ext4, xfs or btrfs" if folder else ""
        if refused and not folder:
            needs = f"{' and '.join(refused)} of a version from 4.8 to 10, and those of this machine are newer"
            fix = (
                f"put {' and '.join(refused)} 10 first in PATH (nothing is compiled with them), or use release "
                "19.07.8 or later, which takes newer ones too"
            )
            fix += f"; and apt-get install {' '.join(packages)}" if packages else ""
        if "python2" in packages:
            fix = (fix or f"apt-get install {' '.join(packages)}") + " (python2: up to Debian 11 and Ubuntu 22.04)"
        super().__init__(
            f"this ImageBuilder needs {needs}" + (": " + "; ".join(wishes) if wishes else ""),
            where=where,
            fix=fix or f"apt-get install {' '.join(packages or _ALL_PREREQUISITES)}",
        )


class InstallScriptFailed(BuildError):
    """A package's own installation script failed."""

    def __init__(self, detail: str, where: str) -> None:
        super().__init__(
            f"a package's installation script failed: {detail}",
            where=where,
            fix="read the log above that line; an init script or file of the overlay with a syntax error does that too",
        )


class MachineLacking(MachineError):
    """The lab's ImageBuilder says itself what this machine lacks."""


class ImageBuilderFailed(BuildError):
    """The ImageBuilder failed in a way that is not known here."""

    def __init__(self, command: str, returncode: int, tail: Sequence[str], log: Path) -> None:
        said = "\n".join(f"         | {line}" for line in tail)
        super().__init__(
            f"the ImageBuilder {process.ending(returncode)}" + (f"\n{said}" if said else ""),
            where=f"log: {log} (command: {command})",
            fix="read the log from its first error on: the last lines are often only the echo of it",
        )


_ALL_PREREQUISITES = (
    "make", "gawk", "bash", "coreutils", "findutils", "diffutils", "patch", "tar", "gzip", "bzip2", "unzip",
    "xz-utils", "zstd", "wget", "file", "perl", "python3", "python3-setuptools", "util-linux",
)  # fmt: skip
