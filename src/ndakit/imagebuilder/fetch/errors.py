"""What can go wrong between asking for an ImageBuilder and having it: the errors of `fetch`, with their words.

Owns the texts alone; transport's errors are in `download`, those of signatures in `trust`.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from ndakit.core.errors import InputError, MachineError, NdakitError
from ndakit.core.release import Release
from ndakit.imagebuilder.fetch.mirrors import MirrorFailed
from ndakit.imagebuilder.fetch.trust import VerificationFailed


class ChecksumMalformed(InputError):
    """`--checksum` is no SHA-256."""

    def __init__(self, given: str) -> None:
        super().__init__(
            f"this is no SHA-256: {given[:70]!r}",
            where="--checksum",
            fix="give its 64 hex digits, as in the line of the ImageBuilder in sha256sums",
        )


class ReleaseMissing(InputError):
    """OpenWrt has no such release."""

    def __init__(self, release: Release, versions: Sequence[str], mirror: str) -> None:
        branch = [v for v in versions if v.startswith(f"{release.year:02}.{release.month:02}.")]
        finished = [v for v in branch if "-rc" not in v]
        if finished:
            fix = f"write {finished[0]}, the newest release of its branch"
        else:
            near = difflib.get_close_matches(str(release), versions, 3, 0.5) or list(versions[:3])
            fix = f"write one that exists, such as {', '.join([*branch[:2], *near][:3])}"
        super().__init__(f"there is no OpenWrt {release}", where=f"{mirror}/.versions.json", fix=fix)


class TargetMissing(InputError):
    """The release does not have this target."""

    def __init__(self, release: Release, target: str, targets: Sequence[str], mirror: str) -> None:
        board = target.partition("/")[0]
        near = [t for t in targets if t.startswith(f"{board}/")] or difflib.get_close_matches(target, targets, 3, 0.4)
        fix = f"choose a device of {', '.join(near[:4])}" if near else "choose a device that this release supports"
        super().__init__(
            f"OpenWrt {release} has no target {target}",
            where=f"{mirror}/releases/{release}/.targets.json",
            fix=f"{fix}, or another release",
        )


class OfflineMissing(MachineError):
    """Without the network only what is in the cache can be had, and it is not."""

    def __init__(self, release: Release, target: str, base: Path, pins: Sequence[str], checksum: str | None) -> None:
        if checksum is None and pins:
            what = f"; there is one that was pinned by hand ({pins[0][:16]}…)"
            fix = f"add --checksum {pins[0]}, or fetch a signed one"
        else:
            what = f" with SHA-256 {checksum}" if checksum else ""
            fix = "fetch it once"
        super().__init__(
            f"--offline, and the ImageBuilder of OpenWrt {release} for {target} is not in the cache{what}",
            where=str(base),
            fix=f"{fix} where there is a network: ./inv fetch --release {release} --device DEVICE; or name an unpacked"
            " one: --imagebuilder DIR",
        )


class MirrorsFailed(MachineError):
    """None of several mirrors was of use."""

    def __init__(self, errors: Sequence[NdakitError]) -> None:
        super().__init__(
            "no mirror is of use: " + "; ".join(f"{e.what} ({e.where})" for e in errors),
            where="--mirror or NDAKIT_MIRROR",
            fix=errors[-1].fix,
        )
        self.errors = tuple(errors)


class ListingForeign(VerificationFailed):
    """The list is good, and is of something else: a mirror that mixes up its folders, or worse."""

    def __init__(self, where: str, names: Sequence[str], release: Release, target: str) -> None:
        super().__init__(
            f"this list is not the one of OpenWrt {release} for {target}: it names {names[0]}",
            where=where,
            fix="use another mirror: --mirror URL (or NDAKIT_MIRROR)",
        )


class ListingWithout(MirrorFailed):
    """The list names no ImageBuilder, or several."""

    def __init__(self, where: str, count: int) -> None:
        super().__init__(
            f"the list of checksums names {count or 'no'} ImageBuilder{'s' if count else ''} for Linux-x86_64",
            where=where,
            fix="use another mirror (--mirror URL); a target without an ImageBuilder cannot be built for",
        )


class ChecksumWrong(VerificationFailed):
    """The archive is not the one that is vouched for."""

    def __init__(self, where: str, name: str, actual: str, wanted: str) -> None:
        super().__init__(
            f"the checksum of {name} is wrong: it is {actual}, and {wanted} is vouched for",
            where=where,
            fix="what came was thrown away; use another mirror (--mirror URL). If you pinned the checksum, compare it"
            " with the list of OpenWrt's own server: --checksum SHA256",
        )


class NoImageBuilder(VerificationFailed):
    """The archive holds something else."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(
            f"the archive holds no ImageBuilder: {why}",
            where=str(path),
            fix="name another archive's checksum (--checksum SHA256), or another mirror (--mirror URL)",
        )


class ArchiveForeign(VerificationFailed):
    """The archive is an ImageBuilder, of another release or target than its name says."""

    def __init__(self, path: Path, has: str, wanted: str) -> None:
        super().__init__(
            f"the archive holds an ImageBuilder for {has}, and the one for {wanted} was asked for",
            where=str(path),
            fix="name another archive's checksum (--checksum SHA256), or another mirror (--mirror URL)",
        )


class CacheFull(MachineError):
    """No space for the archive or what is in it."""

    def __init__(self, base: Path, why: str) -> None:
        super().__init__(
            f"there is no room for the ImageBuilder: {why}",
            where=str(base),
            fix="free about 2 GiB there, or set XDG_CACHE_HOME to a larger disk; then run it again: what came is kept",
        )


class CacheUnwritable(MachineError):
    """The cache lacks the ImageBuilder, and cannot take it."""

    def __init__(self, where: Path, why: str) -> None:
        super().__init__(
            f"the ImageBuilder is not in the cache, and the cache cannot be written: {why}",
            where=str(where),
            fix="make the cache writable, or set XDG_CACHE_HOME to a folder of your own",
        )
