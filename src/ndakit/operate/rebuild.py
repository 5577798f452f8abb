"""An image from a backup alone: on a machine that has neither the profile nor the box.

The image's own files are in the backup, and so is what was asked of the ImageBuilder (build/recipe). Where nothing was
changed on the box, the same ImageBuilder and packages give the same bytes. What was changed by hand goes into the image
as well, which is then another one and says so; `as_built` leaves it out. A box whose image has no recipe gives an
image with the same release, packages and configuration, as close as can be. Host keys are never put into an image.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, cast

from ndakit.build import from_recipe
from ndakit.build import recipe as recipes
from ndakit.build.recipe import Asked, ImageRecipe, RecipeBroken
from ndakit.core.errors import InputError
from ndakit.core.events import Events
from ndakit.core.release import Release
from ndakit.core.workspace import Workspace
from ndakit.image import artifacts
from ndakit.image.artifacts import Artifact
from ndakit.imagebuilder.sources import Builder
from ndakit.node import facts
from ndakit.operate import tar_files
from ndakit.operate.backup_files import LOCAL, NOW, ORIGINAL, opened, recipe_of
from ndakit.operate.backups import CONFIG, IMAGE, PACKAGES, Backup, BackupBroken, Differences
from ndakit.operate.box_files import MADE_BY_SYSTEM
from ndakit.packages import feed

BY_HAND = "configuration of the box"
"""What an image holds that is made of a box's files: nobody knows which of them are secrets."""
_FILE_MAX_BYTES = 64 << 20
_PRESENT_ANYWAY = re.compile(r"kernel|libc|lib.*")
"""Packages that no image lacks, and libraries, which come with what needs them."""
_MODE_BITS = 0o777
"""What an image keeps of a file's mode."""
_ROOTFS_MIB = 256
_EFI_SINCE = (21, 2)


class NotAsBuilt(InputError):
    """The image cannot be made as it was."""


class BoxUnknown(InputError):
    """A backup does not say for which release or device an image is to be made."""


@dataclass(frozen=True)
class Changes:
    """What a rebuilt image has that the box's image did not: paths, and packages. `left_out`: what is in the backup
    and not in the image, with the reason."""

    changed: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    packages_added: tuple[str, ...] = ()
    packages_removed: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def any(self) -> bool:
        """True if the image is another one than the box's."""
        return bool(self.changed or self.added or self.removed or self.packages_added or self.packages_removed)


@dataclass(frozen=True)
class Prepared:
    """What an image is to be made of, laid out in a private folder."""

    made_of: ImageRecipe
    files: Path
    packages: Path
    changes: Changes
    versions: Mapping[str, str]
    """The packages of the box with their versions."""


@dataclass(frozen=True)
class Rebuilt:
    """A rebuilt image. `same_bytes`: whether its files are those of the box's image; None if nobody knows these."""

    artifact: Artifact
    changes: Changes
    same_bytes: bool | None
    other_builder: bool
    """True if the ImageBuilder is another one than the image was made with."""
    version_changes: tuple[str, ...]
    """Packages in another version than on the box, in words."""


