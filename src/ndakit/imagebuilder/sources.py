"""Where ImageBuilders come from: the lab's stand-in, or one of OpenWrt's, fetched or unpacked by the user.

Owns what differs between the two: how a private working copy is made, and a cheap hash of what each contributes to an
image. Driving the copy is the business of `imagebuilder`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal, Protocol

from ndakit.core import process
from ndakit.core.errors import InputError, MachineError
from ndakit.core.events import Events, ignore
from ndakit.core.release import Release
from ndakit.core.workspace import Workspace, cache
from ndakit.imagebuilder import cache as imagebuilder_cache
from ndakit.imagebuilder import prerequisites, working_copy
from ndakit.imagebuilder.fetch import fetch as fetching
from ndakit.imagebuilder.imagebuilder import ImageBuilder, ImageBuilderBroken, check_release
from ndakit.imagebuilder.request import usable_path

Kind = Literal["lab", "openwrt"]

LAB_WARNING = (
    "A lab image: made of Debian's kernel and programs with a stand-in for OpenWrt's base system, for testing only."
    " Never flash it."
)
_LAB_PARTS = ("debian.py", "debian_base.py", "debian_unpack.py", "imagebuilder", "base")
_INSTANTIATE_TIMEOUT_S = 600.0
_COPY_SPARE_MIB = 512
_LAB_SPARE_MIB = 256


class BuilderUnknown(InputError):
    """There is no such builder."""

    def __init__(self, kind: str) -> None:
        super().__init__(
            f"there is no builder {kind!r}", where="--builder", fix="write --builder lab or --builder openwrt"
        )


class BuilderContradiction(InputError):
    """Options that say different things about where the ImageBuilder comes from."""

    def __init__(self, given: str, why: str, fix: str) -> None:
        super().__init__(f"{given} cannot have any effect: {why}", where="the command line", fix=fix)


class LabUnavailable(InputError):
    """The lab has no stand-in for this release or target."""


class LabFailed(MachineError):
    """The lab's ImageBuilder cannot be made on this machine."""


@dataclass(frozen=True)
class FetchOptions:
    """What was said about fetching OpenWrt's ImageBuilder: `--mirror`, `--offline`, `--checksum`."""

    mirror: str | None = None
    offline: bool = False
    checksum: str | None = None

    def origin(self, workspace: Workspace) -> fetching.Origin:
        """The same with its defaults. Raises MirrorUnusable, ChecksumMalformed."""
        pin = fetching.pinned(self.checksum) if self.checksum is not None else None
        return fetching.Origin(fetching.mirrors_from(self.mirror), self.offline, pin, (workspace.keys,))

    def given(self) -> str:
        """The options that were used, in words; empty if there were none."""
        used = {"--mirror": self.mirror is not None, "--offline": self.offline, "--checksum": self.checksum is not None}
        return ", ".join(name for name, is_used in used.items() if is_used)


class Size(Protocol):
    """How large a root partition is to be."""

    @property
    def rootfs_mib(self) -> int:
        """In MiB."""


class ForImages(Protocol):
    """What a builder has to know: of a profile, or of a backup that images are made from."""

    @property
    def name(self) -> str:
        """For errors."""

    @property
    def release(self) -> Release:
        """Of the ImageBuilder."""

    @property
    def target(self) -> str:
        """Of the ImageBuilder."""

    @property
    def image(self) -> Size:
        """Of the images."""


@dataclass(frozen=True)
class Job:
    """What a builder needs to provide an ImageBuilder: for which profile, where, and who hears about it."""

    profile: ForImages
    folder: Path
    """A private folder; the ImageBuilder is made inside."""
    log: Path
    on_line: Callable[[str], None] | None = None


@dataclass(frozen=True)
class Provenance:
    """Which ImageBuilder makes the images, for lock files and records; without paths of this machine."""

    name: str
    fingerprint: str
    """What `Builder.fingerprint` says."""
    archive: str = ""
    """The archive's name, its SHA-256 and how that was verified; empty for an ImageBuilder that was not fetched."""
    sha256: str = ""
    verified_by: str = ""


