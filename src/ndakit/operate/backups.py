"""Backups on disk: `backups/<profile>/<node>/<UTC time>/`, what is in them, whether they are whole, which may go.

Owns the names, the record (backup.json), how a backup comes to be (whole or not at all), how it is read, and the rule
by which old ones are removed. A folder that has another name than a time is no backup; one that is being written lies
in `.partial/`, locked by who writes it. Taking one from a box is the business of `backup`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from shlex import quote
from typing import Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from ndakit.core import json_text
from ndakit.core.errors import InputError
from ndakit.core.files import file_sha256, write_atomic
from ndakit.core.locks import scratch_folder
from ndakit.core.mistakes import clean
from ndakit.operate.encryption import SUFFIX

CONFIG, IMAGE, PACKAGES, RECORD = "config.tar.gz", "image.tar.gz", "packages.txt", "backup.json"
FORMAT = 1
KEEP = 10
"""So many backups of a node are kept, and the newest of each month."""
PARTIAL = ".partial"
_TIME = "%Y%m%dT%H%M%SZ"
_NAME = re.compile(r"\d{8}T\d{6}Z")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_RECORD_MAX_BYTES = 8 << 20


class BackupsExposed(InputError):
    """Others may read where backups lie: they hold private keys and passwords."""

    def __init__(self, folder: Path, why: str, fix: str) -> None:
        super().__init__(f"backups are not written or read here: {why}", where=str(folder), fix=fix)


class BackupBroken(InputError):
    """A folder that is no whole backup."""

    def __init__(self, folder: Path, why: str, fix: str = "") -> None:
        super().__init__(
            f"this is no whole backup: {why}",
            where=str(folder),
            fix=fix or "take another one: ./inv backups lists them",
        )
        self.why = why


@dataclass(frozen=True)
class BackupFile:
    """A file of a backup as it lies there: its name, size and hash."""

    name: str
    size_bytes: int
    sha256: str

    __pydantic_config__ = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class Differences:
    """What differs between a box and the image that it runs. Paths on the box."""

    changed: tuple[str, ...] = ()
    """Files of the image's own that have another content or mode."""
    missing: tuple[str, ...] = ()
    """Files of the image's own that are gone."""
    added: tuple[str, ...] = ()
    """Configuration files that are not the image's own, and that somebody or some program wrote since it was built."""
    not_saved: tuple[str, ...] = ()
    """Files written since then that no backup holds, because an upgrade would not keep them either."""
    packages_added: tuple[str, ...] = ()
    packages_removed: tuple[str, ...] = ()

    __pydantic_config__ = ConfigDict(extra="forbid")

    @property
    def by_hand(self) -> bool:
        """True if the box is not what its image made it."""
        return any(getattr(self, f.name) for f in dataclasses.fields(self))