def prepare(backup: Backup, keys: Sequence[Any], scratch: Path, *, as_built: bool, with_local: bool = True) -> Prepared:
    """Take out of a backup what an image is made of. `scratch` is a private folder. Without `with_local` the image
    lacks the packages that came from no feed.

    Raises NotDecrypted, ArchiveRefused, RecipeBroken, NotAsBuilt, BoxUnknown, BackupBroken.
    """
    made_of = recipe_of(backup, keys)
    versions = _versions(backup, keys)
    files, packages = scratch / "files", scratch / "packages"
    for folder in (files, packages):
        folder.mkdir(mode=0o755)
        folder.chmod(0o755)  # whatever the umask: it becomes the root's own mode
    if made_of is None:
        if as_built:
            raise NotAsBuilt(
                "the box's image does not say what it was made of, so that it cannot be made as it was",
                where=str(backup.folder),
                fix="leave --as-built out: the image gets the box's release, packages and configuration",
            )
        return _plain(backup, keys, files, packages, versions)
    differ = backup.record.differences
    # What the record says is checked against the archives: it lies in a folder that others may have given us.
    missing = () if as_built else tuple(path for path in differ.missing if path in made_of.files)
    now = () if as_built else tuple(path for path in differ.changed if path in made_of.files)
    odd: dict[str, int] = {}
    laid = _own_files(backup, keys, made_of, files, packages, set(now), set(missing), odd)
    lacking = sorted(made_of.files.keys() - laid.keys() - set(missing))
    if lacking:
        raise NotAsBuilt(
            f"as the image had them, these files are not in the backup: {', '.join(lacking[:6])}",
            where=str(backup.folder),
            fix="rebuild it with what the box had in their place, without --as-built; or take another backup"
            if as_built
            else "take another backup: ./inv backups lists them",
        )
    wanted = set() if as_built else set(differ.added) - made_of.files.keys()
    added = _config_files(backup, keys, files, wanted, laid, odd)
    removed = () if as_built else differ.packages_removed
    without = () if with_local else made_of.asked.local_packages
    own = {path: entry for path, entry in laid.items() if made_of.files.get(path) != entry}
    changes = Changes(
        changed=tuple(sorted(own)),
        added=tuple(sorted(added)),
        removed=missing,
        packages_added=() if as_built else differ.packages_added,
        packages_removed=tuple(sorted({*removed, *without})),
        left_out=() if as_built else _left_out(differ, {**laid, **added}, own, odd),
    )
    return Prepared(_with(made_of, changes, {**laid, **added}, backup), files, packages, changes, versions)


def _left_out(
    differ: Differences, there: Mapping[str, str], own: Mapping[str, str], odd: Mapping[str, int]
) -> tuple[str, ...]:
    """What was changed on the box and does not get into the image."""
    inside = (facts.IMAGE, facts.RECIPE)
    told = {*own, *odd, *inside}
    words = [f"{path}: a link took its place" for path in differ.changed if path not in told]
    words += [f"{path}: no plain file" for path in differ.added if path not in there]
    return (*words, *_odd_modes(odd), *(f"{path}: not in the backup" for path in differ.not_saved))


def _odd_modes(odd: Mapping[str, int]) -> tuple[str, ...]:
    """Files whose mode has set-user-ID, set-group-ID or the sticky bit, which no file of an image of ours has."""
    return tuple(
        f"{path}: of its mode {mode:04o} the image gets {mode & _MODE_BITS:04o}" for path, mode in sorted(odd.items())
    )


def build(
    workspace: Workspace,
    backup: Backup,
    prepared: Prepared,
    builder: Builder,
    folder: Path,
    events: Events,
) -> Rebuilt:
    """Make the image of what `prepare` laid out into `folder`. Raises what `from_recipe.build` raises, and
    PackageFileUnusable for a package from no feed that the backup lacks."""
    made_of = prepared.made_of
    asked = made_of.asked
    fingerprint = builder.fingerprint(from_recipe.facts_of(made_of))
    other_builder = bool(asked.fingerprint) and (builder.kind, fingerprint) != (asked.builder, asked.fingerprint)
    now = replace(asked, builder=builder.kind, fingerprint=fingerprint)
    if now != asked:  # what it says of itself has to be true
        made_of = _identified(replace(made_of, asked=now), backup)
    local = feed.read_saved(prepared.packages, Release.parse(asked.release), now.local_packages)
    artifact = from_recipe.build(workspace, made_of, prepared.files, local, builder, folder, events)
    was = backup.record.images
    is_now = {image.name: image.sha256 for image in artifact.record.images}
    return Rebuilt(
        artifact,
        prepared.changes,
        None if not was else was == is_now,
        other_builder,
        version_changes(prepared.versions, artifact.record.packages),
    )


def version_changes(was: Mapping[str, str], now: Mapping[str, str]) -> tuple[str, ...]:
    """How the packages of an image differ from those of a box, in words; nothing if the box's are not known."""
    if not was:
        return ()
    return (
        *(f"{name} {was[name]} → {now[name]}" for name in sorted(was.keys() & now.keys()) if was[name] != now[name]),
        *(f"{name} {was[name]} is not in the image" for name in sorted(was.keys() - now.keys())),
        *(f"{name} {now[name]} is new" for name in sorted(now.keys() - was.keys())),
    )


# -- out of the archives -----------------------------------------------------------------------------------------------