class Builder(Protocol):
    """A source of ImageBuilders."""

    kind: ClassVar[Kind]
    warning: ClassVar[str | None]
    """Words for the record if its images are not for flashing."""

    def fingerprint(self, profile: ForImages) -> str:
        """A hash of what this builder contributes to the profile's images; cheap when nothing changed."""

    def label(self) -> str:
        """Which ImageBuilder it is, for people; without paths of this machine."""

    def provenance(self, profile: ForImages) -> Provenance:
        """The same for lock files and records."""

    def space_mib(self, profile: ForImages) -> int:
        """Free space that building one node takes, in MiB."""

    def provide(self, job: Job) -> AbstractContextManager[ImageBuilder]:
        """A private ImageBuilder, ready to be driven; when the block ends well, downloads are kept for the next one."""


class LabBuilder:
    """The stand-in ImageBuilder that lies in lab/, made of Debian packages."""

    kind: ClassVar[Kind] = "lab"
    warning: ClassVar[str | None] = LAB_WARNING

    def __init__(self, workspace: Workspace) -> None:
        self._lab = workspace.lab

    def fingerprint(self, profile: ForImages) -> str:
        """A hash over the lab's sources, the release and the target."""

        def other(path: str) -> bool:
            parts = path.split("/")
            return parts[0] not in _LAB_PARTS or "__pycache__" in parts or path.endswith((".md", ".pyc"))

        sources = working_copy.fingerprint(self._lab, _fingerprint_cache(self._lab), other)
        return hashlib.sha256(f"lab {profile.release} {profile.target} {sources}".encode()).hexdigest()

    def label(self) -> str:
        """Its name for people."""
        return "the lab's stand-in ImageBuilder"

    def provenance(self, profile: ForImages) -> Provenance:
        """Its name and fingerprint."""
        return Provenance(self.label(), self.fingerprint(profile))

    def space_mib(self, profile: ForImages) -> int:
        """Free space that building one node takes, in MiB."""
        return 2 * profile.image.rootfs_mib + _LAB_SPARE_MIB

    @contextlib.contextmanager
    def provide(self, job: Job) -> Iterator[ImageBuilder]:
        """Instantiate it. Raises LabUnavailable for a release or target it does not have, LabFailed."""
        usable_path(job.folder)
        target = job.folder / "imagebuilder"
        argv: list[str | Path] = [sys.executable, "-B", self._lab / "imagebuilder" / "instantiate.py"]
        argv += ["--release", str(job.profile.release), "--target", job.profile.target]
        argv += ["--cache", cache() / "lab", "--into", target]
        done = process.run(
            argv, timeout_s=_INSTANTIATE_TIMEOUT_S, log=job.log, check=False, on_line=job.on_line, umask=0o022
        )
        if done.returncode == 2:
            raise LabUnavailable(
                _three_lines(done.stdout)[0],
                where=f"profile {job.profile.name}, release and device (--builder lab)",
                fix="build it with an ImageBuilder for it: --builder openwrt --imagebuilder DIR",
            )
        if done.returncode == 3:
            what, where, fix = _three_lines(done.stdout)
            raise LabFailed(what, where=where or f"log: {job.log}", fix=fix or "read the log")
        if done.returncode != 0:
            raise process.ProcessFailed(done, log=job.log)
        memory = imagebuilder_cache.Memory(self.fingerprint(job.profile))
        yield ImageBuilder(target, job.profile.release, log=job.log, on_line=job.on_line, memory=memory)


