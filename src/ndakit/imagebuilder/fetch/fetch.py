"""From a release and a target to an unpacked, verified ImageBuilder in the per-user cache.

Owns the order (list of checksums, its signature, archive, its checksum, unpacking), what a cache entry is, and what is
said when a release or target does not exist. Nothing that is not vouched for is unpacked or gets an entry. Transport is
in `download`, signatures in `trust`, unpacking in `archive`. Layout of the mirrors: docs/facts.md, Mirrors.

The cache has a folder for each release and target, and in it one for each archive, named by the checksum's beginning:
the archive, `verified.json` (who vouches for it) and `unpacked/`. Each of them appears whole, by renaming.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ndakit.core import json_text
from ndakit.core.errors import BuildError
from ndakit.core.events import Events, Progress, StepDone, StepStarted, Waiting, Warned, ignore
from ndakit.core.files import file_sha256, swap_folder, write_atomic
from ndakit.core.locks import hold, scratch_folder
from ndakit.core.mistakes import clean
from ndakit.core.release import Release
from ndakit.core.workspace import cache
from ndakit.imagebuilder import output
from ndakit.imagebuilder.fetch import archive, download, errors, trust
from ndakit.imagebuilder.fetch.download import DownloadLimits
from ndakit.imagebuilder.fetch.mirrors import MirrorFailed, NotThere, shown, usable_mirror
from ndakit.imagebuilder.fetch.trust import LISTING, VerificationFailed

OPENWRT = ("https://downloads.openwrt.org",)
MIRROR_VARIABLE = "NDAKIT_MIRROR"

_FORMAT = 1
_MIB = 1024 * 1024
_LISTING_MAX = 4 * _MIB
_ARCHIVE_MAX = 4096 * _MIB
_NAME = re.compile(r"openwrt-imagebuilder-([\w.+-]+)\.Linux-x86_64\.tar\.(?:xz|zst)")
_PARTS = ("Makefile", ".config", "include", "staging_dir")


@dataclass(frozen=True)
class Fetched:
    """An ImageBuilder that was vouched for: its unpacked folder, its archive's name and SHA-256, and by whom."""

    folder: Path
    archive: str
    sha256: str
    verified_by: str
    fresh: bool = False
    """True if it was downloaded now."""


@dataclass(frozen=True)
class Origin:
    """Where ImageBuilders come from: mirrors in order or only the cache; a pinned SHA-256; folders with keys."""

    mirrors: tuple[str, ...] = OPENWRT
    offline: bool = False
    checksum: str | None = None
    keys: tuple[Path, ...] = ()
    limits: DownloadLimits = field(default_factory=DownloadLimits)


@dataclass(frozen=True)
class _Wanted:
    release: Release
    target: str
    origin: Origin
    events: Events
    base: Path
    """The cache's folder for this release and target."""

    def folder_url(self, mirror: str) -> str:
        """Where the mirror has this target's files."""
        return f"{mirror}/releases/{self.release}/targets/{self.target}"


@dataclass(frozen=True)
class _Listed:
    """An archive that somebody vouches for, and the mirrors to get it from, the best one first."""

    name: str
    sha256: str
    verified_by: str
    mirrors: tuple[str, ...]


def mirrors_from(option: str | None) -> tuple[str, ...]:
    """The mirrors of `--mirror` (several: separated by commas or spaces), else of NDAKIT_MIRROR, else OpenWrt's own.

    Raises MirrorUnusable.
    """
    given = option if option is not None else os.environ.get(MIRROR_VARIABLE, "")
    return tuple(usable_mirror(word) for word in re.split(r"[,\s]+", given.strip()) if word) or OPENWRT


def pinned(checksum: str) -> str:
    """A SHA-256 as it is compared. Raises ChecksumMalformed."""
    text = checksum.strip().lower().removeprefix("sha256:")
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise errors.ChecksumMalformed(checksum)
    return text


def fetch(
    release: Release,
    target: str,
    *,
    mirrors: Sequence[str] = OPENWRT,
    offline: bool = False,
    checksum: str | None = None,
    keys: Sequence[Path] = (),
    limits: DownloadLimits | None = None,
    events: Events = ignore,
) -> Fetched:
    """The ImageBuilder for a release and a target such as `x86/64`, from the cache or the first mirror that has it.

    With `checksum` (SHA-256, hex) that one archive is taken and no signature is asked for; without, only one that is
    vouched for by a signature. `keys` are folders as `trust.keys_for` reads them. `offline` opens no connection.
    Raises MirrorFailed's kinds, VerificationFailed's kinds, the errors of `errors` and of `archive`.
    """
    origin = Origin(
        tuple(usable_mirror(m) for m in mirrors), offline, pinned(checksum) if checksum else None, tuple(keys),
        limits or DownloadLimits(),
    )  # fmt: skip
    return get(release, target, origin, events)


