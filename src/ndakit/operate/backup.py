"""A backup of a running balancer: config plus package list, and all that its image can be made from again.

Besides what OpenWrt's own `sysupgrade -b -k` gives, a backup holds the image's own files as the image has them, and the
recipe that every image carries (build/recipe). So an image can be made from a backup alone. What is asked of the box is
in `box_files`, how backups lie on the disk in `backups`. Prints nothing.
"""

from __future__ import annotations

import contextlib
import errno
import io
import shutil
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, BinaryIO, cast

from ndakit import __version__
from ndakit.build import recipe as recipes
from ndakit.build.recipe import ImageRecipe
from ndakit.core.errors import MachineError, NdakitError
from ndakit.core.files import file_sha256
from ndakit.core.workspace import Workspace
from ndakit.image import artifacts
from ndakit.image.artifacts import Artifact, Record
from ndakit.load.loaded import Loaded
from ndakit.model import package_plan
from ndakit.node import facts
from ndakit.node.errors import NodeError
from ndakit.operate import backups, encryption, tar_files
from ndakit.operate.backup_files import LOCAL, NOW, ORIGINAL
from ndakit.operate.backups import CONFIG, IMAGE, PACKAGES, Backup, BackupFile, BackupRecord, Differences
from ndakit.operate.box_files import (
    MADE_BY_SYSTEM,
    BoxFiles,
    ConfigIncomplete,
    Identity,
    Patience,
    SendingShell,
    added_by_mark,
)
from ndakit.packages import feed

_MARKS = "/etc/backup/installed_packages.txt"
_PIECE = 1 << 16


class AnotherBox(NodeError):
    """The box is not the one that it should be."""

    def __init__(self, where: str, what: str, address: str) -> None:
        super().__init__(
            f"this is another box: {what}. Nothing was read of its configuration",
            where=where,
            fix="look which box has this address, and name the right one (--address); to back this one up as what it "
            f"is: ./inv backup {address} --as NAME",
        )


class NoRoomHere(MachineError):
    """This machine's disk is full."""

    def __init__(self, folder: Path) -> None:
        super().__init__(
            "there is no room for the backup on this machine; no half of it is left",
            where=str(folder),
            fix="free some space there, or put it elsewhere: --to DIR",
        )


@dataclass(frozen=True)
class Wanted:
    """Which box is to be backed up, and how it is known. `hostname`, `release`: as the profile has them; empty for a
    box without a profile, which may be any."""

    profile: str
    node: str
    where: str
    address: str
    host_keys: tuple[str, ...]
    hostname: str = ""
    release: str = ""


@dataclass(frozen=True)
class AtHand:
    """What this machine knows of the image: its record, the overlay that it was made of, and packages of packages/:
    name → version and digest, as a recipe has them, and the file or folder."""

    record: Record | None = None
    overlay: Path | None = None
    packages: Mapping[str, tuple[str, Path]] = field(default_factory=dict)


def at_hand(workspace: Workspace, loaded: Loaded, node: str) -> AtHand:
    """What a workspace knows of a node's image; as much as can be read."""
    name = loaded.profile.name
    record = None
    with contextlib.suppress(NdakitError, OSError):
        record = Artifact.load(artifacts.folder_of(workspace, name, node)).record
    packages: dict[str, tuple[str, Path]] = {}
    with contextlib.suppress(NdakitError, OSError):
        for lab in (True, False):
            for one in feed.choose(workspace, loaded, package_plan.plan(loaded.profile, node), lab=lab, complete=False):
                places = [folder / one.name for folder in workspace.packages]
                source = one.source if isinstance(one.source, Path) else next(p for p in places if p.is_dir())
                packages[one.name] = (f"{one.version} {one.digest}", source)
    return AtHand(record, workspace.overlays / name / node, packages)