class OpenWrtBuilder:
    """An OpenWrt ImageBuilder, fetched or unpacked by the user; its folder is only read."""

    kind: ClassVar[Kind] = "openwrt"
    warning: ClassVar[str | None] = None

    def __init__(self, folder: Path, fetched: fetching.Fetched | None = None, *, offline: bool = False) -> None:
        """`fetched` says what is known of the folder's archive; `offline` keeps its package manager from the network.

        Raises ImageBuilderBroken for a folder that is none.
        """
        self._fetched = fetched
        self._offline = offline
        try:
            self._folder = folder.expanduser().absolute()
        except RuntimeError as cause:  # `~name` of nobody
            raise ImageBuilderBroken(folder, str(cause)) from None
        for name in ("Makefile", ".config", "include", "staging_dir"):
            if not (self._folder / name).exists():
                raise ImageBuilderBroken(self._folder, f"there is no {name} in it")

    def fingerprint(self, profile: ForImages) -> str:
        """A hash over the ImageBuilder's material, the same wherever and whenever it was unpacked."""
        return working_copy.fingerprint(self._folder, _fingerprint_cache(self._folder))

    def label(self) -> str:
        """The folder's name; the archive's unpacks to one that says release and target."""
        return self._folder.name

    def provenance(self, profile: ForImages) -> Provenance:
        """The folder's name and fingerprint; of a fetched one also its archive and who vouched for that."""
        known = self._fetched
        if known is None:
            return Provenance(self.label(), self.fingerprint(profile))
        return Provenance(self.label(), self.fingerprint(profile), known.archive, known.sha256, known.verified_by)

    def space_mib(self, profile: ForImages) -> int:
        """Free space that building one node takes, in MiB: a copy, the root twice, the images."""
        copied = sum(
            entry.stat(follow_symlinks=False).st_size
            for _, entry in working_copy.files(self._folder, working_copy.is_leftover)
        )
        return copied // (1024 * 1024) + 3 * profile.image.rootfs_mib + _COPY_SPARE_MIB

    @contextlib.contextmanager
    def provide(self, job: Job) -> Iterator[ImageBuilder]:
        """Copy it, with the packages that earlier builds downloaded.

        Every build has a copy of its own and what is shared is put in place in one step, so that any number of them,
        in any number of processes and workspaces, cannot meet. Before anything is copied it raises ImageBuilderMismatch
        and PrerequisitesMissing.
        """
        usable_path(job.folder)
        check_release(self._folder, job.profile.release)
        prerequisites.check(str(self._folder))
        target = job.folder / "imagebuilder"
        fingerprint = self.fingerprint(job.profile)
        working_copy.private_copy(self._folder, target)
        unchanged = self.fingerprint(job.profile) == fingerprint
        memory = imagebuilder_cache.Memory(fingerprint) if unchanged else None  # else what was copied has no name
        kept = cache() / "openwrt" / f"{job.profile.release}-{job.profile.target.replace('/', '-')}"
        working_copy.merge_packages(kept, target / "dl")
        release, origin = job.profile.release, self._folder
        yield ImageBuilder(
            target, release, log=job.log, on_line=job.on_line, memory=memory, origin=origin, offline=self._offline
        )
        with contextlib.suppress(OSError):  # a cache that cannot take them costs the next build a download
            working_copy.merge_packages(target / "dl", kept)


def choose(
    kind: str,
    folder: Path | None,
    workspace: Workspace,
    profile: ForImages,
    options: FetchOptions | None = None,
    events: Events = ignore,
) -> Builder:
    """The builder for `--builder KIND --imagebuilder DIR`; without DIR, OpenWrt's is fetched if the cache lacks it.

    Raises BuilderUnknown, BuilderContradiction, ImageBuilderBroken, and what `imagebuilder.fetch.fetch.fetch` raises.
    """
    fetch = options or FetchOptions()
    if kind == "lab":
        given = "--imagebuilder" if folder is not None else fetch.given()
        if given:
            raise BuilderContradiction(
                given, "the lab makes its ImageBuilder itself", f"leave {given} out, or write --builder openwrt"
            )
        return LabBuilder(workspace)
    if kind == "openwrt":
        if folder is not None:
            given = replace(fetch, offline=False).given()
            if given:
                raise BuilderContradiction(given, "with --imagebuilder nothing is fetched", f"leave {given} out")
            return OpenWrtBuilder(folder, offline=fetch.offline)
        fetched = fetching.get(profile.release, profile.target, fetch.origin(workspace), events)
        return OpenWrtBuilder(fetched.folder, fetched, offline=fetch.offline)
    raise BuilderUnknown(kind)


def _fingerprint_cache(folder: Path) -> Path:
    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    return cache() / "fingerprints" / f"{name}.json"


def _three_lines(text: str) -> tuple[str, str, str]:
    """What, where and fix of a message in the house's form; the last line of the text for any other."""
    said = re.search(r"^error: (.+)\n  where: (.+)\n  fix:   (.+)$", text, re.MULTILINE)
    if said:
        return said[1], said[2], said[3]
    lines = [line for line in text.splitlines() if line.strip()]
    return (lines[-1] if lines else "the lab's ImageBuilder could not be made"), "", ""