def get(release: Release, target: str, origin: Origin, events: Events = ignore) -> Fetched:
    """`fetch` for callers who have an Origin."""
    with _disk(None):
        base = cache() / "openwrt" / "imagebuilders" / f"{release}-{target.replace('/', '-')}"
    wanted = _Wanted(release, target, origin, events, base)
    cached = _cached(wanted)
    if cached is not None:
        return cached
    with _disk(base):
        base.mkdir(parents=True, exist_ok=True)
        with hold(wanted.base / ".lock", on_wait=lambda who: events(Waiting(who))):
            # Whoever held the lock may have fetched it.
            return _cached(wanted) or _unpacked(wanted) or _fetched(wanted)


# -- the cache ---------------------------------------------------------------------------------------------------------


def _known(wanted: _Wanted) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Every entry's folder and facts, the newest first; what cannot be read, or is not as we write it, is none."""
    kept: list[tuple[int, Path, dict[str, Any]]] = []
    for path in wanted.base.glob("*/verified.json"):
        with contextlib.suppress(OSError, ValueError):
            facts = json_text.read(path)
            if _is_entry(path.parent, facts):
                kept.append((path.stat().st_mtime_ns, path.parent, facts))
    for _, folder, facts in sorted(kept, key=lambda entry: entry[0], reverse=True):
        yield folder, facts


def _is_entry(folder: Path, facts: dict[str, Any]) -> bool:
    """True for facts as `_fetched` writes them: the archive's name is no path, and the folder is the checksum's."""
    texts = [facts.get(key) for key in ("archive", "sha256", "verified_by")]
    if facts.get("format") != _FORMAT or not isinstance(facts.get("pinned"), bool):
        return False
    if not all(isinstance(text, str) for text in texts):
        return False
    name, sha256, _ = map(str, texts)
    checksum = re.fullmatch(r"[0-9a-f]{64}", sha256) is not None and folder.name == sha256[:16]
    return checksum and _NAME.fullmatch(name) is not None and "/" not in name and "\0" not in name