@dataclass(frozen=True)
class BackupRecord:
    """backup.json: what is known of a backup. It says no secret, and is not encrypted."""

    profile: str
    node: str
    taken_at: str
    """UTC, `2026-11-30T05:15:00+00:00`."""
    ndakit: str
    address: str
    hostname: str
    release: str
    target: str
    board: str
    description: str
    host_keys: tuple[str, ...]
    """Fingerprints by which the box was known."""
    image_id: str
    """Empty if the box does not say which image it runs."""
    image_of: str
    """`profile/node` of that image."""
    builder: Literal["", "lab", "openwrt"]
    """What made that image, `lab` or `openwrt`; empty if the image does not say."""
    fingerprint: str
    images: dict[str, str]
    """The image's files with their SHA-256, if they lay in images/ when the backup was taken."""
    original: Literal["whole", "partly", "none"]
    """Whether the image's own files are in the backup: `whole`, `partly`, or `none` (an image without a recipe)."""
    not_original: tuple[str, ...]
    """Files whose content in the image could not be had any more."""
    differences: Differences
    recipients: tuple[str, ...]
    """Public keys that the files are encrypted to; none: they are not encrypted."""
    files: tuple[BackupFile, ...]
    notes: tuple[str, ...] = ()
    format: int = FORMAT

    __pydantic_config__ = ConfigDict(extra="forbid")

    def text(self) -> str:
        """As it stands in backup.json."""
        return json.dumps(asdict(self), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


@dataclass(frozen=True)
class Backup:
    """A whole backup."""

    folder: Path
    record: BackupRecord

    @property
    def time(self) -> datetime:
        """When it was taken, in UTC."""
        return datetime.fromisoformat(self.record.taken_at).astimezone(UTC)

    @property
    def size_bytes(self) -> int:
        """All its files together."""
        return sum(file.size_bytes for file in self.record.files)

    def file(self, name: str) -> Path | None:
        """One of its files, encrypted or not; None if it has no such file."""
        for file in self.record.files:
            if file.name in (name, f"{name}{SUFFIX}"):
                return self.folder / file.name
        return None


@dataclass(frozen=True)
class ListedBackup:
    """What stands in a node's folder: a backup, or something that looks like one and is none (`why`)."""

    folder: Path
    backup: Backup | None
    why: str = ""


# -- where they lie ----------------------------------------------------------------------------------------------------


def node_folder(root: Path, profile: str, node: str) -> Path:
    """Where the backups of a node lie, below `backups/` or another root."""
    return root / profile / node


def guarded(root: Path) -> Path:
    """The folder of all backups, made if it is missing (0700), and refused if others may look in: BackupsExposed."""
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
    except FileExistsError:
        raise BackupsExposed(root, "it is no folder", f"move it away: mv {quote(str(root))} {root.name}.old") from None
    refuse_exposed(root)
    ignore = root / ".gitignore"
    if not ignore.exists():
        write_atomic(ignore, b"# Backups hold private keys and passwords.\n*\n", mode=0o600)
    return root


def refuse_exposed(folder: Path) -> None:
    """Raises BackupsExposed for a folder that is another user's, or that others may enter or change."""
    facts = folder.stat()
    if facts.st_uid != os.geteuid():
        raise BackupsExposed(folder, "it belongs to another user", "name a folder of your own: --to DIR")
    if facts.st_mode & 0o077:
        mode = stat.S_IMODE(facts.st_mode)
        why = f"others may look into it (its mode is {mode:04o})"
        raise BackupsExposed(folder, why, f"chmod 700 {quote(str(folder))}")


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[Path]:
    """A private folder in which a backup of this node is put together; gone afterwards unless `finish` moved it.

    What killed runs left there is removed.
    """
    for place in (folder.parent, folder, folder / PARTIAL):
        place.mkdir(mode=0o700, exist_ok=True)
        refuse_exposed(place)
    with scratch_folder(folder / PARTIAL, "backup") as scratch:
        yield scratch


def finish(scratch: Path, folder: Path, record: BackupRecord) -> Backup:
    """Write the record and give the folder its name: from now on it is a backup, and not a moment earlier."""
    write_atomic(scratch / RECORD, record.text().encode(), mode=0o600)
    for path in (*scratch.iterdir(), scratch):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    target = folder / datetime.fromisoformat(record.taken_at).strftime(_TIME)
    scratch.rename(target)
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    return Backup(target, record)


def free_time(folder: Path, now: datetime) -> datetime:
    """The second under which a backup can be filed: now, or the next one that no backup has yet."""
    second = int(now.timestamp())
    while os.path.lexists(folder / datetime.fromtimestamp(second, UTC).strftime(_TIME)):
        second += 1
    return datetime.fromtimestamp(second, UTC)


# -- reading -----------------------------------------------------------------------------------------------------------


def load(folder: Path) -> Backup:
    """Read a backup, and compare every file with its hash: whoever wants something of a backup opens it by this.

    Raises BackupBroken, whatever is wrong with it.
    """
    try:
        return _load(folder)
    except OSError as cause:
        name = Path(str(cause.filename or RECORD)).name
        raise BackupBroken(folder, f"{clean(name)[:40]} cannot be read ({cause.strerror or cause})") from None


def _load(folder: Path) -> Backup:
    if not os.path.lexists(folder / RECORD):
        raise BackupBroken(folder, f"there is no {RECORD} in it")
    shape = (folder / RECORD).lstat()
    if not stat.S_ISREG(shape.st_mode) or shape.st_size > _RECORD_MAX_BYTES:  # a pipe would never end
        raise BackupBroken(folder, f"{RECORD} cannot be read (it is no file, or much too large)")
    try:
        facts = json_text.read(folder / RECORD)
    except ValueError as cause:
        raise BackupBroken(folder, f"{RECORD} cannot be read ({clean(str(cause))[:120]})") from None
    if facts.get("format") != FORMAT:
        words = f"it has format {facts.get('format')!r:.20}, and this version of ndakit reads {FORMAT}"
        raise BackupBroken(folder, words)
    try:
        record = TypeAdapter(BackupRecord).validate_python(facts)
        time = datetime.fromisoformat(record.taken_at)
        if time.tzinfo is None or not (_WORD.fullmatch(record.profile) and _WORD.fullmatch(record.node)):
            raise ValueError("no time with its zone, or no name")
        time.astimezone(UTC)  # the first and the last day that there is may lie in no year of UTC
    except (ValidationError, ValueError, OverflowError):
        raise BackupBroken(folder, f"{RECORD} is incomplete, or has something foreign in it") from None
    names = [file.name.removesuffix(SUFFIX) for file in record.files]
    for number, file in enumerate(record.files):
        if names[number] not in (CONFIG, IMAGE, PACKAGES):
            raise BackupBroken(folder, f"{RECORD} names {file.name[:40]!r}, which is no file of a backup")
        if names[number] in names[:number]:
            raise BackupBroken(folder, f"{RECORD} names {names[number]} twice")
        path = folder / file.name
        if path.is_symlink() or not path.is_file():
            raise BackupBroken(folder, f"{file.name} is not there")
        if path.stat().st_size != file.size_bytes:
            raise BackupBroken(folder, f"{file.name} has {path.stat().st_size} bytes instead of {file.size_bytes}")
        if file_sha256(path) != file.sha256:
            raise BackupBroken(folder, f"{file.name} was changed, or is damaged (SHA-256)")
    needed = (CONFIG, PACKAGES) if record.original == "none" else (CONFIG, PACKAGES, IMAGE)
    if lacking := [name for name in needed if name not in names]:
        raise BackupBroken(folder, f"{RECORD} does not name {', '.join(lacking)}")
    return Backup(folder, record)


def listed(folder: Path) -> list[ListedBackup]:
    """What stands in a node's folder, oldest first: backups, broken ones, and what is being written or was cut off."""
    entries: list[ListedBackup] = []
    for entry in sorted(folder.iterdir()) if folder.is_dir() else ():
        if entry.name == PARTIAL and entry.is_dir():
            entries += [ListedBackup(half, None, _half_words(half)) for half in sorted(entry.iterdir())]
        elif _NAME.fullmatch(entry.name):
            try:
                entries.append(ListedBackup(entry, load(entry)))
            except BackupBroken as broken:
                entries.append(ListedBackup(entry, None, broken.why))
        elif not entry.name.startswith("."):
            entries.append(ListedBackup(entry, None, "it has no name of a backup"))
    return entries


def _half_words(half: Path) -> str:
    """Whether somebody still writes there."""
    import fcntl

    with contextlib.suppress(OSError):
        fd = os.open(half, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return "it is being written"
        finally:
            os.close(fd)
    return "it was cut off; the next backup of this node removes it"


def whole(folder: Path) -> list[Backup]:
    """The whole backups of a node, oldest first."""
    return [one.backup for one in listed(folder) if one.backup is not None]


# -- pruning -----------------------------------------------------------------------------------------------------------


def spare(backups: Sequence[Backup], keep: int, matches: Callable[[Backup], bool]) -> list[Backup]:
    """Which backups may go, oldest first.

    The `keep` newest ones stay, and the newest of each month (UTC), and the newest of those that `matches`, so that
    never the only one goes that does. `matches` is asked only if that is needed.
    """
    by_age = sorted(backups, key=lambda b: b.time)
    stay = {b.folder for b in by_age[-max(keep, 1) :]}
    stay |= {b.folder for b in {b.time.astimezone(UTC).strftime("%Y-%m"): b for b in by_age}.values()}
    gone = [b for b in by_age if b.folder not in stay]
    if gone and not any(matches(b) for b in by_age if b.folder in stay):
        for one in reversed(gone):
            if matches(one):
                return [b for b in gone if b is not one]
    return gone


def remove(backup: Backup) -> None:
    """Remove a backup: first it loses its name, so that no half of it is taken for a backup. Raises OSError."""
    half = backup.folder.parent / PARTIAL
    half.mkdir(mode=0o700, exist_ok=True)
    doomed = half / f"{backup.folder.name}.gone"
    backup.folder.rename(doomed)
    shutil.rmtree(doomed)