def check_box(wanted: Wanted, who: Identity) -> tuple[str, ...]:
    """What is notable about the box. Raises AnotherBox if it is not the one that is wanted."""
    if not wanted.hostname:
        return ()
    says = f"{who.image.get('profile', '')}/{who.image.get('node', '')}"
    if who.image and says != f"{wanted.profile}/{wanted.node}":
        what = f"its image was made for {says}, and {wanted.profile}/{wanted.node} was asked for"
        raise AnotherBox(wanted.where, what, wanted.address)
    if not who.image and who.hostname != wanted.hostname:
        what = f"it calls itself {who.hostname or 'nothing'}, and {wanted.hostname} was asked for"
        raise AnotherBox(wanted.where, what, wanted.address)
    notes = []
    if who.hostname != wanted.hostname:
        notes.append(f"it calls itself {who.hostname}, the profile {wanted.hostname}")
    if who.release != wanted.release:
        notes.append(f"it runs OpenWrt {who.release or '?'}, and the profile has {wanted.release} now")
    return tuple(notes)


def take(
    shell: SendingShell,
    wanted: Wanted,
    root: Path,
    *,
    known: AtHand,
    recipients: Sequence[str] = (),
    patience: Patience | None = None,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
    tell: Callable[[str], None] = lambda text: None,
) -> Backup:
    """Back up one box into `root`, a folder for its owner alone; all of it or nothing.

    Raises AnotherBox, BoxFull, BoxTooSlow, BackupFailedThere, ConfigIncomplete, NoRoomHere, BackupsExposed, and what
    the shell raises.
    """
    backups.guarded(root)
    folder = backups.node_folder(root, wanted.profile, wanted.node)
    try:
        with backups.writing(folder) as scratch:
            box = BoxFiles(shell, wanted.where, patience or Patience(), scratch)
            work = _Work(box, wanted, known, recipients, scratch, tell)
            return backups.finish(scratch, folder, work.done(backups.free_time(folder, now())))
    except OSError as cause:
        if cause.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoRoomHere(folder) from cause
        raise


@dataclass(frozen=True)
class Look:
    """What a backup would hold, without having made it."""

    who: Identity
    kept: tuple[str, ...]
    packages: int
    notes: tuple[str, ...]


def look(shell: SendingShell, wanted: Wanted, scratch: Path, patience: Patience | None = None) -> Look:
    """Ask the box what a backup would hold; nothing is written, here or there, but a test of room in its /tmp.

    Raises AnotherBox, BoxFull, BackupFailedThere and what the shell raises.
    """
    box = BoxFiles(shell, wanted.where, patience or Patience(), scratch)
    who = box.identity()
    notes = check_box(wanted, who)
    box.room()
    return Look(who, tuple(sorted(box.kept())), len(box.packages()), notes)


