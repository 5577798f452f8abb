"""`./inv rebuild`: an image from a backup alone, and what in it is not as it was."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ndakit.build import from_recipe
from ndakit.cli.build import BuildOptions
from ndakit.cli.build_progress import Steps
from ndakit.core import locks, terminal
from ndakit.core.errors import InputError
from ndakit.core.mistakes import clean
from ndakit.core.workspace import Workspace
from ndakit.imagebuilder import sources
from ndakit.operate import backups, encryption, rebuild
from ndakit.operate.backups import Backup
from ndakit.operate.rebuild import Changes, Rebuilt


class BackupNotNamed(InputError):
    """`--from` names no backup."""


@dataclass(frozen=True)
class RebuildOptions:
    """What is to be made of a backup, as said on the command line."""

    identities: tuple[Path, ...] = ()
    as_built: bool = False
    with_local: bool = True
    out: Path | None = None
    as_json: bool = False


def rebuild_image(
    place: Workspace, given: str | None, builder: str | None, how: BuildOptions, options: RebuildOptions
) -> None:
    """Make the image of a backup; say where it is, and how it differs. `builder`: the word of --builder, None for the
    one that made the box's image."""
    backup = chosen(place, given)
    keys = encryption.identities(options.identities)
    record = backup.record
    folder = options.out.absolute() if options.out is not None else place.rebuilt / record.profile / record.node
    refuse_foreign(folder)
    steps = Steps(to=terminal.note if options.as_json else terminal.say)
    with (
        place.writing(record.profile, on_wait=terminal.note),
        locks.scratch_folder(place.state / "scratch", "backup") as scratch,
    ):
        prepared = rebuild.prepare(backup, keys, scratch, as_built=options.as_built, with_local=options.with_local)
        kind = builder or prepared.made_of.asked.builder
        facts = from_recipe.facts_of(prepared.made_of)
        source = sources.choose(kind, how.imagebuilder, place, facts, how.fetch, steps)
        done = rebuild.build(place, backup, prepared, source, folder, steps)
    if options.as_json:
        terminal.show_json(_facts(backup, done))
        return
    for line in _lines(backup, done):
        terminal.say(line)


def chosen(place: Workspace, given: str | None) -> Backup:
    """The backup that is meant: its folder, or `PROFILE/NODE` for the newest whole one of a node.

    Raises BackupNotNamed, BackupBroken.
    """
    if not given:
        raise BackupNotNamed(
            "it is not said which backup", where="--from",
            fix="name its folder, or PROFILE/NODE for the newest: ./inv backups lists them",
        )  # fmt: skip
    path = Path(given)
    if (path / backups.RECORD).exists() or not re.fullmatch(
        r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(/\d{8}T\d{6}Z)?", given
    ):
        return backups.load(path)
    inside = place.backups / given
    if given.count("/") == 2:
        return backups.load(inside)
    whole = backups.whole(inside)
    if not whole:
        raise BackupNotNamed(
            f"there is no whole backup of {given}", where=str(inside),
            fix="./inv backups lists what there is; name another one, or its folder",
        )  # fmt: skip
    return whole[-1]


def refuse_foreign(folder: Path) -> None:
    """Raise BackupNotNamed for a folder that holds something else than a built image: it would be replaced."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise BackupNotNamed("this is no folder", where=f"--out {folder}", fix="name a new folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "record.json").is_file():
        raise BackupNotNamed(
            "this folder holds something else than an image, and would be replaced", where=f"--out {folder}",
            fix="name a new folder",
        )  # fmt: skip


def _facts(backup: Backup, done: Rebuilt) -> dict[str, Any]:
    record = done.artifact.record
    return {
        "backup": str(backup.folder),
        "folder": str(done.artifact.folder),
        "id": record.id,
        "id_of_box": backup.record.image_id,
        "images": {image.name: image.sha256 for image in record.images},
        "same_bytes": done.same_bytes,
        "other_imagebuilder": done.other_builder,
        "changes": asdict(done.changes),
        "versions": list(done.version_changes),
        "warning": record.warning,
    }


def _lines(backup: Backup, done: Rebuilt) -> list[str]:
    artifact, record = done.artifact, done.artifact.record
    lines = [f"{record.hostname}, OpenWrt {record.release}, image {record.id[:12]}, from {backup.folder}"]
    for image in record.images:
        lines.append(f"  {artifact.folder / image.name}  {image.size_bytes / 2**20:.1f} MiB  SHA-256 {image.sha256}")
    if done.same_bytes:
        lines.append("the same bytes as the image that the box ran")
    elif record.id == backup.record.image_id:
        unknown = done.same_bytes is None
        words = "whether its bytes are the same is not known: the build was not at hand for the backup"
        lines.append("made of the same things as the image that the box ran")
        lines.append(words if unknown else "but other bytes came of it: packages or the ImageBuilder are others now")
    else:
        lines.append(
            f"another image than the box ran ({clean(backup.record.image_id[:12]) or 'which does not say its id'}):"
        )
        lines += [f"  {line}" for line in _differences(done.changes, done.other_builder)]
    if done.version_changes:
        lines.append(f"packages in other versions than on the box: {len(done.version_changes)}")
        lines += [f"  {line}" for line in done.version_changes[:20]]
    lines += [f"left out: {line}" for line in done.changes.left_out]
    if record.secrets:
        lines.append("it holds secrets; the image files are for you alone (0600)")
    if record.warning:
        lines.append(terminal.paint(record.warning, "yellow"))
    lines.append(f"onto a disk: ./inv flash {artifact.folder} --to DISK")
    return lines


def _differences(changes: Changes, other_builder: bool) -> list[str]:
    lines = ["another ImageBuilder made it"] if other_builder else []
    for word, names in (
        ("as changed on the box", changes.changed), ("added on the box", changes.added),
        ("removed on the box", changes.removed), ("packages added", changes.packages_added),
        ("packages removed", changes.packages_removed),
    ):  # fmt: skip
        if names:
            lines.append(f"{word}: {', '.join(names)}")
    return lines