def _own_files(
    backup: Backup,
    keys: Sequence[Any],
    made_of: ImageRecipe,
    files: Path,
    packages: Path,
    now: set[str],
    missing: set[str],
    odd: dict[str, int],
) -> dict[str, str]:
    """Lay out the image's own files: as they are on the box for those in `now`, as the image has them for the others.
    What they are now, as recipes say it. `odd` gets the modes that they do not keep."""
    laid: dict[str, str] = {}
    where = str(backup.file(IMAGE))
    with opened(backup, IMAGE, keys) as source, tar_files.reading(cast(BinaryIO, source), where) as archive:
        for entry, content in archive.walk():
            folder, _, rest = entry.path.lstrip("/").partition("/")
            path = f"/{rest}"
            if content is None:
                raise tar_files.ArchiveRefused(where, f"{entry.path} is a link")
            if folder == LOCAL:
                data = tar_files.content(content, entry, where, _FILE_MAX_BYTES)
                _write(packages, path, entry.mode & 0o755, data)
                continue
            if folder not in (ORIGINAL, NOW):
                raise tar_files.ArchiveRefused(where, f"{entry.path} is in no folder of ours")
            if path not in made_of.files or path in missing or (folder == NOW and path not in now):
                continue
            data = tar_files.content(content, entry, where, _FILE_MAX_BYTES)
            if folder == ORIGINAL and recipes.entry(entry.mode, data) != made_of.files[path]:
                raise tar_files.ArchiveRefused(where, f"{path} is not what the image was made of")
            if folder == ORIGINAL and path in laid:  # as it is now
                continue
            laid[path] = _lay(files, path, entry.mode, data, odd)
    return laid


def _config_files(
    backup: Backup,
    keys: Sequence[Any],
    files: Path,
    wanted: Set[str],
    there: Mapping[str, str],
    odd: dict[str, int],
) -> dict[str, str]:
    """Lay out these files of the box's configuration; links and what is not there are passed over. `there`: the files
    that are laid out already; `odd` gets the modes that they do not keep. Raises ArchiveRefused, also for a file in
    the place of a folder."""
    if not wanted:
        return {}
    laid: dict[str, str] = {}
    ours = {*there, facts.IMAGE, facts.RECIPE}
    folders = {folder for path in ours for folder in tar_files.parents(path)}
    where = str(backup.file(CONFIG))
    with opened(backup, CONFIG, keys) as source, tar_files.reading(cast(BinaryIO, source), where) as archive:
        for entry, content in archive.walk():
            path = entry.path
            if content is not None and path in wanted and path not in ours and not MADE_BY_SYSTEM.fullmatch(path):
                if path in folders or ours.intersection(tar_files.parents(path)):
                    raise tar_files.ArchiveRefused(where, f"{path} is in it where the image has a folder, or a file")
                data = tar_files.content(content, entry, where, _FILE_MAX_BYTES)
                laid[path] = _lay(files, path, entry.mode, data, odd)
    return laid


def _lay(files: Path, path: str, mode: int, data: bytes, odd: dict[str, int]) -> str:
    """Write a file as an image gets it; what it is now, as recipes say it."""
    if mode & ~_MODE_BITS:
        odd[path] = mode
    _write(files, path, mode, data)
    return recipes.entry(mode & _MODE_BITS, data)


def _write(root: Path, path: str, mode: int, content: bytes) -> None:
    """One file below a folder of ours; folders are made, and nothing is followed (there are no links in it)."""
    target = root / path.lstrip("/")
    for folder in reversed(target.relative_to(root).parents[:-1]):
        (root / folder).mkdir(exist_ok=True)
        (root / folder).chmod(0o755)
    target.unlink(missing_ok=True)
    target.touch(mode=0o600)
    target.write_bytes(content)
    target.chmod(mode & _MODE_BITS)


def _versions(backup: Backup, keys: Sequence[Any]) -> dict[str, str]:
    with opened(backup, PACKAGES, keys) as source:
        lines = source.read(1 << 22).decode(errors="replace").splitlines()
    pairs = (line.split(" ") for line in lines)
    return {
        pair[0]: pair[1] for pair in pairs if len(pair) == 2 and re.fullmatch(r"[A-Za-z0-9][\w+.-]{0,100}", pair[0])
    }