class _Work:
    """One backup on its way."""

    def __init__(
        self,
        box: BoxFiles,
        wanted: Wanted,
        known: AtHand,
        recipients: Sequence[str],
        scratch: Path,
        tell: Callable[[str], None],
    ) -> None:
        self._box = box
        self._wanted = wanted
        self._known = known
        self._recipients = tuple(recipients)
        self._scratch = scratch
        self._tell = tell
        self._files: list[BackupFile] = []
        self._notes: list[str] = []

    def done(self, at: datetime) -> BackupRecord:
        """Everything but the record is written."""
        wanted = self._wanted
        who = self._box.identity()
        self._notes += check_box(wanted, who)
        self._box.room()
        made_of = who.made_of
        record = self._record_of(who)
        self._tell("configuration")
        kept = self._box.kept()
        with self._box.config(who.release) as spool:
            entries, marks = self._read_config(spool)
            if lacking := sorted(kept - entries.keys()):
                raise ConfigIncomplete(wanted.where, lacking)
            self._keep(CONFIG, spool)
        packages = self._box.packages()
        text = "".join(f"{name} {version}\n" for name, version in sorted(packages.items()))
        self._keep(PACKAGES, io.BytesIO(text.encode()))
        differences = Differences()
        image_mtime_s: int | None = None
        lost: tuple[str, ...] = ()
        if made_of is not None:
            self._tell("the image's own files")
            differences, image_mtime_s, lost = self._own_files(who, made_of)
        added, removed = _package_changes(packages, record, marks)
        own = set(made_of.files) if made_of is not None else set()
        differences = replace(
            differences,
            added=self._added(who, entries, own, image_mtime_s),
            not_saved=self._not_saved(who, entries, own),
            packages_added=added,
            packages_removed=removed,
        )
        if not packages:
            self._notes.append("the list of its packages could not be read")
        return BackupRecord(
            profile=wanted.profile,
            node=wanted.node,
            taken_at=at.astimezone(UTC).isoformat(timespec="seconds"),
            ndakit=__version__,
            address=wanted.address,
            hostname=who.hostname,
            release=who.release,
            target=who.target,
            board=who.board,
            description=who.description,
            host_keys=wanted.host_keys,
            image_id=who.image.get("id", ""),
            image_of=f"{who.image['profile']}/{who.image['node']}" if {"profile", "node"} <= who.image.keys() else "",
            builder=made_of.asked.builder if made_of else "",
            fingerprint=made_of.asked.fingerprint if made_of else "",
            images={i.name: i.sha256 for i in record.images} if record else {},
            original="none" if made_of is None else "partly" if lost else "whole",
            not_original=lost,
            differences=differences,
            recipients=self._recipients,
            files=tuple(self._files),
            notes=tuple(self._notes),
        )

    def _record_of(self, who: Identity) -> Record | None:
        """The record of the image that runs there, if it lies in images/."""
        record = self._known.record
        return record if record is not None and who.image.get("id") == record.id else None

    def _read_config(self, spool: IO[bytes]) -> tuple[dict[str, tar_files.Entry], str]:
        """What the box's archive holds, and its list of packages."""
        entries: dict[str, tar_files.Entry] = {}
        marks = ""
        where = f"{self._wanted.where}, what sysupgrade -b gave"
        with tar_files.reading(cast(BinaryIO, spool), where) as archive:
            for entry, opened in archive.walk():
                entries[entry.path] = entry
                if entry.path == _MARKS and opened is not None:
                    marks = tar_files.content(opened, entry, where).decode(errors="replace")
        return entries, marks

    def _keep(self, name: str, source: IO[bytes]) -> None:
        """One file of the backup, encrypted if there are recipients."""
        source.seek(0)
        path = self._scratch / (f"{name}{encryption.SUFFIX}" if self._recipients else name)
        with path.open("xb") as sink:
            path.chmod(0o600)
            if self._recipients:
                encryption.encrypt(cast(BinaryIO, source), sink, self._recipients)
            else:
                shutil.copyfileobj(source, sink, _PIECE)
        self._files.append(BackupFile(path.name, path.stat().st_size, file_sha256(path)))

    def _own_files(self, who: Identity, made_of: ImageRecipe) -> tuple[Differences, int | None, tuple[str, ...]]:
        """Write image.tar.gz; what differs, when the image was made (a time that all its files have), and the files
        whose content in the image is nowhere any more."""
        inside = {facts.IMAGE: (0o644, made_of.label.encode()), facts.RECIPE: (0o600, who.recipe)}
        names = [*made_of.files, *inside]
        where = f"{self._wanted.where}, the image's own files"
        times: Counter[int] = Counter()
        there: set[str] = set()
        changed: list[str] = []
        with self._spool() as spool:
            with tarfile.open(fileobj=spool, mode="w:gz", format=tarfile.GNU_FORMAT, compresslevel=6) as out:
                for path, (mode, content) in inside.items():
                    self._add(out, ORIGINAL, path, mode, content)
                with self._box.own(names) as tar, tar_files.reading(cast(BinaryIO, tar), where) as archive:
                    for entry, opened in archive.walk():
                        there.add(entry.path)
                        times[entry.mtime_s] += 1
                        now = tar_files.content(opened, entry, where) if opened is not None else None
                        if now is not None and inside.get(entry.path) == (entry.mode, now):
                            continue
                        if now is not None and made_of.files.get(entry.path) == recipes.entry(entry.mode, now):
                            self._add(out, ORIGINAL, entry.path, entry.mode, now)
                            continue
                        changed.append(entry.path)
                        if now is not None:  # a link in a file's place is told, and cannot be made again
                            self._add(out, NOW, entry.path, entry.mode, now)
                missing = [path for path in made_of.files if path not in there]
                lost = self._originals(out, who, made_of, {*changed, *missing} - inside.keys())
                self._local_packages(out, made_of)
            self._keep(IMAGE, spool)
        image_mtime_s = times.most_common(1)[0][0] if times else None
        return Differences(changed=tuple(changed), missing=tuple(missing)), image_mtime_s, lost

    def _originals(self, out: tarfile.TarFile, who: Identity, made_of: ImageRecipe, paths: set[str]) -> tuple[str, ...]:
        """Add changed files as the image has them: from /rom, or from the overlay that it was built of."""
        wanted = set(paths)
        if wanted and who.rom:
            where = f"{self._wanted.where}, /rom"
            with self._box.own(wanted, "/rom") as tar, tar_files.reading(cast(BinaryIO, tar), where) as archive:
                for entry, opened in archive.walk():
                    content = tar_files.content(opened, entry, where) if opened is not None else b""
                    if made_of.files.get(entry.path) == recipes.entry(entry.mode, content):
                        self._add(out, ORIGINAL, entry.path, entry.mode, content)
                        wanted.discard(entry.path)
        for path in sorted(wanted):
            if self._known.overlay is None:
                break
            source = self._known.overlay / path.lstrip("/")
            with contextlib.suppress(OSError):
                mode, content = source.stat().st_mode & 0o7777, source.read_bytes()
                if made_of.files[path] == recipes.entry(mode, content):
                    self._add(out, ORIGINAL, path, mode, content)
                    wanted.discard(path)
        return tuple(sorted(wanted))

    def _local_packages(self, out: tarfile.TarFile, made_of: ImageRecipe) -> None:
        """Add the packages that the image did not get from OpenWrt; they are in no feed."""
        for name, wanted in made_of.asked.local_packages.items():
            facts_here, source = self._known.packages.get(name, ("", Path()))
            if facts_here == wanted:
                out.add(source, f"{LOCAL}/{source.name}", filter=_plain)
            else:
                self._notes.append(
                    f"package {name} of packages/ is not here as it was, so that it is not in the backup"
                )

    def _spool(self) -> contextlib.AbstractContextManager[IO[bytes]]:
        return tempfile.TemporaryFile(dir=self._scratch)

    @staticmethod
    def _add(out: tarfile.TarFile, folder: str, path: str, mode: int, content: bytes) -> None:
        member = tarfile.TarInfo(f"{folder}{path}")
        member.mode, member.size = mode, len(content)
        out.addfile(member, io.BytesIO(content))

    def _added(
        self, who: Identity, entries: Mapping[str, tar_files.Entry], own: set[str], image_mtime_s: int | None
    ) -> tuple[str, ...]:
        """Kept files that are neither the image's own nor OpenWrt's own doing, and were written since it was built."""
        others = [p for p in entries if p not in own and not MADE_BY_SYSTEM.fullmatch(p)]
        if who.rom:
            same = self._box.same_as_rom(others)
            return tuple(sorted(p for p in others if p not in same))
        # An ext4 image has no /rom. But all its files have one time, and whoever writes a file changes that.
        return tuple(sorted(p for p in others if image_mtime_s is None or entries[p].mtime_s != image_mtime_s))

    def _not_saved(self, who: Identity, entries: Mapping[str, tar_files.Entry], own: set[str]) -> tuple[str, ...]:
        if not who.rom:
            return ()
        return tuple(p for p in self._box.written() if p not in entries and p not in own)


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """A package's file or folder without this machine's users and times."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mtime = 0
    return member if member.isfile() or member.isdir() else None


def _package_changes(
    packages: Mapping[str, str], record: Record | None, marks: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Packages that the box has and its image did not, and the other way round, as far as that can be known."""
    if record is not None and packages:
        added = tuple(sorted(packages.keys() - record.packages.keys()))
        return added, tuple(sorted(record.packages.keys() - packages.keys()))
    return added_by_mark(marks), ()