def _entries(wanted: _Wanted) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The entries that serve: vouched for by the pinned checksum, or without one by a signature."""
    pin = wanted.origin.checksum
    for folder, facts in _known(wanted):
        if facts["sha256"] == pin if pin else not facts["pinned"]:
            yield folder, facts


def _cached(wanted: _Wanted) -> Fetched | None:
    for folder, facts in _entries(wanted):
        unpacked = folder / "unpacked" / _stem(facts["archive"])
        if unpacked.is_dir():
            return Fetched(unpacked, facts["archive"], facts["sha256"], facts["verified_by"])
    return None


def _unpacked(wanted: _Wanted) -> Fetched | None:
    """An archive of the cache that is not unpacked (any more); one that has changed since is thrown away."""
    for folder, facts in _entries(wanted):
        path = folder / facts["archive"]
        if not path.is_file():
            continue
        if file_sha256(path) == facts["sha256"]:
            return _unpack(wanted, path, facts["sha256"], facts["verified_by"])
        wanted.events(Warned("", f"{path} has changed since it was verified; it is thrown away"))
        path.unlink()
    return None


def _unpack(wanted: _Wanted, path: Path, sha256: str, verified_by: str) -> Fetched:
    """Unpack a verified archive, look whether it is what was asked for, and only then give it its place."""
    with (
        _step(wanted.events, "unpack", f"unpacking {path.name}"),
        scratch_folder(wanted.base / ".scratch", "unpack") as scratch,
    ):
        into = scratch / "unpacked"
        into.mkdir()
        try:
            top = archive.unpack(path, into, scratch / "zstd.log")
            _check_contents(wanted, top, path)
        except BuildError:
            shutil.rmtree(path.parent)  # vouched for, and useless all the same: nothing of it may look like an entry
            raise
        if top.name != _stem(path.name):
            top.rename(into / _stem(path.name))
        os.sync()  # or a power failure soon after could leave empty files under a name that says "whole"
        swap_folder(into, path.parent / "unpacked")
    return Fetched(path.parent / "unpacked" / _stem(path.name), path.name, sha256, verified_by)


def _check_contents(wanted: _Wanted, top: Path, path: Path) -> None:
    """Names can lie: the release and the target are read from what was unpacked."""
    missing = [name for name in _PARTS if not (top / name).exists()]
    if missing:
        raise errors.NoImageBuilder(path, f"there is no {missing[0]} in it")
    version = top / "include/version.mk"
    says = output.version_number(version.read_text(errors="replace")) if version.is_file() else None
    if says is not None and says != str(wanted.release):
        raise errors.ArchiveForeign(path, f"release {says}", f"release {wanted.release}")
    knobs = output.knobs((top / ".config").read_text(errors="replace"))
    board, subtarget = knobs.get("CONFIG_TARGET_BOARD", ""), knobs.get("CONFIG_TARGET_SUBTARGET", "")
    asked_board, _, asked_sub = wanted.target.partition("/")
    if board and (board != asked_board or (subtarget and subtarget != asked_sub)):
        raise errors.ArchiveForeign(path, f"target {board}/{subtarget or 'generic'}", f"target {wanted.target}")


# -- mirrors -----------------------------------------------------------------------------------------------------------


def _fetched(wanted: _Wanted) -> Fetched:
    if wanted.origin.offline:
        pins = [facts["sha256"] for _, facts in _known(wanted)]
        raise errors.OfflineMissing(wanted.release, wanted.target, wanted.base, pins, wanted.origin.checksum)
    listed = _listed(wanted)
    folder = wanted.base / listed.sha256[:16]
    path = folder / listed.name
    there = path.is_file() and file_sha256(path) == listed.sha256  # as when it was pinned by hand before
    mirror = listed.mirrors[0] if there else _downloaded(wanted, listed)
    facts = {
        "format": _FORMAT,
        "archive": listed.name,
        "sha256": listed.sha256,
        "release": str(wanted.release),
        "target": wanted.target,
        "verified_by": listed.verified_by,
        "pinned": wanted.origin.checksum is not None,
        "mirror": shown(mirror),
    }
    # The facts come first: an archive is never there without them, and facts without an archive serve nobody.
    write_atomic(folder / "verified.json", json.dumps(facts, indent=2).encode())
    if not there:
        _partial(wanted, listed).replace(path)
        for left in wanted.base.glob("*.partial*"):
            left.unlink(missing_ok=True)
    # What is unpacked already may be in use by another build, and is of the same archive.
    archive = _cached(wanted) or _unpack(wanted, path, listed.sha256, listed.verified_by)
    return replace(archive, fresh=not there)


def _listed(wanted: _Wanted) -> _Listed:
    """The archive's name and checksum from the first mirror whose list is vouched for."""
    failed: list[MirrorFailed | VerificationFailed] = []
    mirrors = wanted.origin.mirrors
    with _step(wanted.events, "checksums", f"asking for OpenWrt {wanted.release} for {wanted.target}"):
        for place, mirror in enumerate(mirrors):
            try:
                name, sha256, by = _vouched(wanted, mirror)
            except (MirrorFailed, VerificationFailed) as error:
                failed.append(error)
                if place + 1 < len(mirrors):
                    wanted.events(Warned("", f"{error.what} ({error.where}); trying the next mirror"))
                continue
            return _Listed(name, sha256, by, (*mirrors[place:], *mirrors[:place]))
    if not all(isinstance(error, NotThere) for error in failed):
        raise failed[0] if len(failed) == 1 else errors.MirrorsFailed(failed)
    raise _what_there_is(wanted) or failed[0]


def _vouched(wanted: _Wanted, mirror: str) -> tuple[str, str, str]:
    """Archive, SHA-256, and who vouches for it, by this mirror's list."""
    where, limits = wanted.folder_url(mirror), wanted.origin.limits
    listing = download.small(f"{where}/{LISTING}", max_bytes=_LISTING_MAX, limits=limits)
    pin = wanted.origin.checksum
    if pin is None:

        def beside(name: str) -> bytes | None:
            try:
                return download.small(f"{where}/{name}", max_bytes=_LISTING_MAX, limits=limits)
            except NotThere:
                return None

        by = trust.verify(listing, beside, trust.keys_for(wanted.release, wanted.origin.keys), shown(where))
    else:
        by = "the checksum that was pinned by hand"
    name, sha256 = _entry(wanted, listing.decode(errors="replace"), f"{shown(where)}/{LISTING}")
    if pin is not None and sha256 != pin:
        raise errors.ChecksumWrong(f"{shown(where)}/{LISTING}", name, sha256, pin)
    return name, sha256, by