# -- recipes -----------------------------------------------------------------------------------------------------------


def _with(made_of: ImageRecipe, changes: Changes, files: Mapping[str, str], backup: Backup) -> ImageRecipe:
    """The recipe of the image with what was changed by hand; the same one if that was nothing. Raises BackupBroken."""
    if not changes.any:
        return made_of
    words = made_of.asked.packages.split()
    add = {word for word in words if not word.startswith("-")} | set(changes.packages_added)
    remove = {word[1:] for word in words if word.startswith("-")} | set(changes.packages_removed)
    packages = " ".join([*sorted(add - remove), *(f"-{name}" for name in sorted(remove))])
    kept = {name: facts_of for name, facts_of in made_of.asked.local_packages.items() if name not in remove}
    asked = replace(made_of.asked, packages=packages, local_packages=kept)
    by_hand = changes.changed or changes.added
    secrets = tuple(dict.fromkeys((*made_of.secrets, *((BY_HAND,) if by_hand else ()))))
    return _identified(replace(made_of, asked=asked, files=dict(sorted(files.items())), secrets=secrets), backup)


def _identified(made_of: ImageRecipe, backup: Backup) -> ImageRecipe:
    """The same with an id of its own. The hash is over hashes of secrets, so that it says nothing about them to
    anybody who does not have the image. Raises BackupBroken for what no image can be made of."""
    inputs = {"rebuilt": 1, "asked": asdict(made_of.asked), "files": dict(made_of.files)}
    checked = replace(made_of, id=artifacts.identity(inputs))
    try:
        return recipes.parse(checked.text().encode(), str(backup.folder))
    except RecipeBroken as broken:
        words = f"no image can be made of what it says of the box: {broken.why}"
        raise BackupBroken(backup.folder, words) from None


def _plain(backup: Backup, keys: Sequence[Any], files: Path, packages: Path, versions: Mapping[str, str]) -> Prepared:
    """What an image is made of for a box whose image has no recipe: release, device, packages, configuration."""
    record = backup.record
    try:
        release = Release.parse(record.release)
    except ValueError:
        raise BoxUnknown(
            f"the box ran OpenWrt {record.release[:40]!r}, and there is an ImageBuilder for releases only",
            where=str(backup.folder),
            fix="write a profile for it, and build that",
        ) from None
    board = record.target.partition("/")[0]
    device = "generic" if board in ("x86", "armsr", "armvirt") else re.sub(r"[^A-Za-z0-9_.+-]", "_", record.board)
    if not re.fullmatch(r"[a-z0-9_]+/[a-z0-9_]+", record.target) or not device:
        raise BoxUnknown(
            f"the box does not say what it is (target {record.target[:40]!r}, board {record.board[:40]!r})",
            where=str(backup.folder),
            fix="write a profile for it, and build that",
        )
    everything: set[str] = set()
    with opened(backup, CONFIG, keys) as source, tar_files.reading(cast(BinaryIO, source), CONFIG) as archive:
        everything |= {entry.path for entry, content in archive.walk() if content is not None}
    odd: dict[str, int] = {}
    laid = _config_files(backup, keys, files, everything, {}, odd)
    efi = board != "x86" or release.branch >= _EFI_SINCE
    asked = Asked(
        release=record.release,
        target=record.target,
        device=device,
        builder="lab" if record.builder == "lab" else "openwrt",
        fingerprint="",
        packages=" ".join(sorted(name for name in versions if not _PRESENT_ANYWAY.fullmatch(name))),
        extra_name=re.sub(r"[^A-Za-z0-9.-]", "-", record.hostname) or record.node,
        filesystem="squashfs",
        firmware="efi" if efi else "bios",
        rootfs_mib=_ROOTFS_MIB,
        formats=("img",),
        local_packages={},
    )
    made_of = ImageRecipe("0" * 64, record.profile, record.node, asked, dict(sorted(laid.items())), (BY_HAND,))
    left_out = (*_odd_modes(odd), *(f"{path}: not in the backup" for path in record.differences.not_saved))
    changes = Changes(added=tuple(sorted(laid)), left_out=left_out)
    return Prepared(_identified(made_of, backup), files, packages, changes, versions)