def _entry(wanted: _Wanted, listing: str, where: str) -> tuple[str, str]:
    """The ImageBuilder in a list of checksums. Its name is never made up: names differ between releases."""
    entries: list[tuple[str, str]] = []
    for line in listing.splitlines():
        words = re.fullmatch(r"([0-9a-fA-F]{64}) [ *](\S+)", line.strip())
        if words and _NAME.fullmatch(words[2]):
            entries.append((words[2], words[1].lower()))
    board, _, subtarget = wanted.target.partition("/")
    stems = {f"{wanted.release}-{board}-{subtarget}"}
    if subtarget == "generic":
        stems.add(f"{wanted.release}-{board}")  # without subtargets (docs/facts.md, Mirrors: kirkwood up to 22.03)
    fitting = sorted({entry for entry in entries if _name(entry[0]) in stems})
    if len(fitting) == 1:
        return fitting[0]
    if entries and not fitting:
        raise errors.ListingForeign(where, [name for name, _ in entries], wanted.release, wanted.target)
    raise errors.ListingWithout(where, len(fitting))


def _partial(wanted: _Wanted, listed: _Listed) -> Path:
    return wanted.base / f"{listed.sha256[:16]}.partial"


def _downloaded(wanted: _Wanted, listed: _Listed) -> str:
    """Have the archive in its partial file, with the right checksum; the mirror that it is from."""
    for place, mirror in enumerate(listed.mirrors):
        try:
            with _step(wanted.events, "download", f"downloading {listed.name} from {shown(mirror)}"):
                _exactly(wanted, f"{wanted.folder_url(mirror)}/{listed.name}", _partial(wanted, listed), listed)
            return mirror
        except (MirrorFailed, VerificationFailed) as error:
            if place + 1 == len(listed.mirrors):
                raise
            wanted.events(Warned("", f"{error.what} ({error.where}); trying the next mirror"))
    raise AssertionError("the last mirror returns or raises")


def _exactly(wanted: _Wanted, url: str, partial: Path, listed: _Listed) -> None:
    """Download until the checksum is right. What an earlier run left may be of another file: then once anew."""

    def tell(done: int, total: int | None) -> None:
        wanted.events(Progress(listed.name, done, total))

    for resumed in (partial.is_file(), False):
        if resumed and file_sha256(partial) == listed.sha256:
            return
        download.large(url, partial, max_bytes=_ARCHIVE_MAX, limits=wanted.origin.limits, progress=tell)
        digest = file_sha256(partial)
        if digest == listed.sha256:
            return
        download.forget(partial)
        if not resumed:
            raise errors.ChecksumWrong(shown(url), listed.name, digest, listed.sha256)


def _what_there_is(wanted: _Wanted) -> Exception | None:
    """The mirrors do not have it: which of release and target does not exist, and what there is instead."""
    limits = replace(wanted.origin.limits, attempts=1)
    for mirror in wanted.origin.mirrors:
        with contextlib.suppress(MirrorFailed, ValueError, TypeError, KeyError):
            text = download.small(f"{mirror}/.versions.json", max_bytes=_MIB, limits=limits)
            versions = [clean(str(v)) for v in json_text.mapping(text)["versions_list"]]
            if str(wanted.release) not in versions:
                return errors.ReleaseMissing(wanted.release, versions, shown(mirror))
            url = f"{mirror}/releases/{wanted.release}/.targets.json"
            targets = sorted(map(clean, json_text.mapping(download.small(url, max_bytes=_MIB, limits=limits))))
            if wanted.target not in targets:
                return errors.TargetMissing(wanted.release, wanted.target, targets, shown(mirror))
    return None


# -- small things ------------------------------------------------------------------------------------------------------


def _stem(name: str) -> str:
    return re.sub(r"\.tar\.(xz|zst)$", "", name)


def _name(archive_name: str) -> str:
    match = _NAME.fullmatch(archive_name)
    return match[1] if match else ""


@contextlib.contextmanager
def _step(events: Events, step: str, what: str) -> Iterator[None]:
    events(StepStarted(step, "", what))
    started_s = time.monotonic()
    yield
    events(StepDone(step, "", time.monotonic() - started_s))


@contextlib.contextmanager
def _disk(base: Path | None) -> Iterator[None]:
    """Turn what the cache's disk refuses into the error of it."""
    try:
        yield
    except OSError as cause:
        where = base or Path(str(cause.filename))
        if cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise errors.CacheFull(where, os.strerror(cause.errno)) from cause
        if cause.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise errors.CacheUnwritable(where, os.strerror(cause.errno)) from cause
        raise
